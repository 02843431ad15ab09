"""Multiply-adds of a deployed network for one image, as torch counts them (`torch.utils.flop_counter`).

    convolution   outputs * (input channels / groups) * kernel height * kernel width
    product       (N, K) by (K, M): N * K * M        linear layers, and both products of attention
    KD layer      H * W * (K * C + K * C)            scores and values; nothing where alpha is 0

One multiply-add counts 1. Biases, norms, BatchNorm, activations, pooling and other elementwise work count nothing. The
network is copied to the `meta` device, where tensors have shapes and no numbers: nothing is computed, and the model's
BatchNorm statistics, mode, device and the random state stay as they are.
"""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distillation.signals import backbone_of
from letkd import KDLayer


def count_multiply_adds(model: nn.Module, image_size: int) -> dict[str, int]:
    """Multiply-adds for one image (3, image_size, image_size), with the KD layers and without them."""
    network = copy.deepcopy(model).to("meta").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # counts nothing, and takes most of the time on `meta`
            module.forward = nn.Identity().forward
    with_layers = _count(network, image_size)
    for module in network.modules():
        if isinstance(module, KDLayer):
            module.alpha = 0.0  # it passes its map on
    return {"multiply_adds": with_layers, "multiply_adds_without_kd_layers": _count(network, image_size)}


def _count(network: nn.Module, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() // 2  # of a multiplication and an addition


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of the deployed network, and of it without KD layers."""
    backbone = backbone_of(model)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_without_kd_layers": sum(parameter.numel() for parameter in backbone.parameters()),
    }
