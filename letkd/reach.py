"""Where KD layers can stand: behind a module that runs once, and whose patches the network's output depends on.

A vision transformer may read its class token alone. Then the patches behind the last block reach no logits, and what a
KD layer adds to them changes nothing. Whether it does is measured: for one image the patches are replaced by NaN, which
makes NaN of all that is computed with them, whatever the weights are. A gradient would not do: it is 0 where a head
starts from zeros, and unknown on `meta`.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from letkd.maps import Layout, as_map, check_runs_once, evaluating
from letkd.taps import submodule


def check_layers(network: nn.Module, layers: Iterable[tuple[str, Layout, float]], image_shape: Sequence[int]) -> None:
    """Refuse KD layers where they cannot be.

    Args:
        layers: module path, layout of what is returned there, and alpha; a layer with an alpha of 0 changes no map.
        image_shape: (channels, height, width).

    Raises:
        ValueError: a module does not run exactly once for an image, or what it returns does not reach the output.
    """
    for path, layout, alpha in layers:
        calls, reaches = _calls_and_reach(network, path, layout, image_shape)
        check_runs_once(path, calls)
        if alpha != 0 and not reaches:
            raise ValueError(
                f"what the network returns does not depend on the patches of {path!r}: the values of a KD layer there "
                "would change nothing; take a module before it, like blocks.10 of a vision transformer that ends with "
                "blocks.11, or an alpha of 0 for a layer that is supervised only"
            )


def reaches_output(network: nn.Module, path: str, layout: Layout, image_shape: Sequence[int]) -> bool:
    """Whether what a network returns depends on the patches that the module at `path` returns.

    A network on `meta` is run on the CPU, with zeros for its weights. True also where NaN shows nothing, because the
    network does not run with it.
    """
    return _calls_and_reach(network, path, layout, image_shape)[1]


def _calls_and_reach(network: nn.Module, path: str, layout: Layout, image_shape: Sequence[int]) -> tuple[int, bool]:
    """How often a module runs for an image, and as `reaches_output`."""
    calls, spoils = 0, True

    def spoil(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if not spoils:
            return output
        spoiled = output.clone()
        as_map(spoiled, layout.prefix, layout.channels_last).fill_(math.nan)
        return spoiled

    tensors = dict(chain(network.named_parameters(), network.named_buffers()))
    zeros = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in tensors.items() if tensor.is_meta}
    like = next(network.parameters())
    image = torch.zeros(1, *image_shape, device="cpu" if like.is_meta else like.device, dtype=like.dtype)
    with evaluating(network), torch.no_grad(), submodule(network, path).register_forward_hook(spoil):
        try:
            output = torch.func.functional_call(network, zeros, (image,))
        except Exception:  # a network may refuse NaN in any way, wherever it is by then
            calls, spoils = 0, False
            try:
                torch.func.functional_call(network, zeros, (image,))
            except Exception:  # or the zeros of `meta`
                calls = 1
            return calls, True
    return calls, any(_has_nan(leaf) for leaf in pytree.tree_leaves(output))


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isnan().any())
