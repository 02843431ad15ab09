"""Teacher-free distillation by a virtual teacher: Tf-KD_reg.

    L = T^2 mean_B KL(q_BN || softmax(z_BN / T))
    q = softmax(log d / T),    d_y = a for the label's class y, d_n = (1 - a) / (N - 1) for every other

z are the student's logits, d what a teacher would say that is never wrong. That d is softened by log d / T, as a
teacher's logits are, that both sides are at T, and the factor T^2, which is KD's and not in the paper's formula: this
form is ours. Neither it nor the coefficients, of the paper's order, 0.9 CE + 0.1 L with T = 20 and a = 0.99, are
checked against the authors' code, of which no values are at hand.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Loss, Needs, Paper, known_labels, mean_of_labelled, register_loss
from distillation.losses.logits import divergence
from distillation.signals import Signals, Wanted


@register_loss("TfKD")
class TfKD(Loss):
    """Divergence from a teacher that is made of the labels.

    Args:
        temperature, confidence: as in `Options`.
    """

    paper = Paper(
        "Yuan, Tay, Li, Wang, Feng",
        "Revisiting Knowledge Distillation via Label Smoothing Regularization",
        "CVPR",
        2020,
    )
    kind = "teacher-free"
    terms = {"tfkd": 0.1}
    ce = 0.9
    needs_teacher = False
    labels = "any"

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(20.0, "what both sides' logits are divided by", above=0.0)
        confidence: float = option(0.99, "the virtual teacher's probability of the label", above=0.0, at_most=0.9999)

    def __init__(self, *, temperature: float, confidence: float):
        super().__init__()
        self.temperature, self.confidence = temperature, confidence
        self.needs = Needs(student=Wanted(logits=True))

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        value_B = self.compare(student.logits, known_labels(batch))
        if batch.other_labels is not None:
            value_B = torch.lerp(self.compare(student.logits, batch.other_labels), value_B, batch.share)
        return {"tfkd": mean_of_labelled(value_B, batch)}

    def compare(self, student_BN: Tensor, labels_B: Tensor) -> Tensor:
        """Of every sample, (B,)."""
        rest = math.log((1 - self.confidence) / (student_BN.shape[1] - 1))
        virtual_BN = torch.full_like(student_BN, rest).scatter(1, labels_B[:, None], math.log(self.confidence))
        return self.temperature**2 * divergence(student_BN / self.temperature, virtual_BN / self.temperature)
