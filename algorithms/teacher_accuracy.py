"""The teacher's accuracy on the evaluation images: said before it teaches, and refused where guessing is as good.

It is measured on at most 2,000 images, always the same: in the order of their labels those at equal distances, so that
every class has its share. With N classes it is that of guessing where guessing does as well in more than one of a
hundred cases:

    P(Binomial(images, 1 / N) >= right) > 0.01

of 2,000 images of 100 classes 31 right ones are, of 899 digits 111. Of so few images that all of them could be right by
chance, fewer than seven of two classes, nothing is concluded.

Nothing is measured twice: a training says in its results.json how good it is on which images, and what is measured
here is kept in a file below `<localpath>/.teachers/`, by the fingerprints of weights and images. No random numbers are
drawn.
"""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from architectures import InputConfig
from dataloaders import Dataset
from engine.records import log, read_results
from letkd.processes import by_first, member
from storage.tensor_files import load_json, save_json

NUM_IMAGES = 2000
BY_CHANCE = 0.01  # the probability up to which guessing is ruled out
FOLDER = ".teachers"  # below `localpath`


class Accuracy(NamedTuple):
    """So many of these images are right."""

    right: int
    images: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.images


class TeacherAccuracy:
    """What is known of a teacher, or measured of it.

    Args:
        name: of its network, for messages.
        fingerprint: of its weights.
        evaluated_on: as the function of this name returns it.
        seen: what it sees of the images.
        localpath: where it is kept.
        trained_in: the directory of the training that the weights may be from.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        evaluated_on: dict[str, Any],
        seen: InputConfig,
        localpath: Path,
        trained_in: Path,
    ):
        self.name, self.fingerprint, self.evaluated_on, self.seen = name, fingerprint, evaluated_on, seen
        self.trained_in = trained_in
        identity = json.dumps([fingerprint, evaluated_on], sort_keys=True)
        self.path = localpath / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        self.measured: Accuracy | None = None  # by this start

    def check(self, dataset: Dataset, measure: Callable[[Dataset], float], *, allow_poor: bool) -> None:
        """Say how good the teacher is, and refuse one that is no better than guessing.

        Args:
            measure: top-1 in percent on the evaluation images of a data set.

        Raises:
            ValueError: it is no better, and that is not allowed.
        """
        found, source = by_first(self._by_its_training, len(dataset.eval)), ", as its training says"
        if found is None:
            found, source = by_first(self._kept), ", as measured before"
        if found is None:
            some = replace(dataset, eval=dataset.eval.take(spread(dataset.eval.labels)))
            num_images = len(some.eval)
            found, source = Accuracy(round(measure(some) * num_images / 100), num_images), ""
            self.measured = found
        log.info(
            "teacher    %s: %.2f%% top-1 on %d evaluation images%s", self.name, found.percent, found.images, source
        )
        if not allow_poor and is_guessing(found, dataset.num_classes):
            raise ValueError(
                f"the teacher {self.name} is right on {found.right} of {found.images} evaluation images "
                f"({found.percent:.2f}%), and among {dataset.num_classes} classes guessing is as good; it sees "
                f"{self.seen}: if it was trained on others, give teacher_input=own or teacher_size=, teacher_mean= and "
                "teacher_std=; if its classes have other numbers, train it here from its weights; or give another, "
                "teacher_weights= or teacher_experiment=, or train with it all the same: allow_poor_teacher=True"
            )

    def keep(self) -> None:
        """Keep what was measured for later starts."""
        if self.measured is None or not member().is_first:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"teacher": self.name, "fingerprint": self.fingerprint, "evaluated_on": self.evaluated_on}
        save_json(self.path, facts | self.measured._asdict())

    def _by_its_training(self, num_images: int) -> Accuracy | None:
        """After its last epoch, where the weights are those and the images were these."""
        with suppress(ValueError):  # what is damaged says nothing
            results = read_results(self.trained_in)
            expected = ("train", self.fingerprint, self.evaluated_on)
            if tuple(results.get(key) for key in ("mode", "fingerprint", "evaluated_on")) == expected:
                top1 = results["history"][-1]["eval"]["top1"]
                return Accuracy(round(top1 * num_images / 100), num_images)
        return None

    def _kept(self) -> Accuracy | None:
        """What an earlier start has measured."""
        with suppress(ValueError):
            if self.path.is_file():
                found = load_json(self.path)
                return Accuracy(found["right"], found["images"])
        return None


def evaluated_on(data: dict[str, Any], val_split: int, seen: InputConfig) -> dict[str, Any]:
    """What tells the images that evaluate a training, and what a network sees of them, from others.

    Args:
        data: `data_facts` and `image_facts`, before any images are held out.
        val_split: so many training images, which evaluate then.
    """
    images = data["images"]["train" if val_split else "eval"]
    return images | {"val_split": val_split} | seen.facts()


def spread(labels_N: Tensor, number: int = NUM_IMAGES) -> Tensor:
    """Positions of at most `number` images, in order: in the order of labels those at equal distances."""
    if len(labels_N) <= number:
        return torch.arange(len(labels_N))
    by_label = labels_N.argsort(stable=True)
    return by_label[torch.arange(number) * len(labels_N) // number].sort().values


def is_guessing(found: Accuracy, num_classes: int) -> bool:
    """Whether guessing among the classes does as well, by the bound at the head of this module."""
    if at_least(found.images, found.images, 1 / num_classes) > BY_CHANCE:
        return False
    return at_least(found.right, found.images, 1 / num_classes) > BY_CHANCE


def at_least(right: int, images: int, chance: float) -> float:
    """P(Binomial(images, chance) >= right)."""
    if chance >= 1:
        return 1.0

    def log_probability(k: int) -> float:
        ways = math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1)
        return ways + k * math.log(chance) + (images - k) * math.log1p(-chance)

    return math.fsum(math.exp(log_probability(k)) for k in range(right, images + 1))
