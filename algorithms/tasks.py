"""Commands one after the other in this process, or several at once, each a process of its own.

A command that fails ends no other. In this process its error is what it raises; of a process it is the line that the
command prints last, `error: ...`, and all that it prints is in a file of its own. Ctrl-C and SIGTERM stop all commands
that run, which save their states, and begin no other.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from algorithms.prepare import FAILURES
from engine.progress import within
from engine.queued import said_by
from engine.records import ROOT, log
from storage.documents import first_line

NO_FILE_NAME = re.compile(r"[^\w.+~-]+")


@dataclass(frozen=True)
class Task:
    """Something that a command does, and that this process can do itself.

    Attributes:
        title: for messages, and with other signs the name of the file of what the command prints.
        command: its line, `python FILE ...`.
        here: does the same in this process.
    """

    title: str
    command: str
    here: Callable[[], Any]


def carry_out(
    tasks: list[Task], *, jobs: int, folder: Path, kind: str, first: int = 1, count: int | None = None
) -> Iterator[tuple[Task, str | None]]:
    """Do tasks; yields each when it has ended, and its error in one line where it has failed.

    Args:
        jobs: so many at once; 1 is in this process.
        folder: for what processes print.
        kind: what a task is called in messages, "run".
        first, count: the number of the first in a longer chain of so many.
    """
    numbered = list(enumerate(tasks, first))
    count = count or len(tasks)
    if jobs > 1:
        yield from _Processes(min(jobs, len(tasks)), folder).carry_out(numbered, f"{kind} %d of {count}")
        return
    for number, task in numbered:
        log.info("%s %d of %d: %s", kind, number, count, task.title)
        with within(kind, number, count):
            error = _done_here(task)
        yield task, error


def _done_here(task: Task) -> str | None:
    try:
        task.here()
    except FAILURES as error:
        return first_line(error)
    except Exception as error:  # a fault of the program or a method of the user's own: the others are not to suffer
        return f"{type(error).__name__}: {first_line(error)}"
    return None


class _Processes:
    """So many processes at once. Each has its share of the processors, and where there are several GPUs one of them."""

    def __init__(self, jobs: int, folder: Path):
        self.jobs, self.folder = jobs, folder
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)
        self.running: set[subprocess.Popen] = set()
        self.is_stopping = False
        self.lock = threading.Lock()  # of the two above

    def carry_out(self, numbered: list[tuple[int, Task]], place: str) -> Iterator[tuple[Task, str | None]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = {pool.submit(self._run, task, place % number): task for number, task in numbered}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # a stop, or whoever reads has had enough
            self._stop(pool)
            raise
        finally:
            pool.shutdown()

    def _run(self, task: Task, place: str) -> str | None:
        slot = self.slots.get()
        path = self.folder / file_name(task.title)
        program, *words = shlex.split(task.command)[1:]
        try:
            with path.open("wb") as output:
                with self.lock:
                    if self.is_stopping:
                        return "stopped before it began"
                    log.info("%s: %s", place, task.title)
                    process = subprocess.Popen(
                        [sys.executable, str(ROOT / program), *words],
                        env=environment_of(slot, self.jobs), stdin=subprocess.DEVNULL, stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
                    )  # fmt: skip
                    self.running.add(process)
                status = process.wait()
            with self.lock:
                self.running.discard(process)
            return said_by(status, path)
        except OSError as error:  # it gets no file or no process; that ends no other
            return first_line(error)
        finally:
            self.slots.put(slot)

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Let all that run save their states and end; at once, where a second signal comes meanwhile."""
        try:
            pool.shutdown(wait=False, cancel_futures=True)
            self._terminate()
            pool.shutdown()
        except KeyboardInterrupt:
            self._terminate()
            raise

    def _terminate(self) -> None:
        with self.lock:
            self.is_stopping = True
            for process in self.running:
                process.terminate()


def file_name(title: str) -> str:
    """Of what a task prints."""
    return NO_FILE_NAME.sub("-", title) + ".txt"


def environment_of(slot: int, jobs: int) -> dict[str, str]:
    """What the `slot`-th of `jobs` processes at once is started with.

    The threads of torch that a processor has no room for would only wait for each other.
    """
    found = dict(os.environ)
    found.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    if (count := torch.cuda.device_count()) > 1:
        visible = found.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return found
