"""What may go on from a checkpoint: the same method and classes, and options with which its epochs still make sense."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.options import Protocol
from engine.checkpoints import FORMAT, STOPPED
from results.settings import changed_settings

# What must not change within an epoch.
ORDER_KEYS = ("dataset", "seed", "view_seed", "batch_size", "val_split", "unlabelled", "unlabelled_share")
# What the saved state of an optimizer belongs to: its kind, and which parameters its groups have.
OPTIMIZER_KEYS = ("optimizer", "learning_rates", "freeze", "decay_norms_and_biases")


def check_version(source: Path, checkpoint: dict[str, Any], *, epochs: int) -> None:
    """Refuse to go on with the unfinished run of an earlier version.

    Args:
        epochs: that the run shall have.

    Raises:
        ValueError: it is of an earlier version, and something is left to train.
    """
    is_left = source.name == STOPPED or checkpoint["epoch"] < epochs
    if checkpoint["format"] != FORMAT and is_left:
        raise ValueError(
            f"{source} is of a run of an earlier version ({checkpoint['format']}), which cannot go on here; "
            "finish it with that version, or start from scratch with checkpoint=0"
        )


def check_method(source: Path, checkpoint: dict[str, Any], *, method: str) -> None:
    """Refuse to go on with the run of another sum of methods, also where no tensor in it tells.

    Raises:
        ValueError: names both.
    """
    earlier = checkpoint["config"]["method"]
    if earlier != method:
        raise ValueError(
            f"{source} is of a run of {earlier}, and this is one of {method}; choose its experiment, config=, or start "
            "from scratch with checkpoint=0"
        )


def check_optimizer_state(source: Path, checkpoint: dict[str, Any], protocol: Protocol) -> None:
    """Refuse to go on with another optimizer, or with another choice of what it trains: its state is of these.

    Raises:
        ValueError: names the option and both values.
    """
    for key in OPTIMIZER_KEYS:
        now, before = getattr(protocol, key), checkpoint["config"].get(key, getattr(Protocol(), key))
        if now != before:
            raise ValueError(
                f"{source} was trained with {key}={before!r}, and what its optimizer remembers does not serve "
                f"{key}={now!r}; leave it out, or start from scratch with checkpoint=0"
            )


def check_classes(source: Path, earlier: Sequence[str], present: Sequence[str], *, dataset: str) -> None:
    """Refuse classes that are not those so far: their images would train as others.

    Args:
        dataset: what messages call the present ones.

    Raises:
        ValueError: names the first class that is another.
    """
    pairs = enumerate(itertools.zip_longest(earlier, present))
    first = next((f"class {n} was {was!r} and is {now!r}" for n, (was, now) in pairs if was != now), None)
    if first:
        raise ValueError(
            f"{source} was trained on {len(earlier)} classes, {dataset} now has {len(present)}; {first}: "
            "give the folders their names again, or start from scratch"
        )


def check_options(
    source: Path, checkpoint: dict[str, Any], options: Mapping[str, Any], *, is_recorded: bool
) -> list[str]:
    """Refuse options with which going on makes no sense; returns the names of others that have changed.

    What is left of an epoch must be what is left of the same epoch, and results that no epoch with these options has
    led to must not claim them.

    Args:
        options: of this run, as its checkpoints record them.
        is_recorded: whether the results of these very epochs are there.

    Raises:
        ValueError: names the option and both values.
    """
    earlier, epoch = checkpoint["config"], checkpoint["epoch"]
    changed = changed_settings(earlier, options)
    if options["seed"] != earlier["seed"]:
        changed["seed"] = (earlier["seed"], options["seed"])
    if source.name == STOPPED:
        for key in ORDER_KEYS:
            if key in changed:
                before, now = changed[key]
                raise ValueError(
                    f"{source} was stopped within an epoch of {key}={before!r}, this run has {key}={now!r}; begin "
                    f"that epoch again with checkpoint={epoch}"
                )
    if epoch >= options["epochs"] and not is_recorded:
        for key, (before, now) in changed.items():
            if key != "epochs":
                raise ValueError(
                    f"no epoch is left to train with {key}={now!r}: {source} is epoch {epoch}, trained with "
                    f"{key}={before!r}; leave it out"
                )
    return list(changed)
