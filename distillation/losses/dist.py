"""DIST: correlations of probabilities.

    P = softmax(z_BN / T), Q = softmax(u_BN / T)
    inter = T^2 (1 - mean_B r(P_b, Q_b))        between the classes, sample by sample
    intra = T^2 (1 - mean_N r(P_:n, Q_:n))      among the samples of a batch, class by class

z are the student's logits, u the teacher's; r is Pearson's correlation, with |a| |b| + 1e-8 below. Published, in the
authors' code, for every pair: CE + 2 inter + 2 intra, with T = 4 on CIFAR-100 and T = 1 on ImageNet. T^2 stands there
though a correlation hardly has a scale.

intra is no mean over samples, and of one sample a constant. Where all probabilities of a row or column are equal, r is
0, and its gradient not steeper than elsewhere: the authors' is of the order of 1e8 there. Their copy for segmentation
has no T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import option
from distillation.losses.base import IMAGENET, Paper, register_loss
from distillation.losses.logits import LogitLoss, is_rounding

EPS = 1e-8


@register_loss("DIST")
class DIST(LogitLoss):
    """Correlations of probabilities, in rows and in columns."""

    paper = Paper("Huang, You, Wang, Qian, Xu", "Knowledge Distillation from A Stronger Teacher", "NeurIPS", 2022)
    terms = {"inter": 2.0, "intra": 2.0}
    published = {pair: {"temperature": 1.0} for pair in IMAGENET}
    per_sample = reads_labels = False

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(4.0, "what both networks' logits are divided by", above=0.0)

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        own_BN, other_BN = ((logits / temperature).softmax(dim=1) for logits in (student_BN, teacher_BN))
        mean, scale = 1 / own_BN.shape[1], temperature**2  # the mean of a sample's probabilities is known
        own_mean_N, other_mean_N = own_BN.mean(dim=0), other_BN.mean(dim=0)
        rows_B = correlation(own_BN - mean, other_BN - mean, mean, mean, dim=1)
        columns_N = correlation(own_BN - own_mean_N, other_BN - other_mean_N, own_mean_N, other_mean_N, dim=0)
        return {"inter": scale * (1 - rows_B.mean()), "intra": scale * (1 - columns_N.mean())}


def correlation(one: Tensor, other: Tensor, mean: Tensor | float, other_mean: Tensor | float, *, dim: int) -> Tensor:
    """Pearson's correlation along a dimension of two matrices; 0 where one is constant.

    Args:
        one, other: without their means.
        mean, other_mean: these, which are positive.
    """
    length, other_length = (torch.linalg.vector_norm(each, dim=dim) for each in (one, other))
    is_constant = is_rounding(length, mean, one.shape[dim]) | is_rounding(other_length, other_mean, one.shape[dim])
    below = torch.addcmul(is_constant + EPS, length, other_length)  # 1, and not 1e-8, where one is constant
    return (one * other).sum(dim=dim) / below
