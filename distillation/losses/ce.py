"""Cross-entropy with the labels: the term `ce` of every objective."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Loss, Needs, known_labels, mean_of_labelled, register_loss
from distillation.signals import Signals, Wanted


@register_loss("ce", is_method=False)
class CrossEntropy(Loss):
    """Mean cross-entropy of the student's logits."""

    terms = {"ce": 1.0}
    needs_teacher = False
    labels = "any"

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs(student=Wanted(logits=True))

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        if batch.labelled is not None:
            value_B = F.cross_entropy(student.logits, known_labels(batch), reduction="none")
            return {"ce": mean_of_labelled(value_B, batch)}
        if batch.other_labels is None:
            return {"ce": F.cross_entropy(student.logits, batch.labels)}
        pair = (F.cross_entropy(student.logits, y, reduction="none") for y in (batch.other_labels, batch.labels))
        return {"ce": torch.lerp(*pair, batch.share).mean()}
