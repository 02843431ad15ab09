"""Commands in this process or in processes of their own: errors, shares of the machine, and stops."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from algorithms.tasks import Task, carry_out, environment_of

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

place, what = Path(sys.argv[1]), sys.argv[2]
print("this is", what, flush=True)
if what == "wrong":
    print("error: it is wrong", file=sys.stderr)
    sys.exit(1)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "odd":
    sys.exit(3)
if what == "long":
    def save(*_):
        (place / f"saved-{os.getpid()}").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (place / f"begun-{os.getpid()}").touch()
    time.sleep(60)
"""


@pytest.fixture
def task(tmp_path):
    """Makes tasks of a small program."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def make(what: str, title: str | None = None, here=None) -> Task:
        return Task(title or what, f"python {program} {tmp_path} {what}", here or (lambda: None))

    return make


def ended(tasks: list[Task], folder: Path, jobs: int) -> dict[str, str | None]:
    return {task.title: error for task, error in carry_out(tasks, jobs=jobs, folder=folder / "output", kind="run")}


def test_the_error_of_a_process_is_its_last_line_or_how_it_ended(task, tmp_path):
    found = ended([task(what) for what in ("right", "wrong", "killed", "odd")], tmp_path, jobs=2)
    place = tmp_path / "output"
    assert found == {
        "right": None,
        "wrong": "it is wrong",
        "killed": f"ended by SIGKILL; {place / 'killed.txt'} has what it said",
        "odd": f"ended with exit status 3; {place / 'odd.txt'} has what it said",
    }
    assert (place / "right.txt").read_text() == "this is right\n"


def test_one_that_cannot_be_started_ends_no_other(task, tmp_path):
    (tmp_path / "output/taken.txt").mkdir(parents=True)
    found = ended([task("right", "taken"), task("right")], tmp_path, jobs=2)
    assert found["right"] is None and "Is a directory" in found["taken"]


def test_here_an_error_ends_its_task_alone(task, tmp_path):
    def mistake() -> None:
        raise ValueError("a mistake\nand more")

    def fault() -> None:
        raise ZeroDivisionError("by nothing")

    done: list[str] = []
    tasks = [task("a", here=mistake), task("b", here=fault), task("c", here=lambda: done.append("c"))]
    assert ended(tasks, tmp_path, jobs=1) == {"a": "a mistake", "b": "ZeroDivisionError: by nothing", "c": None}
    assert done == ["c"] and not (tmp_path / "output").exists()


def test_a_stop_lets_what_runs_save_its_state_and_begins_no_other(task, tmp_path):
    """The signal comes to this process alone, when two of three run."""

    def stop() -> None:
        while len(list(tmp_path.glob("begun-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        ended([task("long", title) for title in ("one", "two", "three")], tmp_path, jobs=2)
    stopping.join()
    assert len(list(tmp_path.glob("begun-*"))) == len(list(tmp_path.glob("saved-*"))) == 2
    assert not (tmp_path / "output/three.txt").exists()


def test_processes_share_the_machine(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [environment_of(slot, 3) for slot in range(3)]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found] == ["0", "1", "0"]
    assert {own["OMP_NUM_THREADS"] for own in found} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment_of(1, 2) | {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "1"} == environment_of(1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert environment_of(1, 2)["CUDA_VISIBLE_DEVICES"] == "5,7", "one device is everybody's"
