"""How far a job is: one line for each of its phases, which a terminal shows over and over and a file now and then.

    step 2 of 4, part 2 of 2: k-means of 4096 words  43%, about 5 min left, objective=1.234e+08 |████▎     |

A phase is what takes time of its own: reading patches, k-means, the epochs of a training. It says where it stands among
the phases of its job, and where the job stands among the steps of `prepare=True` and the trials. The time left is the
phase's, from its mean pace so far; before anything of it is done none is said. Where a network runs through batches the
first one is left out of that, which also opens files, starts workers and compiles. Where nobody watches a terminal the
line is a message of the log, at most one in LINE_SECONDS. A phase that is done leaves a message in any case. In a
process beside others, of which another shows one line for all, a phase only tells how much of it is done (`telling`).

What is counted is what the host has asked for: nothing is read back from the device.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

from dataloaders import Batch
from engine.records import duration, log
from letkd.processes import member

LINE_SECONDS = 30
TOLD_SECONDS = 0.5  # at least, between two shares that are told
FORMAT = "{desc} {percentage:3.0f}%{left}{postfix}"  # what matters less comes last: a narrow terminal cuts it off

Item = TypeVar("Item")

_places: ContextVar[tuple[str, ...]] = ContextVar("places", default=())  # in the chain, of what is done now
_tell: ContextVar[Callable[[float], None] | None] = ContextVar("tell", default=None)


class Line(tqdm):
    """A line that a terminal shows over and over, with a bar in what is left of its width.

    Args:
        what: is done.
        total: of `update`.
        places: of it in the chain, the outermost first.
        starts_up: in its first item, which has no pace then.
        options: of tqdm.
    """

    def __init__(self, what: str, total: int, places: tuple[str, ...], *, starts_up: bool = False, **options: Any):
        self.places = places
        self.paced_from: tuple[float, float] | None = None  # what was done, and the time
        shown = {"bar_format": FORMAT + " |{bar}|", "dynamic_ncols": True, "leave": False, "miniters": 1}
        super().__init__(desc=self.describe(what), total=total, **shown | options)
        if not starts_up:
            self.paced_from = (self.n, self.start_t)

    def describe(self, what: str) -> str:
        """What is done, behind its places."""
        return f"{', '.join(self.places)}: {what}" if self.places else what

    def say(self, what: str) -> None:
        """Call what is done something else from now on."""
        self.set_description_str(self.describe(what))

    def update(self, n: float | None = 1) -> bool | None:
        if self.paced_from is None and n:
            self.paced_from = (self.n + n, self._time())
        return super().update(n)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches one after the other, each of which is as much progress as it has images for all processes."""
        for batch in batches:
            yield batch
            self.update(member().size * len(batch.labels))

    @property
    def format_dict(self) -> dict[str, Any]:
        """With the time that is left at the mean pace; that of the last steps alone jumps on a busy machine."""
        facts = super().format_dict
        before, since = self.paced_from or (facts["n"], 0.0)
        done, left = facts["n"] - before, facts["total"] - facts["n"]
        is_known = done > 0 and left > 0
        return facts | {"left": f", about {rough(left * (self._time() - since) / done)} left" if is_known else ""}


class _LogLine(Line):
    """The same as messages of the log."""

    def __init__(self, *args: Any, **options: Any):
        self.said_at: float | None = None
        super().__init__(*args, **options, bar_format=FORMAT, dynamic_ncols=False, file=io.StringIO())

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = self._time()
        if self.said_at is None:  # it has just begun
            self.said_at = now
        elif msg is None and now - self.said_at >= LINE_SECONDS:
            self.said_at = now
            log.info("%s", self)


class _ToldLine(Line):
    """No line: how much of the phase is done, 0 to 1, is told."""

    def __init__(self, tell: Callable[[float], None], *args: Any, **options: Any):
        self.tell = tell
        super().__init__(*args, **options, dynamic_ncols=False, file=io.StringIO(), mininterval=TOLD_SECONDS)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            self.tell(self.n / self.total)


def is_watched() -> bool:
    """Whether somebody sees a line that changes: stderr is a terminal (sacred may have replaced sys.stderr)."""
    return member().is_first and sys.__stderr__ is not None and sys.__stderr__.isatty()


@contextmanager
def within(kind: str, number: int, count: int) -> Iterator[None]:
    """Let phases inside say that they are in `number` of `count` of a kind, like "step 2 of 4"; of one say nothing."""
    token = _places.set(_place(kind, number, count))
    try:
        yield
    finally:
        _places.reset(token)


@contextmanager
def telling(tell: Callable[[float], None]) -> Iterator[None]:
    """Let phases inside show nothing and tell their shares."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


@contextmanager
def phase(what: str, total: int, *, number: int = 1, count: int = 1, **options: Any) -> Iterator[Line]:
    """The line of a phase; at its end a message says how long it took, unless it was broken off.

    Args:
        what: is done.
        total: of `update`.
        number, count: which of its job's phases it is.
        options: of `Line`.
    """
    places = _place("part" if _places.get() else "step", number, count)
    with _line(what, total, places, **options) as line:
        yield line
        seconds = line.format_dict["elapsed"]
    log.info("%s, done in %s", line.describe(what), duration(seconds))


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items one after the other, with a line for what is no phase of its own, and leaves no message."""
    with _line(what, total, _places.get()) as line:
        for item in items:
            yield item
            line.update()


def rough(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _place(kind: str, number: int, count: int) -> tuple[str, ...]:
    return (*_places.get(), f"{kind} {number} of {count}") if count > 1 else _places.get()


def _line(what: str, total: int, places: tuple[str, ...], **options: Any) -> Line:
    if tell := _tell.get():
        return _ToldLine(tell, what, total, places, **options)
    return (Line if is_watched() else _LogLine)(what, total, places, **options)
