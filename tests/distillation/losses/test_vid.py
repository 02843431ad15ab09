"""VID against torch's normal distribution; reference values are in tests/golden."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, constants, network_of

from distillation.losses.vid import FIRST_VARIANCE, SMALLEST_VARIANCE, VID, Gaussian
from distillation.signals import Signals


def build(students, teachers):
    return VID.build(network_of(students), network_of(teachers), DATA)


def value(loss, students, teachers):
    seen = Signals(maps=dict(zip(loss.needs.student.maps, students, strict=True)))
    taught = Signals(maps=dict(zip(loss.needs.teacher.maps, teachers, strict=True)))
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["vid"]


def test_constants_are_the_published_ones():
    ours = {"weight": VID.terms["vid"], "init_pred_var": FIRST_VARIANCE, "eps": SMALLEST_VARIANCE}
    assert ours == constants("vid")


def test_the_likelihood_of_a_normal_distribution():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 2, 5), torch.randn(4, 6, 2, 5)
    gaussian = Gaussian(3, 6)
    scale = torch.linspace(-3, 4, 6)
    gaussian.log_scale.data = scale
    first, second, third = (gaussian.regressor[number].weight[:, :, 0, 0] for number in (0, 2, 4))
    assert [tuple(weight.shape) for weight in (first, second, third)] == [(6, 3), (6, 6), (6, 6)]
    hidden = torch.einsum("bchw,dc->bdhw", student, first).relu()
    mean = torch.einsum("bchw,dc->bdhw", torch.einsum("bchw,dc->bdhw", hidden, second).relu(), third)
    deviation = ((1 + scale.exp()).log() + 1e-5).sqrt()[:, None, None]
    expected = -torch.distributions.Normal(mean, deviation).log_prob(teacher).mean() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(gaussian(student, teacher), expected)


def test_a_new_one_has_the_variance_5():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 4, 4), torch.randn(4, 6, 4, 4)
    loss = build([student], [teacher])
    error = (loss.gaussians[0].regressor(student) - teacher).square().mean()
    torch.testing.assert_close(value(loss, [student], [teacher]), (error / 5 + math.log(5)) / 2)


@pytest.mark.parametrize("scale", [-200.0, 200.0, 1e30])
def test_finite_for_any_scale(scale):
    gaussian = Gaussian(2, 3)
    gaussian.log_scale.data.fill_(scale)
    term = gaussian(torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4))
    term.backward()
    assert term.isfinite() and gaussian.log_scale.grad.isfinite().all()


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_averaged_before_the_regressor(larger):
    torch.manual_seed(0)
    maps = {"student": torch.randn(4, 3, 4, 4), "teacher": torch.randn(4, 6, 4, 4)}
    small = {name: F.avg_pool2d(each, 2) for name, each in maps.items()}
    given = small | {larger: maps[larger]}
    loss = build([given["student"]], [given["teacher"]])
    found, expected = (value(loss, [each["student"]], [each["teacher"]]) for each in (given, small))
    torch.testing.assert_close(found, expected)


def test_stages_are_summed_and_variances_are_trained():
    torch.manual_seed(0)
    students = [torch.randn(4, 3, 4, 4), torch.randn(4, 5, 2, 2)]
    teachers = [torch.randn(4, 6, 4, 4), torch.randn(4, 7, 2, 2)]
    loss = build(students, teachers)
    parts = [gaussian(*pair) for gaussian, *pair in zip(loss.gaussians, students, teachers, strict=True)]
    term = value(loss, students, teachers)
    torch.testing.assert_close(term, sum(parts))
    term.backward()
    assert all(gaussian.log_scale.grad.all() for gaussian in loss.gaussians)
