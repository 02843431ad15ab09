"""SRRL against a formulation in NumPy, and what of the teacher's classifier is frozen."""

import numpy as np
import pytest
import torch
from loss_tools import DATA, batch, network

from distillation.losses.srrl import SRRL
from distillation.signals import Head, Signals


def test_errors_of_connected_features_and_of_what_the_teachers_classifier_makes_of_them():
    torch.manual_seed(0)
    # The teacher's classifier alone is asked; a run refuses a teacher of other classes for it.
    loss = SRRL.build(network(num_features=6, num_classes=3), network(num_features=9, num_classes=4), DATA)
    student, teacher, logits = torch.randn(5, 6, requires_grad=True), torch.randn(5, 9), torch.randn(5, 4)
    head = Head(torch.randn(4, 9), torch.randn(4))
    found = loss(Signals(pooled=student), Signals(pooled=teacher, logits=logits, head=head), batch(torch.arange(5)))

    f, w, g, u = (each.detach().double().numpy() for each in (student, loss.connector[0].weight, teacher, logits))
    x = f @ w.T
    x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)  # a new BatchNorm's scale is 1 and its shift 0
    through = x @ head.weight.double().numpy().T + head.bias.double().numpy()
    assert found["feature"].item() == pytest.approx(((x - g) ** 2).mean(), rel=1e-5)
    assert found["logits"].item() == pytest.approx(((through - u) ** 2).mean(), rel=1e-5)

    found["logits"].backward()  # passes through the frozen classifier
    assert student.grad.any() and loss.connector[0].weight.grad.any()


def test_the_teachers_classifier_is_no_part_of_the_loss():
    loss = SRRL.build(network(num_features=6), network(num_features=9), DATA)
    assert {name.partition(".")[0] for name in loss.state_dict()} == {"connector"}
