"""FSP against loops over channels, and the networks that it refuses."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, network

from distillation.losses.fsp import FSP
from distillation.signals import Signals


def flows(maps):
    """Of one sample, a map (C, h, w) a stage: the mean products of the channels of consecutive stages."""
    found = []
    for first, second in itertools.pairwise(maps):
        grid = tuple(map(min, first.shape[1:], second.shape[1:]))
        one, other = (F.adaptive_avg_pool2d(each, grid) for each in (first, second))
        found.append([(a * b).mean().item() for a in one for b in other])
    return found


@pytest.mark.parametrize("teacher_grids", [((8, 8), (8, 8), (4, 4)), ((6, 6), (3, 3), (4, 4))], ids=["equal", "other"])
def test_mean_squared_error_of_products_of_channels(teacher_grids):
    torch.manual_seed(0)
    channels, grids = (3, 3, 4), ((8, 8), (8, 8), (4, 4))
    student, teacher = network("a", channels[1:], grids[1:]), network("b", channels[1:], teacher_grids[1:])
    loss = FSP.build(student, teacher, DATA)
    assert loss.stages == loss.teacher_stages == ("stem", "stage1", "stage2")
    students, teachers = (
        [torch.randn(2, *sizes) for sizes in ((c, *g) for c, g in zip(channels, sides, strict=True))]
        for sides in (grids, teacher_grids)
    )
    seen, taught = (Signals(maps=dict(zip(loss.stages, maps, strict=True))) for maps in (students, teachers))
    expected = 0.0
    for sample in range(2):
        pair = (flows([maps[sample] for maps in side]) for side in (students, teachers))
        for one, other in zip(*pair, strict=True):
            expected += sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one) / 2
    assert loss(seen, taught, batch(torch.arange(2)))["fsp"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("channels", "teacher_channels", "said"),
    [((8, 16), (8, 32), r"a has \[8, 8, 16\] and b \[8, 8, 32\]"), ((8, 16), (4, 16), r"b \[4, 4, 16\]")],
)
def test_networks_of_other_widths_are_refused(channels, teacher_channels, said):
    sides = [network(n, c, ((4, 4), (2, 2))) for n, c in (("a", channels), ("b", teacher_channels))]
    with pytest.raises(ValueError, match=rf"^FSP multiplies .*{said}; choose .*, like AB$"):
        FSP.build(*sides, DATA)
