"""Attention transfer.

    a(F) = l2-normalised over the h * w positions: mean over C channels of |F_BChw|^p
    L    = sum over stages of the mean over B samples and h * w positions of (a(F) - a(G))^2

F are the student's maps, G the teacher's, at the ends of all stages behind the stem; of a pair the larger map is
averaged to the grid of the smaller one, before the power. Published, as in RepDistiller: CE + 1000 L with p = 2. The
paper has the norm of the difference, and its weight; the mean over positions here is what asks for 1000.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import on_one_grid, paired_stages
from distillation.signals import Network, Signals, Wanted


@register_loss("AT")
class AT(Loss):
    """Squared error of attention maps.

    Args:
        stages, teacher_stages: places of the maps, as many of each.
        p: as in `Options`.
    """

    paper = Paper("Zagoruyko, Komodakis", "Paying More Attention to Attention", "ICLR", 2017)
    kind = "features"
    terms = {"at": 1000.0}
    labels = "none"

    @dataclass(frozen=True)
    class Options:
        p: float = option(2.0, "power of the activations", at_least=1.0)

    def __init__(self, stages: tuple[str, ...], teacher_stages: tuple[str, ...], *, p: float):
        super().__init__()
        self.pairs = tuple(zip(stages, teacher_stages, strict=True))
        self.p = p
        self.needs = Needs(student=Wanted(maps=stages), teacher=Wanted(maps=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, p: float) -> "AT":
        return cls(*paired_stages(cls.method, student, teacher), p=p)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        pairs = ((student.maps[stage], teacher.maps[other]) for stage, other in self.pairs)
        return {"at": sum(self.distance(*pair) for pair in pairs)}

    def distance(self, student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
        """Mean squared error of the attention at one stage."""
        one, other = map(self.attention, on_one_grid(student_BChw, teacher_BChw))
        return F.mse_loss(one, other)

    def attention(self, map_BChw: Tensor) -> Tensor:
        """Normalised attention (B, h * w)."""
        is_even = self.p % 2 == 0  # then the sign goes by itself
        energy_Bhw = (map_BChw if is_even else map_BChw.abs()).pow(self.p).mean(dim=1)
        return F.normalize(energy_Bhw.flatten(1), dim=1)
