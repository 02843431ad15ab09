"""Every network keeps the contract: head after features, and taps that are as declared and can be replaced."""

import pytest
import torch

from architectures import Tap, TappedNetwork, create_model, create_on_meta, list_models
from architectures.on_meta import ShapesAlone

FEATURE_CHILDREN = {  # DESIGN.md, section 1: children of the feature part, in order
    "resnet20": "conv1 bn1 relu layer1 layer2 layer3",
    "wrn_16_2": "conv1 block1 block2 block3 bn1 relu",
    "resnet50": "conv1 bn1 relu layer1 layer2 layer3 layer4",
    "mobilenetv2": "conv1.0 conv1.1 conv1.2 blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 blocks.6 "
    "conv2.0 conv2.1 conv2.2",
    "shufflenetv1": "conv1 bn1 relu layer1 layer2 layer3",
    "shufflenetv2": "conv1 bn1 relu layer1 layer2 layer3 conv2 bn2 relu2",
}
INTERMEDIATE = {  # the same table: last stage and its index
    "resnet20": (5, Tap("layer3.0", 64, 4)),
    "resnet32x4": (5, Tap("layer3.0", 256, 4)),
    "wrn_16_2": (3, Tap("block3.layer.0", 128, 4)),
    "resnet50": (6, Tap("layer4.0", 2048, 8)),
    "mobilenetv2": (8, Tap("blocks.5.0", 80, 16)),
    "shufflenetv1": (5, Tap("layer3.0", 960, 8)),
    "shufflenetv2": (5, Tap("layer3.0", 464, 8)),
}


ONE_OF_EACH_FAMILY = [
    *("resnet8", "wrn_10_1", "resnet18", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8"),
    *("mobilenetv1", "torchvision/resnet18"),
]


@pytest.fixture(scope="module", params=ONE_OF_EACH_FAMILY)
def model(request: pytest.FixtureRequest) -> TappedNetwork:
    torch.manual_seed(0)
    return create_model(request.param, num_classes=10)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FEATURE_CHILDREN)
def test_feature_children_as_designed(name: str) -> None:
    assert create_on_meta(name).feature_children == tuple(FEATURE_CHILDREN[name].split())


@pytest.mark.parametrize("name", INTERMEDIATE)
def test_intermediate_map_as_designed(name: str) -> None:
    network = create_on_meta(name)
    index, tap = INTERMEDIATE[name]
    assert network.intermediate == network.stages[index] == tap


def test_stages_keyed_by_feature_child() -> None:
    taps = {3: Tap("layer1.0", 16, 1), 4: Tap("layer2.0", 32, 2), 5: Tap("layer3.0", 64, 4)}
    assert create_model("resnet20").stages == taps


def features_and_taps(
    network: TappedNetwork, images: torch.Tensor
) -> tuple[torch.Tensor, dict[Tap, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """The penultimate map and, for each tap, its module's outputs: (the tensor itself, what it held when returned)."""
    outputs = {tap: [] for tap in (network.penultimate, *network.first_blocks)}
    handles = [
        network.get_submodule(tap.path).register_forward_hook(
            lambda module, inputs, output, calls=calls: calls.append((output, output.clone()))
        )
        for tap, calls in outputs.items()
    ]
    features = network.forward_features(images)
    for handle in handles:
        handle.remove()
    return features, outputs


@pytest.mark.parametrize("name", list_models())
def test_taps_are_as_declared(name: str) -> None:
    """Each is called once and has its shape. The meta device runs the real forward, on shapes alone."""
    network, images = create_on_meta(name, num_classes=10), torch.empty(2, 3, 64, 96, device="meta")
    with ShapesAlone():
        features, outputs = features_and_taps(network, images)
    for tap, calls in outputs.items():
        expected = (2, tap.channels, 64 // tap.reduction, 96 // tap.reduction)
        assert [output.shape for output, _ in calls] == [expected], tap
    assert outputs[network.penultimate][0][0] is features
    assert features.shape[1] == network.num_features
    assert network.forward_head(features).shape == (2, network.num_classes) == (2, 10)
    assert len(network.stages) == len(network.first_blocks)


@torch.no_grad()
def test_head_after_features_is_the_forward(model: TappedNetwork, images: torch.Tensor) -> None:
    model.eval()
    assert torch.equal(model(images), model.forward_head(model.forward_features(images)))


@torch.no_grad()
def test_nothing_changes_a_tapped_map_in_place(model: TappedNetwork, images: torch.Tensor) -> None:
    for tap, calls in features_and_taps(model.train(), images)[1].items():
        assert all(torch.equal(output, held_when_returned) for output, held_when_returned in calls), tap


@torch.no_grad()
def test_replaced_map_changes_the_logits(model: TappedNetwork, images: torch.Tensor) -> None:
    model.train()  # batch statistics: freshly initialised networks hardly pass a signal on with the stored ones
    logits = model(images)
    for tap in (model.intermediate, model.penultimate):
        handle = model.get_submodule(tap.path).register_forward_hook(lambda module, inputs, output: output.flip(1))
        replaced = model(images)
        handle.remove()
        assert not torch.allclose(replaced, logits), tap


def test_gradient_reaches_every_parameter(model: TappedNetwork, images: torch.Tensor) -> None:
    model.train()
    model.zero_grad()
    model(images).logsumexp(1).sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8"])
@torch.no_grad()
def test_channels_last_stays_and_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    network, images = create_model(name).eval(), torch.randn(2, 3, 32, 32)
    logits = network(images)
    network.to(memory_format=torch.channels_last)
    features = network.forward_features(images.contiguous(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.forward_head(features), logits, rtol=1e-4, atol=1e-5)
