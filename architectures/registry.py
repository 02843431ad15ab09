"""Architectures by name, after the conventions of timm."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from architectures.tapped import TappedNetwork

Builder = Callable[..., TappedNetwork]

_BUILDERS: dict[str, Builder] = {}


def register_model(builder: Builder, name: str | None = None) -> Builder:
    """Makes `builder(num_classes=..., **kwargs)` available to `create_model`; returns it, so that it also decorates.

    Args:
        name: what users write; the builder's own name if left out.

    Raises:
        ValueError: the name is taken.
    """
    name = name or builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"architecture {name!r} is registered already; choose another name")
    _BUILDERS[name] = builder
    return builder


def create_model(name: str, num_classes: int = 100, **kwargs: Any) -> TappedNetwork:
    """A freshly initialised network; further keywords go to its builder.

    Raises:
        ValueError: no architecture has this name.
    """
    if name not in _BUILDERS:
        known = list_models()
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f" did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"unknown architecture {name!r};{hint} known: {', '.join(known)}")
    return _BUILDERS[name](num_classes=num_classes, **kwargs)


def is_model(name: str) -> bool:
    return name in _BUILDERS


def list_models() -> list[str]:
    """All names, numbers inside them in counting order: resnet8 before resnet14."""
    return sorted(_BUILDERS, key=_natural_order)


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
