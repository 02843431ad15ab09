"""ITRD against a formulation in NumPy, and where the published form is not finite."""

import numpy as np
import pytest
import torch
from loss_tools import DATA, batch, constants, network

from distillation.losses.itrd import ITRD
from distillation.signals import Signals


def build(channels=6, teacher_channels=9, alpha=1.5):
    return ITRD.build(*(network(num_features=width) for width in (channels, teacher_channels)), DATA, alpha=alpha)


def values(loss, student, teacher):
    return loss(Signals(pooled=student), Signals(pooled=teacher), batch(torch.zeros(len(student), dtype=torch.int64)))


def similarity(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("alpha", [0.5, 1.01, 1.5])
@pytest.mark.parametrize("teacher_channels", [6, 9], ids=["equal", "wider"])
def test_correlations_of_channels_and_similarities_of_samples(teacher_channels, alpha):
    torch.manual_seed(0)
    loss = build(6, teacher_channels, alpha)
    student, teacher = torch.randn(5, 6), 3 * torch.randn(5, teacher_channels) + 1
    layer = loss.embed[0]
    f, g, own = (each.detach().double().numpy() for each in (layer(student), teacher, student))
    c = [np.corrcoef(f[:, d], g[:, d])[0, 1] * 4 / 5 for d in range(teacher_channels)]  # deviations by B - 1, mean by B
    found = values(loss, student, teacher)
    assert found["correlation"].item() == pytest.approx(np.log2(sum(abs(x - 1) ** (2 * alpha) for x in c)), rel=1e-5)
    k_s, k_t = similarity(own if teacher_channels == 6 else f), similarity(g)
    expected = ((k_s / 5) ** 2).sum() - ((k_s * k_t / 5) ** 2).sum()
    assert found["mutual"].item() == pytest.approx(expected, rel=1e-4)


def test_mutual_reads_features_of_equal_width_as_they_are():
    torch.manual_seed(0)
    for width, reaches in ((6, False), (9, True)):
        loss = build(6, width)
        term = values(loss, torch.randn(5, 6, requires_grad=True), torch.randn(5, width))["mutual"]
        found = torch.autograd.grad(term, loss.embed[0].weight, allow_unused=True)[0]
        assert (found is not None and found.any()) == reaches


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_channel_that_is_constant_has_no_correlation_and_no_gradient(side):
    """The reference divides 0 by 0."""
    torch.manual_seed(0)
    loss = build(4, 4)
    with torch.no_grad():
        loss.embed[0].weight.copy_(torch.eye(4))
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    (student if side == "student" else teacher)[:, 1] = 0.3
    student.requires_grad_()
    rest = [0, 2, 3]
    other = build(3, 3)
    with torch.no_grad():
        other.embed[0].weight.copy_(torch.eye(3))
    term = values(loss, student, teacher)["correlation"]
    without = values(other, student.detach()[:, rest], teacher[:, rest])["correlation"]
    torch.testing.assert_close(2**term, 2**without + 1)  # |0 - 1|
    term.backward()
    assert student.grad[:, rest].any() and student.grad.isfinite().all()
    torch.testing.assert_close(student.grad[:, 1], torch.zeros(6))


def test_published_constants():
    found = constants("itrd")
    published = ITRD.published["wrn_40_2", "wrn_16_2"]
    assert ITRD.terms["correlation"] == found["weight_correlation"] and published["mutual"] == found["weight_mutual"]
    assert {published["alpha"], ITRD.Options().alpha} == set(found["alphas"])
