"""The classifier of a network in a state dict: its tensors with a row for every class, whatever it is made of.

They are those whose shapes differ where the network is built for other numbers of classes: of a DeiT two heads, of a
SqueezeNet a convolution.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from architectures.registry import create_on_meta

Shapes = dict[str, torch.Size]


@functools.lru_cache
def shapes(name: str, num_classes: int = 2) -> Shapes:
    """Shapes of a network's tensors by their names; no random numbers of the caller's are drawn.

    Raises:
        ValueError: there is no such network.
    """
    with torch.random.fork_rng(devices=[]):
        network = create_on_meta(name, num_classes=num_classes)
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


@functools.lru_cache
def classifier_of(name: str) -> Mapping[str, int]:
    """The axis of the classes, by the name of a tensor of the classifier."""
    two, three = shapes(name, 2), shapes(name, 3)
    return {
        key: next(axis for axis, (one, other) in enumerate(zip(two[key], three[key], strict=True)) if one != other)
        for key in two
        if len(two[key]) == len(three[key]) and two[key] != three[key]
    }


def num_classes_in(name: str, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the classifier in a state dict, 0 without one; None where its tensors do not agree."""
    axes = classifier_of(name)
    found = {state[key].shape[axis] if state[key].ndim > axis else None for key, axis in axes.items() if key in state}
    if len(found) > 1 or (found and len([key for key in axes if key in state]) < len(axes)):
        return None
    return found.pop() if found else 0
