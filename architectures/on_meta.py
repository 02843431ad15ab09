"""Networks on `meta`, where tensors have shapes and no numbers, without the work that only numbers need."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from letkd.maps import evaluating

DRAWS = {"normal_", "uniform_", "kaiming_uniform_"}  # as methods, and in torch.nn.init
NORMALISES = "batch_norm"


class ShapesAlone(TorchFunctionMode):
    """Within the block nothing is drawn or normalised on `meta`.

    torch works out there in Python what either returns, which is most of the time that a ResNet takes to be built and
    run.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in DRAWS or name == NORMALISES:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return torch.empty_like(tensor) if name == NORMALISES else tensor
        return function(*args, **kwargs)


def run_on_meta(network: nn.Module, image_shape: Sequence[int]) -> Any:
    """What a network returns for an image (channels, height, width) in evaluation, with tensors on `meta` for its own.

    Nothing is computed, and nothing of the network is changed: it may be large, or have its weights nowhere.
    """
    tensors = chain(network.named_parameters(), network.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    image = torch.zeros(1, *image_shape, device="meta", dtype=next(iter(state.values())).dtype)
    with evaluating(network), torch.no_grad(), ShapesAlone():
        return torch.func.functional_call(network, state, (image,))
