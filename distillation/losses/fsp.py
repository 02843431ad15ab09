"""Flow of the solution procedure.

    S_i(F)_BCD = mean over h * w of F_i,BChw F_i+1,BDhw         the larger map averaged to the grid of the smaller one
    L = sum over i of the mean over B, C and D of (S_i(F) - S_i(G))^2

F_i are the student's maps from the stem to the last stage, G_i the teacher's. The grids of the networks need not be
equal, the channels of every stage must be: a pair of other widths is refused.

Published, as in RepDistiller: 30 epochs with L alone, in which the student's classifier does not train, then the whole
protocol with CE alone. These two phases are not built: here all trains together. L has no published weight beside CE; 1
is ours.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import on_one_grid, paired_stages
from distillation.signals import Network, Signals, Wanted

STEM = "stem"


@register_loss("FSP")
class FSP(Loss):
    """Squared error of the products of consecutive maps.

    Args:
        stages, teacher_stages: places of the maps, as many of each, shallow to deep.
    """

    paper = Paper("Yim, Joo, Bae, Kim", "A Gift from Knowledge Distillation", "CVPR", 2017)
    kind = "features"
    terms = {"fsp": 1.0}
    labels = "none"

    def __init__(self, stages: tuple[str, ...], teacher_stages: tuple[str, ...]):
        super().__init__()
        self.stages, self.teacher_stages = stages, teacher_stages
        self.needs = Needs(student=Wanted(maps=stages), teacher=Wanted(maps=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "FSP":
        networks = student.outline, teacher.outline
        sides = paired_stages(cls.method, student, teacher)
        if all(STEM in outline.stages for outline in networks):
            sides = tuple((STEM, *stages) for stages in sides)
        one, other = (
            [outline.place(stage).channels for stage in stages] for outline, stages in zip(networks, sides, strict=True)
        )
        if one != other or len(one) == 1:
            raise ValueError(
                f"{cls.method} multiplies the channels of consecutive stages, and needs two or more of equal widths: "
                f"{networks[0].network} has {one} and {networks[1].network} {other}; choose networks of equal widths, "
                "or a method that connects other ones, like AB"
            )
        return cls(*sides)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        maps = [student.maps[stage] for stage in self.stages]
        targets = [teacher.maps[stage] for stage in self.teacher_stages]
        return {"fsp": sum(distances(maps, targets))}


def distances(maps: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """The mean squared error of every pair of consecutive maps, shallow to deep."""
    flows = (itertools.starmap(flow, itertools.pairwise(side)) for side in (maps, targets))
    return [F.mse_loss(one, other) for one, other in zip(*flows, strict=True)]


def flow(first_BChw: Tensor, second_BDhw: Tensor) -> Tensor:
    """Inner products of the channels of two maps (B, C, D), over the positions that they have."""
    first_BCP, second_BDP = (each.flatten(2) for each in on_one_grid(first_BChw, second_BDhw))
    return first_BCP @ second_BDP.mT / first_BCP.shape[2]
