"""Hints.

    L = mean (ReLU(BN(conv(F_BChw))) - G_BDHW)^2        mean over all elements

F is the student's map, G the teacher's. The convolution (with bias) brings F to the teacher's channels and grid: 1x1
where the grids are equal, 3x3 with stride 2 where F has twice the sides of G, transposed 4x4 with stride 2 where it has
half, without padding and with a kernel of h - H + 1 where it is larger otherwise, which is costly where it is much
larger. Where F is smaller otherwise it is 3x3, and G is averaged to its grid.

Published, as in RepDistiller, for every pair: CE + 100 L at the end of the second stage; the last of the cases is
SimKD's. Everything trains together, where the paper trains up to the hint first. The ReLU asks for a teacher's map
behind one, which that of a Wide ResNet or a MobileNetV2 is not; the reference has it there too, and so has this.

`fitnet.regressor=pointwise` is the form that the control experiments of letKD's paper have (RN110_RN32.FitNet), at the
intermediate map: L = mean (BN(R F) - G)^2, R a 1x1 convolution without bias, G averaged to the student's grid. No ReLU
follows, because not every network's maps end in one. The weight needs the BatchNorm in both: without it digits.RN14_RN8
diverges within an epoch at the protocol's learning rate.

Where the student has a KD layer at the place, F is read behind it.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import Grid, average_to, resizing_convolution
from distillation.signals import Network, Signals, Wanted

POINTWISE = "pointwise"


@register_loss("FitNet")
class FitNet(Loss):
    """Squared error of a regressed map.

    Args:
        regressor: brings the student's map to the teacher's channels.
        hint: the place of both.
        grid: what the teacher's map is averaged to.
    """

    paper = Paper("Romero, Ballas, Kahou, Chassang, Gatta, Bengio", "FitNets: Hints for Thin Deep Nets", "ICLR", 2015)
    kind = "features"
    terms = {"fitnet": 100.0}
    labels = "none"

    @dataclass(frozen=True)
    class Options:
        hint: str = option("stage2", "the map that is regressed, by name or module path")
        regressor: str = option(
            "resizing",
            "how the student's map is brought to the teacher's, with a ReLU or (pointwise) without",
            choices=("resizing", POINTWISE),
        )

    def __init__(self, regressor: Connector, *, hint: str, grid: Grid):
        super().__init__()
        self.regressor, self.hint, self.grid = regressor, hint, grid
        self.needs = Needs(student=Wanted(maps=(hint,)), teacher=Wanted(maps=(hint,)))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, hint: str, regressor: str) -> "FitNet":
        own, other = (network.outline.place(hint) for network in (student, teacher))
        norm = nn.BatchNorm2d(other.channels)
        if regressor == POINTWISE:
            student.pooling_of(teacher, hint)  # whole windows, or an error
            connector = Connector(nn.Conv2d(own.channels, other.channels, kernel_size=1, bias=False), norm)
            return cls(connector, hint=hint, grid=own.grid)
        convolution, grid = resizing_convolution(own.channels, other.channels, own.grid, other.grid)
        return cls(Connector(convolution, norm, nn.ReLU()), hint=hint, grid=grid)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        target = average_to(teacher.maps[self.hint].float(), self.grid)
        return {"fitnet": F.mse_loss(self.regressor(student.maps[self.hint]).float(), target)}
