"""What goes on inside the KD layers of a trained student.

Shapes: B images, C channels, h x w grid of the layer, P = B*h*w patches, K templates, N classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import Input
from config.options import Options
from dataloaders import Batch
from distillation.expressions import INTERMEDIATE, PENULTIMATE, alphas_of
from distillation.signals import map_at, plain_kd_layer
from letkd import Student

PLACES = (INTERMEDIATE, PENULTIMATE)  # in the order in which an image meets them


def active_layers(options: Options) -> list[str]:
    """Places of the KD layers that change the features: those with an alpha of 0 only score them."""
    alphas = alphas_of(options)
    return [place for place in PLACES if alphas.get(place)]


@dataclass(frozen=True)
class LayerView:
    """One KD layer at work on a batch: the map it reads, the map it hands on, and its weights ReLU(BatchNorm(s))."""

    before_BCHW: Tensor
    after_BCHW: Tensor
    weights_BKHW: Tensor


@torch.inference_mode()
def look_inside(student: Student, images: Tensor, places: list[str]) -> dict[str, LayerView]:
    """The KD layers at `places` while the student, in eval mode, sees normalised images (B, 3, H, W)."""
    views = {}

    def record(place: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
            features, scores_PK = output
            before_BCHW, after_BCHW = (map_at(layer, each).float() for each in (inputs[0], features))
            weights_PK = F.relu(plain_kd_layer(layer).bn(scores_PK.float()))
            batch, _, height, width = after_BCHW.shape
            weights_BKHW = weights_PK.view(batch, height, width, -1).permute(0, 3, 1, 2)
            views[place] = LayerView(before_BCHW, after_BCHW, weights_BKHW)

        return hook

    handles = [student.layers[place].register_forward_hook(record(place)) for place in places]
    try:
        student.forward_with_scores(images)
    finally:
        for handle in handles:
            handle.remove()
    return views


@dataclass(frozen=True)
class TemplateUse:
    """How the templates of one layer are used on a set of images."""

    largest_K: Tensor  # share of the patches in which a template has the largest weight
    highest_K: Tensor  # its highest weight anywhere
    means_NK: Tensor  # its mean weight in the images of each class

    def most_used(self, number: int) -> list[int]:
        """The templates that have the largest weight in most patches, at most so many."""
        return self.largest_K.argsort(descending=True, stable=True)[:number].tolist()


def measure_use(
    student: Student, student_input: Input, batches: Iterable[Batch], places: list[str], num_classes: int
) -> dict[str, TemplateUse]:
    """The use of the templates at `places` over batches of pixels; on the CPU."""
    wins: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    counts_N = torch.zeros(num_classes)
    for images, labels, *_ in batches:
        counts_N += torch.bincount(labels, minlength=num_classes).cpu()
        for place, view in look_inside(student, student_input(images), places).items():
            weights_BKHW = view.weights_BKHW
            num_templates = weights_BKHW.shape[1]
            if place not in wins:
                wins[place] = weights_BKHW.new_zeros(num_templates)
                highest[place] = weights_BKHW.new_zeros(num_templates)
                sums[place] = weights_BKHW.new_zeros(num_classes, num_templates)
            largest = weights_BKHW.argmax(dim=1).flatten()
            wins[place] += torch.bincount(largest, minlength=num_templates)
            highest[place] = torch.maximum(highest[place], weights_BKHW.amax(dim=(0, 2, 3)))
            sums[place].index_add_(0, labels, weights_BKHW.mean(dim=(2, 3)))
    return {
        place: TemplateUse(
            (wins[place] / wins[place].sum()).cpu(),
            highest[place].cpu(),
            sums[place].cpu() / counts_N.clamp_min(1)[:, None],
        )
        for place in places
    }
