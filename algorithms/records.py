"""What a run leaves to read: a log, TensorBoard curves, and `results.json`; `progress.json` while it goes on.

`progress.json` is written whenever an epoch is done or the run is stopped, and goes when `results.json` comes:

    state       "running", "stopped" or "diverged"; a process that was killed leaves "running"
    process, updated        its number, and when it wrote this
    epoch, epochs           done, and wanted
    step, steps_per_epoch   done of the epoch behind `epoch`
    best_top1, best_epoch, seconds, history, config, options ...    as in results.json

`history` in both has a dictionary for each epoch:

    epoch, learning_rate, images_per_second, seconds
    train       means of the losses by name, and top1
    eval        loss, top1, top5
    statistics  of the method, means over the steps that were looked at: perplexity, ... (empty without a codebook)
    scales      of the KD layers, at the end of the epoch (empty without such layers)
"""

import datetime
import fcntl
import functools
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from algorithms.files import save_json

log = logging.getLogger("letKD.run")

RESULTS = "results.json"
PROGRESS = "progress.json"
LOG = "log.txt"
LOCK = ".lock"
ROOT = Path(__file__).parent.parent  # of the code
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
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def set_up_console() -> None:
    """Messages of runs go to stdout; called once by the entry."""
    if not log.handlers:
        log.addHandler(_ConsoleHandler())
        log.setLevel(logging.INFO)
        log.propagate = False


@contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Messages also go to `log.txt` in `directory`, with times; a later run appends. A failure's traceback does too."""
    directory.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory / LOG)
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


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Refuse to share a directory with a running job; the lock of a process that died is gone with it.

    Raises:
        ValueError: another process works here; says which and since when.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{directory} is in use by {file.read()}; wait for it, or choose another localpath"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}, started {now()}")
        file.flush()
        _remove_pieces(directory)
        yield


def _remove_pieces(directory: Path) -> None:
    """Files that a process was writing when it was killed: `.<name>.<process>.part`."""
    for piece in directory.glob(".*.part"):
        process = piece.name.split(".")[-2]
        if process.isdigit() and not Path("/proc", process).exists():
            piece.unlink()


def save_results(directory: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write a finished job's `results.json`, in the place of its `progress.json`; returns the whole of it."""
    complete = complete_results(results)
    save_json(directory / RESULTS, complete)
    (directory / PROGRESS).unlink(missing_ok=True)
    return complete


def save_progress(directory: Path, progress: dict[str, Any]) -> None:
    """Write the `progress.json` of a job that goes on."""
    about = {"process": os.getpid(), "command": " ".join(sys.argv), "updated": now()}
    save_json(directory / PROGRESS, progress | about)


def complete_results(results: dict[str, Any]) -> dict[str, Any]:
    """Results with every key of RESULT_KEYS, what ran them, and when."""
    about = {"command": " ".join(sys.argv), "finished": now(), "environment": environment()}
    return dict.fromkeys(RESULT_KEYS) | about | results


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and the machine, as far as they bear on a result."""
    versions = {}
    for package in VERSIONS_OF:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "commit": code_version(),
    }


@functools.cache
def code_version() -> dict[str, Any] | None:
    """The commit this process's code was checked out from, and whether source files differ from it.

    None where there is no repository, or no git. `log_file` asks first, when a job begins: what is edited during a
    long run does not change the answer.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "*.py"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(version: dict[str, Any] | None) -> str:
    """A commit in words."""
    if version is None:
        return "of no known commit"
    return f"of commit {version['id'][:12]}" + (" with changes" if version["dirty"] else "")


def cpu_model() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
        self.folder = directory / "tensorboard"
        self.first_step = first_step

    def __enter__(self) -> "Curves":
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        if self.first_step == 1:
            for earlier in self.folder.glob("events.out.tfevents.*"):
                earlier.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        # The suffix orders sessions that begin within the same second; files are read in the order of their names.
        self.writer = EventsWriter(str(self.folder / "events"), f".{self.first_step:09d}")
        self._write(self.first_step, session_log=SessionLog(status=SessionLog.START))  # drops what is from there on
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.close()

    def flush(self) -> None:
        """Bring all points to the disk."""
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

        self.writer.write_event(Event(wall_time=time.time(), step=step, **content))


def is_watched() -> bool:
    """Whether somebody sees progress bars: stderr is a terminal (sacred may have replaced sys.stderr)."""
    return sys.__stderr__ is not None and sys.__stderr__.isatty()


def progress_bar(total: int, unit: str, description: str, *, initial: int = 0) -> tqdm:
    """A bar that disappears when it is done, and is silent when nobody watches a terminal."""
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        leave=False,
        disable=not is_watched(),
        dynamic_ncols=True,
        unit_scale=total > 10_000,
    )


def duration(seconds: float) -> str:
    """12345.6 -> '3:25:45'."""
    return str(datetime.timedelta(seconds=round(seconds)))
