"""SP against loops over samples, and where a sample has nothing to compare; reference values are in tests/golden."""

import itertools
import math

import pytest
import torch
from loss_tools import DATA, Largest, batch, constants, network_of

from distillation.losses.sp import SP
from distillation.signals import Signals


def value(student, teacher):
    loss = SP.build(network_of([student]), network_of([teacher]), DATA)
    seen, taught = Signals(maps={"stage1": student}), Signals(maps={"stage1": teacher})
    return loss(seen, taught, batch(torch.zeros(len(student), dtype=torch.int64)))["sp"]


def rows(maps):
    """Inner products of flattened maps as lists, every row divided by its length."""
    flat = [one.flatten().tolist() for one in maps]
    products = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in flat] for one in flat]
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in products]


def test_constants_are_the_published_ones():
    assert {"weight": SP.terms["sp"]} == constants("sp")


@pytest.mark.parametrize(("shape", "teacher_shape"), [((3, 4, 4), (5, 4, 4)), ((4, 2, 3), (2, 6, 6))])
def test_squared_difference_of_the_rows(shape, teacher_shape):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, *shape), torch.randn(5, *teacher_shape)
    pairs = zip(itertools.chain(*rows(student)), itertools.chain(*rows(teacher)), strict=True)
    assert value(student, teacher).item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 25, rel=1e-4)


def test_reads_the_last_stages():
    maps = [torch.randn(4, 8, 8, 8), torch.randn(4, 16, 4, 4)]
    loss = SP.build(network_of(maps), network_of([*maps, torch.randn(4, 16, 2, 2)]), DATA)
    assert (loss.needs.student.maps, loss.needs.teacher.maps) == (("stage2",), ("stage3",))


def test_nothing_is_larger_than_the_maps():
    student, teacher = torch.randn(16, 8, 4, 4), torch.randn(16, 16, 4, 4)
    with Largest() as largest:
        value(student.requires_grad_(), teacher).backward()
    assert largest.size <= teacher.numel()
