"""FitNet (Romero et al., ICLR 2015) as the paper compares with it: the teacher's map is a hint for the student's.

    L = mean (BatchNorm(R * f) - t)^2

f is the student's map, t the teacher's at the student's resolution, R a 1x1 convolution; regressor and BatchNorm are
thrown away afterwards. Everything trains together, as in RepDistiller, whose published weight of the hint is 100 (the
original trains up to the hint first). That weight needs the BatchNorm: without it digits.RN14_RN8 diverges within an
epoch at the protocol's learning rate. No ReLU follows, because not every network's maps end in one.

Where the student has a KD layer at the place, f is read behind it. The paper does not say which map is the hint; here
it is the intermediate one unless `fitnet.hint` says otherwise.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, register_loss
from distillation.signals import Network, Signals, Wanted
from letkd import pool_map

PLACES = ("penultimate", "intermediate")


@register_loss("FitNet")
class FitNet(Loss):
    """Squared error of a regressed map.

    Args:
        channels, teacher_channels: of the two maps.
        hint: the place of both.
        pooling: side of the windows that bring the teacher's map to the student's grid.
    """

    terms = {"fitnet": 100.0}

    @dataclass(frozen=True)
    class Options:
        hint: str = option("intermediate", "the map that is regressed", choices=PLACES)

    def __init__(self, channels: int, teacher_channels: int, *, hint: str, pooling: int):
        super().__init__()
        self.hint, self.pooling = hint, pooling
        self.regressor = Connector(
            nn.Conv2d(channels, teacher_channels, kernel_size=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.needs = Needs(student=Wanted(maps=(hint,)), teacher=Wanted(maps=(hint,)))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, hint: str) -> "FitNet":
        channels, teacher_channels = (network.outline.place(hint).channels for network in (student, teacher))
        return cls(channels, teacher_channels, hint=hint, pooling=student.pooling_of(teacher, hint))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        target = pool_map(teacher.maps[self.hint], self.pooling)
        return {"fitnet": F.mse_loss(self.regressor(student.maps[self.hint]).float(), target.float())}
