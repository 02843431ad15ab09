"""What a run leaves to read: a log, TensorBoard curves, and `results.json`."""

import datetime
import fcntl
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from algorithms.files import save_json

log = logging.getLogger("letKD.run")

RESULTS = "results.json"
LOG = "log.txt"
LOCK = ".lock"
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
        handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, "$ " + " ".join(sys.argv), (), None))
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
        yield


def save_results(directory: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write a finished job's `results.json`; returns the whole of it."""
    complete = complete_results(results)
    save_json(directory / RESULTS, complete)
    return complete


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
        "cpus": os.cpu_count(),
    }


class Curves:
    """TensorBoard scalars of a run, below `tensorboard/`; a continued run replaces what it does again.

    Args:
        first_step: the first optimisation step of this session, from 1; 1 begins anew.
    """

    def __init__(self, directory: Path, *, first_step: int):
        self.folder = directory / "tensorboard"
        self.first_step = first_step

    def __enter__(self) -> "Curves":
        from tensorboardX import SummaryWriter

        if self.first_step == 1:
            for earlier in self.folder.glob("events.out.tfevents.*"):
                earlier.unlink()
        # The suffix keeps two sessions apart that begin within the same second.
        self.writer = SummaryWriter(str(self.folder), purge_step=self.first_step, filename_suffix=f".{self.first_step}")
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.close()

    def flush(self) -> None:
        """Bring all points to the file."""
        self.writer.flush()

    def add(self, step: int, group: str, scalars: dict[str, float]) -> None:
        """Points at an optimisation step, under `group/name`."""
        for name, value in scalars.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)


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
