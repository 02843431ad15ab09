"""A command as a job of submitit's: what it leaves, and how it goes back into the queue."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from cluster_tools import program

from engine.queued import BEGIN, QUEUE, CommandError, QueuedCommand, has_begun, last_error, said_by
from engine.stopping import Stopped, StopRequest

submitit = pytest.importorskip("submitit")
ROOT = Path(__file__).parents[2]


def command(folder: Path, what: str) -> QueuedCommand:
    return QueuedCommand([str(program(folder)), str(folder), what], str(folder / "output" / f"{what}.txt"))


@pytest.fixture
def executor(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=2)
    return executor


@pytest.fixture(autouse=True)
def _same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_a_command_prints_is_behind_the_line_that_began_it(tmp_path):
    right, path = command(tmp_path, "right"), tmp_path / "output/right.txt"
    assert right() is None
    said = f"{BEGIN}python {tmp_path / 'program.py'} {tmp_path} right\nthis is right\n"
    assert path.read_text() == said
    right()
    assert path.read_text() == 2 * said and last_error(path) is None


@pytest.mark.parametrize(
    ("what", "error"), [("wrong", "it is wrong"), ("killed", "ended by SIGKILL; {} has what it said")]
)
def test_the_last_line_of_one_that_has_failed_says_why(what, error, tmp_path):
    path = tmp_path / f"output/{what}.txt"
    with pytest.raises(CommandError, match="^" + error.format(path)):
        command(tmp_path, what)()
    assert path.read_text().splitlines()[-1] == f"error: {error.format(path)}"
    assert last_error(path) == error.format(path)


def test_an_error_is_that_of_the_command_that_began_last(tmp_path):
    path = tmp_path / "said.txt"
    path.write_text(f"{BEGIN}python a\nerror: one\n{BEGIN}python a\nerror: two\n")
    assert last_error(path) == said_by(1, path) == "two"
    with path.open("a") as output:
        output.write(f"{BEGIN}python a\n")
    assert last_error(path) is None and said_by(1, path) == f"ended with exit status 1; {path} has what it said"


def test_what_earlier_jobs_said_is_not_of_this_one(tmp_path):
    path = tmp_path / "said.txt"
    path.write_text(f"{BEGIN}python a\nerror: one\n")
    before = path.stat().st_size
    assert last_error(path, before) is None and not has_begun(path, before)
    with path.open("a") as output:
        output.write(f"{BEGIN}python a\n 99%\rerror: two\n")
    assert last_error(path, before) == "two" and has_begun(path, before)
    path.write_text(f"{BEGIN}python a\n")  # anew, behind one that was removed
    assert has_begun(path, before) and not has_begun(tmp_path / "none.txt")


def test_a_job_whose_time_is_up_saves_its_state_and_goes_on_behind_the_others(tmp_path, executor):
    """submitit's signal comes to its own process; the command is told to end, and begins again."""
    job = executor.submit(command(tmp_path, "long"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for task in Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split():
        os.kill(int(task), signal.SIGUSR2)
    assert job.result() is None
    assert (tmp_path / "saved").exists() and (tmp_path / "long").exists()
    said = (tmp_path / "output/long.txt").read_text()
    assert said.count(BEGIN) == 2 and said.count("stopped") == 1 and "error" not in said


def test_in_a_queue_a_second_signal_changes_nothing(monkeypatch):
    """Slurm tells every process of a job, and submitit tells the command once more."""
    monkeypatch.setenv(QUEUE, "slurm")
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append("at last"))
    with pytest.raises(Stopped), StopRequest() as stop:
        for _ in stop.between(range(3)):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert not came
    assert came == ["at last"]
