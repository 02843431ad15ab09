"""Relational distillation.

    d_BB  = |p_b - p_c| / mean of them over b != c
    a_BBB = cosine of the angle at sample b between c and e; 0 where either is b

    distance = mean over B^2 of smooth_l1(d(p) - d(t))
    angle    = mean over B^3 of smooth_l1(a(p) - a(t))

p (B, C) and t (B, K) are the pooled vectors of student and teacher; smooth_l1(x) = x^2 / 2 below 1, |x| - 1/2 above.
Published, as in RepDistiller, for every pair: CE + 25 distance + 50 angle; B is 64 there.

As in the reference, distances are at least 1e-6, those of equal samples too, and these count in the mean, through which
the gradient goes; a batch of one has neither distances nor angles, and both terms are 0. The reference takes distances
from |p_b|^2 + |p_c|^2 - 2 p_b p_c, so equal samples have rounding noise for a distance and for its gradient. Here both
terms start from the differences (B, B, C), in which equal samples have the distance 0, and no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import pooled_widths
from distillation.signals import Network, Signals, Wanted

NEAREST = 1e-6  # the smallest distance of two samples; those that are nearer count as equal


@register_loss("RKD")
class RKD(Loss):
    """Errors of the distances and angles between the samples of a batch."""

    paper = Paper("Park, Kim, Lu, Cho", "Relational Knowledge Distillation", "CVPR", 2019)
    kind = "relations"
    terms = {"distance": 25.0, "angle": 50.0}
    labels = "none"

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs(student=Wanted(pooled=True), teacher=Wanted(pooled=True), whole_batch=True)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "RKD":
        pooled_widths(cls.method, student, teacher)
        return cls()

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        pairs = zip(relations(student.pooled), relations(teacher.pooled), strict=True)
        return {name: F.smooth_l1_loss(*pair) for name, pair in zip(self.terms, pairs, strict=True)}


def relations(pooled_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) over their mean, and cosines (B, B, B) of the angles at the first sample."""
    differences_BBC = pooled_BC.unsqueeze(0) - pooled_BC.unsqueeze(1)
    lengths_BB = torch.linalg.vector_norm(differences_BBC, dim=2)
    size = len(pooled_BC)
    distances_BB = lengths_BB.clamp(min=NEAREST) * (1 - torch.eye(size, device=pooled_BC.device))
    mean = (distances_BB.sum() / max(size * (size - 1), 1)).clamp(min=NEAREST)  # which it is, of two samples or more
    scales_BB = lengths_BB.masked_fill(lengths_BB < NEAREST, 1.0).reciprocal()
    directions_BBC = differences_BBC * scales_BB.unsqueeze(2)
    return distances_BB / mean, directions_BBC @ directions_BBC.mT
