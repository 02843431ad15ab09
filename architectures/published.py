"""Weights that a library publishes for its networks, by the networks' names: where they are on the disk, if they are.

Nothing is downloaded: `published("timm/resnet10t.c3_in1k")` says where timm would have left the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from architectures.calls import split_call

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Published:
    """What a library says of the weights of one of its networks.

    Args:
        files: where it keeps them, in its order; there may be none.
        trained_with: `image_size`, `mean`, `std` and `interpolation` of their training, as far as it says them.
        get: the command that downloads them.
        translated: from the state dict in the file to that of the network.
    """

    files: tuple[Path, ...]
    trained_with: Mapping[str, Any]
    get: str
    translated: Callable[[State], State] = field(default=dict)


_PUBLISHERS: dict[str, Callable[[str], Published]] = {}


def register_published(prefix: str) -> Callable[[Callable[[str], Published]], Callable[[str], Published]]:
    """Decorates what says it of a network `prefix/name`, where the name may have a point and the tag of its weights."""

    def register(find: Callable[[str], Published]) -> Callable[[str], Published]:
        _PUBLISHERS[prefix] = find
        return find

    return register


def published(name: str) -> Published | None:
    """What is published for a network, with or without a tag, keyword arguments aside; None for one of no library.

    Raises:
        ValueError: the library is not installed, or has no such network or tag.
    """
    prefix, slash, rest = split_call(name)[0].partition("/")
    return _PUBLISHERS[prefix](rest) if slash and prefix in _PUBLISHERS else None


def in_torch_hub(address: str) -> Path:
    """Where torch keeps what was downloaded from an address."""
    return Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2])
