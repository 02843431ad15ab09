"""Information theoretic representation distillation.

    correlation = log2 sum_D |c_D - 1|^(2 alpha)        c_D = 1/B sum_B z(W F_BC + b)_BD z(G_BD)_BD
    mutual = sum_BB (K_s / tr K_s)^2 - sum_BB (K_st / tr K_st)^2

F are the student's pooled vectors, G the teacher's. z makes the mean of every column 0 and its deviation 1 over the
batch. K_s and K_t (B, B) are the inner products of the rows of W F + b and of G, each divided by its length, and K_st =
K_s * K_t elementwise. Where both networks have as many channels mutual takes F itself, and correlation still W F + b.

Published: CE + 2 correlation + w mutual, in the authors' command for wrn_40_2 and wrn_16_2 with w = 1 and alpha = 1.01;
the defaults of their code, 0.05 and 1.5, are those of all others here.

The reference divides by B - 1 in the deviation and by B in c, which is therefore below 1 even of equal features; so it
is here. Neither is there an entropy or a logarithm in mutual; correlation is negative where the student is good. The
reference adds nothing to a deviation: a channel that is constant in a batch makes it NaN. Here such a channel has c = 0
and no gradient, and a vector of length 0 has similarities of 0. Of a single sample nothing is compared: both terms are
0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import EPSILON, pooled_widths, unit
from distillation.signals import Network, Signals, Wanted


@register_loss("ITRD")
class ITRD(Loss):
    """Correlation of channels, and similarities of samples that student and teacher share.

    Args:
        channels, teacher_channels: of the pooled vectors.
        alpha: as in `Options`.
    """

    paper = Paper(
        "Miles, Lopez-Rodriguez, Mikolajczyk", "Information Theoretic Representation Distillation", "BMVC", 2022
    )
    kind = "relations"
    terms = {"correlation": 2.0, "mutual": 0.05}
    labels = "none"
    published = {("wrn_40_2", "wrn_16_2"): {"mutual": 1.0, "alpha": 1.01}}

    @dataclass(frozen=True)
    class Options:
        alpha: float = option(1.5, "half the power that correlations are compared in", at_least=0.5)

    def __init__(self, channels: int, teacher_channels: int, *, alpha: float):
        super().__init__()
        self.alpha = alpha
        self.embed = Connector(nn.Linear(channels, teacher_channels))
        self.is_equal = channels == teacher_channels
        self.needs = Needs(student=Wanted(pooled=True), teacher=Wanted(pooled=True), whole_batch=True)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, alpha: float) -> "ITRD":
        return cls(*pooled_widths(cls.method, student, teacher), alpha=alpha)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        embedded_BD, target_BD = self.embed(student.pooled).float(), teacher.pooled
        if len(target_BD) == 1:
            return dict.fromkeys(self.terms, 0.0 * embedded_BD.sum())
        return {
            "correlation": self.correlation(embedded_BD, target_BD),
            "mutual": mutual(student.pooled if self.is_equal else embedded_BD, target_BD),
        }

    def correlation(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        """How far the correlations of the channels are from 1."""
        correlation_D = (standardized(student_BD) * standardized(teacher_BD)).mean(dim=0)
        return (correlation_D - 1).abs().pow(2 * self.alpha).sum().log2()


def standardized(features_BD: Tensor) -> Tensor:
    """Columns of mean 0 and deviation 1; a constant one is 0."""
    variance_D, mean_D = torch.var_mean(features_BD, dim=0)
    is_constant_D = variance_D <= EPSILON
    scale_D = variance_D.masked_fill(is_constant_D, 1.0).rsqrt().masked_fill(is_constant_D, 0.0)
    return (features_BD - mean_D) * scale_D


def mutual(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """What the student's similarities have beyond those that the teacher shares."""
    similarity_BB, other_BB = (rows_BD @ rows_BD.mT for rows_BD in map(unit, (student_BD, teacher_BD)))
    return energy(similarity_BB) - energy(similarity_BB * other_BB)


def energy(similarity_BB: Tensor) -> Tensor:
    """Sum of the squares of a matrix of trace 1."""
    trace = torch.diagonal(similarity_BB).sum().clamp_min(EPSILON)  # 0 where every row has length 0
    return (similarity_BB / trace).square().sum()
