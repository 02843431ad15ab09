"""Class attention transfer.

    A(F) = W_NC F_BCrr                                  of class N and position rr
    L = mean over B, N and r * r of (A(F) - A(G))^2     after `normalize` every A_BN divided by its length over r * r

F is the map of the student whose average enters the classifier, averaged to r x r, W its classifier's weights; G and
the teacher's likewise. The mean of A over the positions is the logit but for the bias; a network where anything else
stands between the map and the classifier, a normalisation or a token of its own, has no such A and is refused. Student
and teacher need the same classes. The gradient reaches the student's classifier too.

Published, in the authors' code: CE + beta L with beta, r and whether A is normalised by pair; for all others 400, 2 and
normalised, the code's defaults. Pairs of one family are not normalised there, though the paper says it of all.

The authors change both networks: their classifier is a 1x1 convolution without bias before the pooling. Here networks
are as they are and keep their bias, which no A has; averaging and W change places, which is the same. Of the paper's
studies of binarized maps and of those of few classes nothing is here.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import PENULTIMATE, Data, Loss, Needs, Paper, register_loss
from distillation.losses.logits import check_classes
from distillation.losses.maps import average_to, check_pools, pooled_widths, unit
from distillation.signals import Network, Signals, Wanted

PUBLISHED = {  # weight, grid, normalised
    ("resnet56", "resnet20"): (0.7, 2, False),
    ("resnet110", "resnet32"): (1.8, 2, False),
    ("resnet32x4", "resnet8x4"): (15.0, 2, False),
    ("wrn_40_2", "wrn_16_2"): (12.0, 2, False),
    ("wrn_40_2", "wrn_40_1"): (1.5, 2, False),
    ("vgg13", "vgg8"): (4.5, 2, False),
    ("vgg13", "mobilenetv2"): (15.0, 2, True),
    ("resnet50", "mobilenetv2"): (40.0, 2, True),
    ("resnet32x4", "shufflenetv1"): (600.0, 4, True),
    ("resnet32x4", "shufflenetv2"): (600.0, 4, True),
    ("wrn_40_2", "shufflenetv1"): (80.0, 4, True),
}


@register_loss("CAT-KD")
class CATKD(Loss):
    """Squared error of class activation maps.

    Args:
        grid, normalize: as in `Options`.
    """

    paper = Paper("Guo, Yan, Li, Lin", "Class Attention Transfer Based Knowledge Distillation", "CVPR", 2023)
    kind = "features"
    terms = {"cat-kd": 400.0}
    labels = "none"
    published = {
        pair: {"cat-kd": weight, "grid": grid, "normalize": normalize}
        for pair, (weight, grid, normalize) in PUBLISHED.items()
    }

    @dataclass(frozen=True)
    class Options:
        grid: int = option(2, "side of the grid that maps are averaged to", at_least=1)
        normalize: bool = option(True, "divide the map of every class by its length")

    def __init__(self, *, grid: int, normalize: bool):
        super().__init__()
        self.grid, self.normalize = (grid, grid), normalize
        wanted = Wanted(maps=(PENULTIMATE,), head=True)
        self.needs = Needs(student=wanted, teacher=wanted)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, grid: int, normalize: bool) -> "CATKD":
        check_classes(cls.method, student, teacher)
        pooled_widths(cls.method, student, teacher)
        check_pools(cls.method, PENULTIMATE, student, teacher)
        return cls(grid=grid, normalize=normalize)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"cat-kd": F.mse_loss(*map(self.class_maps, (student, teacher)))}

    def class_maps(self, found: Signals) -> Tensor:
        """(B, N, r * r)."""
        pooled_BCrr = average_to(found.maps[PENULTIMATE].float(), self.grid)
        maps_BNP = found.head.weight @ pooled_BCrr.flatten(2)
        return unit(maps_BNP) if self.normalize else maps_BNP
