"""Weights of networks: what they are told by, and loading them strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from letkd.files import describe_value, fingerprint, is_dense

__all__ = ["Weights", "check_fit", "fingerprint", "load_strictly"]

SHOWN_NAMES = 3  # of missing, unexpected or misshaped tensors in an error


@dataclass(frozen=True)
class Weights:
    """A state dict and where it came from."""

    state: dict[str, Tensor]
    source: Path
    data: dict[str, Any] | None = None  # classes, image size and normalisation it was trained with, where known
    config: dict[str, Any] | None = None  # and the options
    num_classes: int | None = None  # that it tells apart, 0 without a classifier; None where that is not known
    trained_with: Mapping[str, Any] = field(default_factory=dict)  # of `data`, as far as a file of others tells it
    classifier: str | None = None  # "untrained" where it is known that nothing has trained it

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.state)


def check_fit(expected: dict[str, Tensor], state: dict[str, Tensor], *, source: Path | str, what: str) -> None:
    """Compare names, shapes and kinds of tensors of a state dict with those of the network it is meant for.

    Args:
        expected: state dict of that network, on any device, `meta` too.
        source: file it came from, for the error.
        what: the network, for the error.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, or of a kind that cannot be copied; names them.
    """
    common = [name for name in expected if name in state]
    odd = {name: complaint for name in common if (complaint := _oddity(state[name], expected[name]))}
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "other shapes": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and name not in odd and state[name].shape != tensor.shape
        ],
        "no dense numbers of that kind": [f"{name} ({complaint})" for name, complaint in odd.items()],
    }
    complaints = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems.items() if names)
    if complaints:
        raise ValueError(f"{source} does not hold {what}: {complaints}")


def _oddity(value: Any, expected: Tensor) -> str | None:
    """What makes something no tensor that a network can take for one of its own; None where it is one."""
    if not is_dense(value):
        return describe_value(value)
    kind, wanted = (
        "floating-point" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"
        for tensor in (value, expected)
    )
    return None if kind == wanted else f"{value.dtype} instead of {expected.dtype}"


def load_strictly(module: nn.Module, state: dict[str, Tensor], *, source: Path | str, what: str) -> None:
    """Load a state dict that must fit exactly; arguments and errors as in `check_fit`."""
    check_fit(module.state_dict(), state, source=source, what=what)
    module.load_state_dict(state)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
