"""Maps of any torch network at module paths, as (B, C, H, W).

Convolutional networks have such maps. The tokens (B, N, C) of a vision transformer become one: the leading tokens that
are no patches (class token, registers) are left out, and the others are a square grid, row by row.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from letkd.taps import recording


@dataclass(frozen=True)
class Layout:
    """What a module returns: channels, grid (height, width), and for tokens how many of them precede the patches."""

    channels: int
    grid: tuple[int, int]
    prefix: int | None = None  # None: a map


def as_map(output: Tensor, prefix: int | None) -> Tensor:
    """The map (B, C, H, W) in what a module of this `Layout.prefix` returned; a view."""
    if prefix is None:
        return output
    patches_BNC = output[:, prefix:]
    side = math.isqrt(patches_BNC.shape[1])
    return patches_BNC.mT.unflatten(2, (side, side))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode within the block; every module gets back the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def layouts(
    network: nn.Module,
    paths: Iterable[str],
    image_shape: Sequence[int],
    *,
    run: Callable[[Tensor], Any] | None = None,
) -> dict[str, Layout]:
    """Layouts by module path, seen by showing the network one black image.

    Args:
        image_shape: (channels, height, width).
        run: the part of the network that is called; all of it by default.

    Raises:
        ValueError: there is no such module, it does not run exactly once, or returns neither a map nor tokens.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    with evaluating(network), recording(network, paths) as outputs:
        (run or network)(image)
    for path, calls in outputs.items():
        if len(calls) != 1:
            raise ValueError(f"module {path!r} runs {len(calls)} times for one image; choose one that runs once")
    is_square = image.shape[2] == image.shape[3]
    prefix = getattr(network, "num_prefix_tokens", None)  # timm's transformers know it
    return {path: _layout(path, calls[0], prefix, is_square=is_square) for path, calls in outputs.items()}


def _layout(path: str, output: Any, prefix: int | None, *, is_square: bool) -> Layout:
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if len(shape) == 4:
        _, channels, height, width = shape
        if is_square and height != width:
            raise ValueError(f"module {path!r} returns {shape} for a square image, no (batch, channels, height, width)")
        return Layout(channels, (height, width))
    if len(shape) == 3:
        _, num_tokens, channels = shape
        if prefix is None:  # without a word of the network: a class token, or none
            prefix = int(math.isqrt(num_tokens - 1) ** 2 == num_tokens - 1)
        side = math.isqrt(num_tokens - prefix)
        if not is_square or side**2 != num_tokens - prefix:
            raise ValueError(
                f"module {path!r} returns {num_tokens} tokens, {prefix} of them before the patches: no square grid of "
                "a square image; the network's `num_prefix_tokens` says how many tokens are no patches"
            )
        return Layout(channels, (side, side), prefix)
    raise ValueError(
        f"module {path!r} returns {shape or type(output).__name__}; a KD layer needs a map (batch, channels, height, "
        "width) or tokens (batch, tokens, channels)"
    )
