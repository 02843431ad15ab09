"""AT against loops over positions; reference values are in tests/golden."""

import math

import pytest
import torch
from loss_tools import DATA, batch, constants, network_of

from distillation.losses.at import AT
from distillation.signals import Signals


def value(students, teachers, p=2.0):
    """The term for lists of maps, shallow to deep."""
    loss = AT.build(network_of(students), network_of(teachers), DATA, p=p)
    seen = Signals(maps=dict(zip(loss.needs.student.maps, students, strict=True)))
    taught = Signals(maps=dict(zip(loss.needs.teacher.maps, teachers, strict=True)))
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["at"]


def test_constants_are_the_published_ones():
    assert {"p": AT.Options().p, "weight": AT.terms["at"]} == constants("at")


def pooled(image, height, width):
    """Adaptive average of a list of rows, window by window."""
    rows, columns = len(image), len(image[0])

    def window(index, count, size):
        return range(index * size // count, -(-(index + 1) * size // count))

    def mean(row, column):
        inside = [image[r][c] for r in window(row, height, rows) for c in window(column, width, columns)]
        return sum(inside) / len(inside)

    return [[mean(row, column) for column in range(width)] for row in range(height)]


def attention(maps, grid, p):
    """Of one sample (C, h, w) as a flat list."""
    maps = [pooled(image, *grid) for image in maps.tolist()]
    energy = [sum(abs(image[r][c]) ** p for image in maps) / len(maps) for r in range(grid[0]) for c in range(grid[1])]
    norm = math.sqrt(sum(x * x for x in energy))
    return [x / norm for x in energy]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    ("grid", "teacher_grid", "common"),
    [((4, 4), (4, 4), (4, 4)), ((4, 4), (8, 8), (4, 4)), ((7, 6), (4, 3), (4, 3)), ((2, 6), (4, 3), (2, 3))],
)
def test_mean_over_positions_of_normalised_energies(grid, teacher_grid, common, p):
    torch.manual_seed(0)
    students, teachers = [torch.randn(2, 3, *grid)], [torch.randn(2, 5, *teacher_grid)]
    students.append(torch.randn(2, 4, 3, 3))
    teachers.append(torch.randn(2, 4, 3, 3))
    expected = 0.0
    for student, teacher, size in zip(students, teachers, (common, (3, 3)), strict=True):
        for one, other in zip(student, teacher, strict=True):
            pairs = zip(attention(one, size, p), attention(other, size, p), strict=True)
            expected += sum((a - b) ** 2 for a, b in pairs) / (size[0] * size[1]) / 2
    assert value(students, teachers, p).item() == pytest.approx(expected, rel=1e-4)
