"""MobileNetV2 of half width for small images (Sandler et al., CVPR 2018); plain ReLU, as in the published student."""

import torch
from torch import nn

from architectures.layers import conv_bn_relu, init_convolutions_, init_linear_
from architectures.registry import register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

WIDTH = 0.5
STEM_CHANNELS, STEM_STRIDE = 32, 2  # channels before the width multiplier, as below
HEAD_CHANNELS = 1280  # not multiplied
STAGES = (  # channels, blocks, stride, expansion of the inner width
    (16, 1, 1, 1),
    (24, 2, 1, 6),  # stride 1 where the ImageNet network has 2
    (32, 3, 2, 6),
    (64, 4, 2, 6),
    (96, 3, 1, 6),
    (160, 3, 2, 6),
    (320, 1, 1, 6),
)
STAGE_ENDS = (1, 2, 4, 6)  # of the published features; stages of these widths at one resolution count as one


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection; identity shortcut where the shape allows it."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(in_channels, inner, 1),
            *conv_bn_relu(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.conv(x)
        if self.has_shortcut:
            residual += x
        return residual


class MobileNetV2(TappedNetwork):
    feature_children = (
        *("conv1.0", "conv1.1", "conv1.2"),
        *(f"blocks.{index}" for index in range(len(STAGES))),
        *("conv2.0", "conv2.1", "conv2.2"),
    )
    head_path = "classifier.0"

    def __init__(self, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        in_channels, reduction = int(STEM_CHANNELS * WIDTH), STEM_STRIDE
        self.conv1 = nn.Sequential(*conv_bn_relu(3, in_channels, 3, stride=STEM_STRIDE))
        stages, taps = [], []
        for index, (width, depth, stride, expansion) in enumerate(STAGES):
            channels = int(width * WIDTH)
            blocks = [InvertedResidual(in_channels, channels, stride, expansion)]
            blocks += [InvertedResidual(channels, channels, 1, expansion) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            in_channels, reduction = channels, reduction * stride
            taps.append(Tap(f"blocks.{index}.0", channels, reduction))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*conv_bn_relu(in_channels, HEAD_CHANNELS, 1))
        self.classifier = nn.Sequential(nn.Linear(HEAD_CHANNELS, num_classes))
        self.first_blocks = tuple(taps)
        # Blocks end in a BatchNorm or a sum: no activation.
        self.stage_ends = (
            StageEnd("conv1.2", "conv1.2", "conv1.1"),
            *(StageEnd(f"blocks.{index}") for index in STAGE_ENDS),
        )
        init_convolutions_(self)
        init_linear_(self.classifier[0])


register_model(MobileNetV2, name="mobilenetv2")
