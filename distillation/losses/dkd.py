"""Decoupled knowledge distillation.

    tckd = c T^2 mean_B KL(b(u_BN / T) || b(z_BN / T))      b = (p_y, 1 - p_y): the label's class against the others
    nckd = c T^2 mean_B KL(q(u_BN / T) || q(z_BN / T))      q = softmax over the M = N - 1 other classes

z are the student's logits, u the teacher's, y the labels, c = min(epoch / 20, 1) with epochs from 1. Published, as in
mdistiller: CE + tckd + beta nckd with T = 4 and beta = 8, 6 or 2 by pair, 8 for all others, its default. The warm-up is
a step an epoch and weighs both terms, never CE.

mdistiller takes the logarithm of a sum of probabilities, which is -inf or NaN once p_y is 0 or 1 in float32, and drops
the label's class by adding -1000 to its logit. Here b(x) = softmax(x_y, logsumexp of the others), and the label's class
is left out by index: the same values, and finite ones for all finite logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import option
from distillation.losses.base import Paper, WarmUp, register_loss, warmup_option
from distillation.losses.logits import BETA, LogitLoss, divergence, other_logits


@register_loss("DKD")
class DKD(WarmUp, LogitLoss):
    """Divergences of the label's class from the others, and among the others.

    Args:
        warmup: as in `Options`.
    """

    paper = Paper("Zhao, Cui, Song, Qiu, Liang", "Decoupled Knowledge Distillation", "CVPR", 2022)
    terms = {"tckd": 1.0, "nckd": 8.0}
    published = {pair: {"nckd": beta} for pair, beta in BETA.items()}

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(4.0, "what both networks' logits are divided by", above=0.0)
        warmup: float | None = warmup_option("both terms are raised")

    def __init__(self, temperature: float, *, warmup: float | None):
        super().__init__(temperature, warmup=warmup)

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        student_B2, student_BM = decouple(student_BN / temperature, labels_B)
        teacher_B2, teacher_BM = decouple(teacher_BN / temperature, labels_B)
        scale = self.factor * temperature**2
        return {
            "tckd": scale * divergence(student_B2, teacher_B2),
            "nckd": scale * divergence(student_BM, teacher_BM),
        }


def decouple(logits_BN: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the label's class against all others (B, 2), and logits of the others (B, N - 1)."""
    rest_BM = other_logits(logits_BN, labels_B)
    own_B1 = logits_BN.gather(1, labels_B.unsqueeze(1))
    return torch.cat([own_B1, rest_BM.logsumexp(dim=1, keepdim=True)], dim=1), rest_BM
