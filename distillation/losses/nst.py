"""Neuron selectivity transfer.

    f_BCN   = each channel's map F_bc, flattened to its N = h * w positions and of length 1; g_BDN likewise of G
    k(f, g) = mean over B samples and C * D pairs of channels of (f_c . g_d)^2
    L       = sum over stages of k(f, f) + k(g, g) - 2 k(f, g)

the maximum mean discrepancy of the channels with a polynomial kernel. F are the student's maps, G the teacher's, at the
ends of all stages behind the stem; of a pair the larger map is averaged to the grid of the smaller one. Published, as
in RepDistiller, for every pair: CE + 50 L. The reference forms a tensor (B, C, D, N); `discrepancy` says what is formed
here. A channel whose activations are all 0 stays 0.
"""

from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import on_one_grid, paired_stages, unit
from distillation.signals import Network, Signals, Wanted


@register_loss("NST")
class NST(Loss):
    """Discrepancy of the channels' selectivities.

    Args:
        stages, teacher_stages: places of the maps, as many of each.
    """

    paper = Paper(
        "Huang, Wang", "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", "arXiv 1707.01219", 2017
    )
    kind = "features"
    terms = {"nst": 50.0}
    labels = "none"

    def __init__(self, stages: tuple[str, ...], teacher_stages: tuple[str, ...]):
        super().__init__()
        self.pairs = tuple(zip(stages, teacher_stages, strict=True))
        self.needs = Needs(student=Wanted(maps=stages), teacher=Wanted(maps=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "NST":
        return cls(*paired_stages(cls.method, student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        pairs = (on_one_grid(student.maps[stage], teacher.maps[other]) for stage, other in self.pairs)
        return {"nst": sum(discrepancy(*(unit(each.flatten(2)) for each in pair)) for pair in pairs)}


def discrepancy(f_BCN: Tensor, g_BDN: Tensor) -> Tensor:
    """k(f, f) + k(g, g) - 2 k(f, g), by whichever of two equal forms takes fewer multiplications.

    The sum of (f_c . g_d)^2 over pairs of channels is |f g'|^2 = trace(f g' g f') = <f'f, g'g>. So k needs products
    (C, D), which are small where a map has many positions; or all three k together are |f'f / C - g'g / D|^2 of
    products (N, N), which are small where it has many channels.
    """
    channels, teacher_channels, positions = f_BCN.shape[1], g_BDN.shape[1], f_BCN.shape[2]
    if positions * (channels + teacher_channels) < channels**2 + channels * teacher_channels + teacher_channels**2:
        difference_BNN = f_BCN.mT @ f_BCN / channels - g_BDN.mT @ g_BDN / teacher_channels
        return difference_BNN.square().sum(dim=(1, 2)).mean()
    pairs = ((f_BCN, f_BCN), (g_BDN, g_BDN), (f_BCN, g_BDN))
    own, teachers, both = ((one @ other.mT).square().mean() for one, other in pairs)
    return own + teachers - 2 * both
