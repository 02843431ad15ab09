"""Training methods by name.

A method is an `nn.Module` that a training step calls with images and labels. It holds

    model    the network that is deployed, evaluated and saved
    heads    what trains beside it and is thrown away afterwards
    (frozen  teacher and supervision, as eval modules and buffers: not saved with the run; of a `teacher` that
             `open_teacher` has opened the fingerprint is)

and returns a `Step`. A new method is one file with a class that `register_method` decorates.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

Config = dict[str, Any]


@dataclass
class Step:
    """What one training step computes; all tensors stay on the device.

    `loss` is differentiated, `terms` are its parts before weighting, `statistics` what is looked at now and then.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """The interface of a registered class."""

    model: nn.Module
    heads: nn.ModuleDict

    @staticmethod
    def build_model(config: Config, num_classes: int) -> nn.Module:
        """The deployable network, without teacher or supervision: evaluation needs nothing else."""
        ...

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> "Method":
        """Everything that training needs, frozen parts read from their files."""
        ...

    def __call__(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step: ...


_METHODS: dict[str, type[Method]] = {}


def register_method(*names: str) -> Callable[[type], type]:
    """Class decorator: `method: <name>` in a configuration means this class."""

    def register(cls: type) -> type:
        _METHODS.update(dict.fromkeys(names, cls))
        return cls

    return register


def find_method(name: str) -> type[Method]:
    if name not in _METHODS:
        nearest = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f" did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"unknown method {name!r};{hint} known: {', '.join(sorted(_METHODS))}")
    return _METHODS[name]
