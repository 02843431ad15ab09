"""Keyword arguments in a network's name: what they may be, that they reach the network, and what is refused."""

import re

import pytest
import torch
from torch import nn

from architectures import create_model, create_on_meta, outline, registry
from architectures.calls import split_call
from architectures.published import published


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("resnet20", ("resnet20", {})),
        ("resnet20()", ("resnet20", {})),
        ("timm/x.in1k(n=(1, 2),a=None, b=[-1.5, 'c'])", ("timm/x.in1k", {"n": (1, 2), "a": None, "b": [-1.5, "c"]})),
        ("my.module:f(options={'a': True})", ("my.module:f", {"options": {"a": True}})),
    ],
)  # fmt: skip
def test_a_call_is_a_name_and_arguments(called: str, expected: tuple) -> None:
    assert split_call(called) == expected


@pytest.mark.parametrize(
    "brackets",
    ["(4)", "(a=1", "(a=1)x", "(a=1)(b=2)", "(a=1).b", "(a=b)", "(**{'a': 1})", "(a=1, a=2)", "(a=f())", "(", "(a=)"],
)
def test_what_is_no_call_is_refused(brackets: str) -> None:
    with pytest.raises(ValueError, match=r"must have different keyword arguments .*, like resnet20\(width=2\)$"):
        create_model(f"resnet20{brackets}")


class Wide(nn.Module):
    """A network of one's own that takes arguments."""

    def __init__(self, num_classes: int, width: int = 2):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)
        if width > 99:
            raise TypeError("too wide")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean(dim=(2, 3)))


def test_arguments_reach_networks_of_every_kind() -> None:
    swin = "timm/swin_tiny_patch4_window7_224(embed_dim=8, depths=(1, 2), num_heads=(1, 1), window_size=4)"
    found = outline(create_on_meta(swin, 3, image_size=64), 64, swin)
    assert found.network == swin and found.num_features == 16 and found.place("penultimate").grid == (8, 8)
    vit = outline(create_on_meta("timm/vit_tiny_patch16_224(patch_size=32)", 3, image_size=64), 64)
    assert vit.place("penultimate").grid == (2, 2)
    assert create_on_meta("torchvision/efficientnet_b0(dropout=0.5)", 3).classifier[0].p == 0.5
    assert create_on_meta("torchvision/mobilenet_v2(width_mult=0.5)", 3).features[1].out_channels == 8
    assert create_model("resnet20(drop_path=0.4)", 3).layer3[2].drop_path == 0.4
    assert create_model(f"{__name__}:Wide(width=5)", 3).conv.out_channels == 5
    assert create_model("timm/test_vit(drop_path=0.2)", 3, dropout=0.1).head_drop.p == 0.1


def test_a_size_that_is_said_is_not_that_of_the_images() -> None:
    """As weights of larger images want it."""
    network = create_on_meta("timm/vit_tiny_patch16_224(img_size=64, dynamic_img_size=True)", 3, image_size=32)
    assert network.pos_embed.shape == (1, 17, 192)
    assert outline(network, 32).place("penultimate").grid == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet10t(widht=2)", r"^timm/resnet10t does not take widht=2 \(.*argument 'widht'\); leave it out$"),
        ("torchvision/resnet18(a='b', width=3)", r"^torchvision/resnet18 does not take a='b' \("),
        ("resnet20(width=3)", r"^resnet20 does not take width=3 \("),
        (f"{__name__}:Wide(depth=3)", rf"^{__name__}:Wide does not take depth=3 \("),
        ("torchvision/vit_b_16(hidden_dim=8)", r"^torchvision/vit_b_16 does not take hidden_dim=8 \(.*multiple values"),
        ("resnet20(depth=8)", r"^resnet20\(depth=8\) cannot be built: .*multiple values for argument 'depth'$"),
        ("timm/vit_tiny_patch16_224(num_heads=5)", r"^timm/vit_tiny_patch16_224\(num_heads=5\) cannot be built: "),
        ("timm/vit_tiny_patch16_224(depth='a')", r"^timm/vit_tiny_patch16_224\(depth='a'\) cannot be built: "),
        ("timm/resnet10t(pretrained=True)", r"\(pretrained=True\): weights are options .*; leave pretrained out$"),
        ("torchvision/resnet50(weights='DEFAULT')", r"\(weights='DEFAULT'\): weights are options of their own"),
        ("resnet20(num_classes=4)", r"\(num_classes=4\): the images say how many .*; leave num_classes out$"),
        ("timm/resnet1x(width=2)", r"unknown architecture 'timm/resnet1x'; did you mean 'timm/resnet1.*' or 'timm/"),
        ("resnet57(width=2)", r"unknown architecture 'resnet57'; did you mean 'resnet56'\?"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [create_model, create_on_meta])
def test_what_a_network_does_not_take_is_one_line(name: str, message: str, make) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make(name, 10)
    assert "\n" not in str(raised.value)


class Reading(Wide):
    """A network that reads a number while it is built, which there is none of on `meta`."""

    def __init__(self, *, num_classes: int, width: int = 2):
        if width > 9:
            raise RuntimeError("too wide\nby far")
        super().__init__(num_classes, width + int(torch.zeros(1).item()))


def test_a_network_that_needs_numbers_gets_them_with_arguments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", {**registry._BUILDERS, "reading": Reading})
    network = create_on_meta("reading(width=5)", 3)
    assert network.conv.out_channels == 5 and not network.conv.weight.is_meta
    for make in (create_model, create_on_meta):
        with pytest.raises(ValueError, match=r"^reading\(width=10\) cannot be built: too wide$"):
            make("reading(width=10)", 3)


def test_a_mistake_inside_of_ones_own_network_is_shown_as_it_is() -> None:
    with pytest.raises(TypeError, match=r"^too wide$"):
        create_model(f"{__name__}:Wide(width=100)", 3)


def test_a_rate_is_said_once() -> None:
    with pytest.raises(ValueError, match=re.escape("resnet20(drop_path=0.1) and drop_path=0.2 are one rate")):
        create_model("resnet20(drop_path=0.1)", drop_path=0.2)


def test_published_weights_are_those_of_the_network_without_arguments() -> None:
    plain, called = (published(f"timm/resnet10t{rest}") for rest in ("", "(drop_path=0.1)"))
    assert called.get == plain.get and called.trained_with == plain.trained_with


def test_names_of_the_libraries_are_named_where_they_are_meant() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown architecture 'resnet18d'; did you mean 'resnet18' or 'timm/resnet18d'\? "
    ):
        create_model("resnet18d")
    with pytest.raises(ValueError, match=r"^unknown architecture 'tim/resnet18d'; did you mean .*'timm/resnet18d'\? "):
        create_model("tim/resnet18d")
    with pytest.raises(ValueError, match=r"did you mean 'torchvision/resnet18' or 'timm/resnet18'\? "):
        create_model("torchvisio/resnet18")
    with pytest.raises(
        ValueError, match=r"did you mean 'torchvision/resnet5\d' or 'torchvision/resnet\d+' or 'torchvision/"
    ):
        create_model("torchvision/resnet55")
