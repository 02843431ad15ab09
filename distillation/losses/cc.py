"""Correlation congruence, in the form that RepDistiller had from the authors.

    D_BE = |W p_BC + w - (V t_BK + v)|          p, t: pooled vectors of student and teacher; W, V: to E dimensions
    L    = mean over b of sum_E D_b D_(b+1)     the B - 1 pairs of neighbours in the batch

Published, as in RepDistiller, for every pair: CE + 0.02 L with E = 128. The paper compares kernels instead.

L depends on the order of the batch; a batch of one has no neighbours, and L is 0. The teacher's embedding trains as
well, as in the reference, so both could shrink to one constant.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import pooled_widths
from distillation.signals import Network, Signals, Wanted


@register_loss("CC")
class CC(Loss):
    """Products of the differences of neighbouring samples.

    Args:
        channels, teacher_channels: of the pooled vectors.
        dimensions: as in `Options`.
    """

    paper = Paper(
        "Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang", "Correlation Congruence for Knowledge Distillation", "ICCV", 2019
    )
    kind = "relations"
    terms = {"cc": 0.02}
    labels = "none"

    @dataclass(frozen=True)
    class Options:
        dimensions: int = option(128, "dimensions that both pooled vectors are embedded in", at_least=1)

    def __init__(self, channels: int, teacher_channels: int, *, dimensions: int):
        super().__init__()
        self.embedding = Connector(nn.Linear(channels, dimensions))
        self.teacher_embedding = Connector(nn.Linear(teacher_channels, dimensions))
        self.needs = Needs(student=Wanted(pooled=True), teacher=Wanted(pooled=True), whole_batch=True)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, dimensions: int) -> "CC":
        return cls(*pooled_widths(cls.method, student, teacher), dimensions=dimensions)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        embedded_BE = self.embedding(student.pooled).float()
        difference_BE = (embedded_BE - self.teacher_embedding(teacher.pooled).float()).abs()
        products = (difference_BE[:-1] * difference_BE[1:]).sum()
        return {"cc": products / max(len(difference_BE) - 1, 1)}
