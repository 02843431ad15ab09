"""One file an epoch with everything a run needs to go on, a copy of the best, and where a run was stopped in an epoch.

Format (a torch file of tensors and plain values):

    format      "letkd-checkpoint-1"
    model       state dict of the deployed network, KD layers included; a network alone has its published names
    heads       state dict of what trains beside it and is not deployed (QuEST's predictor)
    optimizer   its state dict
    random      states of the random number generators
    epoch       epochs done;  epochs  of the whole run
    best        {"top1", "epoch"}
    history     a dictionary of figures for each epoch done, as in results.json
    seconds     spent so far;  images_per_second  of the last training epoch
    config      the run's configuration
    data        class names, image size and normalisation
    unfinished  `stopped.pth` alone: what the epoch behind `epoch` has measured so far, its `num_steps` first of all
"""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from algorithms.files import load_tensors, save_tensors
from algorithms.records import log

FORMAT = "letkd-checkpoint-1"
LAST = "last.pth"
PREVIOUS = "previous.pth"  # the epoch before the last, should the last one's file be damaged
BEST = "best.pth"
STOPPED = "stopped.pth"  # between two steps of an epoch; all others are whole epochs
NEWEST = -1  # what `checkpoint=` calls the newest epoch


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    save_tensors(path, {"format": FORMAT, **content})


def save_last(directory: Path, content: dict[str, Any]) -> None:
    """Save the newest epoch and keep the one before it; where the run was stopped within it counts no more."""
    last, previous = directory / LAST, directory / PREVIOUS
    if last.is_file():
        link = directory / f".{PREVIOUS}.part"  # a second name, so that `last` is there all the time
        link.unlink(missing_ok=True)
        link.hardlink_to(last)
        link.replace(previous)
    save_checkpoint(last, content)
    (directory / STOPPED).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint of this project.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of a run ({FORMAT})")
    return content


def kept_epoch(directory: Path, epoch: int) -> Path:
    """Where `keep_every` keeps the checkpoint of one epoch."""
    return directory / f"epoch_{epoch}.pth"


def find_checkpoint(directory: Path, epoch: int) -> Path:
    """The file with the checkpoint of a whole `epoch`, -1 for the newest.

    Raises:
        FileNotFoundError: the run has none of that epoch; lists those it has.
    """
    if epoch == NEWEST:
        return _newest_whole(directory)
    if kept_epoch(directory, epoch).is_file():
        return kept_epoch(directory, epoch)
    whole = (path for path in sorted(directory.glob("*.pth")) if path.name != STOPPED)
    available = {load_checkpoint(path)["epoch"]: path for path in whole}
    if epoch in available:
        return available[epoch]
    listed = ", ".join(f"{number} ({path.name})" for number, path in sorted(available.items())) or "none"
    raise FileNotFoundError(f"no checkpoint of epoch {epoch} in {directory}; there are: {listed}")


def _newest_whole(directory: Path) -> Path:
    last, previous = directory / LAST, directory / PREVIOUS
    if not previous.is_file():
        return last
    try:
        load_checkpoint(last)
    except ValueError as error:
        log.warning("warning: %s; going on from the epoch before it, %s", error, previous)
        return previous
    return last


def find_state(directory: Path, epoch: int) -> Path | None:
    """The file that training goes on from: for -1 also one within an epoch, or none when nothing was saved yet.

    Raises:
        FileNotFoundError: as `find_checkpoint`.
    """
    if epoch != NEWEST:
        return find_checkpoint(directory, epoch)
    newest = _newest_whole(directory) if (directory / LAST).is_file() else None
    stopped = directory / STOPPED
    if not stopped.is_file():
        return newest
    try:
        done = load_checkpoint(stopped)["epoch"]
    except ValueError as error:
        log.warning("warning: %s; going on from the last whole epoch", error)
        return newest
    # A run that was killed right after it had saved the epoch leaves a state within it that counts no more.
    return newest if newest and load_checkpoint(newest)["epoch"] > done else stopped


def set_aside(directory: Path, files: Iterable[str]) -> bool:
    """Move an earlier run's checkpoints and other files into `replaced/`, over what was set aside before.

    A run from scratch begins so: continuing it can then never pick up the earlier one, and a start by mistake loses
    nothing. Returns whether there was an earlier run.
    """
    collected, target = directory / ".replaced.part", directory / "replaced"
    # First what a run goes on from: one that is killed in here does not pick up half of the earlier run.
    run = [path for path in map(directory.joinpath, (STOPPED, LAST, PREVIOUS, *files)) if path.is_file()]
    if not run and not collected.is_dir() and target.is_dir():
        return False  # at most the best of a first epoch in which a run was killed: not worth what is in `replaced/`
    found = dict.fromkeys((*run, *directory.glob("*.pth")))
    for path in found:
        collected.mkdir(exist_ok=True)
        path.rename(collected / path.name)
    if collected.is_dir():  # or of a run that was killed in here
        shutil.rmtree(target, ignore_errors=True)
        collected.rename(target)
    return bool(found)


def random_states() -> dict[str, Any]:
    """States of the generators a method may draw from; the loaders' follow from (seed, epoch) and have none."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` returned; a GPU's state only where there are as many GPUs."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
