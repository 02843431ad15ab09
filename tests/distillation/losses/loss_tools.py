"""Losses without networks: outlines and signals made of numbers, and golden values of published losses."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from architectures import Outline, Place
from dataloaders import Batch
from distillation.losses import Data
from distillation.signals import Head, Network, Signals, Wanted

SMALL = Path(__file__).parents[2] / "golden" / "methods"
WHOLE = Path(__file__).parents[4] / "shared" / "reference" / "methods"
DATA = Data(num_images=64, num_classes=10)


def network(
    name: str = "net",
    channels: Iterable[int] = (8, 16, 32),
    grids: Iterable[tuple[int, int]] = ((16, 16), (8, 8), (4, 4)),
    *,
    num_classes: int = 10,
    num_features: int = 32,
) -> Network:
    """A network that is an outline alone: a stem, and stages of these channels and grids."""
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
        places={**places, "intermediate": places[f"stage{len(sizes)}"]},
        befores=places,
    )
    return Network(nn.Identity(), outline)


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


def tensors_of(found: Signals) -> list[Tensor]:
    """All tensors of signals that may have gradients."""
    single = [tensor for tensor in (found.logits, found.pooled) if tensor is not None]
    return [*single, *(found.maps or {}).values(), *(found.preact or {}).values()]


def batch(labels: Tensor, **mixed: Tensor) -> Batch:
    count = len(labels)
    return Batch(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), labels, torch.arange(count), **mixed)


class Golden:
    """Arrays of a method, with a note of which have been compared.

    Args:
        whole: the file with all arrays, where it is at hand, instead of the copy in `tests/golden/methods`.
    """

    def __init__(self, method: str, *, whole: bool = False):
        path = (WHOLE if whole else SMALL) / f"{method}.npz"
        if not path.is_file():
            pytest.skip(f"the reference values of {method} are not at hand")
        with np.load(path) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.compared: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name].clone()

    def variable(self, name: str) -> Tensor:
        return self[name].requires_grad_()

    def compare(self, name: str, value: Tensor) -> None:
        """A loss, an intermediate result or a state."""
        self._compare(name, value.detach(), rtol=1e-4)

    def compare_gradients(self, loss: str, value: Tensor, variables: Mapping[str, Tensor]) -> None:
        """Of a loss, with respect to variables by their names in the file; those that the file has."""
        found = torch.autograd.grad(value, list(variables.values()), retain_graph=True)
        for name, gradient in zip((f"grad/{loss}/{variable}" for variable in variables), found, strict=True):
            if name in self:
                self._compare(name, gradient, rtol=1e-3)

    def assert_all_compared(self) -> None:
        results = {name for name in self.arrays if name.startswith(("loss/", "grad/", "out/", "after/"))}
        assert results == self.compared

    def _compare(self, name: str, value: Tensor, *, rtol: float) -> None:
        self.compared.add(name)
        expected = self.arrays[name]
        atol = 1e-6 * expected.abs().max().item() if expected.ndim else 1e-6
        torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")
