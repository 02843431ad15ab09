"""NST against the formula with the large tensor, in both of its forms; reference values are in tests/golden."""

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, Largest, batch, constants, network_of

from distillation.losses.nst import NST
from distillation.signals import Signals

# Many positions, many channels; of the third, the teacher's map is the larger one, of the last the student's.
SHAPES = {
    "positions": ((4, 6, 6), (5, 6, 6)),
    "channels": ((12, 2, 3), (20, 2, 3)),
    "teacher_larger": ((8, 3, 3), (6, 6, 6)),
    "student_larger": ((16, 6, 6), (24, 3, 2)),
}


def value(students, teachers):
    """The term for lists of maps, shallow to deep."""
    loss = NST.build(network_of(students), network_of(teachers), DATA)
    seen = Signals(maps=dict(zip(loss.needs.student.maps, students, strict=True)))
    taught = Signals(maps=dict(zip(loss.needs.teacher.maps, teachers, strict=True)))
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["nst"]


def kernel(one, other):
    """(B, C, D, N) as it is written down."""
    return (one.unsqueeze(2) * other.unsqueeze(1)).sum(-1).square().mean(dim=(1, 2)).mean()


def plain(student, teacher):
    grid = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    f, g = (F.normalize(F.adaptive_avg_pool2d(each, grid).flatten(2), dim=2) for each in (student, teacher))
    return kernel(f, f) + kernel(g, g) - 2 * kernel(f, g)


def test_constants_are_the_published_ones():
    assert {"weight": NST.terms["nst"]} == constants("nst")


@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_of_the_plain_formula(case):
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, *shape) for shape in SHAPES[case])
    student[0, 0] = 0  # a channel that is off
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    expected = plain(exact, teacher.double())
    found = value([student], [teacher])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, student)
    (exact_gradient,) = torch.autograd.grad(expected, exact)
    scale = exact_gradient[1:].abs().max().item()
    torch.testing.assert_close(gradient[1:].double(), exact_gradient[1:], rtol=1e-3, atol=1e-5 * scale)
    assert gradient.isfinite().all() and not gradient[0, 0].any()


def test_stages_are_summed():
    torch.manual_seed(0)
    students, teachers = ([torch.randn(3, *pair[side]) for pair in SHAPES.values()] for side in (0, 1))
    parts = [value([one], [other]) for one, other in zip(students, teachers, strict=True)]
    torch.testing.assert_close(value(students, teachers), sum(parts))


@pytest.mark.parametrize("case", ["positions", "channels"])
def test_nothing_is_larger_than_maps_and_products(case):
    torch.manual_seed(0)
    size = 4
    student, teacher = (torch.randn(size, *shape) for shape in SHAPES[case])
    channels, positions = teacher.shape[1], teacher[0, 0].numel()
    with Largest() as largest:
        value([student.requires_grad_()], [teacher]).backward()
    product = size * min(channels, positions) ** 2
    assert largest.size <= max(product, teacher.numel()) < size * channels * student.shape[1] * positions
