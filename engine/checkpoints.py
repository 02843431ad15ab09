"""One file an epoch with everything a run needs to go on, a copy of the best, and where a run was stopped in an epoch.

Format (a torch file of tensors and plain values):

    format      "letkd-checkpoint-2"
    model       state dict of the deployed network, KD layers included; a network alone has its published names
    losses      state dict of the losses: what trains beside the network and is not deployed (connectors, predictors),
                and what they remember (memory banks and their counters)

and of the run:

    average     state dict of the average of the network, where the run keeps one (`engine.average`)
    optimizer   its state dict
    random      states of the random number generators
    epoch       epochs done;  epochs  of the whole run
    best        {"top1", "epoch"}
    history     a dictionary of figures for each epoch done, as in results.json
    seconds     spent so far;  images_per_second  of the last training epoch
    config      the run's configuration
    teacher_fingerprint     of the weights that taught the first epoch; None without a teacher, or where it is not known
    codebook_fingerprint, decisions_fingerprint     likewise of what was made from it
    init_fingerprint        of the weights that the first epoch began with, where these were not drawn; else None
    classifier      "untrained" of a run in which nothing trains it, else not there: what it says means nothing
    teacher_cache   of a run with a cache of what its teacher says: its fingerprint and folder, epochs that were read
    data        class names, image size and normalisation; `images`, the number and a digest of those of each split
    unfinished  `stopped.pth` alone: what the epoch behind `epoch` has measured so far, its `num_steps` first of all

Files of the format before are read too: evaluated, exported, used as a teacher, reported. Their runs are not gone on
with: what they have as `heads` was drawn in another order.
"""

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.ranks import by_first_alone
from engine.records import CURVES, PROGRESS, RESULTS, log
from letkd.processes import member, of_all
from storage.documents import first_line, flush_names, write_atomically
from storage.tensor_files import describe_value, is_dense, load_tensors, save_tensors

FORMAT, EARLIER_FORMAT = "letkd-checkpoint-2", "letkd-checkpoint-1"
EARLIER_HEADS = {"predictor.": "words.predictor.0.", "regressor.": "fitnet.regressor."}  # and what they are now
LAST = "last.pth"
PREVIOUS = "previous.pth"  # the epoch before the last, should the last one's file be damaged
BEST = "best.pth"
STOPPED = "stopped.pth"  # between two steps of an epoch; all others are whole epochs
NEWEST = -1  # what `checkpoint=` calls the newest epoch
# What the entries are, where they are there; a number may be whole.
KINDS = {
    "model": dict, "losses": dict, "average": dict, "optimizer": dict, "random": dict, "epoch": int, "epochs": int,
    "best": dict, "history": list, "seconds": float, "images_per_second": float, "config": dict, "data": dict,
    "unfinished": dict, "teacher_cache": dict, "classifier": str,
}  # fmt: skip
ENTRIES = {  # of those that are dictionaries
    "best": {"top1": float, "epoch": int},
    "config": {"config": str, "method": str, "dataset": str, "seed": int},
    "data": {"classes": list, "image_size": int, "mean": list, "std": list},
    "random": {"python": tuple, "torch": torch.Tensor, "cuda": list},
    "teacher_cache": {"epochs_read": int},
}
TENSORS = ("model", "losses", "average", "heads")  # tensors by name; the last in files of the earlier format
OTHERS = ("optimizer", "random", "unfinished")  # tensors among other values; all other entries are what JSON can hold
LARGEST_NUMBER = 2**31 - 1  # of epochs
REPLACED = "replaced"  # earlier runs of the directory, each in a folder 1, 2, ...


class Checkpoint(dict):
    """The content of a checkpoint; an entry that it lacks is an error that names the file."""

    def __init__(self, path: Path, content: dict[str, Any]):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> None:
        raise ValueError(f"{self.path} is no whole checkpoint: it has no entry {key!r}")


def check_content(path: Path, content: dict[str, Any]) -> None:
    """Refuse entries of a checkpoint that are of another kind than a run saves.

    Raises:
        ValueError: names the file and the first such entry.
    """
    for key, kind in KINDS.items():
        if key in content:
            _check_kind(path, key, content[key], kind)
    for key, kinds in ENTRIES.items():
        for name, kind in kinds.items() if key in content else ():
            _check_kind(path, f"{key}.{name}", content[key].get(name), kind)
    for key, value in content.items():
        if key in TENSORS:
            _check_tensors(path, key, value)
        elif key not in OTHERS:
            _check_plain(path, key, value)
    if "data" in content:
        _check_data(path, content["data"])
    for number, done in enumerate(content.get("history", []), start=1):
        tested = done.get("eval") if isinstance(done, dict) else None
        if not isinstance(tested, dict) or not _is_kind(tested.get("top1"), float):
            raise ValueError(f"{path} is damaged: its entry 'history' holds no figures of epoch {number}")
    for name in ("epoch", "epochs"):
        if not 0 <= content.get(name, 1) <= LARGEST_NUMBER:
            raise ValueError(f"{path} is damaged: its entry {name!r} is {content[name]}")


def _check_tensors(path: Path, key: str, state: dict[Any, Any]) -> None:
    for name, value in state.items():
        if not isinstance(name, str) or not is_dense(value):
            complaint = describe_value(value) if isinstance(name, str) else "named by no text"
            raise ValueError(f"{path} is damaged: in its entry {key!r} {name!r} is {complaint}, not dense numbers")


def _check_plain(path: Path, key: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its entry {key!r} is no plain value ({first_line(error)})") from error


def _check_data(path: Path, data: dict[str, Any]) -> None:
    if len(data["classes"]) < 1 or not all(isinstance(name, str) for name in data["classes"]):
        raise ValueError(f"{path} is damaged: its entry 'data.classes' holds no names")
    for name in ("mean", "std"):
        if len(data[name]) != 3 or not all(_is_kind(value, float) for value in data[name]):
            raise ValueError(f"{path} is damaged: its entry 'data.{name}' is {data[name]!r}, not three numbers")
    images = data.get("images", {})
    if not isinstance(images, dict) or not all(
        isinstance(facts, dict) and _is_kind(facts.get("number"), int) for facts in images.values()
    ):
        raise ValueError(f"{path} is damaged: its entry 'data.images' holds no numbers of images")


@contextlib.contextmanager
def names_entry(path: Path, name: str) -> Iterator[None]:
    """Whatever odd content of an entry brings about names it and its file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its entry {name!r} cannot be used ({first_line(error)})") from error


def _check_kind(path: Path, name: str, value: Any, kind: type) -> None:
    if not _is_kind(value, kind):
        raise ValueError(f"{path} is damaged: its entry {name!r} is a {type(value).__name__}, not a {kind.__name__}")


def _is_kind(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


@by_first_alone
def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    save_tensors(path, {"format": FORMAT, **content})


@by_first_alone
def save_last(directory: Path, content: dict[str, Any]) -> None:
    """Save the newest epoch and keep the one before it; where the run was stopped within it counts no more."""
    last, previous = directory / LAST, directory / PREVIOUS
    if last.is_file():
        _link_or_copy(last, previous)
    save_checkpoint(last, content)
    (directory / STOPPED).unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, so that the first is there all the time; some file systems allow a file only one."""
    link = target.with_name(f".{target.name}.{os.getpid()}.part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(source)
    except OSError:  # whatever else it is, writing will say
        write_atomically(target, lambda file: file.write(source.read_bytes()))
        return
    link.replace(target)
    link.unlink(missing_ok=True)  # still there if both were one file: a run was killed before it had a new last


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint of this project.
    """
    content = load_tensors(path)
    if not is_checkpoint(content):
        raise ValueError(f"{path} is no checkpoint of a run ({FORMAT})")
    if "heads" in content:
        content["losses"] = _losses_of_heads(content.pop("heads"))
    check_content(path, content)
    return Checkpoint(path, content)


def is_checkpoint(content: dict[str, Any]) -> bool:
    """Whether the content of a file is a checkpoint of ours, of this version or an earlier one."""
    return content.get("format") in (FORMAT, EARLIER_FORMAT)


def _losses_of_heads(heads: Any) -> Any:
    """The state of the losses of a file of the earlier format."""
    if not isinstance(heads, dict):
        return heads  # which is refused
    renamed = {}
    for name, value in heads.items():
        before = next((before for before in EARLIER_HEADS if str(name).startswith(before)), "")
        renamed[EARLIER_HEADS.get(before, "") + str(name).removeprefix(before)] = value
    return renamed


def load_best(directory: Path) -> dict[str, Any]:
    """The checkpoint of the best epoch.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
        ValueError: it is not the epoch that the run calls the best: the run was killed before it had saved that one.
    """
    path, last = directory / BEST, directory / LAST
    checkpoint = load_checkpoint(path)
    best = load_checkpoint(last).get("best") if last.is_file() else None
    if best and best["epoch"] != checkpoint["epoch"]:
        raise ValueError(
            f"{path} holds epoch {checkpoint['epoch']}, and the best of {last} is {best['epoch']}: the run was killed "
            "between them, or is about to save it; go on with checkpoint=-1"
        )
    return checkpoint


def other_epoch(history: list[Any], other: list[Any]) -> int | None:
    """The first epoch, counted from 1, of which two histories have other figures; None where one goes on the other.

    Figures have the times of a run in them, so those of two runs differ.
    """
    pairs = zip(history, other, strict=False)
    texts = ([json.dumps(figures, sort_keys=True) for figures in pair] for pair in pairs)  # NaN is NaN in a text
    return next((number for number, (one, another) in enumerate(texts, start=1) if one != another), None)


def epoch_in(path: Path) -> int | None:
    """The number of whole epochs in a checkpoint; None where there is none, or a damaged one."""
    try:
        return load_checkpoint(path)["epoch"]
    except (FileNotFoundError, ValueError):
        return None


def kept_epoch(directory: Path, epoch: int) -> Path:
    """Where `keep_every` keeps the checkpoint of one epoch."""
    return directory / f"epoch_{epoch}.pth"


def kept_epochs(directory: Path) -> dict[int, Path]:
    """The files that `keep_every` has kept, by epoch."""
    found = {path.stem.removeprefix("epoch_"): path for path in directory.glob("epoch_*.pth")}
    return {int(number): path for number, path in found.items() if number.isdigit()}


def find_checkpoint(directory: Path, epoch: int) -> Path:
    """The file with the checkpoint of a whole `epoch`, -1 for the newest.

    Raises:
        FileNotFoundError: the run has none of that epoch; lists those it has, and files that cannot be read.
    """
    if epoch == NEWEST:
        return _newest_whole(directory)
    if kept_epoch(directory, epoch).is_file():
        return kept_epoch(directory, epoch)
    whole = {path: epoch_in(path) for path in sorted(directory.glob("*.pth")) if path.name != STOPPED}
    available = {number: path for path, number in whole.items() if number is not None}
    if epoch in available:
        return available[epoch]
    listed = [f"{number} ({path.name})" for number, path in sorted(available.items())] or ["none"]
    listed += [f"{path.name} cannot be read" for path, number in whole.items() if number is None]
    raise FileNotFoundError(f"no checkpoint of epoch {epoch} in {directory}; there are: {', '.join(listed)}")


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
    whole = epoch_in(newest) if newest else None
    if newest is None or whole is None:
        return stopped
    # A run that was killed when it had just saved an epoch, or had gone back to one, leaves a state within another
    # epoch, which counts no more. Behind the epoch before a damaged one it does.
    counts = done == whole if newest.name == LAST else done >= whole
    return stopped if counts else newest


def set_aside(directory: Path) -> Path | None:
    """Move an earlier run's checkpoints, results and curves into a folder of their own below `replaced/`.

    A run from scratch begins so: continuing it can then never pick up the earlier one, and a start by mistake loses
    nothing. A run that had nothing to go on from leaves nothing. Returns that folder, None without an earlier run.
    """
    collected, backups = directory / f".{REPLACED}.part", directory / REPLACED
    if not collected.is_dir() and not any(directory.glob("*.pth")) and not (directory / RESULTS).is_file():
        return None
    collected.mkdir(exist_ok=True)  # or there already, of a run that was killed in here
    # First what a run goes on from: one that is killed in here does not pick up half of the earlier run.
    names = (STOPPED, LAST, PREVIOUS, RESULTS, PROGRESS, CURVES)
    for path in dict.fromkeys((*map(directory.joinpath, names), *directory.glob("*.pth"))):
        if path.exists():
            path.rename(collected / path.name)
    flush_names(collected)
    backups.mkdir(exist_ok=True)
    numbers = [int(path.name) for path in backups.iterdir() if path.name.isdigit()]
    backup = collected.rename(backups / str(max(numbers, default=0) + 1))
    for changed in (backups, directory):
        flush_names(changed)
    return backup


def random_states() -> dict[str, Any]:
    """States of the generators a method may draw from; the loaders' follow from (seed, epoch) and have none.

    Of GPUs that of the current one, as a list, which once had one of every GPU of the machine.
    Of a run of many processes those of the first, and `ranks`: those of torch of each, which all have to ask.
    """
    of_gpu = _cuda_state()
    states = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": [] if of_gpu is None else [of_gpu],
    }
    if member().size > 1:
        states["ranks"] = of_all({"torch": states["torch"], "cuda": of_gpu})
    return states


def _cuda_state() -> torch.Tensor | None:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set what `random_states` returned: of each process what was its own, or else what the first one had.

    Args:
        device: that the run goes on with; on a GPU a line says where the states have none of one.
    """
    random.setstate(states["python"])
    own = {"torch": states["torch"], "cuda": next(iter(states["cuda"]), None)}
    rank, size = member()
    if size > 1 and len(states.get("ranks", [])) == size:
        own = states["ranks"][rank]
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    elif device.type == "cuda":
        log.info("note: the run so far was on no GPU, whose random numbers (dropout, stochastic depth) begin anew")
