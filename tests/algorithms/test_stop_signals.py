"""Processes that get real signals: SIGTERM, then Ctrl-C in what goes on, and in the end a run like any other."""

import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from training_tools import STEPS, differences, outcome, stop_at

import main_classification
from engine.checkpoints import load_checkpoint
from storage.tensor_files import load_json


def started(argv: list[str]) -> multiprocessing.Process:
    """A command as a process of its own; a fork, which has torch loaded already."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(main_classification.main(argv)))
    process.start()
    return process


def wait_for_another_epoch(progress: Path, process: multiprocessing.Process) -> None:
    epoch = load_json(progress)["epoch"] if progress.is_file() else 0
    deadline = time.monotonic() + 60
    while not progress.is_file() or load_json(progress)["epoch"] == epoch:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_real_signals_leave_a_run_that_goes_on_as_if_nothing_had_been(few_digits, tmp_path, capfd):
    words = ["main_classification.py", "with", "config=digits.RN8", "image_size=8", "cuda=False", "milestones=[1]"]
    directory, command = tmp_path / "digits/RN8", [*words, f"localpath={tmp_path}", "epochs=1000"]
    for number, status, go_on in ((signal.SIGTERM, 143, []), (signal.SIGINT, 130, ["checkpoint=-1"])):
        process = started([*command, *go_on])
        try:
            wait_for_another_epoch(directory / "progress.json", process)
            os.kill(process.pid, number)
            process.join(timeout=60)
            assert process.exitcode == status
        finally:
            process.kill()
        error = f"stopped; go on with: python {shlex.join([*command, 'checkpoint=-1'])}\n"
        assert capfd.readouterr().err == error
        content = load_checkpoint(directory / "stopped.pth")
        assert 0 < content["unfinished"]["num_steps"] <= STEPS
    assert not list(directory.glob(".*.part"))

    epochs = f"epochs={content['epoch'] + 1}"
    for place in (f"localpath={tmp_path}", f"localpath={tmp_path / 'whole'}"):
        assert main_classification.main([*words, place, epochs, "checkpoint=-1"]) == 0
    assert differences(outcome(directory), outcome(tmp_path / "whole/digits/RN8")) == []


# --- the command that goes on ----------------------------------------------------------------------------------------


@pytest.fixture
def go_on(few_digits, tmp_path, monkeypatch, capsys):
    """Runs a command that Ctrl-C stops in its n-th step, and returns the command that it says goes on."""

    def go_on(*words: str, step: int, set_places: bool = True) -> list[str]:
        with monkeypatch.context() as patch:
            stop_at(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            places = ["image_size=8", "cuda=False", "milestones=[]", f"localpath={tmp_path}"] if set_places else []
            assert main_classification.main(["main.py", *words, *places]) == 130
        (line,) = capsys.readouterr().err.splitlines()
        start, _, command = line.partition("stopped; go on with: python main.py")
        assert start == ""
        return [word for word in shlex.split(command) if word not in places]

    return go_on


@pytest.mark.parametrize(
    "words",
    [
        ("with", "epochs=2"),
        ("run", "with", "epochs=2"),
        ("with", "epochs=2", "-F", "elsewhere"),
        ("with", "epochs=2", "evaluate=False", "trials=0"),
    ],
    ids=" ".join,
)
def test_a_run_that_has_a_state_goes_on_from_it(words, go_on, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert go_on(*words, step=2) == [*words, "checkpoint=-1"]
    assert go_on(*words, "checkpoint=-1", step=STEPS) == [*words, "checkpoint=-1"]
    assert load_checkpoint(tmp_path / "digits/RN8/stopped.pth")["epoch"] == 1


def test_a_command_without_options_goes_on_too(go_on, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert go_on(step=1, set_places=False) == ["with", "checkpoint=-1"]


def test_going_back_goes_on_from_the_state_it_has_made(go_on):
    words = ["with", "epochs=3", "keep_every=1"]
    go_on(*words, step=2 * STEPS + 1)
    assert go_on(*words, "checkpoint=1", step=1) == [*words, "checkpoint=-1"]


def test_trials_and_what_is_prepared_go_on_by_the_same_command(go_on, tmp_path, monkeypatch):
    assert go_on("with", "seeds=[0,1]", "epochs=1", step=STEPS + 2) == ["with", "seeds=[0,1]", "epochs=1"]
    assert (tmp_path / "digits/RN8/seed1/stopped.pth").is_file()
    pair = ["with", "config=digits.RN14_RN8.letKD-1", "num_words=8", "prepare=True"]
    monkeypatch.setattr("algorithms.prepare.MEASURED_STEPS", 0)  # beside the first, which its time is told by
    assert go_on(*pair, step=1 + 2) == pair
    assert (tmp_path / "digits/RN14/stopped.pth").is_file()


def test_a_run_that_was_stopped_before_it_began_begins_anew(few_digits, monkeypatch, capsys, tmp_path):
    """And does not go on from an earlier run of the directory, which stands there as it was."""
    words = ["main.py", "with", "config=digits.RN8", "image_size=8", "epochs=1", "milestones=[]", "cuda=False"]
    words += [f"localpath={tmp_path}"]
    assert main_classification.main(words) == 0
    earlier = (tmp_path / "digits/RN8/last.pth").read_bytes()

    def interrupt(directory: Path) -> None:
        raise KeyboardInterrupt

    capsys.readouterr()
    monkeypatch.setattr("algorithms.train.set_aside", interrupt)
    assert main_classification.main([*words, "seed=1"]) == 130
    assert capsys.readouterr().err == f"stopped; go on with: python {shlex.join(words)} seed=1\n"
    assert (tmp_path / "digits/RN8/last.pth").read_bytes() == earlier


def test_a_worker_that_the_system_kills_is_one_line(tmp_path, monkeypatch, capsys):
    for split in ("train", "val"):
        for number in range(16):
            path = tmp_path / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (100, 100), (16 * number, 8 * number, 4 * number)).save(path)

    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()  # where torch notices

    stop_at(monkeypatch, 1, kill)
    words = [
        "config=ImageFolder.RN20",
        "name=mine.RN8",
        "network=resnet8",
        "image_size=100",
        "batch_size=2",
        "epochs=1",
    ]
    words += ["milestones=[]", "num_workers=1", "cuda=False", f"data_dir={tmp_path}", f"localpath={tmp_path}"]
    assert main_classification.main(["main.py", "with", *words]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: DataLoader worker \(pid.*\n", error) and "num_workers" in error
