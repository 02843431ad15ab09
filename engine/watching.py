"""What is looked at while a network trains: its input, and numbers that are not finite."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dataloaders import Batch

NUM_IMAGES = 64


def input_images(loader: Iterable[Batch]) -> Tensor:
    """Pixels of the first images of a loader, rounded: (B, 3, H, W) uint8 on the CPU, B <= 64."""
    return next(iter(loader)).images[:NUM_IMAGES].float().round().to(torch.uint8).cpu()


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, float] | None:
    """Name of the first tensor with a value that is not finite, and that value; one read where all are finite."""
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    largest = torch.nn.utils.get_total_norm(floating.values(), norm_type=math.inf)
    if largest.isfinite():
        return None
    name = next(name for name, tensor in floating.items() if not tensor.isfinite().all())
    values = floating[name].flatten()
    return name, values[~values.isfinite()][0].item()
