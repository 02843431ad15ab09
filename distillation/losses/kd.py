"""Knowledge distillation.

    L = T^2 mean_B KL(softmax(u_BN / T) || softmax(z_BN / T))

z are the student's logits, u the teacher's; N classes are summed over, B samples averaged: a mean over all elements
would divide by N as well. Published, as in RepDistiller, for every pair: T = 4, and 0.1 CE + 0.9 L where the method
stands alone. CRD, SimKD and SemCKD compare with 1 CE + 1 L instead: `ce.weight=1 kd.weight=1`.
"""

from dataclasses import dataclass

from torch import Tensor

from config.schema import option
from distillation.losses.base import Paper, register_loss
from distillation.losses.logits import LogitLoss, divergence


@register_loss("KD")
class KD(LogitLoss):
    """Divergence from the teacher's softened probabilities."""

    paper = Paper("Hinton, Vinyals, Dean", "Distilling the Knowledge in a Neural Network", "arXiv 1503.02531", 2015)
    terms = {"kd": 0.9}
    ce = 0.1
    reads_labels = False

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(4.0, "what both networks' logits are divided by", above=0.0)

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        return {"kd": temperature**2 * divergence(student_BN / temperature, teacher_BN / temperature)}
