"""Multiply-adds of a deployed network for one image, as torch counts them (`torch.utils.flop_counter`).

    convolution   outputs * (input channels / groups) * kernel height * kernel width
    product       (N, K) by (K, M): N * K * M        linear layers, and both products of attention
    KD layer      H * W * (K * C + K * C)            scores and values; nothing where alpha is 0

One multiply-add counts 1. Biases, norms, BatchNorm, activations, pooling and other elementwise work count nothing. The
network runs with tensors on `meta` in place of its own: nothing is computed, and the model's BatchNorm statistics,
mode, device and the random state stay as they are.
"""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures.on_meta import run_on_meta
from distillation.signals import backbone_of
from letkd import KDLayer


def count_multiply_adds(model: nn.Module, image_size: int) -> dict[str, int]:
    """Multiply-adds for one image (3, image_size, image_size), with the KD layers and without them."""
    of_layers = 0

    def begin(*_: object) -> None:
        nonlocal of_layers
        of_layers -= counter.get_total_flops()

    def end(*_: object) -> None:
        nonlocal of_layers
        of_layers += counter.get_total_flops()

    layers = [module for module in model.modules() if isinstance(module, KDLayer)]
    handles = [layer.register_forward_pre_hook(begin) for layer in layers]
    handles += [layer.register_forward_hook(end) for layer in layers]
    try:
        with FlopCounterMode(display=False) as counter:
            run_on_meta(model, (3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()  # a multiplication and an addition are two
    return {"multiply_adds": total // 2, "multiply_adds_without_kd_layers": (total - of_layers) // 2}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of the deployed network, and of it without KD layers."""
    backbone = backbone_of(model)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_without_kd_layers": sum(parameter.numel() for parameter in backbone.parameters()),
    }
