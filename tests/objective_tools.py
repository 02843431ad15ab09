"""Objectives that tests put together themselves, and batches of made-up images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.teaching import teacher_weights
from architectures import Input, TappedNetwork
from dataloaders import Batch, Dataset
from distillation.build import build_student, fold_teacher_, open_teacher
from distillation.expressions import PLACES
from distillation.losses import Loss
from distillation.losses.ce import CrossEntropy
from distillation.losses.decisions import Decisions
from distillation.losses.words import Words
from distillation.objective import Objective, Teacher, union
from distillation.signals import Network, Wanted, measured
from letkd import Codebook, SubclassTargets, pool_map


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


def open_networks(config: dict[str, Any], dataset: Dataset, maps: Sequence[str] = PLACES) -> tuple[Network, Teacher]:
    """An untrained student of an experiment, and its teacher from the file, which returns these maps."""
    student = build_student(config, dataset.num_classes)
    teacher = open_teacher(config["teacher"], dataset, teacher_weights(config))
    teacher.network = teacher.network.reading(Wanted(maps=tuple(maps)))
    fold_teacher_(teacher)
    return measured(student, dataset.image_size, config["student"]), teacher


def pooled_maps(student: Network, teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """The maps that the teacher returns, at the student's grid; of prepared images."""
    maps = teacher(images).maps
    return {place: pool_map(found, student.pooling_of(teacher.network, place)) for place, found in maps.items()}
