"""RKD against loops over pairs and triples, and samples that are equal; reference values are in tests/golden."""

import math

import pytest
import torch
from loss_tools import DATA, batch, constants, network

from distillation.losses.rkd import RKD
from distillation.signals import Signals


def terms(student, teacher):
    loss = RKD.build(*(network(num_features=each.shape[1]) for each in (student, teacher)), DATA)
    given = batch(torch.zeros(len(student), dtype=torch.int64))
    return loss(Signals(pooled=student), Signals(pooled=teacher), given)


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


def relations(vectors):
    """Distances over their mean and cosines of angles, as flat lists."""
    vectors = vectors.tolist()
    span = [[[b - a for a, b in zip(one, other, strict=True)] for other in vectors] for one in vectors]
    count = range(len(vectors))
    distances = [0.0 if i == j else max(length(span[i][j]), 1e-6) for i in count for j in count]
    mean = sum(distances) / (len(vectors) * (len(vectors) - 1))
    angles = []
    for i in count:
        units = [[x / (length(each) or 1.0) for x in each] for each in span[i]]
        angles += [sum(a * b for a, b in zip(units[j], units[k], strict=True)) for j in count for k in count]
    return [distance / mean for distance in distances], angles


def smooth_l1(one, other):
    sizes = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return sum(x * x / 2 if x < 1 else x - 0.5 for x in sizes) / len(sizes)


def test_constants_are_the_published_ones():
    assert {f"weight_{name}": weight for name, weight in RKD.terms.items()} | {"weight": 1} == constants("rkd")


@pytest.mark.parametrize("equal", [False, True])
def test_distances_and_angles(equal):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3), 3 * torch.randn(6, 5)
    if equal:
        student[4] = student[1]
    found = terms(student, teacher)
    pairs = zip(relations(student.double()), relations(teacher.double()), strict=True)
    for name, pair in zip(("distance", "angle"), pairs, strict=True):
        assert found[name].item() == pytest.approx(smooth_l1(*pair), rel=1e-4)


def test_large_errors_count_by_their_size():
    """The student has equal distances; four of the teacher are equal, 2.5 times the mean from the last."""
    teacher = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])[:, None]
    found = terms(torch.eye(5), teacher)
    assert found["distance"].item() == pytest.approx((8 * (1.5 - 0.5) + 12 * 1**2 / 2) / 25, rel=1e-4)


def test_a_shift_a_scale_and_a_rotation_change_nothing():
    torch.manual_seed(0)
    teacher = torch.randn(8, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    found = terms(3 * teacher @ rotation + 5, teacher)
    assert all(term.item() == pytest.approx(0, abs=1e-8) for term in found.values())


def test_equal_samples_get_no_gradient_from_each_other():
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    sum(terms(student, torch.randn(2, 3)).values()).backward()
    assert not student.grad.any()
