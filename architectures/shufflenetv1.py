"""ShuffleNet with three groups for small images (Zhang et al., CVPR 2018): 1x1 stem, then three strided stages.

Weights start at PyTorch's defaults, as in the published students.
"""

import torch
import torch.nn.functional as F
from torch import nn

from architectures.layers import channel_shuffle
from architectures.registry import register_model
from architectures.tapped import Tap, TappedNetwork, ends_of_blocks

GROUPS = 3
STEM_CHANNELS = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, blocks


class Bottleneck(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1. Stride 2 appends the average-pooled input, stride 1 adds it."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        # Of the concatenation's `channels`, the pooled input brings in_channels.
        channels = channels - in_channels if stride == 2 else channels
        inner = channels // 4
        # The stem's few channels are not divided into groups.
        self.groups = 1 if in_channels == STEM_CHANNELS else GROUPS
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)  # the last activation: a module, so that its input can be read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = channel_shuffle(residual, self.groups)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        if self.stride == 2:
            residual = torch.cat([residual, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        else:
            residual += x
        return self.relu(residual)


class ShuffleNetV1(TappedNetwork):
    feature_children = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3")
    head_path = "linear"

    def __init__(self, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        in_channels, reduction, taps = STEM_CHANNELS, 1, []
        for number, (channels, depth) in enumerate(STAGES, start=1):
            blocks = [Bottleneck(in_channels, channels, 2)]
            blocks += [Bottleneck(channels, channels, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            in_channels, reduction = channels, reduction * 2
            taps.append(Tap(f"layer{number}.0", channels, reduction))
        self.linear = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = ends_of_blocks([depth for _, depth in STAGES], norm="bn3")


register_model(ShuffleNetV1, name="shufflenetv1")
