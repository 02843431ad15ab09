"""The BatchNorm before the last activation of a stage, in networks that do not name it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from architectures import create_model, create_on_meta, outline
from tests.architectures.map_tools import maps_of, with_random_statistics

SIZE = 32


class Block(nn.Module):
    """A residual block whose sum is made in one of several ways."""

    def __init__(self, width: int, add: Any):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.shortcut, self.drop = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), nn.Dropout()
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        branch = self.drop(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        return self.act2(self.add(branch, self.shortcut(x)))


class Own(nn.Module):
    """A stem, two stages of two blocks, a head."""

    def __init__(self, num_classes: int, add: Any = torch.add):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.stage1, self.down = nn.Sequential(Block(4, add), Block(4, add)), nn.Conv2d(4, 8, 2, 2)
        self.stage2, self.head = nn.Sequential(Block(8, add), Block(8, add)), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage2(self.down(self.stage1(self.stem(images)))).mean(dim=(2, 3)))


def own(num_classes: int) -> nn.Module:
    return Own(num_classes)


def vgg(num_classes: int) -> nn.Module:
    """A small VGG of torchvision, a chain of layers."""
    features = torchvision.models.vgg.make_layers([4, "M", 8, "M", 8, "M", 16], batch_norm=True)
    network = torchvision.models.VGG(features, num_classes, init_weights=False)
    network.classifier = nn.Linear(16 * 7 * 7, num_classes)
    return network


NORMS = {  # of the stem and of every stage
    "timm/test_resnet": "bn1 layer1.0.bn2 layer2.0.bn2 layer3.0.bn3 layer4.0.bn2",  # shortcuts with a BatchNorm too
    "timm/regnetx_002": "stem.bn s1.b1.conv3.bn s2.b1.conv3.bn s3.b4.conv3.bn s4.b7.conv3.bn",  # with the activation
    f"{__name__}:vgg": "features.1 features.5 features.9 features.13",  # its activations are the blocks
    f"{__name__}:own": "stem.1 stage1.1.bn2 stage2.1.bn2",
}


@pytest.mark.parametrize("name", NORMS)
def test_the_norm_before_the_activation(name: str) -> None:
    """What is added to its bias is added to the map."""
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=4, image_size=SIZE))
    found = outline(network, SIZE, name)
    befores = [found.before(stage) for stage in found.stages]
    assert " ".join(place.norm for place in befores) == NORMS[name]
    images = torch.randn(2, 3, SIZE, SIZE)
    for place in befores:
        (before,) = maps_of(network, images, [place])
        norm = network.get_submodule(place.norm)
        with torch.no_grad():
            norm.bias += 1
        torch.testing.assert_close(*maps_of(network, images, [place]), before + 1)
        with torch.no_grad():
            norm.bias -= 1
    assert outline(create_on_meta(name, num_classes=4, image_size=SIZE), SIZE, name) == found


def in_place(one: Tensor, other: Tensor) -> Tensor:
    one += other
    return one


def nothing_else(one: Tensor, other: Tensor) -> Tensor:
    return one


def overwritten(one: Tensor, other: Tensor) -> Tensor:
    one[:, :1] = 0
    return one + other.mean()


@pytest.mark.parametrize(
    ("add", "norm"),
    [
        (lambda one, other: one + other, "bn2"),
        (lambda one, other: other + one + 1, "bn2"),
        (in_place, "bn2"),
        (torch.Tensor.add_, "bn2"),
        (nothing_else, "bn2"),
        (lambda one, other: one.relu() + other, "shortcut.1"),
        (lambda one, other: one * other, None),
        (lambda one, other: 2 * one, None),
        (lambda one, other: F.relu(one, inplace=True), None),
        (lambda one, other: torch.cat([one, other], 1)[:, ::2], None),
        (overwritten, None),
    ],
    ids=[
        "+",
        "any order",
        "+=",
        "add_",
        "alone",
        "of the shortcut",
        "*",
        "scaled",
        "activated",
        "joined",
        "overwritten",
    ],
)
def test_only_additions_may_be_behind_it(add: Any, norm: str | None) -> None:
    found = outline(Own(4, add), SIZE)
    assert found.before("stage2").norm == (norm and f"stage2.1.{norm}")


class TwoBranches(nn.Module):
    """A sum of two convolutions of the same depth, as in RepVGG."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.stage1, self.stage2 = (nn.Sequential(*(self.Block() for _ in range(2))) for _ in range(2))
        self.down, self.head = nn.MaxPool2d(2), nn.Linear(4, num_classes)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.one(x) + self.other(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage2(self.down(self.stage1(self.stem(images)))).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "make",
    [
        TwoBranches,
        lambda num_classes: create_model("timm/test_vit", num_classes=num_classes, image_size=SIZE),
        lambda num_classes: create_model("timm/test_convnext", num_classes=num_classes),
    ],
    ids=["two of one depth", "ViT", "ConvNeXt"],
)
def test_where_there_is_not_one_there_is_none(make: Any) -> None:
    found = outline(make(num_classes=4), SIZE)
    assert len(found.stages) > 1 and not any(found.before(stage).norm for stage in found.stages)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_what_is_found_is_what_a_family_says(name: str) -> None:
    found = outline(create_on_meta(f"torchvision.models:{name}", num_classes=4), 64)
    said = outline(create_on_meta(f"torchvision/{name}", num_classes=4), 64)
    assert found.stages == said.stages and said.before("stage1").norm
    assert [found.before(stage).norm for stage in found.stages] == [said.before(stage).norm for stage in said.stages]
