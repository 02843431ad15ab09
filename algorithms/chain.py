"""Steps in processes that stay: each takes the next step that can begin, until none is left.

A process that loads torch takes seconds, and the steps of small networks keep no second thread busy. So a chain of many
short steps is quickest in as many processes as there are cores, with one thread each. All that they print comes out
here, each line behind the number of its step, above one line that says how far the whole is.

Ctrl-C and SIGTERM are passed on to what is being done, and so is the failure of a step, as SIGTERM: steps end as they
do by themselves, and no other begins.
"""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TextIO

import torch
from tqdm import tqdm

from engine.progress import Line, phase, telling, within
from engine.stopping import Stopped, StopRequest

# A fork has loaded torch already; macOS does not let one use all that was loaded.
START = "spawn" if sys.platform == "darwin" else "fork"
NUM_THREADS = 1  # of each process
POLL_SECONDS = 0.5  # that a signal may wait
ROOM = 45  # signs for titles in a line of 80


@dataclass(frozen=True)
class Step:
    """Something to do.

    Attributes:
        title: short, no other step's.
        do: does it; returns an exit status, 0 where all is well.
        needs: titles of the steps before it that must have ended.
        cost: its time, by which the whole is measured, in any unit.
    """

    title: str
    do: Callable[[], int]
    needs: tuple[str, ...] = ()
    cost: float = 1.0


class StepError(Exception):
    """A step that is not finished, and its exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def carry_out(steps: Sequence[Step], processes: int) -> None:
    """Do all steps, at any time the first of those that can begin.

    Raises:
        StepError: a step has failed. The others have ended, as they do it after SIGTERM.
        KeyboardInterrupt: Ctrl-C, when all processes have ended.
    """
    with (
        _workers(steps, min(processes, len(steps))) as workers,
        StopRequest() as stop,
        phase(f"{len(steps)} steps", sum(step.cost for step in steps)) as line,
    ):
        _Doing(steps, workers, line, stop).carry_out()


class _Doing:
    def __init__(self, steps: Sequence[Step], workers: list["_Worker"], line: Line, stop: StopRequest):
        self.steps, self.workers, self.line, self.stop = steps, workers, line, stop
        self.left = list(enumerate(steps, start=1))
        self.done: set[str] = set()
        self.failure: StepError | None = None

    def carry_out(self) -> None:
        is_stopping = False
        while True:
            if not is_stopping:
                self._begin()
            if not (busy := self._busy()):
                break
            told = wait([worker.connection for worker in busy], timeout=POLL_SECONDS)
            for worker in busy:
                if worker.connection in told:
                    self._hear(worker)
            if not is_stopping and (self.failure or self.stop.number is not None):
                is_stopping = True
                for worker in self._busy():
                    os.kill(worker.process.pid, self.stop.number or signal.SIGTERM)
        if self.failure:
            raise self.failure
        if self.stop.number is not None:
            raise Stopped

    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self.workers if worker.step]

    def _begin(self) -> None:
        """Give idle processes the first steps that can begin."""
        begun = False
        for worker in self.workers:
            ready = (found for found in self.left if self.done.issuperset(found[1].needs))
            if worker.step is None and (found := next(ready, None)):
                self.left.remove(found)
                self._print(f"\nstep {found[0]} of {len(self.steps)}: {found[1].title}")
                worker.begin(*found)
                begun = True
        if begun:
            busy = sorted(self._busy(), key=lambda worker: worker.number)
            titles = ", ".join(worker.step.title for worker in busy)
            where = f"step {', '.join(str(worker.number) for worker in busy)} of {len(self.steps)}"
            self.line.say(f"{where}: {titles}" if len(titles) <= ROOM else where)

    def _hear(self, worker: "_Worker") -> None:
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            kind, content = "ended", worker.process.exitcode or 1
            self.workers.remove(worker)
            self._print(f"[{worker.number}] error: its process has ended with status {content}", sys.stderr)
        if kind == "share":
            self._advance(worker, content)
        elif kind == "ended":
            self._end(worker, content)
        else:
            self._print(f"[{worker.number}] {content}" if content else "", getattr(sys, kind))

    def _advance(self, worker: "_Worker", share: float) -> None:
        """Of a step with several phases the first counts."""
        if share > worker.share:
            self.line.update((share - worker.share) * worker.step.cost)
            worker.share = share

    def _end(self, worker: "_Worker", status: int) -> None:
        if status == 0:
            self._advance(worker, 1.0)
            self.done.add(worker.step.title)
        elif self.failure is None and self.stop.number is None:
            where = f"step {worker.number} of {len(self.steps)}, {worker.step.title},"
            self.failure = StepError(f"{where} is not finished", status)
        worker.step = None

    def _print(self, text: str, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        tqdm.write(text, file=stream)
        stream.flush()


class _Worker:
    """A process, and what it does at the moment."""

    def __init__(self, steps: Sequence[Step], others: list["_Worker"]):
        context = multiprocessing.get_context(START)
        self.connection, its_own = context.Pipe()
        not_its_own = [worker.connection for worker in (*others, self)]
        self.process = context.Process(target=_work, args=(its_own, not_its_own, [step.do for step in steps]))
        self.process.start()
        its_own.close()
        self.number, self.step, self.share = 0, None, 0.0

    def begin(self, number: int, step: Step) -> None:
        self.number, self.step, self.share = number, step, 0.0
        with suppress(OSError):  # of one that has died meanwhile, which is heard when it is listened to
            self.connection.send(number - 1)


@contextmanager
def _workers(steps: Sequence[Step], number: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for _ in range(number):
            workers.append(_Worker(steps, workers))
        yield list(workers)
    finally:
        for worker in workers:
            worker.connection.close()  # one that waits for a step ends
            if worker.step:
                worker.process.terminate()  # a second Ctrl-C, or an error here
            worker.process.join()


def _work(connection: Connection, not_its_own: list[Connection], do: list[Callable[[], int]]) -> None:
    """Do steps by their index until the other side is closed.

    Args:
        not_its_own: other ends that a fork has too, and that would keep those open.
    """
    for other in not_its_own:
        other.close()
    os.setsid()  # a terminal's Ctrl-C comes to the process that passes it on
    torch.set_num_threads(NUM_THREADS)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lines(connection, "stdout"), _Lines(connection, "stderr")
    try:
        with telling(lambda share: connection.send(("share", share))):
            while True:
                index = connection.recv()
                with within("step", index + 1, len(do)):
                    status = do[index]()
                sys.stdout.end()
                sys.stderr.end()
                connection.send(("ended", status))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):  # nothing is left, or nobody there
        pass
    finally:
        sys.stdout, sys.stderr = streams


class _Lines(io.TextIOBase):
    """A stream that sends its lines."""

    def __init__(self, connection: Connection, name: str):
        self.connection, self.name = connection, name
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.connection.send((self.name, line))
        return len(text)

    def end(self) -> None:
        """Send what has no end of a line."""
        if self.rest:
            self.write("\n")
