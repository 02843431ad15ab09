"""Losses without networks: outlines and signals made of numbers, and the constants of published losses."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from architectures import Outline, Place
from dataloaders import Batch
from distillation.losses import Data
from distillation.signals import Head, Network, Signals, Wanted

GOLDEN = Path(__file__).parents[2] / "golden" / "methods"
DATA = Data(num_images=64, num_classes=10)
# What jobs make for losses, of a teacher that is not there.
FILES = {"means": lambda teacher: torch.randn(teacher.outline.num_classes, teacher.outline.num_features)}


class Outlined(Network):
    """A network that is an outline alone."""

    def pools(self, place: str) -> bool:
        return self.outline.place(place).channels == self.outline.num_features


def network(
    name: str = "net",
    channels: Iterable[int] = (8, 16, 32),
    grids: Iterable[tuple[int, int]] = ((16, 16), (8, 8), (4, 4)),
    *,
    num_classes: int = 10,
    num_features: int = 32,
) -> Network:
    """A network that is an outline alone: a stem, and stages of these channels and grids.

    Its modules are the BatchNorms before the activations of the stages, called like these.
    """
    sizes = list(zip(channels, grids, strict=True))
    places = {f"stage{number}": Place(f"layer{number}", *size) for number, size in enumerate(sizes, start=1)}
    places = {"stem": Place("relu", *sizes[0]), **places}
    outline = Outline(
        network=name,
        image_size=32,
        num_classes=num_classes,
        num_features=num_features,
        head="fc",
        stages=tuple(places),
        places={**places, **dict.fromkeys(("intermediate", "penultimate"), places[f"stage{len(sizes)}"])},
        befores={stage: replace(place, norm=stage) for stage, place in places.items()},
    )
    norms = {stage: nn.BatchNorm2d(place.channels) for stage, place in places.items()}
    return Outlined(nn.ModuleDict(norms), outline)


def outlined(network: Network, /, **fields: object) -> Network:
    """The network with other fields of its outline."""
    return Outlined(network.module, replace(network.outline, **fields))


def network_of(maps: Iterable[Tensor], name: str = "net", **numbers: int) -> Network:
    """A network whose stages have these maps."""
    return network(name, [each.shape[1] for each in maps], [tuple(each.shape[2:]) for each in maps], **numbers)


def signals(network: Network, wanted: Wanted, *, batch_size: int = 8, grad: bool = False) -> Signals:
    """Drawn signals of a network."""
    outline = network.outline

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch_size, *shape).requires_grad_(grad)

    return Signals(
        logits=draw(outline.num_classes) if wanted.logits else None,
        pooled=draw(outline.num_features) if wanted.pooled else None,
        maps={name: draw(place.channels, *place.grid) for name in wanted.maps for place in [outline.place(name)]},
        preact={name: draw(place.channels, *place.grid) for name in wanted.preact for place in [outline.before(name)]},
        inner={},
        head=Head(torch.randn(outline.num_classes, outline.num_features), None) if wanted.head else None,
    )


def changed(found: Signals, change: Callable[[Tensor], Tensor]) -> Signals:
    """Signals whose tensors are changed, each a leaf with a gradient."""

    def one(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else change(tensor.detach()).clone().requires_grad_()

    maps = {kind: {name: one(each) for name, each in getattr(found, kind).items()} for kind in ("maps", "preact")}
    return replace(found, logits=one(found.logits), pooled=one(found.pooled), **maps)


def tensors_of(found: Signals) -> list[Tensor]:
    """All tensors of signals that may have gradients."""
    single = [tensor for tensor in (found.logits, found.pooled) if tensor is not None]
    return [*single, *(found.maps or {}).values(), *(found.preact or {}).values()]


def batch(labels: Tensor, **mixed: Tensor) -> Batch:
    count = len(labels)
    return Batch(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), labels, torch.arange(count), **mixed)


def constants(method: str) -> dict[str, float]:
    """What the reference values of a method were computed with, by name: const/ of the copy."""
    with np.load(GOLDEN / f"{method}.npz") as arrays:
        names = [name for name in arrays.files if name.startswith("const/")]
        return {name.removeprefix("const/"): arrays[name].tolist() for name in names}


class Largest(TorchDispatchMode):
    """The context in which it is seen how many entries the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.size = max(self.size, *sizes, 0)
        return result
