"""ShuffleNetV2 of width 1 for small images (Ma et al., ECCV 2018): 1x1 stem, then three strided stages.

Weights start at PyTorch's defaults, as in the published students.
"""

import torch
import torch.nn.functional as F
from torch import nn

from architectures.layers import interleave_channels
from architectures.registry import register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

STEM_CHANNELS = 24
HEAD_CHANNELS = 1024
STAGES = ((116, 4), (232, 8), (464, 4))  # channels, blocks


class BasicBlock(nn.Module):
    """Half of the channels pass by unchanged, half go through 1x1, 3x3 depthwise, 1x1; then the halves are shuffled.

    The last block of a stage shows its map before the last activation to `before_activation`, in the channel order of
    its output: the unchanged half, and the other one as its last BatchNorm leaves it (the published features before the
    activation are the same, not shuffled).
    """

    def __init__(self, channels: int, *, is_last: bool = False):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.before_activation = nn.Identity() if is_last else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unchanged, branch = x.chunk(2, dim=1)
        branch = F.relu(self.bn1(self.conv1(branch)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        branch = self.bn3(self.conv3(branch))
        if self.before_activation is not None:
            self.before_activation(interleave_channels(unchanged, branch))  # for hooks alone
        return interleave_channels(unchanged, F.relu(branch, inplace=True))


class DownBlock(nn.Module):
    """Two strided branches, each giving half of the output channels, shuffled."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return interleave_channels(left, right)


class ShuffleNetV2(TappedNetwork):
    feature_children = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "conv2", "bn2", "relu2")
    head_path = "linear"

    def __init__(self, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        in_channels, reduction, taps, ends = STEM_CHANNELS, 1, [], [StageEnd("relu", "relu", "bn1")]
        for number, (channels, depth) in enumerate(STAGES, start=1):
            blocks = [DownBlock(in_channels, channels)] + [BasicBlock(channels) for _ in range(depth - 2)]
            blocks.append(BasicBlock(channels, is_last=True))
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            in_channels, reduction = channels, reduction * 2
            taps.append(Tap(f"layer{number}.0", channels, reduction))
            ends.append(StageEnd(f"layer{number}", f"layer{number}.{depth - 1}.before_activation"))
        self.conv2 = nn.Conv2d(in_channels, HEAD_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.relu2 = nn.ReLU(inplace=True)  # not `relu` again: the penultimate tap is called once per forward
        self.linear = nn.Linear(HEAD_CHANNELS, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = tuple(ends)


register_model(ShuffleNetV2, name="shufflenetv2")
