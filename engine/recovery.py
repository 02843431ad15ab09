"""Putting a directory right when its run goes on: no file may hold an epoch that is not part of the run.

Such files are there after going back, after a damaged checkpoint, and after a kill between two writes. A kill in here
is one more: at every moment there is a state to go on from, and going on does the rest.
"""

from pathlib import Path
from typing import Any

from engine.checkpoints import (
    BEST,
    LAST,
    PREVIOUS,
    STOPPED,
    epoch_in,
    kept_epoch,
    kept_epochs,
    load_checkpoint,
    other_epoch,
    save_checkpoint,
)
from engine.records import RESULTS, log, read_results, update_results
from results.settings import MEASUREMENTS
from storage.weight_files import split_entry

Results = dict[str, Any]

NO_BEST = {"top1": -1.0, "epoch": 0}  # before the first epoch is done


def recover_files(directory: Path, source: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Leave the checkpoints of the epochs up to that of `source`, and as the best one the best of them.

    Args:
        source: the file that the run goes on from.
        checkpoint: its content.

    Returns:
        The accuracy and number of what is the best epoch from now on.

    Raises:
        ValueError: the best checkpoint is of another run.
    """
    epoch = checkpoint["epoch"]
    _check_best(directory / BEST, checkpoint)
    best, best_file = _find_best(directory, source, checkpoint)
    if source.name not in (LAST, STOPPED) or (source.name == LAST and best != checkpoint["best"]):
        save_checkpoint(directory / LAST, checkpoint | {"best": best})
    if best_file is None:
        (directory / BEST).unlink(missing_ok=True)
    elif best_file.name != BEST:
        save_checkpoint(directory / BEST, load_checkpoint(best_file) | {"best": best})
    for number, path in kept_epochs(directory).items():
        if number > epoch:
            path.unlink()
    if source.name != STOPPED:
        if (epoch_in(directory / PREVIOUS) or 0) >= epoch:
            (directory / PREVIOUS).unlink()
        (directory / STOPPED).unlink(missing_ok=True)
    return best


def _check_best(path: Path, checkpoint: dict[str, Any]) -> None:
    """Compare the figures of the epochs that the best checkpoint and another have; a damaged one is replaced."""
    try:
        best = load_checkpoint(path)
    except (FileNotFoundError, ValueError):
        return
    if differs := other_epoch(best.get("history", []), checkpoint.get("history", [])):
        raise ValueError(
            f"{path} is not of this run (other figures of epoch {differs}); put the run's own file in its place, or "
            "move it away"
        )


def _find_best(directory: Path, source: Path, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The best epoch, and the file that has it. Where none has it any more, the epoch of `source` is called the best.

    No file where that one is lost too, and nothing is called the best.
    """
    best, history = checkpoint["best"], checkpoint.get("history")  # checkpoints once had none
    newest = source if source.name != STOPPED else directory / LAST
    if epoch := best["epoch"]:
        for path in (directory / BEST, kept_epoch(directory, epoch), directory / PREVIOUS, newest):
            if epoch_in(path) == epoch:
                return best, directory / LAST if path == newest else path
        log.warning("warning: no file has the best epoch, %d, any more", epoch)
    if history and epoch_in(newest) == checkpoint["epoch"]:
        return {"top1": history[-1]["eval"]["top1"], "epoch": checkpoint["epoch"]}, directory / LAST
    return dict(NO_BEST), None


def forget_measurements(directory: Path, *, epoch: int, best_epoch: int) -> None:
    """Remove from `results.json` what was measured on weights that are no more; a damaged one is moved away."""
    try:
        earlier = read_results(directory)
    except ValueError as error:
        path = directory / RESULTS
        moved = path.replace(path.with_suffix(".damaged"))
        log.warning("warning: %s; it is now %s", error, moved)
        return

    def valid(results: Results) -> Results:
        return valid_measurements(results, epoch=epoch, best_epoch=best_epoch)

    if any(earlier.get(part, {}) != kept for part, kept in valid(earlier).items()):
        update_results(directory, lambda results: results | valid(results))


def valid_measurements(results: Results, *, epoch: int, best_epoch: int) -> Results:
    """What `results.json` has of other jobs on weights that a run still has, or that are not of this run."""
    newest = {LAST: epoch, PREVIOUS: epoch - 1, BEST: best_epoch}

    def is_valid(measured: Results) -> bool:
        measured_epoch, name = measured.get("epoch"), split_entry(measured.get("weights", ""))[0].name
        return measured_epoch is None or (
            measured_epoch <= epoch and newest.get(name, measured_epoch) == measured_epoch
        )

    parts = {part: results[part] for part in MEASUREMENTS.values() if part in results}
    return {
        part: {name: measured for name, measured in entries.items() if is_valid(measured)}
        for part, entries in parts.items()
    }
