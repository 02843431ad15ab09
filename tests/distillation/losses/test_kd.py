"""KD against the sum over classes; reference values are in tests/golden."""

import math

import pytest
import torch
from loss_tools import DATA, batch, constants, network

from distillation.losses.kd import KD
from distillation.signals import Signals


def value(student, teacher, labels, temperature=4.0):
    count = student.shape[1]
    nets = (network(name, num_classes=count) for name in ("student", "teacher"))
    loss = KD.build(*nets, DATA, temperature=temperature)
    return loss(Signals(logits=student), Signals(logits=teacher), batch(labels))["kd"]


def test_constants_are_the_published_ones():
    found = constants("kd")
    assert (KD.Options().temperature, KD.ce, KD.terms["kd"]) == tuple(
        found[name] for name in ("temperature", "weight_ce", "weight_kd")
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sums_over_classes_and_averages_over_samples(temperature):
    students, teachers = [[0.5, -1.0, 2.0], [0.0, 0.3, -0.7]], [[1.5, 0.2, -0.4], [2.0, -1.0, 1.0]]

    def softmax(row):
        total = sum(math.exp(x / temperature) for x in row)
        return [math.exp(x / temperature) / total for x in row]

    rows = [zip(softmax(z), softmax(u), strict=True) for z, u in zip(students, teachers, strict=True)]
    expected = temperature**2 * sum(q * math.log(q / p) for row in rows for p, q in row) / 2
    found = value(torch.tensor(students), torch.tensor(teachers), torch.tensor([0, 1]), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_finite_for_extreme_logits():
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    found = value(student, -student.detach(), torch.tensor([0, 1]))
    found.backward()
    assert found.isfinite() and student.grad.isfinite().all()
