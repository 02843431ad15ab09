"""The demonstration: its table and its sentence from numbers, and the chain, broken off and gone on with."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dataloaders.numbers
import demo
from algorithms.train import Training
from demo import Row
from storage.documents import load_json

ROOT = Path(demo.__file__).parent
SHORT = ["allow_poor_teacher=True", "epochs=1", "milestones=[]", "cuda=False"]
METHODS = ("letKD-2",)


def rows(**top1: list[float]) -> list[Row]:
    taught = [Row("resnet8", name.replace("_", "-"), values, 1234) for name, values in top1.items()]
    return [Row("resnet14", "alone", [91.0], 5678), *taught]


def test_the_table_has_means_sample_deviations_and_parameters():
    head, line, teacher, student = demo.table(rows(alone=[80.0, 82.0, 84.0])).splitlines()
    assert head.split() == ["network", "method", "top-1", "%", "deviation", "seeds", "parameters"]
    assert set(line) == {"-", " "}
    assert teacher.split() == ["resnet14", "alone", "91.00", "-", "1", "5,678"]
    assert student.split() == ["resnet8", "alone", "82.00", "2.00", "3", "1,234"]


LOW, MIDDLE, HIGH, SPREAD = [80.0, 80.1, 80.2], [83.0, 83.1, 83.2], [86.0, 86.1, 86.2], [76.0, 84.0, 92.0]


@pytest.mark.parametrize(
    ("top1", "said"),
    [
        ({"letKD_1": HIGH}, "letKD-1 is above the student alone (+6.00) and QuEST (+3.00)."),
        ({"letKD_1": LOW}, "letKD-1 is below QuEST (-3.00), not told apart from the student alone (+0.00)."),
        ({"letKD_1": SPREAD}, "letKD-1 is not told apart from the student alone (+3.90) and QuEST (+0.90)."),
        (
            {"KD": LOW, "letKD_1": LOW},
            "letKD-1 is below QuEST (-3.00), not told apart from the student alone (+0.00) and KD (+0.00).",
        ),
        (
            {"KD": LOW, "CRD": MIDDLE, "letKD_1": HIGH},
            "letKD-1 is above the student alone (+6.00), QuEST (+3.00), KD (+6.00) and CRD (+3.00).",
        ),
        (
            {"letKD_1": [81.0, 81.1, 81.2], "letKD_2": LOW},
            "letKD-1 is above the student alone (+1.00), below QuEST (-2.00); "
            "letKD-2 is below QuEST (-3.00), not told apart from the student alone (+0.00).",
        ),
    ],
    ids=["won", "lost", "unclear", "several", "all", "both"],
)
def test_the_sentence_says_what_the_numbers_say(top1, said):
    whole = demo.sentence(rows(alone=LOW, QuEST=MIDDLE, **top1))
    assert whole == f"With 3 seeds each, by Welch's t-test at 5%: {said}"


def not_painted(figure: object, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".png").write_bytes(b"a picture")


@pytest.fixture
def short() -> Iterator[None]:
    """200 pictures for training and as many for evaluation, one method, two seeds; pictures are not painted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloaders.numbers, "NUM_PICTURES", 200)
        patch.setattr(demo, "METHODS", METHODS)
        patch.setattr(demo, "NUM_SEEDS", 2)
        patch.setattr(demo, "num_processes", lambda: 2)  # forks of this one
        patch.setattr("reporting.pictures.base.save_figure", not_painted)
        yield


@pytest.fixture
def broken_off(short, tmp_path_factory) -> Path:
    """What is there after Ctrl-C in the second run of the student alone, while the teacher waits for its end."""
    folder = tmp_path_factory.mktemp("demo")
    run_epoch = Training._run_epoch

    def interrupt(self: Training, epoch: int) -> None:
        if self.directory.name == "seed1":
            os.kill(os.getppid(), signal.SIGINT)
        if self.directory.name != "seed0":
            while self.stop.number is None:  # it comes back from there
                time.sleep(0.01)
        run_epoch(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_run_epoch", interrupt)
        assert demo.main([*SHORT, f"localpath={folder}"]) == 130
    begun = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.pth")}
    assert begun == {"numbers/RN14", "numbers/RN8/seed0", "numbers/RN8/seed1"}
    return folder


@pytest.mark.filterwarnings("ignore:Precision loss")  # two seeds with the same accuracy
def test_after_ctrl_c_the_same_command_does_the_rest(broken_off, tmp_path, capsys):
    root = tmp_path / "rest"
    shutil.copytree(broken_off, root)
    made = {path: path.stat().st_mtime_ns for path in root.glob("numbers/RN8/seed0/*.pth")}
    assert made
    assert demo.main([*SHORT, f"localpath={root}"]) == 0
    out = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was trained is not trained again"
    began = re.findall(r"^\nstep (\d) of 9: (.*)$", out, re.MULTILINE)
    assert began[0] == ("1", "teacher") and began[-1] == ("9", "report")
    assert sorted(number for number, _ in began) == [str(number) for number in range(1, 10)]
    *phases, whole = [line for line in out.splitlines() if ", done in " in line]
    assert whole.startswith("9 steps, done in ")
    assert all(re.match(r"\[(\d)\] step \1 of 9[,:] ", line) for line in phases), phases
    assert any(line.startswith("[4] step 4 of 9, part 1 of 2: reading patches, ") for line in phases)
    for name in ("RN8", *(f"RN14_RN8/{method}" for method in METHODS)):
        seeds = [load_json(root / "numbers" / name / f"seed{seed}" / "results.json") for seed in (0, 1)]
        mean = statistics.fmean(results["top1"] for results in seeds)
        method = "alone" if name == "RN8" else name.rpartition("/")[2]
        assert ["resnet8", method, f"{mean:.2f}"] in [line.split()[:3] for line in out.splitlines()]
        assert all(results["parameters"] == seeds[0]["parameters"] for results in seeds)
    *_, told, _, page, picture = out.splitlines()
    assert told.startswith("With 2 seeds each, by Welch's t-test at 5%: letKD-2 is ")
    for line in (page, picture):
        assert Path(line.partition("file://")[2]).is_file()
    results = root / "numbers/RN14_RN8/letKD-2/seed1/results.json"
    results.write_text(json.dumps(load_json(results) | {"codebook_fingerprint": "0" * 64}))
    with pytest.raises(
        ValueError, match=r"seed1 was taught by .*: their mean would be of two teachings|seed1 has 0000"
    ):
        demo.collect(root)


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_said_and_nothing_is_trained(word, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "carry_out", lambda *asked: pytest.fail("the chain began"))
    assert demo.main([f"localpath={tmp_path}", word]) == 0
    assert capsys.readouterr().out.startswith("The whole chain on two-digit numbers: ")


def test_what_ends_the_chain_is_said_with_the_command_that_goes_on(tmp_path, capsys):
    words = ["epochs=0", f"localpath={tmp_path}"]
    assert demo.main(words) == 1
    *errors, said = capsys.readouterr().err.splitlines()
    assert {error.partition("] ")[2] for error in errors} == {"error: epochs=0 must be at least 1"}
    assert said.startswith("step ")
    assert said.endswith(f", is not finished; the whole goes on with: python demo.py {' '.join(words)}")


@pytest.mark.slow
def test_the_whole_demonstration_has_room(tmp_path):
    """As it is written: its teacher is at least three points above the mean of the student alone."""
    command = [sys.executable, "demo.py", f"localpath={tmp_path}", "cuda=False"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    teacher, alone, *taught = demo.collect(tmp_path)
    assert teacher.top1[0] >= statistics.fmean(alone.top1) + 3
    assert [row.method for row in taught] == ["KD", "QuEST", "letKD-1", "letKD-2"]
    assert all(len(row.top1) == 3 for row in (alone, *taught))
    assert demo.table([teacher, alone, *taught]) in done.stdout
    assert demo.sentence([teacher, alone, *taught]) in done.stdout
