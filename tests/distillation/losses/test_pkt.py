"""PKT against loops over pairs, and vectors of length 0; reference values are in tests/golden."""

import math

import pytest
import torch
from loss_tools import DATA, batch, constants, network

from distillation.losses.pkt import PKT, probabilities
from distillation.signals import Signals


def value(student, teacher):
    loss = PKT.build(*(network(num_features=each.shape[1]) for each in (student, teacher)), DATA)
    given = batch(torch.zeros(len(student), dtype=torch.int64))
    return loss(Signals(pooled=student), Signals(pooled=teacher), given)["pkt"]


def cosine(one, other):
    inner, *norms = (
        sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((one, other), (one, one), (other,) * 2)
    )
    return inner / math.sqrt(norms[0] * norms[1])


def shares(vectors):
    rows = [[(cosine(one, other) + 1) / 2 for other in vectors] for one in vectors]
    return [x / sum(row) for row in rows for x in row]


def test_constants_are_the_published_ones():
    assert {"weight": PKT.terms["pkt"]} == constants("pkt")


def test_mean_over_all_pairs():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 4)
    pairs = zip(shares(student.tolist()), shares(teacher.tolist()), strict=True)
    expected = sum(q * math.log((q + 1e-7) / (p + 1e-7)) for p, q in pairs) / 25
    assert value(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_a_vector_of_length_0_is_as_near_to_all():
    vectors = torch.cat([torch.zeros(1, 3), torch.randn(3, 3)])
    torch.testing.assert_close(probabilities(vectors)[0], torch.full((4,), 0.25))


def test_opposite_vectors():
    """Their cosine is -1 up to rounding, and neither a share nor its logarithm may be off for it."""
    torch.manual_seed(0)
    one = torch.randn(64, 7)
    student = torch.cat([one, -one]).requires_grad_()
    assert (probabilities(student) >= 0).all()
    term = value(student, torch.randn(128, 7))
    term.backward()
    assert term.isfinite() and student.grad.isfinite().all()
