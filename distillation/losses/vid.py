"""Variational information distillation.

    m(F) = conv(ReLU(conv(ReLU(conv(F_BChw)))))     1x1 without bias, all as wide as the teacher's D channels
    v_D  = softplus(s_D) + 1e-5                     a variance for every channel of the teacher
    L    = sum over stages of mean ((m(F) - G_BDhw)^2 / v + log v) / 2

the likelihood of the teacher's maps G under a Gaussian, without its constant. F are the student's maps at the ends of
all stages behind the stem; of a pair the larger map is averaged to the grid of the smaller one, before m. Published, as
in RepDistiller, for every pair: CE + L, with variances that start from 5.

L is negative where the student is good, log v for small v. Weights and s train with the student, weight decay
included, as in RepDistiller; mdistiller keeps s in a plain list, where it never changes. The reference writes softplus
as log(1 + exp(s)), which is infinite for large s.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import on_one_grid, paired_stages
from distillation.signals import Network, Signals, Wanted

FIRST_VARIANCE, SMALLEST_VARIANCE = 5.0, 1e-5  # published


@register_loss("VID")
class VID(Loss):
    """Likelihood of the teacher's maps under Gaussians around what the student's say of them.

    Args:
        stages, teacher_stages: places of the maps, as many of each.
        channels, teacher_channels: of these maps.
    """

    paper = Paper(
        "Ahn, Hu, Damianou, Lawrence, Dai", "Variational Information Distillation for Knowledge Transfer", "CVPR", 2019
    )
    kind = "features"
    terms = {"vid": 1.0}
    labels = "none"

    def __init__(
        self,
        stages: tuple[str, ...],
        teacher_stages: tuple[str, ...],
        channels: Sequence[int],
        teacher_channels: Sequence[int],
    ):
        super().__init__()
        self.pairs = tuple(zip(stages, teacher_stages, strict=True))
        self.gaussians = nn.ModuleList(map(Gaussian, channels, teacher_channels))
        self.needs = Needs(student=Wanted(maps=stages), teacher=Wanted(maps=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "VID":
        stages, teacher_stages = paired_stages(cls.method, student, teacher)
        return cls(
            stages,
            teacher_stages,
            [student.outline.place(stage).channels for stage in stages],
            [teacher.outline.place(stage).channels for stage in teacher_stages],
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        parts = zip(self.gaussians, self.pairs, strict=True)
        return {"vid": sum(gaussian(student.maps[stage], teacher.maps[other]) for gaussian, (stage, other) in parts)}


class Gaussian(nn.Module):
    """The distribution of the teacher's map at a stage, given the student's."""

    def __init__(self, channels: int, teacher_channels: int):
        super().__init__()
        first, second, third = (
            nn.Conv2d(width, teacher_channels, kernel_size=1, bias=False)
            for width in (channels, teacher_channels, teacher_channels)
        )
        self.regressor = Connector(first, nn.ReLU(), second, nn.ReLU(), third)
        inverse = math.log(math.expm1(FIRST_VARIANCE - SMALLEST_VARIANCE))  # of softplus
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), inverse))

    def forward(self, student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
        """The negative logarithm of the density without its constant, averaged over all elements."""
        student_BChw, teacher_BDhw = on_one_grid(student_BChw, teacher_BDhw)
        error_BDhw = (self.regressor(student_BChw).float() - teacher_BDhw).square()
        variance_D11 = (F.softplus(self.log_scale) + SMALLEST_VARIANCE)[:, None, None]
        return (error_BDhw / variance_D11 + variance_D11.log()).mean() / 2
