"""What is looked at while a network trains: its input, the scales of its KD layers, and numbers that are not finite."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dataloaders import Batch
from letkd import KDLayer, TemplateScores

NUM_IMAGES = 64


def input_images(loader: Iterable[Batch]) -> Tensor:
    """Pixels of the first images of a loader: (B, 3, H, W) uint8 on the CPU, B <= 64."""
    return next(iter(loader)).images[:NUM_IMAGES].cpu()


def layer_scales(objective: nn.Module) -> dict[str, float]:
    """The learnt scales by the name of the layer: `<name>_templates`, and `<name>_semantic` of a KD layer. One read."""
    scales = {}
    for path, module in objective.named_modules():
        name = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
        if isinstance(module, KDLayer):
            scales |= {f"{name}_templates": module.scores.scale, f"{name}_semantic": module.scale}
        elif isinstance(module, TemplateScores) and name != "scores":  # those of a KD layer are called so
            scales[f"{name}_templates"] = module.scale
    values = torch.cat([scale.detach() for scale in scales.values()]).tolist() if scales else []
    return dict(zip(scales, values, strict=True))


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, float] | None:
    """Name of the first tensor with a value that is not finite, and that value; one read where all are finite."""
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    largest = torch.nn.utils.get_total_norm(floating.values(), norm_type=math.inf)
    if largest.isfinite():
        return None
    name = next(name for name, tensor in floating.items() if not tensor.isfinite().all())
    values = floating[name].flatten()
    return name, values[~values.isfinite()][0].item()
