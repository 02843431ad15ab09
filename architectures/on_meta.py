"""Networks on `meta`, where tensors have shapes and no numbers, without the work that only numbers need."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
