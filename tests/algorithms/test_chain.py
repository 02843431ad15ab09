"""Steps in processes that stay: their order, what they print, and how failures, signals and deaths end them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from algorithms.chain import Step, StepError, carry_out
from engine import progress
from engine.progress import phase
from engine.stopping import StopRequest

SECONDS = 30  # after which something hangs


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Notes:
    """Lines of several processes in one file."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def add(self, *words: object) -> None:
        with self.path.open("a") as file:  # one write, which no other comes between
            file.write(" ".join(map(str, words)) + "\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()


@pytest.fixture
def notes(tmp_path) -> Notes:
    return Notes(tmp_path / "notes")


def noting(notes: Notes, title: str) -> Callable[[], int]:
    def do() -> int:
        notes.add(title, os.getpid())
        return 0

    return do


def until_stopped(notes: Notes, title: str, then: Callable[[], None] = lambda: None) -> Callable[[], int]:
    """A step that only a signal ends, as one ends a training: with a status."""

    def do() -> int:
        try:
            with StopRequest() as stop:
                notes.add(title, os.getpid())
                then()
                wait_until(lambda: stop.number is not None)
                notes.add("stopped by", signal.Signals(stop.number).name)
        except KeyboardInterrupt:
            return 130
        return 1

    return do


@pytest.fixture(autouse=True)
def terminated():
    """SIGTERM is an exception in all processes, as whoever calls has it."""

    def terminate(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_step_begins_when_all_that_it_needs_has_ended(notes):
    def meeting(title: str, other: str) -> Callable[[], int]:
        """Ends when the other is there too."""

        def do() -> int:
            notes.add(title, os.getpid())
            wait_until(lambda: any(line.startswith(other) for line in notes.lines()))
            return 0

        return do

    steps = [
        Step("teacher", meeting("teacher", "alone")),
        Step("words", noting(notes, "words"), ("teacher",)),
        Step("student", noting(notes, "student"), ("words", "alone")),
        Step("alone", meeting("alone", "teacher")),
    ]
    carry_out(steps, processes=2)
    titles, processes = zip(*map(str.split, notes.lines()), strict=True)
    assert sorted(titles[:2]) == ["alone", "teacher"] and titles[2:] == ("words", "student")
    assert len(set(processes)) == 2 and str(os.getpid()) not in processes


def test_lines_stand_behind_the_number_of_their_step(capsys):
    def do() -> int:
        print("begun", end=" ")
        print("and done\n")
        print("careful", file=sys.stderr)
        return 0

    carry_out([Step("one", do), Step("two", do)], processes=1)
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line and ", done in " not in line]
    assert lines == ["step 1 of 2: one", "[1] begun and done", "step 2 of 2: two", "[2] begun and done"]
    assert err.splitlines() == ["[1] careful", "[2] careful"]


def test_the_line_counts_the_first_phase_of_each_step_by_its_cost(monkeypatch):
    shown: list[tuple[str, float]] = []
    update = progress.Line.update

    def note(line: progress.Line, number: float = 1) -> bool | None:
        found = update(line, number)
        shown.append((line.desc, round(line.n, 3)))
        return found

    def do() -> int:
        with phase("epochs", 4) as line:
            line.update()
            line.refresh()
        with phase("evaluation", 2) as line:
            line.update()
            line.refresh()
        return 0

    monkeypatch.setattr(progress.Line, "update", note)
    carry_out([Step("short", lambda: 0), Step("long", do, cost=8)], processes=1)
    assert shown == [
        ("step 1 of 2: short", 1),
        ("step 2 of 2: long", 3),
        ("step 2 of 2: long", 5),
        ("step 2 of 2: long", 9),
    ]


def test_a_failure_stops_what_is_done_beside_it_and_nothing_else_begins(notes):
    def fail() -> int:
        wait_until(lambda: any(line.startswith("beside") for line in notes.lines()))
        return 3

    steps = [Step("beside", until_stopped(notes, "beside")), Step("bad", fail), Step("never", noting(notes, "never"))]
    with pytest.raises(StepError, match=r"^step 2 of 3, bad, is not finished$") as caught:
        carry_out(steps, processes=2)
    assert caught.value.status == 3
    assert [line.rpartition(" ")[0] for line in notes.lines()] == ["beside", "stopped by"]
    assert notes.lines()[-1] == "stopped by SIGTERM"


def test_a_process_that_dies_is_a_step_that_has_failed(capsys):
    with pytest.raises(StepError) as caught:
        carry_out([Step("bad", lambda: os.kill(os.getpid(), signal.SIGKILL))], processes=1)
    assert caught.value.status == -signal.SIGKILL
    assert capsys.readouterr().err == "[1] error: its process has ended with status -9\n"


def test_a_process_that_dies_between_two_steps_fails_the_next(capsys):
    def dies_behind_its_end() -> int:
        thread = threading.Thread(target=lambda: (time.sleep(0.05), os._exit(9)))
        thread.start()
        return 0

    def meanwhile() -> int:
        time.sleep(0.5)
        return 0

    steps = [Step("one", dies_behind_its_end), Step("other", meanwhile), Step("last", lambda: 0, ("one", "other"))]
    with pytest.raises(StepError, match="step 3 of 3, last, is not finished") as caught:
        carry_out(steps, processes=2)
    assert caught.value.status == 9
    assert "[3] error: its process has ended with status 9" in capsys.readouterr().err


def test_what_has_no_end_of_a_line_is_printed_with_its_step(capsys):
    def print_a_part() -> int:
        print("a part", end="")
        return 0

    carry_out([Step("one", print_a_part), Step("two", print_a_part, ("one",))], processes=1)
    assert [line for line in capsys.readouterr().out.splitlines() if "part" in line] == ["[1] a part", "[2] a part"]


def test_ctrl_c_is_passed_on_and_nothing_else_begins(notes):
    def interrupt() -> None:
        wait_until(lambda: len(notes.lines()) == 2)
        os.kill(os.getppid(), signal.SIGINT)

    steps = [Step("one", until_stopped(notes, "one")), Step("two", until_stopped(notes, "two", then=interrupt))]
    steps.append(Step("never", noting(notes, "never")))
    with pytest.raises(KeyboardInterrupt):
        carry_out(steps, processes=2)
    assert sorted(line.split()[0] for line in notes.lines()[:2]) == ["one", "two"]
    assert notes.lines()[2:] == ["stopped by SIGINT"] * 2


def test_a_second_ctrl_c_waits_for_no_step(notes):
    def wait_for_ever() -> int:
        with StopRequest() as stop:
            os.kill(os.getppid(), signal.SIGINT)
            wait_until(lambda: stop.number is not None)
            notes.add("asked once")
            os.kill(os.getppid(), signal.SIGINT)
            wait_until(lambda: False)
        return 0

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        carry_out([Step("long", wait_for_ever)], processes=1)
    assert notes.lines() == ["asked once"] and time.monotonic() - begun < SECONDS


def test_processes_do_not_outlive_the_one_that_started_them(notes):
    def wait_for_its_end(parent: int) -> int:
        notes.add(os.getpid())
        wait_until(lambda: os.getppid() != parent)
        return 0

    def start() -> None:
        parent = os.getpid()
        carry_out([Step(title, lambda: wait_for_its_end(parent)) for title in ("one", "two")], processes=2)

    whole = multiprocessing.get_context("fork").Process(target=start)
    whole.start()
    wait_until(lambda: len(notes.lines()) == 2)
    whole.kill()
    whole.join()
    for process in map(int, notes.lines()):
        wait_until(lambda process=process: not Path(f"/proc/{process}").exists() or is_dead(process))


def is_dead(process: int) -> bool:
    """Whether it has ended and nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True
