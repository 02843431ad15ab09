"""Knowledge review.

From the deepest level to the shallowest, F_BChw the student's map of a level, r the residual of the level before:

    x = BN(conv1x1(F)) to m channels              m = min(512, channels of the deepest level)
    x = g1 x + g2 y, but for the first level      y = r enlarged to x; (g1, g2) = sigmoid(conv1x1([x, y]))
    r = x resized to the teacher's grid           all resizing to the nearest pixel
    f = BN(conv3x3(r)) to the teacher's channels

    HCL(f, G) = sum_l w_l mse(avg_l(f), avg_l(G)) / sum_l w_l,  l = whole, 4, 2, 1; w = 1, 1/2, 1/4, 1/8
    L         = c sum over levels of HCL(f, G)    c = min((epoch - 1) / 20, 1), epochs from 1

G are the teacher's maps. Levels are the stages behind the stem and the pooled vector as a map of 1 x 1, the student's
behind the last activation, the teacher's before it. Of the grids l x l those count that are smaller than the map, and w
is halved only for these: a map of 4 x 4 has 1, 1/2 (l = 2), 1/4 (l = 1), one of 1 x 1 the whole alone.

Published, in the authors' code: CE + weight L with a weight by pair; 5, that of most pairs, for all others. The authors
count epochs from 0, so nothing is distilled in the first one (mdistiller counts from 1). Their teacher stays in
training mode; here it is in eval mode as every teacher. Images have a mean and deviation of their own there, which
`protocol=published` sets, and both networks see the same images: the authors' teachers were trained so. A teacher that
was trained with the usual values sees images that are a little off, on which its accuracy is printed beforehand.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, WarmUp, register_loss, warmup_option
from distillation.losses.maps import average_to, paired_stages, pooled_widths
from distillation.signals import Network, Signals, Wanted

MAX_CHANNELS = 512  # between the convolutions
GRIDS = (4, 2, 1)
WEIGHT = {
    5.0: (
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("wrn_40_2", "shufflenetv1"),
        ("resnet32x4", "resnet8x4"),
        ("resnet32x4", "shufflenetv1"),
    ),
    8.0: (("resnet32x4", "shufflenetv2"),),
    0.6: (("resnet56", "resnet20"),),
    1.0: (("resnet110", "resnet32"),),
}


@register_loss("ReviewKD")
class ReviewKD(WarmUp, Loss):
    """Errors of maps that are fused from the deepest level to the shallowest.

    Args:
        stages, teacher_stages: places of the maps, as many of each, shallow to deep.
        channels, teacher_channels: of these maps and, last, of the pooled vector.
        warmup: as in `Options`.
    """

    paper = Paper("Chen, Liu, Zhao, Jia", "Distilling Knowledge via Knowledge Review", "CVPR", 2021)
    kind = "features"
    terms = {"reviewkd": 5.0}
    labels = "none"
    published = {pair: {"reviewkd": weight} for weight, pairs in WEIGHT.items() for pair in pairs}
    first_epoch = 0

    @dataclass(frozen=True)
    class Options:
        warmup: float | None = warmup_option("the loss is raised from 0")

    def __init__(
        self,
        stages: tuple[str, ...],
        teacher_stages: tuple[str, ...],
        channels: tuple[int, ...],
        teacher_channels: tuple[int, ...],
        *,
        warmup: float | None,
    ):
        super().__init__(warmup=warmup)
        self.stages, self.teacher_stages = stages, teacher_stages
        middle = min(MAX_CHANNELS, channels[-1])
        levels = reversed(list(zip(channels, teacher_channels, strict=True)))
        self.fusions = nn.ModuleList(
            Fusion(inward, middle, outward, is_first=number == 0) for number, (inward, outward) in enumerate(levels)
        )
        self.needs = Needs(student=Wanted(pooled=True, maps=stages), teacher=Wanted(pooled=True, preact=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, warmup: float | None) -> "ReviewKD":
        one, other = student.outline, teacher.outline
        stages, teacher_stages = paired_stages(cls.method, student, teacher)
        width, teacher_width = pooled_widths(cls.method, student, teacher)
        return cls(
            stages,
            teacher_stages,
            (*(one.place(stage).channels for stage in stages), width),
            (*(other.before(stage).channels for stage in teacher_stages), teacher_width),
            warmup=warmup,
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        maps = [student.maps[stage] for stage in self.stages] + [student.pooled[:, :, None, None]]
        targets = [teacher.preact[stage] for stage in self.teacher_stages] + [teacher.pooled[:, :, None, None]]
        fused = self.fuse(maps, [target.shape[-2:] for target in targets])
        return {"reviewkd": self.factor * sum(map(hierarchical_error, fused, targets))}

    def fuse(self, maps: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
        """Maps (B, teacher's channels, *grid) of all levels, shallow to deep."""
        fused, residual = [], None
        for fusion, features, grid in zip(self.fusions, reversed(maps), reversed(grids), strict=True):
            residual = fusion.residual(features, residual, grid)
            fused.append(fusion.expand(residual))
        return fused[::-1]


class Fusion(nn.Module):
    """The connector of a level: a student's map, gated with the residual of the deeper level."""

    def __init__(self, channels: int, middle: int, teacher_channels: int, *, is_first: bool):
        super().__init__()
        self.reduce = Connector(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = Connector(
            nn.Conv2d(middle, teacher_channels, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.gate = None if is_first else Connector(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for convolution in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def residual(self, features: Tensor, deeper: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """(B, middle, *grid)."""
        reduced = self.reduce(features)
        if self.gate is not None:
            enlarged = F.interpolate(deeper, reduced.shape[-2:])
            own, other = self.gate(torch.cat([reduced, enlarged], dim=1)).split(1, dim=1)
            reduced = own * reduced + other * enlarged
        return reduced if reduced.shape[-2:] == grid else F.interpolate(reduced, grid)


def hierarchical_error(fused: Tensor, target: Tensor) -> Tensor:
    """HCL: mean squared errors of two maps as they are and averaged to ever smaller grids, in float32."""
    difference = fused.float() - target.float()  # the average of a difference is the difference of averages
    grids = [difference.shape[-2:], *((side, side) for side in GRIDS if side < difference.shape[-2])]
    weights = [0.5**number for number in range(len(grids))]
    errors = (average_to(difference, grid).square().mean() for grid in grids)
    return sum(weight * error for weight, error in zip(weights, errors, strict=True)) / sum(weights)
