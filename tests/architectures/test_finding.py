"""Places of networks that do not name them: one of each kind, of timm, of torchvision, and of the user's own."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from architectures import Outline, create_model, create_on_meta, outline
from architectures.registry import _LIBRARIES

MAP, LAST = "map", "map with channels last"
TOKENS, TWO = "tokens, 1 before the patches", "tokens, 2 before the patches"


def outline_of(name: str, image_size: int = 64, make: Callable[..., nn.Module] = create_model) -> Outline:
    return outline(make(name, num_classes=10, image_size=image_size), image_size, name)


def told(found: Outline, name: str) -> tuple:
    place = found.place(name)
    return place.path, place.channels, place.grid[0], place.kind


# --- one of each kind ------------------------------------------------------------------------------------------------


def few_blocks(num_classes: int) -> nn.Module:
    """A small vision transformer of torchvision."""
    small = {"num_layers": 4, "num_heads": 1, "hidden_dim": 22, "mlp_dim": 8}
    return torchvision.models.VisionTransformer(image_size=64, patch_size=16, num_classes=num_classes, **small)


KINDS = {  # head, penultimate, intermediate, ends of stages
    "timm/resnet10t.c3_in1k": (
        "fc", ("layer4", 512, 2, MAP), ("layer4.0", 512, 2, MAP), "act1 layer1.0 layer2.0 layer3.0 layer4.0"
    ),
    "timm/vit_tiny_patch16_224": (
        "head", ("blocks.10", 192, 4, TOKENS), ("blocks.9", 192, 4, TOKENS),
        "norm_pre blocks.2 blocks.5 blocks.8 blocks.11"
    ),
    "timm/deit_tiny_distilled_patch16_224": (  # the mean of two heads
        None, ("blocks.10", 192, 4, TWO), ("blocks.9", 192, 4, TWO),
        "norm_pre blocks.2 blocks.5 blocks.8 blocks.11",
    ),
    "timm/swin_tiny_patch4_window7_224": (
        "head.fc", ("norm", 768, 2, LAST), ("layers.3.blocks.0", 768, 2, LAST),
        "layers.0.downsample layers.0.blocks.1 layers.1.blocks.1 layers.2.blocks.5 layers.3.blocks.1",
    ),
    "timm/efficientnet_lite0": (
        "classifier", ("bn2", 1280, 2, MAP), ("blocks.5.0", 192, 2, MAP),
        "bn1 blocks.0.0 blocks.1.1 blocks.2.1 blocks.4.2 blocks.6.0",
    ),
    "timm/mobilenetv3_small_050": (  # its last convolution is behind the pooling
        "classifier", ("blocks", 288, 2, MAP), ("blocks.4.0", 48, 2, MAP),
        "bn1 blocks.0.0 blocks.1.1 blocks.3.1 blocks.4.2",
    ),
    "timm/mobilenetv4_conv_small_035": (
        "classifier", ("blocks", 336, 2, MAP), ("blocks.3.0", 48, 2, MAP),
        "bn1 blocks.0.1 blocks.1.1 blocks.2.5 blocks.3.5",
    ),
    "timm/mixer_s32_224": (  # all its tokens are patches, and the head reads their mean
        "head", ("norm", 512, 2, "tokens"), ("blocks.6", 512, 2, "tokens"), "stem blocks.1 blocks.3 blocks.5 blocks.7"
    ),
    "timm/test_convnext": (
        "head.fc", ("stages", 64, 2, MAP), ("stages.3.blocks.0", 64, 2, MAP),
        "stages.0.downsample stages.0.blocks.0 stages.1.blocks.1 stages.2.blocks.3 stages.3.blocks.1",
    ),
    "timm/regnetx_002": ("head.fc", ("s4", 368, 2, MAP), ("s4.b1", 368, 2, MAP), "stem s1.b1 s2.b1 s3.b4 s4.b7"),
    "timm/test_vit": (  # of six blocks, and one that takes images of any size
        "head", ("blocks.4", 64, 4, TOKENS), ("blocks.3", 64, 4, TOKENS), "norm_pre blocks.0 blocks.2 blocks.3 blocks.5"
    ),
    "timm/cait_xxs24_224": (  # its patches have no class token beside them
        "head", ("blocks.23", 192, 4, "tokens"), ("blocks.18", 192, 4, "tokens"),
        "patch_embed blocks.5 blocks.11 blocks.17 blocks.23",
    ),
    "timm/coatnet_nano_rw_224": (  # refuses larger images
        "head.fc", ("norm", 512, 2, MAP), ("stages.3.blocks.0", 512, 2, MAP),
        "stem stages.0.blocks.2 stages.1.blocks.3 stages.2.blocks.5 stages.3.blocks.2",
    ),
    "torchvision/mobilenet_v2": (
        "classifier.1", ("features", 1280, 2, MAP), ("features.14", 160, 2, MAP),
        "features.0.2 features.1 features.3 features.6 features.13 features.17",
    ),
    "torchvision/efficientnet_b0": (  # its blocks add in place
        "classifier.1", ("features", 1280, 2, MAP), ("features.6.0", 192, 2, MAP),
        "features.0.2 features.1.0 features.2.1 features.3.1 features.5.2 features.7.0",
    ),
    f"{__name__}:few_blocks": (
        "heads.head", ("encoder.layers.encoder_layer_2", 22, 4, TOKENS),
        ("encoder.layers.encoder_layer_1", 22, 4, TOKENS),
        "encoder.dropout " + " ".join(f"encoder.layers.encoder_layer_{n}" for n in range(4)),
    ),
    "torchvision/vit_b_16": (
        "heads.head", ("encoder.layers.encoder_layer_10", 768, 4, TOKENS),
        ("encoder.layers.encoder_layer_9", 768, 4, TOKENS),
        "encoder.dropout " + " ".join(f"encoder.layers.encoder_layer_{n}" for n in (2, 5, 8, 11)),
    ),
    "torchvision/swin_t": (
        "head", ("permute", 768, 2, MAP), ("features.7.0", 768, 2, LAST),
        "features.0.2 features.1.1 features.3.1 features.5.5 features.7.1",
    ),
    "torchvision/convnext_tiny": (
        "classifier.2", ("features", 768, 2, MAP), ("features.7.0", 768, 2, MAP),
        "features.0.1 features.1.2 features.3.2 features.5.8 features.7.2",
    ),
    "torchvision/squeezenet1_1": (  # the Dropout behind its features returns them
        None, ("features", 512, 3, MAP), ("features.9", 384, 3, MAP), "features.1 features.4 features.7 features.12"
    ),
    "torchvision/alexnet": (  # a chain of layers, and pooling behind it
        "classifier.6", ("features", 256, 1, MAP), ("features.7", 384, 3, MAP),
        "features.1 features.4 features.11",
    ),
    "torchvision/vgg11_bn": (
        "classifier.6", ("features", 512, 2, MAP), ("features.24", 512, 4, MAP),
        "features.2 features.6 features.13 features.20 features.27",
    ),
    "torchvision/densenet121": (
        "classifier", ("features", 1024, 2, MAP), ("features.denseblock4", 1024, 2, MAP),
        "features.relu0 features.denseblock1 features.denseblock2 features.denseblock3 features.denseblock4",
    ),
}  # fmt: skip


# Deeper ones of a kind that is there: two vision transformers, and a chain of layers.
DEEPER = ("timm/vit_tiny_patch16_224", "torchvision/vit_b_16", "torchvision/vgg11_bn")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DEEPER)) for name in KINDS])
def test_places_of_every_kind(name: str) -> None:
    head, penultimate, intermediate, ends = KINDS[name]
    found = outline_of(name, make=create_on_meta)
    assert (told(found, "penultimate"), told(found, "intermediate")) == (penultimate, intermediate)
    assert found.head == head and found.num_classes == 10
    assert " ".join(found.place(stage).path for stage in found.stages) == ends


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", f"{__name__}:OneSize", f"{__name__}:Shared"])
def test_places_are_the_same_without_numbers(name: str) -> None:
    """Jobs ask a network on `meta` before there are weights."""
    network = create_on_meta(name, num_classes=10, image_size=64)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert outline(network, 64, name) == outline_of(name)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet"])
def test_places_do_not_depend_on_the_image_size(name: str) -> None:
    """Not even where stages have one grid, of 1 x 1, because the images are small."""
    paths = [{key: place.path for key, place in outline_of(name, size).places.items()} for size in (64, 16)]
    assert paths[0] == paths[1]


def test_a_network_that_names_its_places_is_found_to_have_them() -> None:
    """The search against what this package says of its own networks."""
    named = outline_of("torchvision/resnet18")
    found = outline(timm.create_model("resnet18", num_classes=10), 64)
    places = ("penultimate", "intermediate", *named.stages)
    assert found.stages == named.stages
    for name in places:
        one, other = named.place(name), found.place(name)
        assert (one.channels, one.grid) == (other.channels, other.grid)
    for name in ("penultimate", "intermediate", "stage1", "stage2", "stage3"):
        assert named.place(name).path.removesuffix(".1") == found.place(name).path.removesuffix(".1")


def test_the_map_before_the_last_activation_is_found() -> None:
    found = outline_of("timm/test_resnet")
    before = found.before("stage1")
    assert before.is_input and before.path.startswith(found.place("stage1").path)
    # Blocks that end without one: the map itself.
    convnext = outline_of("timm/test_convnext")
    assert convnext.before("stage1") == convnext.place("stage1")


def test_what_is_read_is_the_map() -> None:
    """Of tokens and of maps with channels last, as (B, C, H, W)."""
    torch.manual_seed(0)
    for name in ("timm/test_vit", "timm/swin_tiny_patch4_window7_224"):
        network = create_model(name, num_classes=10, image_size=64).eval()
        place = outline(network, 64).place("penultimate")
        with torch.no_grad():
            features = network.forward_features(torch.randn(2, 3, 64, 64))
        map_BCHW = place.read(features)
        assert map_BCHW.shape == (2, place.channels, *place.grid)
        tokens = features[:, 1:] if place.prefix else features.flatten(1, 2)
        torch.testing.assert_close(map_BCHW.flatten(2).mT, tokens)


# --- networks of one's own -------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Plain convolutions: no residual blocks, no composed modules."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = self.block(3, 8, 1)
        self.stages = nn.Sequential(
            nn.Sequential(self.block(8, 8, 2), self.block(8, 8, 1)),
            nn.Sequential(self.block(8, 16, 2), self.block(16, 16, 1)),
        )
        self.head = nn.Linear(16, num_classes)

    def block(self, channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


def flat(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )


def text(num_classes: int) -> str:
    return f"{num_classes}"


def maps(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 1)


def test_a_network_of_a_function() -> None:
    found = outline_of(f"{__name__}:Chain", 32)
    assert told(found, "penultimate") == ("stages", 16, 8, MAP)
    assert told(found, "intermediate") == ("stages.1.0", 16, 8, MAP)
    assert [found.place(stage).path for stage in found.stages] == ["stem", "stages.0.1", "stages.1.1"]
    assert (found.head, found.num_features) == ("head", 16)


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, map_BHWC: Tensor) -> Tensor:
        return map_BHWC + self.mlp(self.norm(map_BHWC))


class OneSize(nn.Module):
    """Maps (B, H, W, C) of a network that takes images of one size, with a pooled map behind them."""

    def __init__(self, num_classes: int, width: int = 12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.stages = nn.ModuleList([nn.ModuleList([Residual(width) for _ in range(2)]) for _ in range(2)])
        self.norm, self.pool = nn.LayerNorm(width), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (64, 64), "one size"
        map_BHWC = self.patches(images).permute(0, 2, 3, 1)
        for stage in self.stages:
            for block in stage:
                map_BHWC = block(map_BHWC)
            map_BHWC = map_BHWC[:, ::2, ::2]
        return self.head(self.pool(self.norm(map_BHWC).permute(0, 3, 1, 2)).flatten(1))


def partitions(num_classes: int) -> nn.Module:
    """A small MaxViT of torchvision, of one size."""
    return torchvision.models.MaxVit(
        (64, 64), stem_channels=8, partition_size=2, block_channels=[8, 16], block_layers=[1, 2], head_dim=8,
        stochastic_depth_prob=0.0, num_classes=num_classes,
    )  # fmt: skip


def test_a_network_that_refuses_larger_images_has_its_maps_from_their_sides() -> None:
    """And not what is pooled."""
    found = outline_of(f"{__name__}:OneSize")
    assert told(found, "penultimate") == ("norm", 12, 4, LAST)
    assert told(found, "intermediate") == ("stages.1.0", 12, 8, LAST)
    assert told(found, "patches") == ("patches", 12, 16, MAP)
    assert told(found, "pool")[2] == 1
    found = outline_of(f"{__name__}:partitions")
    assert told(found, "penultimate") == ("blocks.1", 16, 8, MAP)
    assert told(found, "intermediate") == ("blocks.1.layers.0.layers.MBconv", 16, 8, MAP)
    attention = "blocks.1.layers.0.layers.window_attention.attn_layer.0"
    assert attention not in found.modules, "windows are no map"


def test_sides_that_are_equal_say_nothing() -> None:
    found = outline(OneSize(10, width=16), 64)  # (1, 16, 16, 16), then (1, 8, 8, 16)
    assert "stages.0.0" not in found.modules and told(found, "stages.1.0") == ("stages.1.0", 16, 8, LAST)


def pooled_only(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample((8, 8)), nn.AvgPool2d(8), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def test_where_no_default_is_found_the_error_lists_maps() -> None:
    with pytest.raises(ValueError) as caught:
        outline_of(f"{__name__}:pooled_only", 32).place("penultimate")
    assert str(caught.value).endswith(
        "has no place 'penultimate'; it has: none, or a module path, of which the last are "
        "1 (3 channels, 1 x 1), 2 (4 channels, 1 x 1)"
    )


class Shared(nn.Module):
    """One ReLU for all layers."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.late(self.relu(self.early(images)))).mean(dim=(2, 3)))


def test_a_module_that_is_called_several_times_is_no_default() -> None:
    found = outline_of(f"{__name__}:Shared")
    assert told(found, "penultimate") == ("late", 8, 16, MAP)
    assert told(found, "relu") == ("relu", 8, 16, MAP), "named, it can be read"


def test_what_is_not_found_is_missing() -> None:
    found = outline_of(f"{__name__}:flat", 32)
    assert told(found, "penultimate") == ("1", 8, 30, MAP)
    with pytest.raises(ValueError) as caught:
        found.place("intermediate")
    name = f"{__name__}:flat"
    assert str(caught.value) == (
        f"{name} has no place 'intermediate'; it has: penultimate (1: 8 channels, 30 x 30), or a module path"
    )


def test_maps_instead_of_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps returns \(1, 10, 32, 32\) for an image; a network must return its log"):
        outline_of(f"{__name__}:maps", 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:function", "there is no module 'no.such.module'; my.module:function names"),
        (f"{__name__}:nothing", "has no function 'nothing'; my.module:function names a function or class"),
        (f"{__name__}:MAP", "has no function 'MAP'; my.module:function names a function or class that takes num"),
        (f"{__name__}:text", "returns a str; my.module:function names a function or class that takes num_classes="),
        (":", "there is no module ''; my.module:function names"),
    ],
)
def test_a_function_that_is_none_is_said(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        create_model(name, num_classes=10)
    assert message in str(caught.value) and str(caught.value).startswith(repr(name))


# --- names of libraries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet10x", "unknown architecture 'timm/resnet10x'; did you mean 'timm/resnet10"),
        ("torchvision/swin_q", "unknown architecture 'torchvision/swin_q'; did you mean 'torchvision/swin_"),
        ("timn/resnet18", "known: .*, timm/NAME, torchvision/NAME, my.module:function$"),
        ("timm/%", "unknown architecture 'timm/%';.* known: what timm.list_models\\(\\) lists"),
    ],
)
def test_a_wrong_name_of_a_library(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name)


def test_a_size_that_a_network_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"^timm/test_vit2 does not take images of 24 x 24: Input height "):
        outline_of("timm/test_vit2", 24)


def test_a_missing_library_says_what_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"^timm/resnet18 needs timm; install it: python -m pip install -r requirem"):
        _LIBRARIES["timm"]("resnet18", num_classes=10)
