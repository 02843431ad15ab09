"""Objectives that tests put together themselves, and batches of made-up images."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from algorithms.teaching import teacher_weights
from architectures import Input, TappedNetwork, create_model
from config.options import EMA, Options
from dataloaders import Batch, Dataset, load_dataset
from distillation.build import build_network, build_objective, fold_teacher_, open_teacher
from distillation.expressions import ALONE, PLACES, brought_by, list_methods
from distillation.losses import Loss, find_loss
from distillation.losses.ce import CrossEntropy
from distillation.losses.decisions import Decisions
from distillation.losses.words import Words
from distillation.objective import Objective, Teacher, union
from distillation.prepared import PREPARED
from distillation.signals import Network, Wanted, measured
from letkd import Codebook, SubclassTargets, pool_map
from main_classification import default_config
from storage.state_dicts import Weights

SUM = "letKD-2+DKD+AT"
TRANSFORMED = ("lskd:DKD", "ctkd:KD", "sdd:NKD", "sdd:ctkd:lskd:KD")
IMAGE_SIZE, NUM_CLASSES, NUM_WORDS, SUBCLASSES_PER_CLASS = 8, 10, 16, 2


class Prepared(Input):
    """Of images that are normalised already, and keep their memory format."""

    def __init__(self) -> None:
        super().__init__(mean=(0, 0, 0), std=(1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    """A batch of images, of whatever the objective's input takes."""
    return Batch(images, labels, torch.arange(len(labels), device=labels.device))


def network_of(module: nn.Module, image_size: int) -> Network:
    return measured(module, image_size)


def teacher_of(network: TappedNetwork, image_size: int) -> Teacher:
    return Teacher(network_of(network, image_size), Prepared(), "test")


def objective_of(
    student: Network, losses: Mapping[str, Loss], weights: Mapping[str, float], teacher: Teacher | None = None
) -> Objective:
    """Cross-entropy and these losses; no BatchNorm of the teacher is folded."""
    if teacher is not None:
        teacher.network = teacher.network.reading(union(loss.needs.teacher for loss in losses.values()))
    return Objective(student, Prepared(), {"ce": CrossEntropy(), **losses}, {"ce": 1.0, **weights}, teacher)


def letkd_of(
    module: nn.Module,
    teacher_network: TappedNetwork,
    codebook: Codebook,
    subclasses: SubclassTargets | None = None,
    *,
    image_size: int,
) -> Objective:
    """letKD-1, or letKD-2 where there are sub-classes."""
    student, teacher = network_of(module, image_size), teacher_of(teacher_network, image_size)
    losses: dict[str, Loss] = {"words": Words.build(student, teacher.network, None, codebook=codebook)}
    if subclasses is not None:
        losses["decisions"] = Decisions.build(student, teacher.network, None, decisions=subclasses)
    return objective_of(student, losses, dict.fromkeys(losses, 1.0), teacher)


def open_networks(options: Options, dataset: Dataset, maps: Sequence[str] = PLACES) -> tuple[Network, Teacher]:
    """An untrained student of an experiment, and its teacher from the file, which returns these maps."""
    student = build_network(options, dataset.num_classes, dataset.image_size)
    teacher = open_teacher(options.pair.teacher, dataset, teacher_weights(options), ["a test"])
    teacher.network = teacher.network.reading(Wanted(maps=tuple(maps)))
    fold_teacher_(teacher)
    return student, teacher


def pooled_maps(student: Network, teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """The maps that the teacher returns, at the student's grid; of prepared images."""
    maps = teacher(images).maps
    return {place: pool_map(found, student.pooling_of(teacher.network, place)) for place, found in maps.items()}


def takes_average(method: str) -> bool:
    """Whether the average of the student can be the teacher of a method."""
    losses = [find_loss(key) for key in brought_by(method)]
    return all(loss.needs_teacher and not loss.prepared and not loss.reads_weights for loss in losses)


def every_method() -> list[str]:
    """All registered methods, a network alone, a sum, and some behind transforms."""
    return [ALONE, *list_methods(), SUM, *TRANSFORMED]


def objective_of_method(method: str, teacher_name: str = "resnet8") -> Objective:
    """Of any expression, with its default options, as training builds it; teacher and supervision are drawn.

    Args:
        teacher_name: or EMA, the average of the student.
    """
    name = "digits.RN8" if method == ALONE else f"digits.RN14_RN8.{method}"
    config = default_config(name) | {"image_size": IMAGE_SIZE}
    teacher = None
    if method != ALONE:
        config |= {"teacher": teacher_name, "num_words": NUM_WORDS}
        config |= {"subclasses_per_class": SUBCLASSES_PER_CLASS} if "subclasses_per_class" in config else {}
    if method != ALONE and teacher_name != EMA:
        teacher = Weights(create_model(teacher_name, num_classes=NUM_CLASSES).state_dict(), Path("drawn.pth"))
    drawn = {"codebook": drawn_codebook, "decisions": drawn_subclasses, "means": drawn_means}
    kinds = {
        key: SimpleNamespace(open=lambda options, student, teacher, draw=draw: draw(), facts=no_facts)
        for key, draw in drawn.items()
    }
    with patch.dict(PREPARED, kinds):
        return build_objective(Options.of(config), small_digits(), teacher)


def no_facts(options: Options) -> tuple[Path, dict[str, Any]]:
    """Of supervision that no job has made."""
    return Path("drawn.pth"), {}


@functools.cache
def small_digits() -> Dataset:
    return load_dataset("digits", splits=("train",), image_size=IMAGE_SIZE)


def drawn_codebook(channels: int = 64) -> Codebook:
    return Codebook(torch.randn(NUM_WORDS, channels))


def drawn_means(channels: int = 64) -> Tensor:
    return torch.randn(NUM_CLASSES, channels)


def drawn_subclasses(channels: int = 64) -> SubclassTargets:
    num_targets = NUM_CLASSES * SUBCLASSES_PER_CLASS
    return SubclassTargets(
        scalings_CL=torch.randn(channels, NUM_CLASSES - 1) / 8,
        xbar_C=torch.zeros(channels),
        centers_ML=torch.randn(num_targets, NUM_CLASSES - 1),
        decisions_MM=torch.randn(num_targets, num_targets).softmax(dim=1),
        num_subclasses=SUBCLASSES_PER_CLASS,
    )
