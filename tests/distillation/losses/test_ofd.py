"""OFD against loops, margins against sums over a normal distribution; reference values are in tests/golden."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, constants, network, network_of

from architectures import create_model, outline
from distillation.losses.ofd import OFD, margin
from distillation.signals import Network, Signals


def value(loss, students, teachers):
    seen = Signals(preact=dict(zip(loss.needs.student.preact, students, strict=True)))
    taught = Signals(preact=dict(zip(loss.needs.teacher.preact, teachers, strict=True)))
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["ofd"]


def mean_of_the_negative(mean, deviation):
    """Of a normal distribution, by a sum over 10,000 points."""
    points = [mean + deviation * (12 * (n + 0.5) / 10_000 - 6) for n in range(10_000)]
    weighted = [(x, math.exp(-(((x - mean) / deviation) ** 2) / 2)) for x in points if x < 0]
    return sum(x * w for x, w in weighted) / sum(w for _, w in weighted)


def test_constants_are_the_published_ones():
    assert {"weight_per_sample": OFD.terms["ofd"]} == constants("ofd")


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (0.5, 0.7), (-2.0, -1.0), (0.1, -0.3), (1.0, 3.08)])
def test_a_margin_is_the_mean_of_what_is_negative(weight, bias):
    expected = mean_of_the_negative(bias, abs(weight))
    assert margin(torch.tensor([weight]), torch.tensor([bias])).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [(1.0, 3.1, -3.0), (-0.5, 5.0, -1.5), (0.0, 1.0, 0.0), (0.0, -1.0, -1.0), (0.0, 0.0, 0.0)],
)
def test_margins_of_channels_that_are_hardly_negative_or_constant(weight, bias, expected):
    assert margin(torch.tensor([weight]), torch.tensor([bias])).item() == pytest.approx(expected, abs=1e-6)


def test_only_what_is_above_the_margin_or_on_counts():
    """One channel with the margin m = -0.798 of a new BatchNorm; the connector passes values on."""
    student, teacher = torch.tensor([-3.0, -0.5, -3.0, 0.5, 2.0]), torch.tensor([-2.0, -2.0, -0.1, -0.1, 1.5])
    m = -math.sqrt(2 / math.pi)
    expected = 0 + (-0.5 - m) ** 2 + 0 + (0.5 + 0.1) ** 2 + (2.0 - 1.5) ** 2
    maps = [each.view(5, 1, 1, 1) for each in (student, teacher)]
    loss = OFD.build(*(network_of([each]) for each in maps), DATA).eval()
    loss.connectors[0][0].weight.data.fill_(math.sqrt(1 + 1e-5))  # what the BatchNorm divides by
    assert value(loss, *([each] for each in maps)).item() == pytest.approx(expected / 5, rel=1e-5)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (3, 5)])
def test_stages_are_halved_and_the_teacher_is_averaged_to_the_students_grid(grid):
    torch.manual_seed(0)
    students = [torch.randn(4, 3, 4, 4), torch.randn(4, 6, *grid)]
    teachers = [torch.randn(4, 5, 4, 4), torch.randn(4, 7, 4, 4)]
    loss = OFD.build(network_of(students), network_of(teachers), DATA)
    parts = []
    for student, teacher, connector in zip(students, teachers, loss.connectors, strict=True):
        seen = connector(student)
        target = F.adaptive_avg_pool2d(teacher, seen.shape[2:]).clamp(min=-math.sqrt(2 / math.pi))
        parts.append(((seen - target) ** 2)[(seen > target) | (target > 0)].sum() / 4)
    torch.testing.assert_close(value(loss, students, teachers), parts[0] / 2 + parts[1])


def test_the_last_stages_meet_where_one_network_has_more():
    longer = network("vgg13", (8, 16, 32, 64), ((16, 16), (8, 8), (4, 4), (2, 2)))
    loss = OFD.build(longer, network(), DATA)
    assert loss.needs.student.preact == ("stage2", "stage3", "stage4")
    assert loss.needs.teacher.preact == ("stage1", "stage2", "stage3")
    assert [connector[0].in_channels for connector in loss.connectors] == [16, 32, 64]


def measured(name):
    module = create_model(name, num_classes=10)
    return Network(module, outline(module, 32, name))


def test_margins_are_those_of_the_teachers_last_batchnorms_and_are_not_saved():
    torch.manual_seed(0)
    teacher = measured("resnet14")
    norms = [stage[-1].bn2 for stage in (teacher.module.layer1, teacher.module.layer2, teacher.module.layer3)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    loss = OFD.build(measured("resnet8"), teacher, DATA)
    for number, norm in enumerate(norms):
        torch.testing.assert_close(getattr(loss, f"margin{number}"), margin(norm.weight.detach(), norm.bias.detach()))
    assert {name.split(".")[0] for name in loss.state_dict()} == {"connectors"}


def test_margins_of_a_network_that_does_not_name_its_batchnorms():
    torch.manual_seed(0)
    teacher = measured("timm/test_resnet")
    for norm in (module for module in teacher.module.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.weight)
    loss = OFD.build(measured("resnet8"), teacher, DATA)
    layers = [teacher.module.layer2[-1].bn2, teacher.module.layer3[-1].bn3, teacher.module.layer4[-1].bn2]
    for number, norm in enumerate(layers):
        torch.testing.assert_close(getattr(loss, f"margin{number}"), margin(norm.weight.detach(), norm.bias.detach()))


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2", "timm/test_vit", "timm/test_convnext"])
def test_a_teacher_without_margins_is_refused(name):
    with pytest.raises(ValueError, match=rf"^OFD takes its margins.*stage\d of {name} has none; choose .*AT, VID"):
        OFD.build(measured("resnet8"), measured(name), DATA)
    OFD.build(measured(name), measured("resnet8"), DATA)


def test_a_batchnorm_without_weights_has_no_margins():
    teacher = network("plain")
    teacher.module["stage1"] = torch.nn.BatchNorm2d(8, affine=False)
    with pytest.raises(ValueError, match="stage1 of plain has none"):
        OFD.build(network(), teacher, DATA)


def test_a_new_connector_is_drawn_as_published():
    torch.manual_seed(0)
    loss = OFD.build(network("s", (64,), ((4, 4),)), network("t", (256,), ((4, 4),)), DATA)
    weight = loss.connectors[0][0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.05) and loss.connectors[0][0].bias is None
