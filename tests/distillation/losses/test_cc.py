"""CC against loops over neighbours; reference values are in tests/golden."""

import itertools

import pytest
import torch
from loss_tools import DATA, batch, constants, network

from distillation.losses.cc import CC
from distillation.signals import Signals


def build(channels, teacher_channels, dimensions):
    nets = (network(num_features=width) for width in (channels, teacher_channels))
    return CC.build(*nets, DATA, dimensions=dimensions)


def value(loss, student, teacher):
    given = batch(torch.zeros(len(student), dtype=torch.int64))
    return loss(Signals(pooled=student), Signals(pooled=teacher), given)["cc"]


def embedded(linear, vector):
    pairs = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    return [sum(w * x for w, x in zip(row, vector, strict=True)) + bias for row, bias in pairs]


def test_constants_are_the_published_ones():
    assert {"weight": CC.terms["cc"], "feat_dim_published": CC.Options().dimensions} == constants("cc")


def test_products_of_neighbours():
    torch.manual_seed(0)
    loss = build(4, 6, 3)
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    differences = []
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(embedded(loss.embedding[0], one), embedded(loss.teacher_embedding[0], other), strict=True)
        differences.append([abs(a - b) for a, b in pairs])
    neighbours = itertools.pairwise(differences)
    expected = sum(sum(a * b for a, b in zip(one, other, strict=True)) for one, other in neighbours) / 4
    assert value(loss, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_sample_without_neighbours():
    loss = build(4, 6, 3)
    student = torch.randn(1, 4, requires_grad=True)
    term = value(loss, student, torch.randn(1, 6))
    term.backward()
    assert term == 0 and all(not tensor.grad.any() for tensor in (student, *loss.parameters()))
