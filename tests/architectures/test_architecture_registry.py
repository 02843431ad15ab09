"""`create_model` and its registry: which names exist, how one joins, what a wrong name says."""

import sys
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import architectures
from architectures import create_model, create_on_meta, is_model, list_models, register_model, registry

CIFAR_RESNETS = [f"resnet{depth}" for depth in ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4")]
WIDE_RESNETS = ["wrn_10_1", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"]
OTHERS = ["resnet18", "resnet34", "resnet50", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8", "vgg13"]
IMAGENET = ["torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50", "mobilenetv1"]


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_every_name_of_the_design_exists() -> None:
    assert set(list_models()) >= {*CIFAR_RESNETS, *WIDE_RESNETS, *OTHERS, *IMAGENET}


def test_names_are_listed_in_counting_order() -> None:
    resnets = [name for name in list_models() if name in ("resnet8", "resnet20", "resnet110")]
    assert resnets == ["resnet8", "resnet20", "resnet110"]


def test_is_model() -> None:
    assert is_model("torchvision/resnet50")
    assert not is_model("resnet57")


def test_every_module_of_the_package_is_imported() -> None:
    modules = {path.stem for path in Path(architectures.__file__).parent.glob("*.py")}
    assert modules - {"__init__"} - architectures.LATE <= {name.removeprefix("architectures.") for name in sys.modules}


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown architecture 'resnet57'; did you mean 'resnet56'\? known: .*wrn_40_2"
    ):
        create_model("resnet57")


def test_unlike_name_lists_the_known_only() -> None:
    with pytest.raises(ValueError, match=r"^unknown architecture 'qqq'; known: mobilenetv1, "):
        create_model("qqq")


@pytest.mark.usefixtures("own_registry")
def test_decorated_builder_joins_under_its_own_name() -> None:
    @register_model
    def resnet26(num_classes: int):
        return architectures.resnet.ResNet(26, num_classes=num_classes)

    assert "resnet26" in list_models()
    assert create_model("resnet26", num_classes=7).num_classes == 7


@pytest.mark.usefixtures("own_registry")
def test_keywords_reach_the_builder() -> None:
    register_model(architectures.wide_resnet.WideResNet, name="wrn")
    assert create_model("wrn", num_classes=5, depth=10, widen=3).num_features == 192


@pytest.mark.usefixtures("own_registry")
def test_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'resnet20' is registered already"):
        register_model(architectures.resnet.ResNet, name="resnet20")


def rates_of(network: nn.Module, kind: type[nn.Module], name: str) -> list[float]:
    return [getattr(module, name) for module in network.modules() if isinstance(module, kind)]


def test_dropout_and_stochastic_depth_reach_networks_of_libraries() -> None:
    of_timm = create_on_meta("timm/resnet10t", 3, dropout=0.2, drop_path=0.3)
    assert of_timm.drop_rate == 0.2 and max(rates_of(of_timm, DropPath, "drop_prob")) == pytest.approx(0.3)
    of_torchvision = create_on_meta("torchvision/efficientnet_b0", 3, dropout=0.4, drop_path=0.3)
    assert rates_of(of_torchvision, nn.Dropout, "p") == [0.4]
    own = create_on_meta("torchvision/efficientnet_b0", 3)
    assert rates_of(own, nn.Dropout, "p") == [0.2]  # torchvision's


def test_stochastic_depth_of_a_resnet_rises_to_its_last_block_and_is_none_in_evaluation() -> None:
    torch.manual_seed(0)
    network, plain = create_model("resnet20", 3, drop_path=0.45), create_model("resnet20", 3)
    plain.load_state_dict(network.state_dict())
    blocks = rates_of(network, architectures.resnet.BasicBlock, "drop_path")
    assert blocks == pytest.approx([0.05 * number for number in range(1, 10)])
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    assert not torch.equal(network.train()(images), plain.train()(images))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("mobilenetv2", {"drop_path": 0.1}),
        ("timm/vgg11", {"drop_path": 0.1}),
        ("torchvision/vgg11", {"drop_path": 0.1}),
        ("torchvision/resnet101", {"dropout": 0.1}),
    ],
)
def test_what_a_network_does_not_take_is_said(name: str, rates: dict[str, float]) -> None:
    said = " and ".join(f"{key}={rate}" for key, rate in rates.items())
    with pytest.raises(ValueError, match=rf"^{name} does not take {said} \(.*keyword argument.*\); leave it out$"):
        create_on_meta(name, 3, **rates)


def test_of_two_rates_the_one_is_named_that_is_not_taken() -> None:
    with pytest.raises(ValueError, match=r"^torchvision/resnet18 does not take drop_path=0.2 \("):
        create_on_meta("torchvision/resnet18", 3, dropout=0.1, drop_path=0.2)


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet18", "wrn_10_1", "vgg8", "mobilenetv1", "mobilenetv2", "shufflenetv1", "shufflenetv2"]
)
def test_every_family_takes_dropout_before_its_classifier(name: str) -> None:
    torch.manual_seed(0)
    network, plain = create_model(name, 3, dropout=0.5), create_model(name, 3)
    plain.load_state_dict(network.state_dict())
    features = torch.rand(64, network.num_features, 2, 2) + 1
    seen = []
    network.get_submodule(network.head_path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert torch.equal(network.eval().forward_head(features), plain.eval().forward_head(features))
    network.train().forward_head(features)
    whole, dropped = seen
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * whole))
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    plain.train().forward_head(features)
    assert torch.equal(torch.rand(1), drawn), "none draws no random numbers"


def test_other_mistakes_of_a_builder_stay_what_they_are() -> None:
    with pytest.raises(TypeError, match="depht"):
        create_model("resnet20", 3, depht=1)
