"""Losses on logits, and what stands in front of them.

A loss compares rows of logits, `LogitLoss.compare`, and a transform makes other rows of them: standardised ones, at a
learnt temperature, of regions of the image. Any transform stands in front of any loss that takes it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Data, Labels, Loss, Needs, Part, known_labels, list_losses, mean_of_labelled
from distillation.signals import Network, Signals, Wanted

# beta of DKD by pair as published, 8 for all others; methods that are published with DKD's coefficients read it too.
BETA = {
    ("resnet32x4", "resnet8x4"): 8.0,
    ("resnet32x4", "shufflenetv1"): 8.0,
    ("resnet32x4", "shufflenetv2"): 8.0,
    ("resnet50", "mobilenetv2"): 8.0,
    ("wrn_40_2", "shufflenetv1"): 8.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "mobilenetv2"): 6.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
}


class Rows(NamedTuple):
    """What a loss on logits compares: R rows, which are the samples unless a transform makes others of them.

    Attributes:
        student, teacher: logits (R, N).
        labels: (R,).
        temperature: a number or a 0-dim tensor.
        weights: (R,), of the rows; None where all are 1.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: float | Tensor
    weights: Tensor | None = None


class LogitLoss(Loss):
    """A loss that compares logits sample by sample: `compare` is all that a subclass writes.

    What weighs samples or changes logits stands around `compare`: mixed labels, images without one, and transforms.

    Attributes:
        per_sample: whether every term is a mean over samples, of which `compare` returns all values. One that is not
            returns the terms themselves, scalars. It cannot weigh samples: where it reads labels, `takes_mixed` is
            False too.
        reads_labels: whether the terms depend on labels. Those of mixed images are weighed by calling `compare` twice,
            once where neither a loss nor what stands in front of it reads them. `labels` follows from both.

    Args:
        temperature: what `compare` gets; an option of most subclasses.
    """

    kind = "logits"
    per_sample: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.labels = cls.labels_behind(())

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature
        self.transforms = nn.ModuleDict()
        logits = Wanted(logits=True)
        self.needs = Needs(student=logits, teacher=logits, whole_batch=not self.per_sample)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, **options: Any) -> "LogitLoss":
        check_classes(cls.method or cls.key, student, teacher)
        return cls(**options)

    @classmethod
    def labels_behind(cls, transforms: Iterable["Transform | type[Transform]"]) -> Labels:
        """What it reads of labels, with transforms in front of it."""
        if not any(part.reads_labels for part in (cls, *transforms)):
            return "none"
        return "any" if cls.per_sample else "all"

    def behind(self, transforms: Mapping[str, "Transform"]) -> "LogitLoss":
        """This loss, with transforms in front of it.

        Args:
            transforms: by key, in the order in which they act.
        """
        self.transforms.update(transforms)
        self.labels = self.labels_behind(self.transforms.values())
        for transform in transforms.values():
            own, other = self.needs, transform.needs
            self.needs = Needs(own.student | other.student, own.teacher | other.teacher, own.whole_batch)
        return self

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        """Every term of every sample, (B,); or the terms, where they are no means over samples."""
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        values = self.values(student, teacher, known_labels(batch))
        if not self.per_sample:
            return values
        if self.labels == "none":
            return {name: value_B.mean() for name, value_B in values.items()}
        if batch.other_labels is None:
            return {name: mean_of_labelled(value_B, batch) for name, value_B in values.items()}
        others = self.values(student, teacher, batch.other_labels)
        return {name: torch.lerp(others[name], value_B, batch.share).mean() for name, value_B in values.items()}

    def values(self, student: Signals, teacher: Signals, labels_B: Tensor) -> dict[str, Tensor]:
        """What `compare` says of what the transforms make of the logits."""
        rows = Rows(student.logits, teacher.logits, labels_B, self.temperature)
        for transform in self.transforms.values():
            rows = transform(rows, student, teacher)
        values = self.compare(rows.student, rows.teacher, rows.labels, rows.temperature)
        if rows.weights is None:
            return values
        return {name: (rows.weights * value_R).view(len(labels_B), -1).mean(dim=1) for name, value_R in values.items()}

    def statistics(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        return {
            f"{self.key}.{name}": value
            for transform in self.transforms.values()
            for name, value in transform.statistics().items()
        }


class Transform(Part):
    """What stands in front of a loss on logits and changes its rows; written `key:METHOD`.

    Attributes:
        replaces: options of the loss that it takes the place of.
        weighs_rows: whether it weighs rows; a loss that is no mean over samples cannot stand behind it.
        reads_labels: whether what it makes of logits, or the weights, depend on labels.
        published: weights and options, those of the loss and its own, by the expression behind the colon and then by
            (teacher, student), None for all pairs that are not there; "ce" is the weight of the cross-entropy.
        needs: of the class, or of an instance that has others.
    """

    replaces: ClassVar[tuple[str, ...]] = ()
    weighs_rows: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[tuple[str, str] | None, Mapping[str, Any]]]] = {}
    needs: Needs = Needs()

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, **options: Any) -> "Transform":
        """An instance for two networks; arguments and errors as those of `Loss.build`."""
        return cls(**options)

    def forward(self, rows: Rows, student: Signals, teacher: Signals) -> Rows:
        """Other rows, of B samples one behind the other."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Tensor]:
        """As those of a loss."""
        return {}


def check_classes(method: str, student: Network, teacher: Network) -> None:
    """Refuse networks of unequal numbers of classes.

    Raises:
        ValueError: names the method, both networks and their classes.
    """
    one, other = student.outline, teacher.outline
    if one.num_classes != other.num_classes:
        raise ValueError(
            f"{method} compares logits class by class: {one.network} has {one.num_classes} classes "
            f"and {other.network} {other.num_classes}; choose a teacher of the same classes"
        )


def divergence(student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of every sample, (B,); finite for finite logits."""
    log_p_BN, log_q_BN = student_BN.log_softmax(dim=1), teacher_BN.log_softmax(dim=1)
    return F.kl_div(log_p_BN, log_q_BN, reduction="none", log_target=True).sum(dim=1)


def other_logits(logits_BN: Tensor, labels_B: Tensor) -> Tensor:
    """Logits of all classes but the label's (B, N - 1)."""
    others_BM = torch.arange(logits_BN.shape[1] - 1, device=logits_BN.device).expand(len(logits_BN), -1)
    return logits_BN.gather(1, others_BM + (others_BM >= labels_B.unsqueeze(1)))


def is_rounding(length: Tensor, mean: Tensor | float, size: int = 1) -> Tensor:
    """Whether vectors of which the mean was subtracted had equal entries, so that what is left is their rounding.

    What is divided by such a length has no direction, and gradients of the size of its inverse: they are met where a
    classifier starts from zero.

    Args:
        length: of what is left; or the deviation, which is that of one entry.
        mean: what was subtracted, not negative.
        size: the number of entries.
    """
    bound = 4 * torch.finfo(length.dtype).eps * math.sqrt(size)
    return length <= bound * mean


# --- transforms by name ----------------------------------------------------------------------------------------------

_TRANSFORMS: dict[str, type[Transform]] = {}


def register_transform(key: str) -> Callable[[type[Transform]], type[Transform]]:
    """Class decorator: a transform of this name, which stands before a colon."""

    def register(cls: type[Transform]) -> type[Transform]:
        cls.key = key
        if key in _TRANSFORMS or key in list_losses():
            raise ValueError(f"a loss or transform {key!r} is registered already; choose another name")
        _TRANSFORMS[key] = cls
        return cls

    return register


def find_transform(key: str) -> type[Transform]:
    """The transform of this name."""
    return _TRANSFORMS[key]


def list_transforms() -> list[str]:
    """Names of all transforms in the order in which they act: those that make rows come first."""
    return sorted(_TRANSFORMS, key=lambda key: (not _TRANSFORMS[key].weighs_rows, key))
