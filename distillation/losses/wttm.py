"""Weighted transformed teacher matching: TTM with a weight for every sample.

    L = mean_B w_B KL(q_BN || softmax(z_BN)),    w = sum_N p(u_BN)^gamma, between 1 and N^(1 - gamma)

q, z and u as in `distillation.losses.ttm`; w is the larger the less certain the teacher is. Published, in the authors'
code, there beside CRD: CE + 4 L with gamma = 0.2, here the default of all pairs. Those of other pairs are in the
paper's appendix alone.
"""

from dataclasses import dataclass

from torch import Tensor

from config.schema import option
from distillation.losses.base import Paper, register_loss
from distillation.losses.logits import LogitLoss, divergence


@register_loss("WTTM")
class WTTM(LogitLoss):
    """Weighted divergence from powers of the teacher's probabilities.

    Args:
        gamma: as in `Options`.
    """

    paper = Paper("Zheng, Yang", "Knowledge Distillation Based on Transformed Teacher Matching", "ICLR", 2024)
    terms = {"wttm": 4.0}
    reads_labels = False

    @dataclass(frozen=True)
    class Options:
        gamma: float = option(0.2, "power of the teacher's probabilities", above=0.0)

    def __init__(self, *, gamma: float):
        super().__init__()
        self.gamma = gamma

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        powers_BN = self.gamma * teacher_BN.log_softmax(dim=1)  # their logarithms, so that none is 0
        return {"wttm": powers_BN.logsumexp(dim=1).exp() * divergence(student_BN, powers_BN)}
