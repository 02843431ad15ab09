"""The course of runs: quantities by epoch, and several seeds as their mean and range."""

from typing import NamedTuple

from results.collect import Run

LABELS = {
    "eval top1": "Top-1, evaluation images (%)",
    "train top1": "Top-1, training images (%)",
    "train loss": "Training loss",
    "eval loss": "Evaluation loss",
    "eval top5": "Top-5, evaluation images (%)",
    "average top1": "Top-1 of the average of weights (%)",
    "average loss": "Evaluation loss of the average of weights",
    "average top5": "Top-5 of the average of weights (%)",
    "learning_rate": "Learning rate",
    "images_per_second": "Training images a second",
    "seconds": "Seconds an epoch",
}
FIRST = ("eval top1", "train top1", "train loss", "eval loss", "eval top5")
LAST = ("learning_rate", "images_per_second", "seconds")
PERCENTAGES = frozenset({"eval top1", "train top1", "eval top5", "average top1", "average top5"})
LOGARITHMIC = frozenset({"learning_rate"})
MOST_EPOCHS = 120  # of a curve: more than the pixels between them would show


class Point(NamedTuple):
    """An epoch's mean over the runs that have reached it, and their range."""

    epoch: int
    mean: float
    low: float
    high: float


def quantities(runs: list[Run]) -> list[str]:
    """Names of what the runs recorded, the most asked for first."""
    found = dict.fromkeys(name for run in runs for name in run.courses)
    between = [name for name in found if name not in FIRST + LAST]
    return [name for name in (*FIRST, *between, *LAST) if name in found]


def chosen_epochs(series: list[list[Run]]) -> list[int]:
    """The epochs that a picture shows: at most so many over all, and the last of every series."""
    reached = [
        sorted({epoch for run in runs for course in run.courses.values() for epoch in course}) for runs in series
    ]
    known = sorted({epoch for epochs in reached for epoch in epochs})
    steps = min(len(known), MOST_EPOCHS)
    spread = {known[round(i * (len(known) - 1) / max(1, steps - 1))] for i in range(steps)}
    return sorted(spread | {epochs[-1] for epochs in reached if epochs})


def label(quantity: str) -> str:
    if quantity in LABELS:
        return LABELS[quantity]
    group, _, name = quantity.partition(" ")
    text = (name or group).replace("_", " ")
    return {"train": f"Training: {text}", "eval": f"Evaluation: {text}", "scales": f"Scale: {text}"}.get(
        group, text[:1].upper() + text[1:]
    )


def course(runs: list[Run], quantity: str, epochs: list[int]) -> list[Point]:
    """A quantity at these epochs, over several runs."""
    courses = [run.courses.get(quantity, {}) for run in runs]
    points = []
    for epoch in epochs:
        if found := [known[epoch] for known in courses if epoch in known]:
            points.append(Point(epoch, sum(found) / len(found), min(found), max(found)))
    return points
