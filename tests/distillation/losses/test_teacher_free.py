"""Losses without a teacher: label smoothing and the virtual teacher."""

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, network

from distillation.losses import find_loss
from distillation.signals import Signals


def term(key, logits, labels, **options):
    cls = find_loss(key)
    loss = cls.build(network("net", num_classes=logits.shape[1]), None, DATA, **cls.defaults() | options)
    return loss(Signals(logits=logits), None, batch(labels))[key]


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_a_share_of_every_label_is_given_to_all_classes(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 3, 0])
    found = (1 - smoothing) * F.cross_entropy(logits, labels) + smoothing * term("ls", logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    cls = find_loss("ls")
    assert cls.ce + cls.terms["ls"] == 1 and not cls.needs_teacher


@pytest.mark.parametrize(("temperature", "confidence"), [(1.0, 0.9), (20.0, 0.99)])
def test_a_virtual_teacher_is_right_with_its_confidence(temperature, confidence):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 3, 0])
    expected = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        teacher = torch.full((5,), (1 - confidence) / 4, dtype=torch.float64)
        teacher[label] = confidence
        teacher = teacher ** (1 / temperature) / (teacher ** (1 / temperature)).sum()
        expected += (teacher * (teacher / (row / temperature).softmax(0)).log()).sum().item() / 6
    found = term("tfkd", logits, labels, temperature=temperature, confidence=confidence)
    assert found.item() == pytest.approx(temperature**2 * expected, rel=1e-3)


@pytest.mark.parametrize("key", ["ls", "tfkd"])
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_finite_for_extreme_logits(key, size):
    logits = (size * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]])).requires_grad_()
    found = term(key, logits, torch.tensor([1, 0]))
    found.backward()
    assert found.isfinite() and logits.grad.isfinite().all()
