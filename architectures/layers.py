"""Pieces that several families share."""

import torch
from torch import nn


def conv_bn_relu(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """The three layers, to be put in sequence; an image's size is divided by the stride."""
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def init_convolutions_(network: nn.Module) -> None:
    """Convolutions from N(0, sqrt(2 / fan_out)) (He et al., ICCV 2015), their biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear_(linear: nn.Linear) -> None:
    """Weights from N(0, 0.01), bias zero: the published start of the VGG and MobileNetV2 heads."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)


def drop_residuals(residual: torch.Tensor, rate: float) -> torch.Tensor:
    """Stochastic depth in training (Huang et al., ECCV 2016): the residual (B, ...) of each image is 0 with probability
    `rate`, and the others are divided by 1 - `rate`, so that nothing has to be scaled in evaluation.
    """
    kept = torch.empty_like(residual[:, :1, :1, :1]).bernoulli_(1 - rate)
    return residual * (kept / (1 - rate))


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channel i of group g, of (B, groups * n, H, W), moves to place i * groups + g. One copy, memory format kept."""
    if x.is_contiguous(memory_format=torch.channels_last):  # a plain reshape would return to the default format
        return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def interleave_channels(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`channel_shuffle(torch.cat([left, right], 1), 2)` in one copy instead of two, in the memory format of `right`."""
    if right.is_contiguous(memory_format=torch.channels_last):
        return torch.stack([left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)], dim=4).flatten(3).permute(0, 3, 1, 2)
    return torch.stack([left, right], dim=2).flatten(1, 2)
