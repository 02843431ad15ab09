"""The course of runs: quantities by epoch, and several seeds as their mean and range."""

import math
import statistics
from collections import defaultdict
from typing import Any, NamedTuple

from reporting.collect import Config, Run

LABELS = {
    "eval top1": "Top-1, evaluation images (%)",
    "train top1": "Top-1, training images (%)",
    "train loss": "Training loss",
    "eval loss": "Evaluation loss",
    "eval top5": "Top-5, evaluation images (%)",
    "learning_rate": "Learning rate",
    "images_per_second": "Training images a second",
    "seconds": "Seconds an epoch",
}
FIRST = ("eval top1", "train top1", "train loss", "eval loss", "eval top5")
LAST = ("learning_rate", "images_per_second", "seconds")
PERCENTAGES = frozenset({"eval top1", "train top1", "eval top5"})
LOGARITHMIC = frozenset({"learning_rate"})


class Point(NamedTuple):
    """An epoch's mean over the runs that have reached it, and their range."""

    epoch: int
    mean: float
    low: float
    high: float


def quantities(runs: list[Run]) -> list[str]:
    """Names of what the runs recorded, the most asked for first."""
    found = dict.fromkeys(name for run in runs for entry in run.history for name in flat(entry))
    between = [name for name in found if name not in FIRST + LAST]
    return [name for name in (*FIRST, *between, *LAST) if name in found]


def label(quantity: str) -> str:
    if quantity in LABELS:
        return LABELS[quantity]
    group, _, name = quantity.partition(" ")
    text = (name or group).replace("_", " ")
    return {"train": f"Training: {text}", "eval": f"Evaluation: {text}", "scales": f"Scale: {text}"}.get(
        group, text[:1].upper() + text[1:]
    )


def course(runs: list[Run], quantity: str) -> list[Point]:
    """A quantity by epoch, over several runs."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for entry in run.history:
            value = flat(entry).get(quantity)
            if value is not None and entry.get("epoch") is not None:
                values[int(entry["epoch"])].append(value)
    return [Point(epoch, statistics.fmean(found), min(found), max(found)) for epoch, found in sorted(values.items())]


def flat(entry: Config) -> dict[str, float]:
    """{"epoch": 1, "eval": {"top1": 9.0}} -> {"eval top1": 9.0}: the finite numbers of one epoch."""
    found = {}
    for key, value in entry.items():
        parts: dict[str, Any] = (
            {f"{key} {name}": part for name, part in value.items()} if isinstance(value, dict) else {}
        )
        found |= parts or {key: value}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and name != "epoch"
    }
