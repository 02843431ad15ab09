"""Multiply-adds: closed forms, an independent count, and a model that stays as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import create_model
from distillation.complexity import count_multiply_adds
from letkd import KDLayer, Student

RESNET20 = 40_818_944  # at 32 x 32, 100 classes: 442,368 + 14,155,776 + 2 * (12,976,128 + 131,072) + 6,400


def with_layers(name: str, *, alpha: float = 1.0) -> Student:
    """64 words behind the penultimate map and 20 sub-classes at the intermediate one."""
    network = create_model(name, num_classes=10)
    taps = {"penultimate": network.penultimate, "intermediate": network.intermediate}
    layers = {
        place: KDLayer(tap.channels, num_templates, alpha)
        for (place, tap), num_templates in zip(taps.items(), (64, 20), strict=True)
    }
    return Student(network, layers, {place: tap.path for place, tap in taps.items()})


def test_convolutions_and_linear_layers_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), groups=4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 3, 5),
    )
    first, second, last = (8 * 6 * 6) * (3 * 9), (8 * 4 * 6) * (2 * 3), (8 * 2 * 3) * 5
    total = first + second + last
    assert count_multiply_adds(network, 12) == {"multiply_adds": total, "multiply_adds_without_kd_layers": total}


def test_resnet20_by_hand():
    assert count_multiply_adds(create_model("resnet20", num_classes=100), 32)["multiply_adds"] == RESNET20


@pytest.mark.parametrize(("alpha", "num_products"), [(1.0, 2), (0.5, 2), (0.0, 0)])
def test_a_kd_layer_costs_its_cosine_products(alpha, num_products):
    alone = count_multiply_adds(create_model("resnet8", num_classes=10), 16)["multiply_adds"]
    counted = count_multiply_adds(with_layers("resnet8", alpha=alpha), 16)
    grid, channels = 4 * 4, 64
    assert counted == {
        "multiply_adds": alone + num_products * (64 + 20) * channels * grid,
        "multiply_adds_without_kd_layers": alone,
    }


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8"])
def test_the_dispatcher_counts_the_same(name):
    student = with_layers(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.zeros(1, 3, 32, 32))
    assert 2 * count_multiply_adds(student, 32)["multiply_adds"] == counter.get_total_flops()


def test_the_model_and_the_random_state_stay_as_they_were():
    student = with_layers("resnet8").train()
    student.backbone.layer1.eval()
    state, modes = copy.deepcopy(student.state_dict()), [module.training for module in student.modules()]
    hooks = [len(module._forward_hooks) for module in student.modules()]
    random_state = torch.get_rng_state()
    count_multiply_adds(student, 16)
    torch.testing.assert_close(student.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in student.modules()] == modes
    assert [len(module._forward_hooks) for module in student.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert student(torch.zeros(2, 3, 16, 16)).device.type == "cpu"
