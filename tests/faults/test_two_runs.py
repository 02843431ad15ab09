"""Two runs do not share a directory, and a killed one leaves it free."""

import datetime
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import pytest
from fault_tools import TEACHER, end, fork, run_here, start

import main_classification
from engine.records import exclusive, results_to_itself

ENDLESS = (*TEACHER, "epochs=100000", "milestones=[]")
NEW = (*TEACHER, "epochs=1", "milestones=[]")


@pytest.fixture(params=["forked", pytest.param("command", marks=pytest.mark.slow)])
def running(request: pytest.FixtureRequest, few_digits: None, tmp_path: Path) -> Iterator[int]:
    """The number of a process that trains and has finished an epoch."""
    if request.param == "forked":
        process = fork(lambda: run_here(*ENDLESS, localpath=tmp_path))
    else:
        process = start(*ENDLESS, localpath=tmp_path, output=DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "digits/RN8/last.pth").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        wait = process.join if isinstance(process, multiprocessing.process.BaseProcess) else process.wait
        wait(timeout=60)


def test_a_second_run_is_refused_and_a_killed_one_makes_room(running, tmp_path, capsys):
    """The second is told the number of the first and when it started; evaluation only reads, and goes on beside it."""
    assert main_classification.main(["main.py", "with", *NEW, f"localpath={tmp_path}"]) == 1
    error = capsys.readouterr().err
    found = re.search(r"in use by process (\d+), started (\S+);", error)
    assert found and error.count("\n") == 1, error
    assert int(found[1]) == running
    started = datetime.datetime.fromisoformat(found[2])
    assert 0 <= (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds() < 150
    run_here(*TEACHER, "evaluate=True", localpath=tmp_path)

    os.kill(running, signal.SIGKILL)
    os.waitid(os.P_PID, running, os.WEXITED | os.WNOWAIT)  # it is left for the fixture to collect
    assert f"process {running}," in (tmp_path / "digits/RN8/.lock").read_text(), "a stale lock is left behind"
    run_here(*NEW, localpath=tmp_path)
    assert (tmp_path / "digits/RN8/replaced/1/last.pth").is_file(), "what the killed run had is set aside"


def test_who_waits_for_another_says_so_before(tmp_path):
    held, waited = threading.Event(), threading.Event()

    def hold() -> None:
        with results_to_itself(tmp_path):
            held.set()
            assert waited.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    with results_to_itself(tmp_path, waited.set):
        assert waited.is_set()
    other.join()
    with results_to_itself(tmp_path, pytest.fail):  # nobody is there
        pass


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    dead = fork(lambda: None)
    end(dead)
    pieces = {number: tmp_path / f".last.pth.{number}.part" for number in (dead.pid, os.getpid())}
    for piece in pieces.values():
        piece.write_bytes(b"PK")
    with exclusive(tmp_path):
        assert not pieces[dead.pid].exists() and pieces[os.getpid()].exists()
