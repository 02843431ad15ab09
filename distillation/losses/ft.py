"""Factor transfer.

    reconstruction = mean (D(E(G_BChw)) - G_BChw)^2
    ft = mean over B and h * w of |a(T(F)) - a(E(G))|           a(x) = l2-normalised over the positions: mean_C of x^2

F is the student's map at the end of its last stage, G the teacher's. E, the paraphraser's encoder, are three 3x3
convolutions to C, C/2 and C/2 channels, D the transposed ones back; T, the translator, three 3x3 convolutions with
BatchNorm from the student's channels to those, C/2 and C/2. LeakyReLU 0.1 follows each. E(G) is a target: no gradient
of `ft` reaches E. Of factors of unequal grids the larger one is averaged to the smaller.

Published, as in RepDistiller: the paraphraser is trained alone for 30 epochs with a learning rate of its own, 0.01 for
small residual students, then frozen in eval mode; after that CE + 200 ft. These two phases are not built: here all
trains together, with CE + 200 ft + reconstruction, so that the targets move while the paraphraser learns. The paper has
the norm of the difference; the mean over positions, as in AT, is what asks for 200.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import on_one_grid, stages_of, unit
from distillation.signals import Network, Signals, Wanted

SLOPE = 0.1  # of LeakyReLU


@register_loss("FT")
class FT(Loss):
    """Distance of a translated map from the factor that a paraphraser makes of the teacher's, and its own training.

    Args:
        stage, teacher_stage: places of the maps.
        channels, teacher_channels: of these maps.
    """

    paper = Paper(
        "Kim, Park, Kwak", "Paraphrasing Complex Network: Network Compression via Factor Transfer", "NeurIPS", 2018
    )
    kind = "features"
    terms = {"ft": 200.0, "reconstruction": 1.0}
    labels = "none"

    def __init__(self, stage: str, teacher_stage: str, channels: int, teacher_channels: int):
        super().__init__()
        self.stage, self.teacher_stage = stage, teacher_stage
        width = teacher_channels // 2
        wide = [(teacher_channels, teacher_channels), (teacher_channels, width), (width, width)]
        self.encoder = Connector(*(part for sizes in wide for part in layer(nn.Conv2d, *sizes)))
        back = [(outward, inward) for inward, outward in reversed(wide)]
        self.decoder = Connector(*(part for sizes in back for part in layer(nn.ConvTranspose2d, *sizes)))
        narrow = [(channels, channels), (channels, width), (width, width)]
        self.translator = Connector(*(part for sizes in narrow for part in layer(nn.Conv2d, *sizes, norm=True)))
        self.needs = Needs(student=Wanted(maps=(stage,)), teacher=Wanted(maps=(teacher_stage,)))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "FT":
        stage, teacher_stage = (stages_of(cls.method, network)[-1] for network in (student, teacher))
        channels = student.outline.place(stage).channels, teacher.outline.place(teacher_stage).channels
        return cls(stage, teacher_stage, *channels)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        target = teacher.maps[self.teacher_stage]
        factor = self.encoder(target)
        return {
            "ft": distance(self.translator(student.maps[self.stage]), factor.detach()),
            "reconstruction": F.mse_loss(self.decoder(factor).float(), target.float()),
        }


def layer(kind: type[nn.Module], inward: int, outward: int, *, norm: bool = False) -> list[nn.Module]:
    """A convolution, or a transposed one, that keeps the grid, and what follows it."""
    convolution = kind(inward, outward, kernel_size=3, padding=1)
    return [convolution, *([nn.BatchNorm2d(outward)] if norm else []), nn.LeakyReLU(SLOPE)]


def distance(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
    """Mean absolute error of the energies of two factors, each of length 1."""
    one, other = (unit(factor.square().mean(dim=1).flatten(1)) for factor in on_one_grid(student_BChw, teacher_BDhw))
    return F.l1_loss(one, other)
