"""Wide residual networks `wrn_DEPTH_WIDTH` (Zagoruyko & Komodakis, BMVC 2016): normalise, activate, convolve."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from architectures.layers import init_convolutions_
from architectures.registry import register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork


class PreactivationBlock(nn.Module):
    """`relu` is the activation of the map before the block: a module, so that its input can be read."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None  # published name
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        residual = self.conv2(residual)
        # A projection starts from the activated map, the identity from the raw one.
        residual += x if self.convShortcut is None else self.convShortcut(activated)
        return residual


class Stage(nn.Module):
    """Exists for the published names `blockI.layer.J`."""

    def __init__(self, depth: int, in_channels: int, channels: int, stride: int):
        super().__init__()
        blocks = [PreactivationBlock(in_channels, channels, stride)]
        blocks += [PreactivationBlock(channels, channels, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(TappedNetwork):
    """`depth` = 6n + 4 layers: stem, three stages of n blocks with 16, 32 and 64 times `widen` channels, head."""

    feature_children = ("conv1", "block1", "block2", "block3", "bn1", "relu")
    head_path = "fc"

    def __init__(self, depth: int, widen: int, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        assert (depth - 4) % 6 == 0, depth
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        in_channels, reduction, taps = 16, 1, []
        for number, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            channels = width * widen
            self.add_module(f"block{number}", Stage((depth - 4) // 6, in_channels, channels, stride))
            in_channels, reduction = channels, reduction * stride
            taps.append(Tap(f"block{number}.layer.0", channels, reduction))
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        # Maps are raw sums; before the activation is behind the BatchNorm that the next stage, or the end, starts with.
        self.stage_ends = (
            StageEnd("conv1", "block1.layer.0.relu", "block1.layer.0.bn1"),
            StageEnd("block1", "block2.layer.0.relu", "block2.layer.0.bn1"),
            StageEnd("block2", "block3.layer.0.relu", "block3.layer.0.bn1"),
            StageEnd("block3", "relu", "bn1"),
        )
        init_convolutions_(self)
        nn.init.zeros_(self.fc.bias)


for _depth, _widen in ((10, 1), (16, 1), (16, 2), (40, 1), (40, 2)):
    register_model(partial(WideResNet, _depth, _widen), name=f"wrn_{_depth}_{_widen}")
