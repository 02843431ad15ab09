"""Normalized knowledge distillation.

    target     = -mean_B p(u_BN)_y log p(z_BN)_y                  p = softmax, of the logits as they are
    non_target = -c T^2 mean_B sum_M q(u_BN / T) log q(z_BN / T)  q = softmax over the M = N - 1 other classes

z are the student's logits, u the teacher's, y the labels, c = 1 but for `warmup`. Both are cross-entropies and no
divergences: their least value is not 0. Published, in the authors' code: CE + target + gamma non_target, with T = 3 and
gamma = 3.5 on CIFAR-100, where ResNet-34 and ResNet-18 alone were trained, T = 1 and gamma = 1.5 on ImageNet.
"""

from dataclasses import dataclass

from torch import Tensor

from config.schema import option
from distillation.losses.base import IMAGENET, Paper, WarmUp, register_loss, warmup_option
from distillation.losses.logits import LogitLoss, other_logits


@register_loss("NKD")
class NKD(WarmUp, LogitLoss):
    """Cross-entropies of the label's class, and among the others.

    Args:
        warmup, all_classes: as in `Options`.
    """

    paper = Paper(
        "Yang, Zeng, Yuan, Li and others",
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "ICCV",
        2023,
    )
    terms = {"target": 1.0, "non_target": 3.5}
    published = {pair: {"non_target": 1.5, "temperature": 1.0} for pair in IMAGENET}

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(3.0, "what logits of the other classes are divided by", above=0.0)
        warmup: float | None = warmup_option("both terms are raised", 0.0)
        all_classes: bool = option(False, "keep the label's class among the others, as the authors of SDD do")

    def __init__(self, temperature: float, *, warmup: float | None = 0.0, all_classes: bool = False):
        super().__init__(temperature, warmup=warmup)
        self.all_classes = all_classes

    def compare(
        self, student_BN: Tensor, teacher_BN: Tensor, labels_B: Tensor, temperature: float | Tensor
    ) -> dict[str, Tensor]:
        labels_B1 = labels_B.unsqueeze(1)
        sure_B = teacher_BN.softmax(dim=1).gather(1, labels_B1).squeeze(1)
        log_p_B = student_BN.log_softmax(dim=1).gather(1, labels_B1).squeeze(1)
        own_BM, other_BM = student_BN / temperature, teacher_BN / temperature
        if not self.all_classes:
            own_BM, other_BM = other_logits(own_BM, labels_B), other_logits(other_BM, labels_B)
        others_B = (other_BM.softmax(dim=1) * own_BM.log_softmax(dim=1)).sum(dim=1)
        return {"target": -self.factor * sure_B * log_p_B, "non_target": -self.factor * temperature**2 * others_B}
