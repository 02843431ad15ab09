"""Outlines: the table of stages is the published one, what is measured is so, and measuring changes nothing."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import (
    Outline,
    Place,
    StageEnd,
    Tap,
    TappedNetwork,
    create_model,
    create_on_meta,
    list_models,
    outline,
)
from tests.architectures.map_tools import maps_of, with_random_statistics

# RepDistiller's features for images of 32 x 32: stem, stages (channels @ side), and the width of the pooled vector.
TABLE = {
    "resnet20": ("16@32 16@32 32@16 64@8", 64),
    "resnet8x4": ("32@32 64@32 128@16 256@8", 256),
    "wrn_16_2": ("16@32 32@32 64@16 128@8", 128),
    "vgg8": ("64@32 128@16 256@8 512@4 512@4", 512),
    "mobilenetv2": ("16@16 12@16 16@8 48@4 160@2", 1280),
    "shufflenetv1": ("24@32 240@16 480@8 960@4", 960),
    "shufflenetv2": ("24@32 116@16 232@8 464@4", 1024),
    "resnet50": ("64@32 256@32 512@16 1024@8 2048@4", 2048),
}
ONE_OF_EACH_FAMILY = [
    *("resnet8", "wrn_10_1", "resnet18", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8"),
    *("mobilenetv1", "torchvision/resnet18"),
]
RAW_SUMS, NO_ACTIVATION = "wrn", "mobilenetv2"


def on_meta(name: str) -> TappedNetwork:
    return create_on_meta(name, num_classes=10)


# --- the table of stages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_stages_are_the_published_ones(name: str) -> None:
    measured = outline(on_meta(name), 32)
    places = [measured.place(stage) for stage in measured.stages]
    table = " ".join(f"{place.channels}@{place.grid[0]}" for place in places)
    assert (table, measured.num_features) == TABLE[name]
    assert all(place.grid[0] == place.grid[1] for place in places)


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_a_table(name: str) -> None:
    """Without maps that are overwritten; BatchNorms before an activation have its channels."""
    network = on_meta(name)
    entered = []
    network.get_submodule(network.head_path).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    measured = outline(network, 64, name)
    assert [tensor.shape for tensor in entered] == [(1, measured.num_features)]
    assert measured.stages == ("stem", *(f"stage{number}" for number in range(1, len(measured.stages))))
    assert len(measured.stages) in (4, 5)
    assert list(measured.places) == ["penultimate", "intermediate", *measured.stages]
    for tap, place in ((network.penultimate, "penultimate"), (network.intermediate, "intermediate")):
        assert measured.place(place) == Place(tap.path, tap.channels, (64 // tap.reduction,) * 2)
    for stage in measured.stages:
        place, before = measured.place(stage), measured.before(stage)
        assert not place.changed_later and not before.changed_later
        assert (before.channels, before.grid) == (place.channels, place.grid)
        if before.norm is not None:
            norm = network.get_submodule(before.norm)
            assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == before.channels
    assert (measured.network, measured.image_size, measured.num_classes) == (name, 64, 10)
    assert measured.head == network.head_path


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_maps_before_the_activation(name: str) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=10))
    measured = outline(network, 64)
    places = [measured.place(stage) for stage in measured.stages]
    befores = [measured.before(stage) for stage in measured.stages]
    maps = maps_of(network, torch.randn(2, 3, 64, 64), [*places, *befores])
    for stage, after, before, place in zip(measured.stages, maps, maps[len(places) :], befores, strict=False):
        if name.startswith(RAW_SUMS):  # the next stage's first BatchNorm, of the stage's map
            assert (after < 0).any()
            torch.testing.assert_close(network.get_submodule(place.norm)(after), before)
        elif name == NO_ACTIVATION and stage != "stem":
            assert place == measured.place(stage)
            assert (after < 0).any() and torch.equal(before, after)
        else:
            assert (before < 0).any()
            assert torch.equal(F.relu(before), after), stage


def test_wide_resnets_read_the_next_stage() -> None:
    measured = outline(on_meta("wrn_16_2"), 32)
    assert [measured.place(stage).path for stage in measured.stages] == ["conv1", "block1", "block2", "block3"]
    assert [measured.before(stage).norm for stage in measured.stages] == [
        *("block1.layer.0.bn1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    ]


def test_resnets_name_the_batch_norm_before_the_sum() -> None:
    assert outline(on_meta("resnet20"), 32).before("stage2").norm == "layer2.2.bn2"
    assert outline(on_meta("resnet50"), 32).before("stage2").norm == "layer2.3.bn3"
    assert outline(on_meta("torchvision/resnet18"), 64).before("stage2").norm == "layer2.1.bn2"
    assert outline(on_meta("torchvision/resnet50"), 64).before("stage2").norm == "layer2.3.bn3"


def test_shufflenetv2_reads_both_halves_before_the_activation() -> None:
    """Published: the half that passes unchanged next to the other one behind its BatchNorm; here in the map's order."""
    torch.manual_seed(0)
    network = with_random_statistics(create_model("shufflenetv2", num_classes=10))
    measured = outline(network, 32)
    behind_norm = measured.place("layer2.7.bn3")
    assert behind_norm.changed_later and measured.before("stage2").norm is None
    places = [measured.before("stage2"), measured.place("stage2"), behind_norm]
    before, after, branch = maps_of(network, torch.randn(2, 3, 32, 32), places)
    assert torch.equal(before[:, ::2], after[:, ::2]) and torch.equal(before[:, 1::2], branch)


# --- what is measured ------------------------------------------------------------------------------------------------


class Tiny(TappedNetwork):
    """A 1x1 convolution, a function of a test, a pooling called twice, a head."""

    feature_children, head_path, first_blocks = ("conv", "pool"), "fc", (Tap("conv", 4, 1),)

    def __init__(self, change: Callable[["Tiny", Tensor], Tensor] = lambda self, x: x, **stages: StageEnd):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(4, 5)
        self.also_pool = self.pool
        self.change, self.stage_ends = change, tuple(stages.values())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.pool(self.pool(self.change(self, self.conv(images))))


def overwrite_view(_: Tiny, x: Tensor) -> Tensor:
    x[:, 1:2].zero_()
    return x


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        (lambda self, x: x.add_(1), True),
        (overwrite_view, True),
        (lambda self, x: F.relu(x.view(x.shape), inplace=True), True),
        (lambda self, x: self.relu(x), True),
        (lambda self, x: x + 1, False),
        (lambda self, x: F.relu(x), False),
        (lambda self, x: self.norm(x).add_(1), False),
    ],
    ids=["itself", "a view", "as a view", "by a module", "a sum", "a copy", "another"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_map_that_is_overwritten_later_is_told(change, is_changed: bool, device: str) -> None:
    measured = outline(Tiny(change).to(device), 8)
    assert measured.place("conv") == Place("conv", 4, (8, 8), changed_later=is_changed)


def test_an_activation_that_is_read_does_not_overwrite_its_input() -> None:
    """It does for who reads the module before it, and what else overwrites the input counts."""
    end = StageEnd("pool", "relu", "norm")
    measured = outline(Tiny(lambda self, x: self.relu(self.norm(x)), stem=end), 8)
    assert measured.before("stem") == Place("relu", 4, (8, 8), is_input=True, norm="norm")
    assert measured.place("norm").changed_later and not measured.place("relu").changed_later

    def overwritten(self: Tiny, x: Tensor) -> Tensor:
        activated = self.relu(x)
        x.zero_()
        return activated

    assert outline(Tiny(overwritten, stem=end), 8).before("stem").changed_later
    # Read out of place, input and output are two tensors.
    activated_changed = outline(Tiny(lambda self, x: self.relu(self.norm(x)).add_(1), stem=end), 8)
    assert activated_changed.place("relu").changed_later and not activated_changed.before("stem").changed_later


def test_of_a_module_that_is_called_twice_the_last_call_counts() -> None:
    measured = outline(Tiny(lambda self, x: self.relu(self.relu(x).mean(2, keepdim=True)).expand(-1, -1, 8, 8)), 8)
    assert measured.place("pool").grid == (2, 2)
    assert measured.place("also_pool") == Place("also_pool", 4, (2, 2))  # another path of the same module
    assert measured.place("relu").grid == (1, 8)
    before = outline(on_meta("torchvision/resnet50"), 64).before("stage1")
    assert (before.path, before.channels) == ("layer1.2.relu", 256)  # its first two inputs have 64 channels


class Halves(nn.Module):
    def forward(self, x: Tensor, *, joined: bool) -> Tensor | tuple[Tensor, ...]:
        return x if joined else x.chunk(2, dim=1)


def test_a_last_call_that_returns_no_map_makes_no_place() -> None:
    network = Tiny(lambda self, x: torch.cat(self.halves(self.halves(x, joined=True), joined=False), 1))
    network.halves = Halves()
    assert "halves" not in outline(network, 8).modules


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "mobilenetv2", "shufflenetv2"])
def test_meta_and_precision_make_no_difference(name: str) -> None:
    measured = outline(create_model(name), 32)
    assert measured == outline(create_model(name).bfloat16(), 32)
    assert measured == outline(create_on_meta(name), 32)


def test_measured_inside_inference_mode() -> None:
    network = create_model("resnet8")
    with torch.inference_mode():
        assert outline(network, 32) == outline(network, 32)
        assert outline(network, 32).place("bn1").changed_later


# --- nothing is changed ----------------------------------------------------------------------------------------------


def condition(network: nn.Module) -> dict[str, list]:
    """All that measuring might change."""
    modules = list(network.modules())
    return {
        "modes": [module.training for module in modules],
        "in place": [getattr(module, "inplace", None) for module in modules],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        "gradients": [parameter.grad for parameter in network.parameters()],
        "trained": [parameter.requires_grad for parameter in network.parameters()],
        "generator": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize(
    ("name", "image_size"), [("resnet8", 32), ("wrn_10_1", 32), ("shufflenetv2", 32), ("vgg8", 32), ("vgg8", 4)]
)
def test_measuring_changes_nothing(name: str, image_size: int) -> None:
    """Neither where the images are too small for the network."""
    network = create_model(name, num_classes=10).train()
    next(network.children()).eval()
    network.get_submodule(network.head_path).register_forward_hook(lambda *_: None)
    state, before = copy.deepcopy(network.state_dict()), condition(network)
    if image_size == 4:
        with pytest.raises(RuntimeError, match="too small"):
            outline(network, image_size)
    else:
        outline(network, image_size)
    assert condition(network) == before
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


# --- names -----------------------------------------------------------------------------------------------------------

STAGES = (
    "stem (relu: 16 channels, 32 x 32), stage1 (layer1: 16 channels, 32 x 32), "
    "stage2 (layer2: 32 channels, 16 x 16), stage3 (layer3: 64 channels, 8 x 8)"
)
BEFORE = STAGES.replace("layer1", "layer1.0.relu").replace("layer2", "layer2.0.relu").replace("layer3", "layer3.0.relu")
KNOWN = (
    f"penultimate (layer3: 64 channels, 8 x 8), intermediate (layer3.0: 64 channels, 8 x 8), {STAGES}, or a module path"
)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda it: it.place("stage9"), f"place 'stage9'; did you mean 'stage3'? it has: {KNOWN}"),
        (lambda it: it.place("layer3.9"), f"place 'layer3.9'; did you mean 'layer3.0'? it has: {KNOWN}"),
        (lambda it: it.place("qqq"), f"place 'qqq'; it has: {KNOWN}"),
        (lambda it: it.place(""), f"place ''; it has: {KNOWN}"),
        (
            lambda it: it.before("stage4"),
            f"map before an activation 'stage4'; did you mean 'stage3'? it has: {BEFORE}",
        ),
        (lambda it: it.before("penultimate"), f"map before an activation 'penultimate'; it has: {BEFORE}"),
    ],
)
def test_a_wrong_name_says_what_there_is(ask, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ask(outline(on_meta("resnet8"), 32, "resnet8"))
    assert str(caught.value) == f"resnet8 has no {message}"


def test_what_returns_no_map_is_no_place() -> None:
    measured = outline(on_meta("resnet8"), 32)
    assert measured.place("layer3.0.conv1") == Place("layer3.0.conv1", 64, (8, 8))
    with pytest.raises(ValueError, match=r"^ResNet has no place 'fc'; "):
        measured.place("fc")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (StageEnd("fc"), "Tiny says that its stem is at 'fc', where no map passes"),
        (StageEnd("norm"), "Tiny says that its stem is at 'norm', where no map passes"),
        (StageEnd("conv", "relu"), "Tiny says that its stem is at 'relu', where no map passes"),
    ],
)
def test_a_stage_at_a_module_that_does_not_run_is_refused(end: StageEnd, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        outline(Tiny(stem=end), 8)
    assert str(caught.value) == message


def test_an_outline_written_by_hand() -> None:
    written = Outline("student", 32, 10, 32, "fc", ("stage1",), {"stage1": Place("layer1", 8, (16, 16))})
    assert written.place("stage1").channels == 8
    with pytest.raises(
        ValueError,
        match=r"^student has no place 'stage2'; did you mean 'stage1'\? it has: stage1 \(layer1: 8 channels",
    ):
        written.place("stage2")
    with pytest.raises(ValueError, match=r"^student has no map before an activation 'stage1'; it has: none$"):
        written.before("stage1")


def test_a_network_without_a_table_has_no_stages() -> None:
    measured = outline(Tiny(), 8)
    assert measured.stages == () and measured.place("penultimate").grid == (2, 2)
    with pytest.raises(ValueError, match=r"^Tiny has no place 'stage1'; .*: penultimate .*, intermediate .*, or a "):
        measured.place("stage1")
