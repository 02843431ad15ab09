"""Softmax regression representation learning.

    feature = mean (f_BD - G_BD)^2          f_BD = ReLU(BN(R_DC F_BC)), F the student's pooled vectors, G the teacher's
    logits = mean (h(f_BD) - u_BN)^2        h the teacher's classifier with its bias, frozen; u its own logits

The gradient of `logits` passes through h to f. The connector is thrown away afterwards, so what is deployed has the
student's own classifier, which CE alone trains.

Published, in the code of SimKD, where the numbers here come from, for every pair: CE + KD + feature + logits, which is
`KD+SRRL kd.weight=1`. Alone it is CE + feature + logits here.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import pooled_widths
from distillation.signals import Network, Signals, Wanted


@register_loss("SRRL")
class SRRL(Loss):
    """Squared errors of connected features, and of what the teacher's classifier makes of them.

    Args:
        channels, teacher_channels: of the pooled vectors.
    """

    paper = Paper(
        "Yang, Martinez, Bulat, Tzimiropoulos",
        "Knowledge Distillation via Softmax Regression Representation Learning",
        "ICLR",
        2021,
    )
    kind = "features"
    terms = {"feature": 1.0, "logits": 1.0}
    labels = "none"

    def __init__(self, channels: int, teacher_channels: int):
        super().__init__()
        self.connector = Connector(
            nn.Linear(channels, teacher_channels, bias=False), nn.BatchNorm1d(teacher_channels), nn.ReLU()
        )
        self.needs = Needs(student=Wanted(pooled=True), teacher=Wanted(pooled=True, logits=True, head=True))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "SRRL":
        return cls(*pooled_widths(cls.method, student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        connected_BD = self.connector(student.pooled).float()
        return {
            "feature": F.mse_loss(connected_BD, teacher.pooled),
            "logits": F.mse_loss(teacher.head(connected_BD), teacher.logits),
        }
