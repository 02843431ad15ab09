"""What a run leaves to read: a log, TensorBoard curves, and `results.json`; `progress.json` while it goes on.

Of a run of many processes rank 0 alone leaves it: the others write nothing and say nothing.

`progress.json` is written whenever an epoch is done or the run is stopped, and goes when `results.json` has come. Both
are there while a finished run goes on to more epochs; and with the same `history` where a run was killed between the
two, which `checkpoint=-1` puts right.

    state       "running", "stopped" or "diverged"; a process that was killed leaves "running"
    process, updated        its number, and when it wrote this
    epoch, epochs           done, and wanted
    step, steps_per_epoch   done of the epoch behind `epoch`
    best_top1, best_epoch, seconds, history, config, options ...    as in results.json

`history` in both has a dictionary for each epoch:

    epoch, learning_rate, images_per_second, seconds
    train       means of the loss and its terms by name, and top1
    eval        loss, top1, top5
    statistics  of the losses, means over the steps that were looked at: perplexity, ... (empty where none has any)
    scales      of the KD layers, at the end of the epoch (empty without such layers)

and `objective` in both has what is minimised: the weight of every term by name, and the places where losses read maps.
"""

import datetime
import functools
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from engine.ranks import by_first_alone
from letkd.processes import member
from results.settings import MEASUREMENTS
from storage.documents import log, names_file
from storage.tensor_files import load_json, save_json

RESULTS = "results.json"
PROGRESS = "progress.json"
LOG = "log.txt"
LOCK, RESULTS_LOCK = ".lock", ".results.lock"
CURVES = "tensorboard"
EVENT_FILES, EVENT_FILE_VERSION = "events.out.tfevents.*", "brain.Event:2"
ROOT = Path(__file__).parent.parent  # of the code
GIT_SECONDS = 5  # that git has for an answer
VERSIONS_OF = ("torch", "torchvision", "numpy", "scikit-learn", "faiss-gpu", "faiss-cpu", "sacred")
# Every results.json has these; null where the job has no such figure.
RESULT_KEYS = (
    "config", "mode", "method", "dataset", "epochs", "top1", "top5", "best_top1", "best_epoch", "seed", "device",
    "precision", "images_per_second", "seconds", "parameters", "parameters_without_kd_layers", "multiply_adds",
    "multiply_adds_without_kd_layers",
)  # fmt: skip


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, to whatever stdout is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(
            OSError
        ):  # nobody reads any more (`| head`), or the disk is full: the log file has it, or says so
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def set_up_console() -> None:
    """Messages of runs go to stdout; called once by the entry."""
    if not member().is_first:
        log.handlers = [logging.NullHandler()]
        log.propagate = False
    elif not log.handlers:
        log.addHandler(_ConsoleHandler())
        log.setLevel(logging.INFO)
        log.propagate = False


class _LogFile(logging.FileHandler):
    """Says once that it cannot write, and lets the run go on: what a run must not lose says so itself."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._warn(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()  # writes what could not be written before
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self.has_failed:
            self.has_failed = True
            log.warning("warning: cannot write %s: %s", self.baseFilename, error.strerror)


@contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Messages also go to `log.txt` in `directory`, with times; a later run appends. A failure's traceback does too."""
    directory.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(directory / LOG, encoding="utf-8", errors="backslashreplace")  # as standard output is set up
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        for line in ("$ " + " ".join(sys.argv), "code " + describe(code_version())):
            handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, line, (), None))
        yield
    except Exception:
        handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "failed", (), sys.exc_info()))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def missing_traces(directory: Path) -> list[Path]:
    """Of the log, the lock and the folders of a job those that are not there, in an order in which they can be removed.

    Nothing where there is a log: an earlier job has been here.
    """
    paths = (directory / LOG, directory / LOCK, directory, *directory.parents)
    return [] if paths[0].exists() else [path for path in paths if not path.exists()]


@contextmanager
def removed_after_mistakes(
    traces: list[Path], *, unless: Callable[[], bool], alone: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Remove what a job has left that a mistake of the user's has ended; its log is closed.

    Args:
        alone: holds the directory meanwhile, where the job does not. Where it is refused, another job has begun there,
            and all stays.
    """
    try:
        yield
    except (ValueError, OSError):
        if traces and not unless():
            with suppress(ValueError, OSError), alone():
                for path in traces:
                    with suppress(OSError):  # a folder that has something else in it by now
                        path.rmdir() if path.is_dir() else path.unlink()
        raise


# Locks are the kernel's: they end with their process, and a child that is forked meanwhile lets go of them. The marker
# files that filelock has for file systems without such locks would outlive a killed process.
KERNEL_ALONE = {"fallback_to_soft": False}


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Refuse to share a directory with a running job; the lock of a process that died is gone with it.

    Raises:
        ValueError: another process works here; says which and since when.
        OSError: the lock's file cannot be written; names it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    with ExitStack() as stack:
        with names_file(path):
            try:
                stack.enter_context(FileLock(path, blocking=False, on_acquired=_write_holder, **KERNEL_ALONE))
            except Timeout:
                written = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
                holder = written or "another process"  # it has not written its number yet
                message = f"{directory} is in use by {holder}; wait for it, or choose another localpath"
                raise ValueError(message) from None
        _remove_pieces(directory)
        yield


def _write_holder(descriptor: int) -> None:
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()}, started {now()}".encode())


def _remove_pieces(directory: Path) -> None:
    """Files that a process was writing when it was killed: `.<name>.<process>.part`."""
    for piece in directory.glob(".*.part"):
        process = piece.name.split(".")[-2]
        if process.isdigit() and not Path("/proc", process).exists():
            piece.unlink()


@by_first_alone
def save_results(directory: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write a finished job's `results.json`, over an earlier one; returns the whole of it."""
    with results_to_itself(directory):
        return _save_results(directory, results)


@by_first_alone
def update_results(directory: Path, update: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Write what `update` makes of the content of `results.json`, {} where there is none; returns the whole of it.

    Raises:
        ValueError: what is there is damaged.
    """
    with results_to_itself(directory):
        return _save_results(directory, update(read_results(directory)))


def read_results(directory: Path) -> dict[str, Any]:
    """The content of `results.json`, {} where there is none. Raises `ValueError` where it is damaged."""
    path = directory / RESULTS
    results = load_json(path) if path.is_file() else {}
    for part in MEASUREMENTS.values():
        entries = results.get(part, {})
        if not isinstance(entries, dict) or not all(isinstance(measured, dict) for measured in entries.values()):
            raise ValueError(f"{path} is damaged: its entry {part!r} holds no figures by name")
    return results


def _save_results(directory: Path, results: dict[str, Any]) -> dict[str, Any]:
    complete = complete_results(results)
    save_json(directory / RESULTS, complete)
    return complete


@contextmanager
def results_to_itself(directory: Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait for whoever else is about to write what is known of runs: evaluations go on beside a training and each
    other, and so do trials.

    Args:
        waits: called before it waits, if it does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RESULTS_LOCK
    with ExitStack() as stack:
        with names_file(path):
            lock = FileLock(path, **KERNEL_ALONE)
            try:
                stack.enter_context(lock.acquire(blocking=waits is None))
            except Timeout:
                waits()
                stack.enter_context(lock)
        yield


@by_first_alone
def save_progress(directory: Path, progress: dict[str, Any]) -> None:
    """Write the `progress.json` of a job that goes on."""
    about = {"process": os.getpid(), "command": " ".join(sys.argv), "updated": now()}
    save_json(directory / PROGRESS, progress | about)


@by_first_alone
def remove_progress(directory: Path) -> None:
    """Remove the `progress.json` of a job whose results are written."""
    (directory / PROGRESS).unlink(missing_ok=True)


def complete_results(results: dict[str, Any]) -> dict[str, Any]:
    """Results with every key of RESULT_KEYS, what ran them, and when."""
    about = {"command": " ".join(sys.argv), "finished": now(), "environment": environment()}
    return dict.fromkeys(RESULT_KEYS) | about | results


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and the machine, as far as they bear on a result."""
    return {
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "commit": code_version(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of packages that are installed; looked up once, because a long list of facts is read for each."""
    found = {}
    for package in VERSIONS_OF:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@functools.cache
def code_version() -> dict[str, Any] | None:
    """The commit this process's code was checked out from, and whether source files differ from it.

    None where there is no repository, no git, or one that fails, does not answer, or does not read the repository of
    another user. `log_file` asks first, when a job begins: what is edited during a long run does not change the answer.
    """

    def git(*words: str) -> str:
        process = subprocess.run(
            ["git", *words], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GIT_SECONDS
        )
        return process.stdout.decode(errors="replace").strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "*.py"))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe(version: dict[str, Any] | None) -> str:
    """A commit in words."""
    if version is None:
        return "of no known commit"
    return f"of commit {version['id'][:12]}" + (" with changes" if version["dirty"] else "")


def cpu_model() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


class Curves:
    """TensorBoard's file of a run, below `tensorboard/`; a continued run replaces what it does again.

    Points are written at once, by the thread that adds them. tensorboardX's SummaryWriter has a thread of its own,
    which is behind: a killed run would lose points of an epoch that it has saved, and a full disk would go unnoticed.

    Args:
        first_step: the first optimisation step of this session, from 1; 1 begins anew.
    """

    def __init__(self, directory: Path, *, first_step: int):
        self.folder = directory / CURVES
        self.first_step = first_step

    def __enter__(self) -> "Curves":
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        if self.first_step == 1:
            for earlier in self.folder.glob(EVENT_FILES):
                earlier.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        with names_file(self.folder):
            self.writer = RecordWriter(str(self._next_file()))
        self._write(0, file_version=EVENT_FILE_VERSION)
        self._write(self.first_step, session_log=SessionLog(status=SessionLog.START))  # drops what is from there on
        return self

    def _next_file(self) -> Path:
        """Files are read in the order of their names, so that a clock that was put back must not be in them."""
        earlier = [path.name.split(".")[3] for path in self.folder.glob(EVENT_FILES)]
        number = max([int(time.time()), *(int(seconds) + 1 for seconds in earlier if seconds.isdecimal())])
        return self.folder / f"{EVENT_FILES[:-1]}{number:010d}.{socket.gethostname()}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self.flush()
            with names_file(self.folder):
                self.writer.close()
        except OSError:
            if kind is None:  # what ends the run already, a stop for instance, is not hidden
                raise

    def flush(self) -> None:
        """Bring all points to the disk."""
        with names_file(self.folder):
            self.writer.flush()

    def add(self, step: int, group: str, scalars: dict[str, float]) -> None:
        """Points at an optimisation step, under `group/name`."""
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            self._write(step, summary=scalar(f"{group}/{name}", value))

    def add_images(self, step: int, name: str, images_BCHW: Tensor) -> None:
        """A grid of uint8 images on the CPU."""
        from tensorboardX.summary import image

        self._write(step, summary=image(name, images_BCHW.numpy(), dataformats="NCHW"))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with names_file(self.folder):
            self.writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())


class NoCurves(Curves):
    """Those of the other processes of a run: nothing is written."""

    def __enter__(self) -> "NoCurves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        pass

    def flush(self) -> None:
        pass

    def add(self, step: int, group: str, scalars: dict[str, float]) -> None:
        pass

    def add_images(self, step: int, name: str, images_BCHW: Tensor) -> None:
        pass


def duration(seconds: float) -> str:
    """12345.6 -> '3:25:45'."""
    return str(datetime.timedelta(seconds=round(seconds)))
