"""Activation boundaries.

    l_i = sum over all elements of max(0, 1 + x)^2 where G <= 0, of max(0, 1 - x)^2 where G > 0
    L = 3 / 1000 / B sum_i l_i / 2^(n - 1 - i)          i = 0 ... n - 1, shallow to deep

x = BN(conv(F_BChw)) (B, D, H, W) at the teacher's channels and grid, F the student's maps and G the teacher's, all
before the last activation of the n stages behind the stem. The convolution is that of hints, for any two grids (see
`resizing_convolution`), without their ReLU; where channels and grids are equal x = F.

Published, as in RepDistiller: 30 epochs with L alone, in which the student's classifier does not train, then the whole
protocol with CE alone. These two phases are not built: here all trains together, with CE + L. The margin is 1 and the
factor 3 / 1000 is inside L, as there, so its weight of 1 is the one of the first phase. A stage that ends without an
activation is compared as it is, by the sign of its map.
"""

import torch
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import average_to, paired_stages, resizing_convolution
from distillation.signals import Network, Signals, Wanted

MARGIN = 1.0
SCALE = 3 / 1000


@register_loss("AB")
class AB(Loss):
    """Hinge losses of pre-activations, whose signs the teacher has.

    Args:
        stages, teacher_stages: places of the maps, as many of each, shallow to deep.
        connectors: bring the student's maps to the teacher's.
    """

    paper = Paper(
        "Heo, Lee, Yun, Choi",
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        "AAAI",
        2019,
    )
    kind = "features"
    terms = {"ab": 1.0}
    labels = "none"

    def __init__(self, stages: tuple[str, ...], teacher_stages: tuple[str, ...], connectors: list[nn.Module]):
        super().__init__()
        self.stages, self.teacher_stages = stages, teacher_stages
        self.connectors = nn.ModuleList(connectors)
        self.needs = Needs(student=Wanted(preact=stages), teacher=Wanted(preact=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "AB":
        stages, teacher_stages = paired_stages(cls.method, student, teacher)
        connectors = []
        for stage, teacher_stage in zip(stages, teacher_stages, strict=True):
            own, other = student.outline.before(stage), teacher.outline.before(teacher_stage)
            if (own.channels, own.grid) == (other.channels, other.grid):
                connectors.append(nn.Identity())
                continue
            convolution, _ = resizing_convolution(own.channels, other.channels, own.grid, other.grid)
            connectors.append(Connector(convolution, nn.BatchNorm2d(other.channels)))
        return cls(stages, teacher_stages, connectors)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        maps = [student.preact[stage] for stage in self.stages]
        targets = [teacher.preact[stage] for stage in self.teacher_stages]
        return {"ab": sum(self.distances(maps, targets))}

    def distances(self, maps: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
        """What every stage adds to L, shallow to deep."""
        found = []
        for number, (connector, features, target) in enumerate(zip(self.connectors, maps, targets, strict=True)):
            connected = connector(features).float()
            sign = torch.where(average_to(target.float(), connected.shape[-2:]) > 0, 1.0, -1.0)
            hinge = (MARGIN - sign * connected).relu().square().sum()
            found.append(hinge * (SCALE / len(features) / 2 ** (len(maps) - 1 - number)))
        return found
