"""What options and labels may be, checked before they are used.

Every error is a ValueError that names the option, its value with the type, and what it may be. Numbers of numpy become
Python's: they go into files that hold nothing else.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

MAX_SEED = 2**32 - 1
LABELS = "labels must be whole numbers (B,), the class of every image"

T = TypeVar("T")


def whole_number(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """The value as an int."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; a whole number of at least {least} is needed")
    if value < least:
        raise ValueError(f"{name} is {value}; at least {least} is needed")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}; at most {most} is possible")
    return int(value)


def real_number(name: str, value: Any, *, above: float = -math.inf) -> float:
    """The value, a finite number, as a float."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {shown(value)}; a finite number is needed")
    if not value > above:
        raise ValueError(f"{name} is {value}; a number above {above} is needed")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """The value, True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {shown(value)}; True or False is needed")
    return bool(value)


def is_kind(name: str, value: Any, kind: type, needed: str) -> None:
    """Refuse a value of another type than `kind`; `needed` says what is to be given."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {shown(value)}; {needed} is needed")


def is_network(name: str, value: Any) -> None:
    """Refuse what is no module, or one in which nothing can be recorded or put."""
    is_kind(name, value, nn.Module, "a torch module")
    if isinstance(value, torch.jit.ScriptModule):
        raise ValueError(f"{name} is a module of torch.jit, which takes no hooks; the module it was made of is needed")
    if next(value.parameters(), None) is None:
        raise ValueError(f"{name} is a {type(value).__name__} without parameters; a network that was trained is needed")


def whole_numbers(name: str, value: Any, *, what: str, least: int = 1) -> dict[str, int]:
    """Numbers of at least `least` by module path; None is none."""
    is_kind(f"{name!r}", {} if value is None else value, Mapping, f"{what} by module path, like {{'layer4': 8}},")
    return {path: whole_number(f"{name} of {path!r}", number, least=least) for path, number in (value or {}).items()}


def by_path(value: T | Mapping[str, T], paths: Iterable[str], *, default: T, name: str) -> dict[str, T]:
    """A setting of every path: the same for all, or named ones and the default for the others.

    Raises:
        ValueError: a path is named that is none of `paths`.
    """
    paths = list(paths)
    if not isinstance(value, Mapping):
        return dict.fromkeys(paths, value)
    for path in value:
        if path not in paths:
            raise ValueError(f"{name} names {path!r}, which is no map here; there is {nearest_first(str(path), paths)}")
    return {path: value.get(path, default) for path in paths}


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question for an error message, where a known word is like this one."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" did you mean {near[0]!r}?" if near else ""


def nearest_first(word: str, known: Iterable[str]) -> str:
    """The known words for an error message."""
    return ", ".join(sorted(known, key=lambda other: -difflib.SequenceMatcher(None, word, other).ratio())) or "none"


@contextmanager
def at(path: str):
    """Errors within the block name the module path of the map."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} at {path!r}") from error


def class_labels(labels_B: Any, batch: int, num_classes: int) -> Tensor:
    """Labels (B,) as int64, checked.

    A training step reads nothing back from a GPU: there a wrong number is an assertion of the device, elsewhere a
    ValueError. Shape and type are known without reading.
    """
    labels_B = label_tensor(labels_B, batch)
    inside = ((labels_B >= 0) & (labels_B < num_classes)).all()
    message = f"{LABELS}, 0 to {num_classes - 1}"
    try:
        torch._assert_async(inside, message)
    except RuntimeError as error:  # of a CPU, which does not wait
        least, largest = labels_B.min().item(), labels_B.max().item()
        raise ValueError(
            f"{message}; these are {least} to {largest}. Images without a label (-1) have no decisions: leave them out"
        ) from error
    return labels_B


def label_tensor(labels_B: Any, batch: int) -> Tensor:
    """Labels (B,) as int64, of whatever classes."""
    if not isinstance(labels_B, Tensor):
        raise ValueError(f"{LABELS}; they are {shown(labels_B)}, no tensor")
    if labels_B.is_floating_point() or labels_B.is_complex() or labels_B.dtype == torch.bool:
        raise ValueError(f"{LABELS}; they are {labels_B.dtype} {tuple(labels_B.shape)}")
    if labels_B.shape != (batch,):
        raise ValueError(f"{LABELS}; they have shape {tuple(labels_B.shape)}, and there are {batch} images")
    return labels_B.long()


def shown(value: Any) -> str:
    """The value and its type, or of a long one the type alone; of a tensor its shape."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return f"{text} ({kind})" if len(text) <= 40 and "\n" not in text else f"a {kind}"
