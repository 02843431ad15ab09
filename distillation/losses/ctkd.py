"""Curriculum temperature.

    ctkd:L is L at the temperature  T = 1 + 20 sigmoid(a),  a a learnt scalar, 1 at the start: T = 15.6

The student lowers L, and a raises it: on its way back the gradient of a is multiplied by

    lambda = (cos(pi min(epoch / 10, 1)) + 1) / 2 - 1,    epochs from 1: -0.02 in the first, -1 from the tenth on

The gradient passes through T everywhere, in both networks' logits and in the factor T^2.

Published, in the authors' code: with KD 0.1 CE + 0.9 L, with DKD as DKD. In the code of logit standardization
`ctkd:lskd:KD` is 0.1 CE + 9 L of every pair. a is trained with the student, by the same learning rate, and weight decay
acts on it. The ten epochs are of 240, and here grow with the run. The authors' other schedule, a linear one, never
reaches its end, and is not built.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config.schema import option
from distillation.losses.base import Paper, warm_up
from distillation.losses.logits import Rows, Transform, register_transform
from distillation.signals import Signals

LOWEST, RANGE = 1.0, 20.0  # T lies between LOWEST and LOWEST + RANGE
DECAY = 10  # epochs of 240


@register_transform("ctkd")
class CTKD(Transform):
    """A learnt temperature.

    Args:
        decay: as in `Options`.
    """

    paper = Paper(
        "Li, Li, Yang, Zhao, Song, Luo, Li, Yang", "Curriculum Temperature for Knowledge Distillation", "AAAI", 2023
    )
    replaces = ("temperature",)
    reads_labels = False
    published = {"lskd:KD": {None: {"kd": 9.0, "ce": 0.1}}}

    @dataclass(frozen=True)
    class Options:
        decay: float | None = option(
            None, "epochs until the gradient of the temperature is reversed wholly; None: 10 of 240", at_least=0.0
        )

    def __init__(self, *, decay: float | None):
        super().__init__()
        self.decay = decay
        self.raw = nn.Parameter(torch.ones(()))
        self.register_buffer("reversal", -torch.ones(()))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.reversal.fill_(reversal(warm_up(epoch, epochs, self.decay, published=DECAY)))

    @property
    def temperature(self) -> Tensor:
        """0-dim; the gradient that comes back through it is reversed."""
        fixed = self.raw.detach()
        return LOWEST + RANGE * torch.sigmoid(fixed + self.reversal * (self.raw - fixed))

    def forward(self, rows: Rows, student: Signals, teacher: Signals) -> Rows:
        return rows._replace(temperature=self.temperature)

    def statistics(self) -> dict[str, Tensor]:
        return {"temperature/mean": self.temperature.detach()}


def reversal(share: float) -> float:
    """What the gradient is multiplied by, of the share of its way from 0 to -1."""
    return (math.cos(math.pi * share) + 1) / 2 - 1
