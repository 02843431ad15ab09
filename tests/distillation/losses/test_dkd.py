"""DKD against probabilities in float64, and where the published form is not finite; values are in tests/golden."""

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, constants, network

from distillation.losses.base import WARM_UP
from distillation.losses.dkd import DKD
from distillation.signals import Signals


def build(num_classes=10, temperature=4.0, warmup=None):
    nets = (network(name, num_classes=num_classes) for name in ("student", "teacher"))
    return DKD.build(*nets, DATA, temperature=temperature, warmup=warmup)


def values(student, teacher, labels, loss=None):
    loss = loss or build(student.shape[1])
    return loss(Signals(logits=student), Signals(logits=teacher), batch(labels))


def test_constants_are_the_published_ones():
    found = constants("dkd")
    ours = (DKD.terms["tckd"], DKD.terms["nckd"], DKD.Options().temperature, WARM_UP)
    assert ours == tuple(found[name] for name in ("alpha", "beta", "temperature", "warmup_epochs"))


def test_probabilities_of_the_label_and_of_the_others():
    """The definition, sample by sample in float64."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 6, 5)
    labels = torch.tensor([0, 4, 2, 1, 3, 0])
    tckd = nckd = 0.0
    for z, u, y in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        p, q = (z / 4).softmax(0), (u / 4).softmax(0)
        tckd += q[y] * (q[y] / p[y]).log() + (1 - q[y]) * ((1 - q[y]) / (1 - p[y])).log()
        for c in set(range(5)) - {y}:
            own, other = p[c] / (1 - p[y]), q[c] / (1 - q[y])
            nckd += other * (other / own).log()
    found = values(student, teacher, labels)
    assert found["tckd"].item() == pytest.approx(16 * tckd.item() / 6, rel=1e-5)
    assert found["nckd"].item() == pytest.approx(16 * nckd.item() / 6, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_finite_for_extreme_logits(num_classes, size):
    torch.manual_seed(0)
    student = (size * torch.randn(16, num_classes).sign()).requires_grad_()
    teacher = size * torch.randn(16, num_classes).sign()
    student.data[0], teacher[0] = size, -size
    student.data[1, 0], student.data[1, 1:], teacher[1, 0], teacher[1, 1:] = size, -size, -size, size
    labels = torch.arange(16) % num_classes
    labels[1] = 0
    found = values(student, teacher, labels)
    sum(found.values()).backward()
    assert all(term.isfinite() for term in found.values()) and student.grad.isfinite().all()
    # Of certain students and teachers that differ, the divergence is what the logits differ by.
    one = values(torch.tensor([[size, -size]]), torch.tensor([[-size, size]]), torch.tensor([0]))
    assert one["tckd"].item() == pytest.approx(16 * 2 * size / 4, rel=1e-4)


def test_two_classes_leave_nothing_among_the_others():
    student, teacher = torch.randn(2, 8, 2)
    found = values(student, teacher, torch.arange(8) % 2)
    assert found["nckd"] == 0
    expected = 16 * F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found["tckd"], expected)


@pytest.mark.parametrize(
    ("warmup", "epoch", "epochs", "factor"),
    [(None, 1, 240, 0.05), (None, 1, 24, 0.5), (None, 3, 24, 1.0), (4.0, 1, 240, 0.25), (0.0, 1, 240, 1.0)],
)
def test_warm_up(warmup, epoch, epochs, factor):
    loss = build(warmup=warmup)
    before = loss.factor
    loss.on_epoch(epoch, epochs)
    assert loss.factor is before and before.item() == pytest.approx(factor)
