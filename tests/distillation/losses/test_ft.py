"""FT against loops over positions, and which term trains what."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, constants, network_of

from distillation.losses.ft import FT, distance
from distillation.signals import Signals


def build(student, teacher):
    return FT.build(network_of([student]), network_of([teacher]), DATA)


def values(loss, student, teacher):
    seen, taught = (Signals(maps={"stage1": maps}) for maps in (student, teacher))
    return loss(seen, taught, batch(torch.zeros(len(student), dtype=torch.int64)))


def energies(sample):
    """Of one factor (C, h, w) as a flat list, of length 1."""
    channels, height, width = sample.shape
    found = [sum(x**2 for x in sample[:, i, j].tolist()) / channels for i in range(height) for j in range(width)]
    length = math.sqrt(sum(x * x for x in found))
    return [x / length for x in found]


@pytest.mark.parametrize(
    ("grid", "teacher_grid", "common"), [((4, 4), (4, 4), 4), ((8, 8), (4, 4), 4), ((2, 2), (4, 4), 2)]
)
def test_mean_absolute_error_of_energies(grid, teacher_grid, common):
    torch.manual_seed(0)
    students, teachers = torch.randn(2, 3, *grid), torch.randn(2, 5, *teacher_grid)
    total = 0.0
    for one, other in zip(students, teachers, strict=True):
        pair = (energies(F.adaptive_avg_pool2d(each, common)) for each in (one, other))
        total += sum(abs(a - b) for a, b in zip(*pair, strict=True)) / common**2 / 2
    assert distance(students, teachers).item() == pytest.approx(total, rel=1e-4)


def test_each_term_trains_its_own_part():
    """The factor of the teacher is a target: what the student learns does not move it."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 4, 4, requires_grad=True), torch.randn(4, 6, 4, 4)
    loss = build(student, teacher)
    terms = values(loss, student, teacher)
    assert list(terms) == list(FT.terms)
    parts = {"ft": {"translator"}, "reconstruction": {"encoder", "decoder"}}
    for name, term in terms.items():
        found = torch.autograd.grad(term, list(loss.parameters()), retain_graph=True, allow_unused=True)
        moved = zip(loss.named_parameters(), found, strict=True)
        assert {path.partition(".")[0] for (path, _), grad in moved if grad is not None and grad.any()} == parts[name]
    assert torch.autograd.grad(terms["ft"], student)[0].any()


def test_paraphraser_and_translator_halve_the_teachers_channels():
    student, teacher = torch.randn(4, 3, 8, 8), torch.randn(4, 6, 4, 4)
    loss = build(student, teacher)
    factor = loss.encoder(teacher)
    assert factor.shape == (4, 3, 4, 4) and loss.decoder(factor).shape == teacher.shape
    assert loss.translator(student).shape == (4, 3, 8, 8)
    error = (loss.decoder(factor) - teacher).square().mean()
    torch.testing.assert_close(values(loss, student, teacher)["reconstruction"], error)


def test_the_weight_is_the_published_one():
    assert constants("ft")["weight"] == FT.terms["ft"]
