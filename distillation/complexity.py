"""Multiply-adds of a deployed network for one image.

    convolution   outputs * (input channels / groups) * kernel height * kernel width
    linear        outputs * inputs
    KD layer      H * W * (K * C + K * C)            scores and values; nothing where alpha is 0

One multiply-add counts 1. Biases, norms, BatchNorm, activations, pooling and other elementwise work count nothing. The
network is copied to the `meta` device, where tensors have shapes and no numbers: nothing is computed, and the model's
BatchNorm statistics, mode, device and the random state stay as they are.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from distillation.signals import backbone_of
from letkd import KDLayer


def count_multiply_adds(model: nn.Module, image_size: int) -> dict[str, int]:
    """Multiply-adds for one image (3, image_size, image_size), with the KD layers and without them."""
    totals: Counter[str] = Counter()

    def add_product(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        totals["backbone"] += output.numel() * module.weight[0].numel()

    def add_kd_layer(layer: KDLayer, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]) -> None:
        num_patches = inputs[0][:, 0].numel()
        totals["kd_layers"] += 0 if layer.alpha == 0 else 2 * num_patches * layer.scores.templates.numel()

    network = copy.deepcopy(model).to("meta").eval()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add_product)
        elif isinstance(module, KDLayer):
            module.register_forward_hook(add_kd_layer)
    with torch.no_grad():
        network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return {"multiply_adds": totals.total(), "multiply_adds_without_kd_layers": totals["backbone"]}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of the deployed network, and of it without KD layers."""
    backbone = backbone_of(model)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_without_kd_layers": sum(parameter.numel() for parameter in backbone.parameters()),
    }
