"""What adapters share: registered losses, built for the shapes of a file."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillation.losses import Data, Loss, find_loss, find_transform
from distillation.losses.base import Part
from distillation.signals import Network, Signals
from tests.distillation.losses.loss_tools import batch, network
from tests.golden.methods.core import Golden

EPOCHS = 240  # of the protocol that published warm-ups belong to


def build(
    key: str, student: Network, teacher: Network, *, num_classes: int = 10, num_images: int = 64, **options: Any
) -> Loss:
    """A registered loss for two outlines, with its default options but for those that are given.

    Args:
        key: of a loss, with transforms in front of it or without: "ctkd:lskd:kd".
        options: of the loss; those of a transform stand behind its key, ctkd={"decay": 10.0}.
    """
    *transforms, key = key.split(":")
    own = {name: find_transform(name).defaults() | options.pop(name, {}) for name in transforms}
    cls, data = find_loss(key), Data(num_images, num_classes)
    loss = cls.build(student, teacher, data, **cls.defaults() | options)
    built = {name: find_transform(name).build(student, teacher, data, **given) for name, given in own.items()}
    return loss.behind(built) if built else loss


def tell_epoch(loss: Loss, epoch: int) -> None:
    """Tell a loss, and what stands in front of it, of an epoch from 1."""
    for part in loss.modules():
        if isinstance(part, Part):
            part.on_epoch(epoch, EPOCHS)


def run(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> dict[str, Tensor]:
    """The terms of a loss."""
    return loss(student, teacher, batch(labels))


def no_labels(count: int) -> Tensor:
    """Labels of samples for a loss that does not read them."""
    return torch.zeros(count, dtype=torch.int64)


def run_maps(loss: Loss, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> dict[str, Tensor]:
    """The terms of a loss for maps, or maps before the activation, in the order of its places."""
    pairs = ((loss.needs.student, students), (loss.needs.teacher, teachers))
    found = [dict(zip(wanted.maps + wanted.preact, maps, strict=True)) for wanted, maps in pairs]
    return run(loss, *(Signals(maps=maps, preact=maps) for maps in found), no_labels(len(students[0])))


def weighted(terms: Mapping[str, Tensor], **weights: float) -> Tensor:
    """The sum of terms, as an objective has it."""
    return sum(weights[name] * term for name, term in terms.items())


class Logits:
    """The logits of a file and its labels, as arguments of losses.

    Args:
        golden: has input/student_logits (B, N), input/teacher_logits and, where losses read them, input/labels.

    Attributes:
        variables: what has gradients, by its name in the file.
    """

    def __init__(self, golden: Golden):
        self.student, self.teacher = golden.variable("input/student_logits"), golden["input/teacher_logits"]
        self.labels = golden["input/labels"] if "input/labels" in golden else no_labels(len(self.student))
        self.variables = {"student_logits": self.student}

    @property
    def num_classes(self) -> int:
        return self.student.shape[1]

    @property
    def ce(self) -> Tensor:
        """The registered cross-entropy."""
        return run(find_loss("ce").build(None, None, None), Signals(logits=self.student), None, self.labels)["ce"]

    def build(self, key: str, **options: Any) -> Loss:
        """A registered loss on logits."""
        sides = (network(name, num_classes=self.num_classes) for name in ("student", "teacher"))
        return build(key, *sides, num_classes=self.num_classes, **options)

    def terms(self, key: str, *, epoch: int | None = None, **options: Any) -> dict[str, Tensor]:
        """The terms of a registered loss on logits.

        Args:
            epoch: from 1, of `EPOCHS`; None: the loss is told of none.
        """
        loss = self.build(key, **options)
        if epoch is not None:
            tell_epoch(loss, epoch)
        return self.run(loss)

    def run(self, loss: Loss) -> dict[str, Tensor]:
        """The terms of a loss."""
        return run(loss, Signals(logits=self.student), Signals(logits=self.teacher), self.labels)
