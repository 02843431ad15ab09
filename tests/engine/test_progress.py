"""What is said of how far a job is: in a terminal of 80 columns, in a file by an injected clock, and by every job."""

import fcntl
import itertools
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from training_tools import train

from dataloaders import Batch
from engine import progress, records
from engine.progress import LINE_SECONDS, phase, rough, tracked, within
from engine.records import log

COLUMNS = 80
pytestmark = pytest.mark.usefixtures("few_digits")


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Messages of the log."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, level = Keep(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


# --- a file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(clock, lines, monkeypatch) -> tuple[Clock, list[str]]:
    monkeypatch.setattr(progress, "is_watched", lambda: False)
    return clock, lines


def test_a_file_gets_a_line_every_half_minute_and_one_at_the_end(file):
    clock, lines = file
    with within("step", 3, 9), phase("k-means of 4096 words", 20) as line:
        for iteration in range(20):
            clock.now += 12
            line.set_postfix(objective=f"{100 - iteration}", refresh=False)
            line.update()
    assert lines == [
        "step 3 of 9: k-means of 4096 words  15%, about 3 min left, objective=98",
        "step 3 of 9: k-means of 4096 words  30%, about 3 min left, objective=95",
        "step 3 of 9: k-means of 4096 words  45%, about 2 min left, objective=92",
        "step 3 of 9: k-means of 4096 words  60%, about 96 s left, objective=89",
        "step 3 of 9: k-means of 4096 words  75%, about 60 s left, objective=86",
        "step 3 of 9: k-means of 4096 words  90%, about 24 s left, objective=83",
        "step 3 of 9: k-means of 4096 words, done in 0:04:00",
    ]


def test_however_often_it_is_asked_lines_are_half_a_minute_apart(file):
    clock, lines = file
    times, said = [], 0
    with phase("patches", 10_000) as line:
        for _ in range(10_000):
            clock.now += 0.1
            line.update()
            line.say("patches")  # asks for the line to be shown
            if len(lines) > said:
                said = len(lines)
                times.append(clock.now)
    assert len(times) == 1000 // LINE_SECONDS == len(lines) - 1
    assert min(after - before for before, after in itertools.pairwise(times)) >= LINE_SECONDS


def test_no_time_is_said_before_something_is_measured(file):
    clock, lines = file
    with phase("evaluation", 100, initial=50) as line:
        clock.now += LINE_SECONDS
        line.refresh()
        clock.now += LINE_SECONDS
        line.update(10)  # what was done before this run has no pace
    assert lines[:2] == ["evaluation  50%", "evaluation  60%, about 4 min left"]


def test_the_time_that_a_phase_takes_to_begin_is_not_counted_again(file):
    clock, lines = file
    with phase("epoch 1 of 1", 60, starts_up=True) as line:
        for seconds in [600, *[1] * 59]:
            clock.now += seconds
            line.update()
    assert lines[:2] == ["epoch 1 of 1   2%", "epoch 1 of 1  52%, about 29 s left"]


def test_a_phase_that_goes_on_has_the_pace_of_what_is_behind_its_first_item(file):
    clock, lines = file
    with phase("2 epochs", 100, initial=50, starts_up=True) as line:
        for _ in range(3):
            clock.now += LINE_SECONDS
            line.update(10)
    assert lines[:3] == ["2 epochs  60%", "2 epochs  70%, about 90 s left", "2 epochs  80%, about 60 s left"]


def test_items_that_are_done_together_have_the_pace_from_the_beginning(file):
    """Runs of an hour, four at once: what lies between the first and the others says nothing."""
    clock, lines = file
    with phase("16 runs", 16) as line:
        for seconds in [3600, 40, 40, 40] * 4:
            clock.now += seconds
            line.update()
    assert lines[3] == "16 runs  25%, about 3.1 h left"


def test_the_epochs_that_are_left_take_as_long_as_those_that_were(file, monkeypatch):
    """Training at 3 s and evaluation at 1 s an image: an epoch of ten images each is 40 s."""
    clock, lines = file
    monkeypatch.setattr(progress, "LINE_SECONDS", 40)
    with phase("3 epochs", 60) as line:
        for epoch in (1, 2, 3):
            line.say(f"epoch {epoch} of 3")
            for seconds in [3] * 10 + [1] * 10:
                clock.now += seconds
                line.update()
    assert lines == [
        "epoch 1 of 3  33%, about 80 s left",
        "epoch 2 of 3  67%, about 40 s left",
        "epoch 3 of 3 100%",
        "3 epochs, done in 0:02:00",
    ]


def test_what_is_broken_off_is_not_called_done(file):
    _, lines = file
    with pytest.raises(KeyboardInterrupt), phase("patches", 2):
        raise KeyboardInterrupt
    assert lines == []


def test_reading_files_is_no_phase(file):
    clock, lines = file

    def items() -> Iterator[int]:
        for item in range(4):
            clock.now += 20
            yield item

    with within("step", 1, 2):
        assert list(tracked(items(), 4, "decoding train")) == [0, 1, 2, 3]
    assert lines == ["step 1 of 2: decoding train  50%, about 40 s left", "step 1 of 2: decoding train 100%"]


def test_places_in_the_chain_are_nested_and_left_again(file):
    _, lines = file
    with within("step", 4, 4), within("trial", 2, 5), phase("8 epochs", 1, number=1, count=2):
        pass
    with within("trial", 1, 1), phase("patches", 1, number=1, count=2):
        pass
    with phase("evaluation", 1):
        pass
    assert [line.rpartition(",")[0] for line in lines] == [
        "step 4 of 4, trial 2 of 5, part 1 of 2: 8 epochs", "step 1 of 2: patches", "evaluation"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (40.4, "40 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (5999, "100 min"), (12_600, "3.5 h")],
)
def test_a_rough_time_is_short(seconds, words):
    assert rough(seconds) == words


def test_nothing_is_read_back_from_the_device(file):
    """Tensors without values cannot be read."""
    images, labels = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    with phase("epoch", 8) as line:
        assert len(list(line.over([Batch(images, labels, labels)] * 2))) == 2
        assert line.n == 8


# --- a terminal ------------------------------------------------------------------------------------------------------


def screen(written: str) -> list[str]:
    """What a terminal shows in the end. Refuses what is wider than it is, or anything but text, \\r and \\n."""
    rows, row, column = [""], 0, 0
    for sign in written:
        if sign == "\r":
            column = 0
        elif sign == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        else:
            assert sign.isprintable(), repr(sign)
            assert column < COLUMNS, f"beyond column {COLUMNS}: {rows[row]!r}"
            rows[row] = rows[row][:column].ljust(column) + sign + rows[row][column + 1 :]
            column += 1
    return [row.rstrip() for row in rows]


@contextmanager
def terminal() -> Iterator[list[str]]:
    """stdout and stderr are a terminal of 80 columns; what was written to it is in the list afterwards."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    chunks: list[bytes] = []
    written: list[str] = []

    def read() -> None:
        while chunk := _read(master):
            chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as stream:
        for name in ("stdout", "stderr", "__stderr__"):
            patch.setattr(sys, name, stream)
        yield written
    reader.join()  # it ends where the other side is closed
    os.close(master)
    written.append(b"".join(chunks).decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)
    except OSError:
        return b""


def test_a_terminal_shows_one_line_and_keeps_what_is_done(lines, clock, monkeypatch):
    monkeypatch.setattr(log, "handlers", [records._ConsoleHandler()])
    words = phase("k-means of 4096 words", 21, number=2, count=2)
    with terminal() as shown_there, within("step", 2, 4), words as line:
        for _ in range(21):
            clock.now += 30
            line.set_postfix(objective="1.23456e+08")
            line.update()
    (written,) = shown_there
    assert screen(written) == ["step 2 of 4, part 2 of 2: k-means of 4096 words, done in 0:10:30", ""]
    shown = [line for line in re.split("[\r\n]+", written) if line.strip()]
    assert shown[0].startswith("step 2 of 4, part 2 of 2: k-means of 4096 words   0%")
    assert "about" not in shown[0] and "k-means of 4096 words   5%, about 10 min left" in shown[2]
    assert {len(line.rstrip("\n")) for line in shown[:-1]} == {COLUMNS - 1}, "tqdm leaves the last"


def test_a_training_in_a_terminal_is_one_line_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(log, "handlers", [])  # messages have paths, which may be of any length
    with terminal() as shown_there:
        train("letKD-1", folder, epochs=2)
    (written,) = shown_there
    screen(written)
    shown = re.split("[\r\n]+", written)
    for epoch in (1, 2):
        assert any(line.startswith(f"epoch {epoch} of 2 ") and "left, loss=" in line for line in shown)


# --- the jobs --------------------------------------------------------------------------------------------------------

LDA_PHASES = ["reading patches", "LDA", "sub-classes", "decisions"]


@pytest.mark.parametrize(
    ("method", "options", "phases"),
    [
        ("classification", {"epochs": 1}, ["1 epoch"]),
        ("classification", {"epochs": 1, "val_split": 64}, ["1 epoch", "evaluation of 128 images"]),
        ("letKD-1", {"epochs": 1}, ["1 epoch"]),
        ("classification", {"kmeans": 16}, ["reading patches", "k-means of 16 words"]),
        ("classification", {"LDA": 5}, LDA_PHASES),
        ("classification", {"LDA": 5, "incremental": True}, [LDA_PHASES[1], LDA_PHASES[0], *LDA_PHASES[2:]]),
        ("classification", {"probe": True}, ["maps of train images", "maps of eval images"]),
        ("classification", {"evaluate": True}, ["evaluation of 128 images"]),
    ],
    ids=["training", "held-out images", "distillation", "k-means", "LDA", "incremental LDA", "probe", "evaluation"],
)
def test_every_job_tells_its_phases(method, options, phases, folder, lines):
    train(method, folder, **options)
    done = [line.rpartition(", done in ")[0] for line in lines if ", done in " in line]
    count = len(phases)
    steps = [f"step {number} of {count}: " if count > 1 else "" for number in range(1, count + 1)]
    assert done == [step + what for step, what in zip(steps, phases, strict=True)]


@pytest.mark.parametrize(
    ("options", "num_phases"),
    [({"kmeans": 16}, 2), ({"LDA": 5}, 4), ({"LDA": 5, "incremental": True}, 4)],
    ids=["k-means", "LDA", "incremental LDA"],
)
def test_every_phase_of_a_slow_job_says_what_is_left_until_it_is_done(
    options, num_phases, folder, lines, clock, monkeypatch
):
    """Every batch, iteration and class takes a minute, and leaves a line."""
    monkeypatch.setattr(progress, "is_watched", lambda: False)
    update = progress.Line.update

    def slow(line: progress.Line, number: float = 1) -> bool | None:
        clock.now += 60
        return update(line, number)

    monkeypatch.setattr(progress.Line, "update", slow)
    train("classification", folder, test_batch_size=64, **options)
    of_phases = [line for line in lines if line.startswith("step ")]
    phases = [list(said) for _, said in itertools.groupby(of_phases, key=lambda line: line.partition(":")[0])]
    assert len(phases) == num_phases
    for *shown, last, done in phases:
        assert all(re.search(r"%, about \d+ (s|min) left", line) for line in shown), shown
        assert "100%" in last and ", done in " in done
