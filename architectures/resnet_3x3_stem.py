"""ResNet-18/34/50 with a 3x3 stem and no max pooling, for small images.

Stages of He et al., CVPR 2016, table 1; names as in the published CIFAR-100 teacher (`shortcut`, `linear`).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from architectures.layers import init_convolutions_
from architectures.registry import register_model
from architectures.tapped import Tap, TappedNetwork, ends_of_blocks


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)
        self.relu = nn.ReLU(inplace=True)  # the last activation: a module, so that its input can be read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        residual += self.shortcut(x)
        return self.relu(residual)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        residual += self.shortcut(x)
        return self.relu(residual)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """A strided 1x1 projection where the shape changes, else empty: the identity."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ResNet(TappedNetwork):
    """Stem at full resolution and four stages of `num_blocks` blocks; the map is 8 times smaller than the image."""

    feature_children = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4")
    head_path = "linear"

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        in_channels, reduction, taps = 64, 1, []
        for number, (width, depth, stride) in enumerate(
            zip((64, 128, 256, 512), num_blocks, (1, 2, 2, 2), strict=True), start=1
        ):
            channels = width * block.expansion
            blocks = [block(in_channels, width, stride)] + [block(channels, width, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            in_channels, reduction = channels, reduction * stride
            taps.append(Tap(f"layer{number}.0", channels, reduction))
        self.linear = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = ends_of_blocks(num_blocks, norm="bn2" if block is BasicBlock else "bn3")
        init_convolutions_(self)


register_model(partial(ResNet, BasicBlock, (2, 2, 2, 2)), name="resnet18")
register_model(partial(ResNet, BasicBlock, (3, 4, 6, 3)), name="resnet34")
register_model(partial(ResNet, Bottleneck, (3, 4, 6, 3)), name="resnet50")
