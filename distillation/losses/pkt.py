"""Probabilistic knowledge transfer.

    P_BB = rows of (cos(p_b, p_c) + 1) / 2 over their sums, the diagonal included; Q likewise of t
    L    = mean over B^2 of Q log((Q + e) / (P + e)),  e = 1e-7

p (B, C) and t (B, K) are the pooled vectors of student and teacher. Published, as in RepDistiller, for every pair:
CE + 30000 L. The mean over B^2, where the rows of a divergence would be summed, is what asks for such a weight.

Each sample is compared with all of its batch: of a batch of one L is 0. A vector of length 0 has the cosine 0 to all
others, with a finite gradient, where the reference has NaN and replaces the values by 0. Its lengths have 1e-7 added,
and ours nothing.
"""

from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import pooled_widths, unit
from distillation.signals import Network, Signals, Wanted

SMALLEST = 1e-7  # is added to a probability, as published


@register_loss("PKT")
class PKT(Loss):
    """Divergence of the similarities inside a batch, as probabilities."""

    paper = Paper(
        "Passalis, Tefas", "Learning Deep Representations with Probabilistic Knowledge Transfer", "ECCV", 2018
    )
    kind = "relations"
    terms = {"pkt": 30000.0}
    labels = "none"

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs(student=Wanted(pooled=True), teacher=Wanted(pooled=True), whole_batch=True)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "PKT":
        pooled_widths(cls.method, student, teacher)
        return cls()

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        p_BB, q_BB = probabilities(student.pooled), probabilities(teacher.pooled)
        return {"pkt": (q_BB * ((q_BB + SMALLEST) / (p_BB + SMALLEST)).log()).mean()}


def probabilities(pooled_BC: Tensor) -> Tensor:
    """(B, B), every row with the sum 1."""
    unit_BC = unit(pooled_BC)
    similarity_BB = (unit_BC @ unit_BC.T + 1).relu()  # a cosine may be rounded to less than -1; the 2 cancels out
    return similarity_BB / similarity_BB.sum(dim=1, keepdim=True)
