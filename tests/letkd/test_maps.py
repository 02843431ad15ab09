"""Which axis of a map has the channels, for the kinds of networks that there are."""

from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn

from letkd import attach, load_supervision, make_supervision
from letkd.maps import layouts

SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "num_classes": 3}


def timm_swin(height: int, width: int) -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(height, width), window_size=7, **SWIN)


def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [7, 7], num_classes=3)


def seen(network: nn.Module, path: str, height: int, width: int, **options) -> tuple:
    found = layouts(network, [path], (3, height, width), **options)[path]
    return found.channels, found.grid, found.prefix, found.channels_last


@pytest.mark.parametrize(("height", "width"), [(56, 56), (56, 112), (32, 32)])
@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (timm_swin, ["patch_embed.proj", "patch_embed", "layers.0", "layers.1"]),
        (lambda *_: torchvision_swin(), ["features.0.0", "features.0", "features.1", "features.3"]),
    ],
)
def test_swin_has_its_channels_last_but_for_the_convolution(make, paths, height, width):
    """For 32 x 32 images the first map is (1, 8, 8, 8): sizes say nothing."""
    network = make(height, width)
    grid, late = (height // 4, width // 4), (height // 8, width // 8)
    assert [seen(network, path, height, width) for path in paths] == [
        (8, grid, None, False),
        (8, grid, None, True),
        (8, grid, None, True),
        (16, late, None, True),
    ]


@pytest.mark.parametrize(
    ("name", "options", "path", "expected"),
    [
        ("convnext_atto", {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}, "stages.1", (8, (8, 8), None, False)),
        ("resnet10t", {}, "layer4", (512, (2, 2), None, False)),
        ("mambaout_femto", {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}, "stages.0", (8, (16, 16), None, True)),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}, "blocks.0", (192, (4, 4), 1, False)),
    ],
)
def test_networks_of_timm(name, options, path, expected):
    assert seen(timm.create_model(name, **options), path, 64, 64) == expected


def test_tokens_before_the_class_token_need_a_word():
    cait = timm.create_model("cait_xxs24_224", img_size=64, depth=1)
    with pytest.raises(
        ValueError, match=r"'blocks.0' returns 16 tokens, 1 of them .* num_prefix_tokens=\{'blocks.0': 0\}"
    ):
        seen(cait, "blocks.0", 64, 64)
    assert seen(cait, "blocks.0", 64, 64, num_prefix_tokens={"blocks.0": 0}) == (192, (4, 4), 0, False)


class Fixed(nn.Module):
    """A network of one image size, with maps of either order behind it."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last, self.windows, self.positions = nn.Identity(), nn.Identity(), nn.Flatten(2)

    def forward(self, images):
        assert images.shape[2:] == (8, 8), "one size"
        maps = self.convolutions(images)
        self.windows(maps.unflatten(3, (2, 4)).permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2))
        return self.last(maps.permute(0, 2, 3, 1))


def test_what_nothing_says_is_refused_and_an_argument_says_it():
    assert seen(Fixed(), "convolutions", 8, 8) == (8, (8, 8), None, False)
    with pytest.raises(
        ValueError, match=r"'last' returns \(1, 8, 8, 8\), and nothing says .* channels_last=\{'last': True\}"
    ):
        seen(Fixed(), "last", 8, 8)
    for order in (True, False):
        assert seen(Fixed(), "last", 8, 8, channels_last=order)[3] == order
    with pytest.raises(ValueError, match=r"'windows' returns \(2, 32, 8\)"):
        seen(Fixed(), "windows", 8, 8)


def test_tokens_of_an_image_that_is_not_square_have_no_remedy_among_the_arguments():
    network = nn.Sequential(OrderedDict(map=nn.Conv2d(3, 4, 1), flat=nn.Flatten(2), tokens=Transposed()))
    for options in ({}, {"num_prefix_tokens": 0}):
        with pytest.raises(ValueError, match=r"'tokens' returns 64 tokens .* not square.*square images"):
            seen(network, "tokens", 4, 16, **options)


class Transposed(nn.Module):
    def forward(self, positions):
        return positions.mT


def test_tokens_of_which_the_channels_come_first_are_refused():
    network = nn.Sequential(OrderedDict(map=nn.Conv2d(3, 4, 1), positions=nn.Flatten(2)))
    with pytest.raises(ValueError, match=r"'positions' returns \(1, 4, 64\), \(batch, channels, positions\)"):
        seen(network, "positions", 8, 8)


def test_maps_with_channels_last_teach_and_learn(tmp_path):
    """The layer of a student and the words of a teacher are those of the map with its axes exchanged."""
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    teacher, network = torchvision_swin().eval(), timm_swin(32, 32)
    make_supervision(teacher, [(images, labels)], words={"features.1": 4}).save(tmp_path / "made")
    made = load_supervision(tmp_path / "made")["features.1"]
    outputs = teacher.features[:2](images)
    assert made.channels_last and torch.equal(made.read(outputs), outputs.permute(0, 3, 1, 2))
    student = attach(network, {"layers.0": made}, teacher=teacher)
    (loss,) = student.distillation_loss(images, labels).values()
    loss.backward()
    assert student.layers["layers/0"].scores.templates.grad.any()
    assert student(images).shape == (6, 3)
