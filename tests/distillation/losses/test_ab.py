"""AB against a loop over elements."""

import pytest
import torch
from loss_tools import DATA, batch, constants, network_of
from torch import nn

from distillation.losses.ab import AB, MARGIN
from distillation.signals import Signals


def build(students, teachers):
    return AB.build(network_of(students), network_of(teachers), DATA)


def value(loss, students, teachers):
    """The term for maps before the activations, shallow to deep."""
    seen = Signals(preact=dict(zip(loss.stages, students, strict=True)))
    taught = Signals(preact=dict(zip(loss.teacher_stages, teachers, strict=True)))
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["ab"]


def test_squared_distances_from_the_margin_on_the_teachers_side():
    """Of equal shapes, which have no connectors: three stages weigh 1/4, 1/2 and 1."""
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 4), (2, 4, 2, 2), (2, 5, 1, 1)]
    students, teachers = ([2 * torch.randn(shape) for shape in shapes] for _ in range(2))
    teachers[0][0, 0, 0] = 0.0  # counts as off
    loss = build(students, teachers)
    assert not list(loss.parameters())
    total = 0.0
    for number, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        for x, g in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            part = max(1 - x, 0.0) ** 2 if g > 0 else max(1 + x, 0.0) ** 2
            total += part / 2 ** (2 - number)
    assert value(loss, students, teachers).item() == pytest.approx(0.003 * total / 2, rel=1e-5)


def test_what_is_beyond_the_margin_has_no_gradient():
    teacher = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, 4, 1, 1)
    student = torch.tensor([1.5, 0.5, -1.5, -0.5]).view(1, 4, 1, 1).requires_grad_()
    value(build([student], [teacher]), [student], [teacher]).backward()
    assert (student.grad.flatten() != 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("grid", "teacher_grid", "kernel"),
    [((4, 4), (4, 4), 1), ((8, 8), (4, 4), 3), ((4, 4), (8, 8), 4), ((7, 7), (4, 4), 4), ((2, 2), (8, 8), 3)],
)
def test_maps_of_other_shapes_are_convolved(grid, teacher_grid, kernel):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, *grid, requires_grad=True), torch.randn(4, 5, *teacher_grid)
    loss = build([student], [teacher])
    convolution, norm = loss.connectors[0]
    assert convolution.kernel_size == (kernel, kernel) and isinstance(norm, nn.BatchNorm2d)
    value(loss, [student], [teacher]).backward()
    assert student.grad.any() and all(parameter.grad is not None for parameter in loss.parameters())


def test_the_margin_is_the_published_one():
    assert constants("ab")["margin"] == MARGIN
