"""Folding BatchNorm changes the arithmetic of a frozen network, and nothing that it computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from architectures import create_model, fold_batch_norm_, list_models, outline
from tests.architectures.map_tools import maps_of, with_random_statistics

ONE_OF_EACH_FAMILY = (
    *("resnet8", "resnet8x4", "resnet18", "resnet50", "wrn_10_1", "wrn_16_2", "vgg8", "mobilenetv1", "mobilenetv2"),
    *("shufflenetv1", "shufflenetv2"),
)
OTHERS = [name for name in list_models() if "/" not in name and name not in ("resnet110", *ONE_OF_EACH_FAMILY)]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]  # deeper


@pytest.mark.parametrize("name", [*ONE_OF_EACH_FAMILY, *OTHERS])
def test_folded_networks_compute_the_same(name):
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=10)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        num_batch_norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        num_folded = fold_batch_norm_(network)
        torch.testing.assert_close(network(images), expected)
    remaining = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert num_folded == num_batch_norms - remaining
    # Wide residual networks normalise before the convolution: what follows a sum stays.
    assert remaining == 0 or name.startswith("wrn")


@pytest.mark.parametrize(
    ("name", "can_be_folded"),
    [("timm/test_resnet", True), ("timm/test_efficientnet", False), ("timm/test_maxvit", False)],
    ids=["BatchNorm", "BatchNorm with the activation in it", "cannot be traced"],
)
def test_of_other_libraries_is_folded_what_can_be(name, can_be_folded):
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=10, image_size=64)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        assert (fold_batch_norm_(network) > 0) == can_be_folded
        torch.testing.assert_close(network(images), expected)


def test_paths_stay_and_a_kept_convolution_is_left_alone():
    network = with_random_statistics(create_model("resnet8", num_classes=10))
    paths = [path for path, _ in network.named_modules()]
    fold_batch_norm_(network, kept=["conv1"])
    assert [path for path, _ in network.named_modules()] == paths
    assert isinstance(network.bn1, nn.BatchNorm2d)
    assert isinstance(network.layer1[0].bn1, nn.Identity)


READ = [
    "resnet8",
    "wrn_10_1",
    "wrn_16_2",
    "mobilenetv1",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "vgg13",
]


@pytest.mark.parametrize("name", READ)
def test_maps_that_are_read_stay(name):
    """Of all stages, behind and before the last activation; and so do the BatchNorms before it."""
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=10)).double()
    measured = outline(network, 32)
    places = [*(measured.place(stage) for stage in measured.stages), *map(measured.before, measured.stages)]
    norms = [place.norm for place in places if place.norm is not None]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = maps_of(network, images, places)
    assert fold_batch_norm_(network, kept=[*(place.path for place in places), *norms])
    torch.testing.assert_close(maps_of(network, images, places), expected)
    assert all(isinstance(network.get_submodule(path), nn.BatchNorm2d) for path in norms)


def test_a_map_that_is_not_kept_is_another_one():
    """What the test above would see: the stem of a wide residual network is a bare convolution."""
    network = with_random_statistics(create_model("wrn_16_2", num_classes=10))
    places, images = [outline(network, 32).place("stem")], torch.randn(2, 3, 32, 32)
    expected = maps_of(network, images, places)
    fold_batch_norm_(network)
    assert not torch.allclose(maps_of(network, images, places)[0], expected[0])


@pytest.mark.parametrize(("kept", "num_folded"), [((), 1), (("0",), 0), (("0.0",), 0), (("1",), 0), (("0", "1"), 0)])
def test_a_kept_module_may_end_in_a_convolution(kept, num_folded):
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4), nn.ReLU())
    assert fold_batch_norm_(with_random_statistics(network), kept=kept) == num_folded


def test_a_kept_module_may_contain_both():
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.ReLU())
    assert fold_batch_norm_(with_random_statistics(network), kept=["0"]) == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda conv: prune.random_unstructured(conv, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_weights_that_are_computed_are_left_alone(wrap):
    torch.manual_seed(0)
    network = with_random_statistics(nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU()))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        assert fold_batch_norm_(network) == 0
        assert torch.equal(network(images), expected)


def test_statistics_of_the_batch_are_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert fold_batch_norm_(network) == 0
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize("hooked", [0, 1])
@pytest.mark.parametrize(
    "register",
    [
        lambda module: module.register_forward_hook(lambda _module, _inputs, output: 2 * output),
        lambda module: module.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],)),
    ],
    ids=["behind", "before"],
)
def test_what_has_hooks_is_left_alone(register, hooked):
    network = with_random_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    register(network[hooked])
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert fold_batch_norm_(network) == 0
    assert torch.equal(network(images), expected)


class Named(nn.Module):
    """A convolution and a BatchNorm, of which one is called by its second name, or read."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first = {"conv": self.conv, "bn": self.bn}.get(what)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (self.first if self.what == "conv" else self.conv)(x)
        x = (self.first if self.what == "bn" else self.bn)(x)
        return x * self.conv.weight.sum() if self.what == "weight" else x


@pytest.mark.parametrize("what", ["conv", "bn", "weight"])
def test_what_is_known_by_two_names_or_read_is_left_alone(what):
    network = with_random_statistics(Named(what))
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert fold_batch_norm_(network) == 0
    assert torch.equal(network(images), expected)


class Shared(nn.Module):
    """A convolution that two modules read, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.bn(x) + x + self.other(self.twice(self.twice(x)))


def test_a_convolution_that_others_read_is_left_alone():
    network = with_random_statistics(Shared())
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert fold_batch_norm_(network) == 0
    torch.testing.assert_close(network(images), expected)
