"""KD against golden values and against the sum over classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, Golden, batch, network

from distillation.losses.kd import KD
from distillation.signals import Signals


def value(student, teacher, labels, temperature=4.0):
    count = student.shape[1]
    nets = (network(name, num_classes=count) for name in ("student", "teacher"))
    loss = KD.build(*nets, DATA, temperature=temperature)
    return loss(Signals(logits=student), Signals(logits=teacher), batch(labels))["kd"]


def test_golden_values():
    golden = Golden("kd")
    student, teacher, labels = (
        golden.variable("input/student_logits"),
        *(golden[f"input/{n}"] for n in ("teacher_logits", "labels")),
    )
    kd, ce = value(student, teacher, labels), F.cross_entropy(student, labels)
    assert KD.Options().temperature == golden["const/temperature"]
    assert (KD.ce, KD.terms["kd"]) == (golden["const/weight_ce"], golden["const/weight_kd"])
    losses = {
        "ce": ce,
        "kd": kd,
        "kd_mdistiller": kd,
        "weighted_kd": KD.terms["kd"] * kd,
        "total": KD.ce * ce + KD.terms["kd"] * kd,
    }
    losses |= {f"kd_T{number}": value(student, teacher, labels, float(number)) for number in (1, 2, 8)}
    for name, loss in losses.items():
        golden.compare(f"loss/{name}", loss)
        golden.compare_gradients(name, loss, {"student_logits": student})
    golden.assert_all_compared()


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
