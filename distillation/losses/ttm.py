"""Transformed teacher matching.

    L = mean_B KL(q_BN || softmax(z_BN)),    q = p(u)^gamma / sum_N p(u)^gamma = softmax(gamma u_BN)

z are the student's logits, u the teacher's: the teacher alone has a temperature, 1 / gamma, and there is no factor T^2.
Published, in the authors' code: CE + 45 L with gamma = 0.1 for vgg13 and vgg8, its example, and here the default of all
pairs. Those of other pairs are in the paper's appendix alone.

The authors take powers of float32 probabilities, where one that is 0 stays 0; softmax(gamma u) has no such bound.
"""

from dataclasses import dataclass

from torch import Tensor

from config.schema import option
from distillation.losses.base import Paper, register_loss
from distillation.losses.logits import LogitLoss, divergence


@register_loss("TTM")
class TTM(LogitLoss):
    """Divergence from powers of the teacher's probabilities.

    Args:
        gamma: as in `Options`.
    """

    paper = Paper("Zheng, Yang", "Knowledge Distillation Based on Transformed Teacher Matching", "ICLR", 2024)
    terms = {"ttm": 45.0}
    reads_labels = False

    @dataclass(frozen=True)
    class Options:
        gamma: float = option(0.1, "power of the teacher's probabilities", above=0.0)

    def __init__(self, *, gamma: float):
        super().__init__()
        self.gamma = gamma

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        return {"ttm": divergence(student_BN, self.gamma * teacher_BN)}
