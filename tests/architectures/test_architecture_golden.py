"""State-dict names, shapes and outputs equal the published networks'."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision

from architectures import create_model, create_on_meta
from architectures.on_meta import ShapesAlone

NAMES = {
    "RN8": "resnet8",
    "RN20": "resnet20",
    "RN32": "resnet32",
    "RN56": "resnet56",
    "RN110": "resnet110",
    "RN8x4": "resnet8x4",
    "RN32x4": "resnet32x4",
    "WRN16w2": "wrn_16_2",
    "WRN40w1": "wrn_40_1",
    "WRN40w2": "wrn_40_2",
    "RN50": "resnet50",
    "MNv2": "mobilenetv2",
    "SNv1": "shufflenetv1",
    "SNv2": "shufflenetv2",
    "VGG8": "vgg8",
    "VGG13": "vgg13",
}
WITH_OUTPUTS = ("RN8", "RN20", "RN56", "RN32x4", "WRN16w2", "WRN40w2", "RN50", "MNv2", "SNv1", "SNv2")


@pytest.fixture(scope="module")
def published(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "architectures.npz") as archive:
        return dict(archive)


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_golden_network_is_covered(published: dict, golden: dict[str, np.ndarray]) -> None:
    assert set(NAMES) == {name for name in published if "#" not in name}
    assert set(WITH_OUTPUTS) == {key.split("/")[0] for key in golden}


@pytest.mark.parametrize("short_name", NAMES)
def test_state_dict_as_published(short_name: str, published: dict) -> None:
    model = create_on_meta(NAMES[short_name], num_classes=100)
    assert shapes(model) == published[short_name]
    assert sum(parameter.numel() for parameter in model.parameters()) == published[f"{short_name}#params"]


@pytest.mark.parametrize("short_name", WITH_OUTPUTS)
@torch.no_grad()
def test_maps_and_logits_as_published(short_name: str, golden: dict[str, np.ndarray], fill: ModuleType) -> None:
    model = create_on_meta(NAMES[short_name], num_classes=100)  # no time spent on values that `fill_` overwrites
    model = fill.fill_(model.to_empty(device="cpu")).double().eval()
    captured = []
    model.get_submodule(model.intermediate.path).register_forward_hook(lambda *call: captured.append(call[-1].clone()))
    penultimate = model.forward_features(torch.from_numpy(fill.array("images", (2, 3, 32, 32))).double())
    outputs = {
        "intermediate": captured[0],
        "penultimate": penultimate,
        "logits": model.forward_head(penultimate),
    }
    for name, output in outputs.items():
        expected = golden[f"{short_name}/{name}"]
        assert output.shape == expected.shape, name
        assert np.abs(output.numpy() - expected).max() < 1e-6 * np.abs(expected).max(), name


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvision_state_dict(name: str) -> None:
    with torch.device("meta"), ShapesAlone():
        original = torchvision.models.get_model(name)
    assert shapes(create_on_meta(f"torchvision/{name}", num_classes=1000)) == shapes(original)


@torch.no_grad()
def test_torchvision_logits() -> None:
    original = torchvision.models.resnet18().eval()
    model = create_model("torchvision/resnet18", num_classes=1000).eval()
    model.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), original(images))


def test_mobilenetv1_size_as_published() -> None:
    """Howard et al. (2017), table 8: 4.2 million parameters."""
    model = create_on_meta("mobilenetv1", num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976
    assert shapes(model)["model.13.3.weight"] == [1024, 1024, 1, 1]


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "mobilenetv2"])
def test_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    for module in create_model(name).modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.08)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
