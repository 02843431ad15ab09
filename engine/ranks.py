"""The processes of a run as torchrun starts them: how they meet, and how all of them end when one does.

    torchrun --nproc-per-node=2 main_classification.py with config=...

Rank 0 alone writes, prints and keeps records. How a run ends is agreed on through the store in which its processes have
met: the first that ends tells there how, and that is the outcome of all. One that waits in a sum over ranks for another
that has gone gets an error of torch's, looks there, and ends likewise; a thread does it for one that gets none, as on a
GPU. Rank 0 has the last word, and the others wait for it, so that torchrun, which ends all when it sees one end, does
not end it while it writes.

A signal that reaches one rank stops all behind the same step (`engine.stopping`).
"""

import functools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from engine.stopping import Stopped, StopRequest
from letkd.processes import member, of_all
from storage.documents import first_line

MEETING_SECONDS = 300  # in which all processes must have come
WAITING_SECONDS = 1800  # of a rank for the others in one sum, as when rank 0 alone prepares images
LINGERING_SECONDS = 5  # of a rank that ends alone: a mistake that all ranks make is told by rank 0 meanwhile
ENDING_SECONDS = 10  # of a rank that knows that another has failed
LAST_WORD_SECONDS = 60  # that rank 0 has for its records when all end together
POLL_SECONDS = 0.1
VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CAME, FIRST_CAME, END, SAID, LEFT = "came", "first came", "end", "said", "left"  # keys in the store

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """How a rank ends.

    Args:
        message: what is printed; None where nothing is.
    """

    rank: int
    status: int
    message: str | None


class GoneError(RuntimeError):
    """Another process of the run has ended before all have come."""


class NoFirstError(ValueError):
    """Rank 0, which would say what the matter is, has not come in time."""


def is_lost(error: BaseException | None) -> bool:
    """Whether an error says no more than that a sum over ranks was broken off, and not why."""
    return isinstance(error, (GoneError, dist.DistError)) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Processes:
    """This process among those of a run, from their meeting to their end.

    Args:
        store: that all have in common.
        is_kept: whether the store stays when rank 0 goes, as torchrun keeps it.
    """

    def __init__(self, rank: int, size: int, *, local_rank: int, local_size: int, store: "dist.Store", is_kept: bool):
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.store, self.is_kept = store, is_kept
        self._heard: Outcome | None = None  # before the store was gone
        self._ends = threading.Event()
        threading.Thread(target=self._watch, args=(store.clone(),), daemon=True).start()

    def wait_for_all(self) -> None:
        """Go on when all processes have come.

        Raises:
            ValueError: they have not in time; NoFirstError where rank 0 has not.
            GoneError: one has ended.
        """
        if self.rank == 0:
            self.store.set(FIRST_CAME, "1")
        self.store.add(CAME, 1)
        deadline = time.monotonic() + MEETING_SECONDS
        while (came := self.store.add(CAME, 0)) < self.size:
            if time.monotonic() > deadline:
                kind = ValueError if self.store.check([FIRST_CAME]) else NoFirstError
                raise kind(
                    f"{came} of {self.size} processes have come in {MEETING_SECONDS} seconds; start as many as "
                    "WORLD_SIZE says, or leave it to torchrun"
                )
            if self._told() is not None:
                raise GoneError("it came, and went")
            time.sleep(POLL_SECONDS)

    @property
    def launcher(self) -> str:
        """What starts such processes, before the words of the command."""
        nodes = self.size // self.local_size
        return f"torchrun --nnodes={nodes} --nproc-per-node={self.local_size}".replace(" --nnodes=1 ", " ")

    def open_group(self, options: dict[str, Any]) -> None:
        """Let the processes compute together, each with a GPU of its own where there are any.

        Args:
            options: of the run, among them `cuda`.

        Raises:
            ValueError: this machine has fewer GPUs than processes, a process has not come, or one has other options.
        """
        cuda = options["cuda"] and torch.cuda.is_available()
        if cuda and torch.cuda.device_count() < self.local_size:
            raise ValueError(
                f"{self.local_size} processes on this machine need as many GPUs, and it has "
                f"{torch.cuda.device_count()}; start fewer, --nproc-per-node=, or leave the GPUs out: cuda=False"
            )
        self.wait_for_all()
        if cuda:
            torch.cuda.set_device(self.local_rank)
        can_change = hasattr(dist, "set_timeout")  # in later versions of torch
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=MEETING_SECONDS if can_change else WAITING_SECONDS),
        )
        if can_change:
            dist.set_timeout(timedelta(seconds=WAITING_SECONDS))
        refuse_differences("the options", options | {"GPUs are used": cuda})

    def close(self) -> None:
        """Leave the group, where all have ended well: else one may wait for this process until it has gone."""
        if dist.is_initialized() and self._told() is None:
            dist.destroy_process_group()

    def told_of(self, error: BaseException) -> str | None:
        """What is said of an error that only says that another process has gone; None of any other."""
        if not is_lost(error):
            return None
        # Without gloo's file and line, and its advice.
        reason = re.sub(r"^\[[^]]*\] ", "", first_line(error)).partition(". ")[0]
        return f"another process of the run has ended, or does not answer ({reason}); go on with checkpoint=-1"

    def end(self, status: int, message: str | None = None, error: BaseException | None = None) -> int:
        """Agree on how the run ends, and let rank 0 say it.

        Args:
            message: what this process has to say.
            error: that ends it.

        Returns:
            The exit status of all.
        """
        for number in StopRequest.SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        lost, agreed = is_lost(error), error is not None and isinstance(error.__context__, Stopped)
        if message and self.rank and not isinstance(error, KeyboardInterrupt):
            message = message.replace("error: ", f"error: rank {self.rank}: ", 1)
        own = Outcome(self.rank, status, message)
        first = self._tell(own) if status else self._told()
        self._ends.set()
        is_alone = first == own and not agreed
        if self.rank == 0:
            has_own = first is None or (status == first.status == 1 and not lost)
            self._say(own if has_own else first)
            self._wait_for_others(LINGERING_SECONDS if is_alone else ENDING_SECONDS)
            return (first or own).status
        is_said = self._wait_for_last_word(LINGERING_SECONDS if is_alone else LAST_WORD_SECONDS)
        is_without_first = lost or isinstance(error, NoFirstError)
        if is_without_first and ((first == own and not is_said) or (first is None and self.rank == 1)):
            self._say(own)
        status = (first or self._told() or own).status
        with suppress(RuntimeError):  # the store has gone
            self.store.add(LEFT, 1)
        return status

    def _tell(self, own: Outcome) -> Outcome | None:
        """The first outcome of all that is no success; None where the store has gone, and rank 0 with it."""
        try:
            return _outcome(self.store.compare_set(END, "", json.dumps(asdict(own))))
        except RuntimeError:
            return self._heard

    def _told(self) -> Outcome | None:
        """Likewise, where a rank has told one."""
        try:
            return _outcome(self.store.get(END)) if self.store.check([END]) else None
        except RuntimeError:
            return self._heard

    def _say(self, outcome: Outcome) -> None:
        if outcome.message:
            print(outcome.message, file=sys.stderr, flush=True)
        with suppress(RuntimeError):  # the store has gone
            self.store.set(SAID, "1")

    def _wait_for_others(self, seconds: float) -> None:
        """Keep the store, where it is in this process, for those that look there how the run ends."""
        deadline = time.monotonic() + (0 if self.is_kept else seconds)
        while time.monotonic() < deadline and self.store.add(LEFT, 0) < self.size - 1:
            time.sleep(POLL_SECONDS)

    def _wait_for_last_word(self, seconds: float) -> bool:
        """Whether rank 0 has said how the run ends."""
        deadline = time.monotonic() + seconds
        try:
            while not (is_said := self.store.check([SAID])) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # it has gone, and the store with it
            return True
        return is_said

    def _watch(self, store: "dist.Store") -> None:
        """End this process where another has failed and it does not notice: on a GPU a sum may wait without an end."""
        try:
            while not store.check([END]):
                if self._ends.wait(5 * POLL_SECONDS):
                    return
            first = self._heard = _outcome(store.get(END))
        except RuntimeError:  # the store has gone: sums fail too
            return
        if first.rank == self.rank or self._ends.wait(ENDING_SECONDS):
            return
        if self.rank == 0:
            self._say(first)
        sys.stdout.flush()
        os._exit(first.status)


def _outcome(text: bytes) -> Outcome:
    return Outcome(**json.loads(text))


def meet() -> Processes:
    """Meet the other processes that the environment tells of.

    Raises:
        ValueError: it lacks something; NoFirstError where nobody answers at the address.
    """
    size = _number("WORLD_SIZE")
    if lacking := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={size} says that this is one of {size} processes, and {', '.join(lacking)} is not in the "
            f"environment; start it by torchrun --nproc-per-node={size}, or take WORLD_SIZE out of the environment"
        )
    rank, local_rank, local_size = (_number(name) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    try:
        rendezvous = dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=MEETING_SECONDS))
        store, rank, size = next(rendezvous)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise NoFirstError(f"no process answers at {where} ({first_line(error)}); start all by torchrun") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of a run that torchrun starts again
    store = dist.PrefixStore(f"letKD/{attempt}", store)
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Processes(rank, size, local_rank=local_rank, local_size=local_size, store=store, is_kept=is_kept)


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ValueError(f"{name}={text} in the environment must be a whole number")
    return int(text)


def refuse_differences(what: str, value: dict[str, Any]) -> None:
    """Refuse to go on where the ranks have different values.

    Args:
        what: they are, for the error.
        value: plain values by name.

    Raises:
        ValueError: names the first rank and value that differ.
    """
    first, *others = of_all(value)
    for rank, other in enumerate(others, 1):
        for key in first | other:
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"{what} must be the same for all processes: rank 0 has {key}={first.get(key)!r}, rank {rank} has "
                    f"{other.get(key)!r}"
                )


def by_first_alone(function: Callable[P, Result]) -> Callable[P, Result | None]:
    """Decorator of what writes: the first rank does it, and the others nothing."""

    @functools.wraps(function)
    def alone(*args: P.args, **options: P.kwargs) -> Result | None:
        return function(*args, **options) if member().is_first else None

    return alone
