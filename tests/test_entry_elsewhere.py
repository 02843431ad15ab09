"""The command line on other machines: no git, ASCII alone, closed output; and options that come from files."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main_classification
from config.experiments import ENTRY_OPTIONS
from config.option_files import load_options
from engine import records
from storage.documents import load_json

ROOT = Path(main_classification.__file__).parent
ENTRY = [sys.executable, "main_classification.py"]
HOSTILE = {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["touch made"]}]}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TRAINING = ["with", "config=digits.RN8", "image_size=8", "epochs=1", "cuda=False", "num_workers=0"]


def git_that(action: str, folder: Path) -> Path:
    """A folder for PATH: without git, or with one that does this; with `cat`, which sacred calls for the processor."""
    folder.mkdir()
    (folder / "cat").symlink_to(shutil.which("cat"))
    if action:
        (folder / "git").write_text(f"#!/bin/sh\n{action}\n")
        (folder / "git").chmod(0o755)
    return folder


def container(folder: Path, git: str) -> dict[str, str]:
    """An environment without git or with another one, with a home that cannot be written, and of ASCII alone."""
    home = folder / "home"
    home.mkdir(mode=0o555)
    return {"PATH": str(git_that(git, folder / "bin")), "HOME": str(home), "OMP_NUM_THREADS": "1", **ASCII}


PUBLISHED = ["print_config", "with", "ce.weight=2", "config=digits.RN14_RN8.letKD-2"]  # it needs no losses to be loaded


@pytest.mark.parametrize("words", [PUBLISHED, ["--help"]], ids=" ".join)
def test_looking_is_quick_asks_no_git_and_leaves_torch_alone(words, tmp_path):
    source = (
        "import sys, time, main_classification as entry\n"
        f"try:\n    status = entry.main(['x', *{words}])\n"
        "except SystemExit as end:  # sacred's, behind its help\n    status = end.code or 0\n"
        "print(status, 'torch' in sys.modules, time.process_time())\n"
    )
    env, command = container(tmp_path, f"echo > {tmp_path / 'asked'}"), [sys.executable, "-c", source]
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=True)
    *shown, status, torch_imported, seconds = process.stdout.split()
    assert (status, torch_imported, process.stderr) == ("0", "False", "") and shown
    assert float(seconds) < 2
    assert not (tmp_path / "asked").exists()


NOT_OURS = "echo 'fatal: detected dubious ownership' >&2; exit 128"  # git, of the repository of somebody else


def in_a_container(folder: Path, *words: str) -> None:
    """A command that succeeds without a terminal, below a name outside ASCII."""
    command = [*ENTRY, *words, f"localpath={folder / 'Ergebnisse-ü'}"]
    env = container(folder, NOT_OURS)
    process = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr
    assert b"Traceback" not in process.stderr


def test_a_container_reports(supervision, tmp_path):
    shutil.copytree(supervision, tmp_path / "Ergebnisse-ü")
    in_a_container(tmp_path, "report", "with")
    assert (tmp_path / "Ergebnisse-ü/report/index.html").is_file()


@pytest.mark.slow  # loads torch; the quick tests ask its parts: the report above, git and encodings below
def test_a_container_trains(tmp_path):
    in_a_container(tmp_path, *TRAINING)
    place = tmp_path / "Ergebnisse-ü/digits/RN8"
    assert load_json(place / "results.json")["environment"]["commit"] is None
    assert "code of no known commit" in (place / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("git", ["", "exit 1", "exec /bin/sleep 100"], ids=["missing", "fails", "hangs"])
def test_the_commit_is_unknown_where_git_does_not_tell(git, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(git_that(git, tmp_path / "bin")))
    monkeypatch.setattr(records, "GIT_SECONDS", 0.1)
    assert records.code_version.__wrapped__() is None


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("o.json", json.dumps({"seed": HOSTILE}), "seed={'py/reduce'"),
        ("o.yaml", '!!python/object/apply:os.system ["touch made"]', "could not determine a constructor"),
        ("o.yml", "seed: [[1]]", "seed="),
        ("o.pickle", "", "options are read from files that end in"),
        ("o", "{}", "options are read from files that end in"),
        ("o.json", "[1]", "holds a list"),
        ("o.yaml", "null", "holds a NoneType"),
        ("o.json", "{", "cannot be read"),
        ("o.yaml", "a: [", "cannot be read"),
        ("o.json", "[" * 100_000, "cannot be read"),
        ("o.yaml", "[" * 500, "cannot be read"),
        ("o.json", b"\xff{}", "cannot be read"),
        ("o.json", '{"--force": 1}', "is no name of an option"),
        ("o.yaml", "5: 6", "is no name of an option"),
        ("o.json", '{"epochs": NaN}', "epochs=nan"),
        ("o.json", '{"epochs": 1, "seed": 2, "epochs": 3}', "'epochs' stands there twice; remove one"),
        ("o.yaml", "epochs: 1\nseed: 2\n'epochs': 3", "'epochs' stands there twice; remove one"),
        ("o.yaml", "seed: 2020-01-01", "seed="),
        ("o.json", '{"fname": "' + "x" * 2**20 + '"}', "larger than 1 MiB"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["", "behind a flag"])
def test_options_files_are_data(flags, name, content, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main_classification.main(["main.py", "print_config", "with", *flags, name]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {name}") and error in printed and printed.count("\n") == 1
    assert not Path("made").exists()


@pytest.mark.parametrize("name", ["missing.json", "folder.yaml"])
def test_an_options_file_that_is_none_is_named(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    assert main_classification.main(["main.py", "print_config", "with", name]) == 1
    assert name in capsys.readouterr().err


def test_what_files_say_and_what_words_say(tmp_path, capsys):
    first, second = tmp_path / "a.json", tmp_path / "b.yaml"
    first.write_text('\ufeff{"config": "digits.RN14", "epochs": 70, "seed": 3, "data_dir": "5"}', encoding="utf-8")
    second.write_text("learning_rate: 1e-3\nepochs: 71\nmilestones: [1, 2]\n")
    assert load_options(second) == {"learning_rate": 0.001, "epochs": 71, "milestones": [1, 2]}
    assert main_classification.main(["main.py", "print_config", "with", str(first), str(second), "seed=4"]) == 0
    text = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)  # colours
    shown = dict(re.split(" +# ", line.strip()) for line in text.splitlines() if "# " in line)
    assert {"epochs = 71", "seed = 4", "learning_rate = 0.001", "data_dir = '5'"} <= set(shown)
    assert shown["epochs = 71"] == "passes over the training images"


@pytest.mark.parametrize("option", [key for key, value in ENTRY_OPTIONS.items() if value is None])
@pytest.mark.parametrize("value", ["{1}", "b'x'", "1j", "...", "((1,),)", "[{1}]", str(HOSTILE), "1e999"])
def test_a_value_that_is_no_data_is_refused(option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main_classification.main(["main.py", "print_config", "with", f"{option}={value}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {option}=")
    assert not Path("made").exists()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "| head -1", ">/dev/full"])
def test_output_that_nobody_takes_makes_no_traceback(redirection, tmp_path):
    command = f"{sys.executable} {ROOT / 'main_classification.py'} print_config {redirection}"
    process = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in process.stderr and "Exception ignored" not in process.stderr
    assert process.returncode == (1 if "full" in redirection else 0)


def test_messages_that_nobody_reads_do_not_stop_a_run(monkeypatch):
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stdout", Closed())
    records._ConsoleHandler().emit(records.log.makeRecord("", 20, "", 0, "text", (), None))


def test_too_few_descriptors_are_one_line(tmp_path):
    """Whatever Python needs for itself: one of these limits is too low for us and not for it."""

    def said(descriptors: int) -> tuple[int, str]:
        command = f"ulimit -n {descriptors}; exec {' '.join(ENTRY)} report with localpath={tmp_path / 'none'}"
        process = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
        return process.returncode, process.stderr

    assert any(said(descriptors) == (1, f"error: {main_classification.MORE_FILES}\n") for descriptors in (6, 5, 7))


@pytest.mark.parametrize("package", main_classification.OBSERVER_PACKAGES)
def test_an_observer_without_its_package_is_one_line(package, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(main_classification.experiment, "run_commandline", fail)
    assert main_classification.main(["main_classification.py", "print_config"]) == 1
    assert f"install it: python -m pip install {package}" in capsys.readouterr().err


def test_five_interrupts_are_one(tmp_path):
    process = subprocess.Popen(
        [*ENTRY, "report", "--watch", "with", f"localpath={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    process.stdout.readline()
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors and process.returncode in (0, 130)


def test_every_text_file_has_its_encoding_said():
    folders = ("", "algorithms", "benchmarks", "config", "dataloaders", "docs", "letkd", "reporting")
    for path in (path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for call in calls:
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
                assert "encoding" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


def test_the_clock_may_go_back_between_two_sessions(tmp_path, monkeypatch):
    names = []
    for first_step, clock in ((1, 2e9), (10, 1e9), (20, 1e9), (30, 1e9)):
        monkeypatch.setattr(records.time, "time", lambda clock=clock: clock)
        with records.Curves(tmp_path, first_step=first_step) as curves:
            curves.add(first_step, "loss", {"cls": 1.0})
        names += [path.name for path in (tmp_path / "tensorboard").iterdir() if path.name not in names]
    assert len(names) == 4 and names == sorted(names)
