"""Reading maps of a frozen teacher and placing KD layers inside a student."""

import copy

import pytest
import torch
from torch import nn

from letkd import FrozenTaps, KDLayer, Student


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Flatten(), nn.Linear(6 * 16, 4)
    )


@pytest.fixture
def student() -> Student:
    return Student(network(), {"early": KDLayer(6, 5), "late": KDLayer(6, 7)}, {"early": "0.0", "late": "0"})


def test_frozen_taps_return_the_maps_and_never_train():
    teacher = network()
    taps = FrozenTaps(teacher, {"late": "0", "early": "0.0"}).train()
    images = torch.randn(2, 3, 6, 6)
    maps = taps(images)
    torch.testing.assert_close(maps["late"], teacher[0](images))
    torch.testing.assert_close(maps["early"], teacher[0][0](images))
    assert not any(module.training for module in taps.modules())
    assert not any(p.requires_grad for p in taps.parameters())


def test_student_is_its_backbone_plus_the_layers(student):
    images = torch.randn(8, 3, 6, 6)
    logits, scores = student.forward_with_scores(images)
    plain, early, late = network(), student.layers["early"], student.layers["late"]
    early_map, early_scores = early(plain[0][0](images))
    late_map, late_scores = late(plain[0][2](plain[0][1](early_map)))
    torch.testing.assert_close(logits, plain[2](plain[1](late_map)))
    torch.testing.assert_close(scores, {"early": early_scores, "late": late_scores})


def test_gradients_reach_every_parameter(student):
    logits, scores = student.forward_with_scores(torch.randn(8, 3, 6, 6))
    (logits.square().sum() + scores["early"].square().sum() + scores["late"].square().sum()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_deep_copy_has_layers_of_its_own(student):
    twin = copy.deepcopy(student).eval()
    images = torch.randn(2, 3, 6, 6)
    before = twin(images)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(images), before)


def test_backbone_keeps_its_state_dict_names(student):
    assert list(student.backbone.state_dict()) == list(network().state_dict())


def test_an_unknown_path_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="Sequential has no module '3'; known: 0, 1, 2"):
        Student(network(), {"late": KDLayer(6, 5)}, {"late": "3"})
