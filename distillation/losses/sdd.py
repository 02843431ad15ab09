"""Scale decoupled distillation.

    sdd:L is the mean over B samples and R regions of w l,    l the loss of a region's logits in both networks

Regions are the cells of grids over the last map, 1 x 1, which is the whole, then 2 x 2 and 4 x 4; their logits are the
classifier of their means. All grids are averages of the finest one, 4 x 4. w = 2 where the teacher is right in a region
and wrong in the whole or the other way round, by the label and the largest logit, and 1 elsewhere.

    maps (B, C, H, W) -> regions (B, R, C) -> logits (B * R, N), the rows that L is called with, once

Published, in the authors' code: each method with its own coefficients, NKD with T = 4, gamma = beta of DKD, and DKD's
warm-up; all on the regions 1, 2, 4, and without 4 for the pairs below. Their NKD does not leave out the label's class
among the others: `nkd.all_classes`, which is set here. Their teachers are RepDistiller's, their accuracies the best
epoch's. A region's KL that is NaN is set to 0 there; ours is not NaN for finite logits.

The last map is the one whose mean is what enters the classifier; other networks are refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import option
from distillation.losses.base import PENULTIMATE, Data, Needs, Paper
from distillation.losses.logits import BETA, Rows, Transform, register_transform
from distillation.losses.maps import check_pools
from distillation.signals import Head, Network, Signals, Wanted

FINEST = 4  # the grid that the others are averages of
COARSE = (("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"))


def of_nkd() -> dict[tuple[str, str] | None, dict[str, Any]]:
    """What is published with NKD, by pair: beta of DKD is gamma."""
    found: dict = {None: {"temperature": 4.0, "non_target": 8.0, "warmup": None, "all_classes": True}}
    for pair, gamma in BETA.items():
        found[pair] = {"non_target": gamma}
    for pair in (*COARSE, ("wrn_40_2", "vgg8")):
        found.setdefault(pair, {})["grids"] = [2]
    return found


@register_transform("sdd")
class SDD(Transform):
    """Rows for regions of the last map.

    Args:
        grid, teacher_grid: of the maps.
        grids: as in `Options`.
    """

    paper = Paper("Wei, Luo, Luo", "Scale Decoupled Distillation", "CVPR", 2024)
    weighs_rows = True
    needs = Needs(student=Wanted(maps=(PENULTIMATE,), head=True), teacher=Wanted(maps=(PENULTIMATE,), head=True))
    published = {
        "KD": {pair: {"grids": [2]} for pair in COARSE},
        "DKD": {pair: {"grids": [2]} for pair in COARSE},
        "NKD": of_nkd(),
    }

    @dataclass(frozen=True)
    class Options:
        grids: list[int] = option(
            [2, 4],
            "grids of regions, beside the whole map",
            at_least=2,
            at_most=16,
            elements="sides of grids, like [2, 4]",
        )

    def __init__(self, grid: tuple[int, int], teacher_grid: tuple[int, int], *, grids: list[int]):
        super().__init__()
        self.register_buffer("windows", windows(grid, grids), persistent=False)
        self.register_buffer("teacher_windows", windows(teacher_grid, grids), persistent=False)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, *, grids: list[int]) -> "SDD":
        check_pools("sdd", PENULTIMATE, student, teacher)
        return cls(*(network.outline.place(PENULTIMATE).grid for network in (student, teacher)), grids=grids)

    def forward(self, rows: Rows, student: Signals, teacher: Signals) -> Rows:
        own_BRN = region_logits(student.maps[PENULTIMATE], student.head, self.windows)
        other_BRN = region_logits(teacher.maps[PENULTIMATE], teacher.head, self.teacher_windows)
        right_BR = are_right(other_BRN, rows.labels)
        weights_BR = 1 + (right_BR != right_BR[:, :1]).to(own_BRN.dtype)
        labels_BR = rows.labels[:, None].expand_as(right_BR)
        return Rows(
            own_BRN.flatten(0, 1), other_BRN.flatten(0, 1), labels_BR.flatten(), rows.temperature, weights_BR.flatten()
        )


def windows(grid: tuple[int, int], grids: list[int]) -> Tensor:
    """Weights (H * W, R) of a map's positions in its regions: the whole, then the cells of the grids row by row."""
    pixels = torch.eye(grid[0] * grid[1]).view(-1, 1, *grid)
    cells = F.adaptive_avg_pool2d(pixels, max([FINEST, *grids]))
    return torch.cat([F.adaptive_avg_pool2d(cells, side).flatten(1) for side in (1, *sorted(grids))], dim=1)


def region_logits(map_BCHW: Tensor, head: Head, windows_PR: Tensor) -> Tensor:
    """(B, R, N)."""
    return head((map_BCHW.float().flatten(2) @ windows_PR).transpose(1, 2))


def are_right(logits_BRN: Tensor, labels_B: Tensor) -> Tensor:
    """(B, R): whether the largest logit of a region is the label's."""
    return logits_BRN.argmax(dim=2) == labels_B[:, None]
