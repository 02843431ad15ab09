"""A command as a job of a queue, which submitit pickles, starts on another machine, and puts back into the queue.

The command is a process of its own below submitit's. Its batch system tells a job that its time is nearly up, or that
another takes its place, by a signal: then the command ends behind its step and saves its state, and the job goes back
into the queue, where the same command goes on. What it prints is appended to one file, whose last line beginning with
`error: ` says why it has failed. Standard library and submitit only: a job starts without torch.
"""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ERROR = "error: "  # what the line of a command begins with that says why it has failed
BEGIN = "$ "  # a line that the command stands in, before what it prints
QUEUE = "SUBMITIT_EXECUTOR"  # in the environment of a job: "slurm" or "local"
END_SECONDS = 900  # that Slurm has for the end of a job that it has told to end


class CommandError(Exception):
    """What a command has failed by, in one line."""


class QueuedCommand:
    """What a job does.

    Args:
        words: of the command behind `python`; with `checkpoint=-1` where it can go on.
        output: the file that what it prints is appended to.
    """

    def __init__(self, words: Sequence[str], output: str):
        self.words, self.output = list(words), output
        self._running: _Running | None = None

    def __call__(self) -> None:
        """Run the command, in the main thread.

        Raises:
            CommandError: it has failed, or was told to end.
        """
        running = self._running = _Running()
        signal.signal(signal.SIGTERM, running.end)  # which submitit mentions, and no more
        path = Path(self.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as output:
            print(f"{BEGIN}python {shlex.join(self.words)}", file=output, flush=True)
            status = running.run([sys.executable, *self.words], output)
            if running.is_told and os.environ.get(QUEUE) == "slurm":
                time.sleep(END_SECONDS)  # it is not done: Slurm ends this job, or its signal puts it back
            error = said_by(status, path)
            if error and last_error(path) is None:
                print(f"{ERROR}{error}", file=output)
        if error:
            raise CommandError(error)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same, when the command has ended and saved its state."""
        from submitit.helpers import DelayedSubmission

        if self._running is not None:
            self._running.end()
            self._running.wait()
        return DelayedSubmission(QueuedCommand(self.words, self.output))


class _Running:
    """A process that a handler of signals may wait for too: `Popen.wait` has a lock, in which a signal may come.

    Attributes:
        is_told: whether this process was told to end.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the process, as long as it is no other's
        self.is_told = False

    def run(self, words: list[str], output: Any) -> int:
        """Start a command and wait for its exit status, negative where a signal has ended it."""
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=_environment(),
            preexec_fn=_ignore_the_queue,  # noqa: PLW1509  there is one thread
        )  # fmt: skip
        self.number = process.pid
        if self.is_told:
            self.end()
        self.wait()
        self.number = None
        return process.wait()

    def wait(self) -> None:
        with suppress(ChildProcessError):
            if self.number is not None:
                os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOWAIT)

    def end(self, *_: object) -> None:
        """Tell it to end behind its step. Slurm may have told it too: in a queue a second signal changes nothing."""
        self.is_told = True
        if self.number is not None:
            with suppress(ProcessLookupError):
                os.kill(self.number, signal.SIGTERM)


def _ignore_the_queue() -> None:
    """Slurm sends submitit's signal to all processes of a job: submitit alone has something to do then."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _environment() -> dict[str, str]:
    found = dict(os.environ)
    if cores := found.get("SLURM_CPUS_PER_TASK"):
        found.setdefault("OMP_NUM_THREADS", cores)
    return found


def said_by(status: int, path: Path) -> str | None:
    """The error of a process that has ended, by its exit status and what it has printed; None where it has none."""
    if status == 0:
        return None
    if status == 1 and (error := last_error(path)):
        return error
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    return f"{ended}; {path} has what it said"


def last_error(path: Path, start: int = 0) -> str | None:
    """The last error in a file of output, of the command that began last; None where it has none.

    Args:
        start: so many bytes are of earlier jobs, unless the file has fewer.
    """
    found = None
    for line in _lines(path, start):
        if line.startswith(BEGIN):
            found = None
        elif line.startswith(ERROR):
            found = line.removeprefix(ERROR).rstrip("\n")
    return found


def has_begun(path: Path, start: int = 0) -> bool:
    """Whether a command has begun that this file has the output of; `start` as in `last_error`."""
    return any(line.startswith(BEGIN) for line in _lines(path, start))


def _lines(path: Path, start: int) -> Iterator[str]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start if start <= path.stat().st_size else 0)
        yield from io.TextIOWrapper(file, encoding="utf-8", errors="replace")
