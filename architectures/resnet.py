"""Residual networks for small images (He et al., CVPR 2016, section 4.2): three stages of two-convolution blocks.

The names `8x4` and `32x4` are four times as wide in the stages and twice in the stem (Tian et al., ICLR 2020).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from architectures.layers import drop_residuals, init_convolutions_
from architectures.registry import register_model
from architectures.tapped import Tap, TappedNetwork, ends_of_blocks

WIDTHS = (16, 16, 32, 64)  # stem and three stages
WIDTHS_X4 = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu = nn.ReLU(inplace=True)  # the last activation: a module, so that its input can be read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        if self.training and self.drop_path:
            residual = drop_residuals(residual, self.drop_path)
        residual += x if self.downsample is None else self.downsample(x)
        return self.relu(residual)


class ResNet(TappedNetwork):
    """`depth` = 6n + 2 layers: stem, three stages of n blocks, head.

    Args:
        drop_path: stochastic depth in the last block; it rises with the depth, from the first block on.
    """

    feature_children = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3")
    head_path = "fc"

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = WIDTHS,
        *,
        num_classes: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        assert (depth - 2) % 6 == 0, depth
        stem, *stage_widths = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        depth_of_stage = (depth - 2) // 6
        num_blocks = 3 * depth_of_stage
        rates = iter([drop_path * block / num_blocks for block in range(1, num_blocks + 1)])
        in_channels, reduction, taps = stem, 1, []
        for number, (channels, stride) in enumerate(zip(stage_widths, (1, 2, 2), strict=True), start=1):
            blocks = [BasicBlock(in_channels, channels, stride, next(rates))]
            blocks += [BasicBlock(channels, channels, 1, next(rates)) for _ in range(depth_of_stage - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            in_channels, reduction = channels, reduction * stride
            taps.append(Tap(f"layer{number}.0", channels, reduction))
        self.fc = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = ends_of_blocks([depth_of_stage] * 3, norm="bn2")
        init_convolutions_(self)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register_model(partial(ResNet, _depth), name=f"resnet{_depth}")
for _depth in (8, 32):
    register_model(partial(ResNet, _depth, WIDTHS_X4), name=f"resnet{_depth}x4")
