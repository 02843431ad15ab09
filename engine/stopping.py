"""Stops that wait for the end of a training step.

A step changes weights, momenta and running statistics one after the other; what is saved in the middle of one is no
state of the run. While a `StopRequest` is open, Ctrl-C, SIGTERM and SIGUSR1, Slurm's warning, are noted, and its loop
ends between two steps. The signal goes to the handler that was there before when the request closes, and a second
signal goes there at once. One that reaches a single process of a run of many stops all of them behind the same step,
and a second one changes nothing; nor does it in a job of a queue, which both the batch system and submitit tell.

A signal may also come while Python calls a finalizer, the one that ends a loader's workers for instance. Python prints
an exception that is raised there and goes on as if nothing had been; in `lost_stops_again` the signal comes again.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from engine.queued import QUEUE
from letkd.processes import LargestOfAll, member

Item = TypeVar("Item")
AGAIN_SECONDS = 0.05  # until a lost signal comes again; where it is lost once more, it comes once more


class Stopped(KeyboardInterrupt):
    """A loop ended between two steps because a signal had come."""


class StopRequest:
    """Context manager that notes signals instead of letting them interrupt; see the module.

    Without effect outside the main thread, which is the one that signals go to, and for signals that are ignored.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.number: int | None = None  # the signal that has come, to whichever process of the run
        self._has_come = False  # one to this process
        self._before: dict[int, Any] = {}  # handlers to put back

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's to put back
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number is not None and (kind is None or kind is Stopped):  # another error is not hidden
            signal.raise_signal(self.number)

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, as long as no signal has come.

        Raises:
            Stopped: behind the item during which it came, the last one too.
        """
        largest = LargestOfAll()
        for item in items:
            yield item
            self._hear(largest(self.number or 0))
        self._hear(largest.last())

    def _hear(self, number: int) -> None:
        """Stop by a signal that this process or another of the run has got."""
        if number:
            self.number = number
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Of many processes torchrun hands on what all have got already, and in a queue submitit does.
        if not self._has_come or member().size > 1 or QUEUE in os.environ:
            self._has_come = True
            self.number = self.number or number
            return
        signal.signal(number, self._before[number])
        signal.raise_signal(number)


@contextmanager
def lost_stops_again() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM come again that were raised where no exception can be; without effect in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    lost: list[int] = []
    report, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)
            return
        lost.append(signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)  # a thread could not start in the middle of a finalizer

    def come_again(number: int, frame: FrameType | None) -> None:
        if lost:
            signal.raise_signal(lost.pop())

    sys.unraisablehook = hook
    signal.signal(signal.SIGALRM, come_again)
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        if lost and sys.exc_info()[0] is None:
            signal.raise_signal(lost.pop())
