"""Of which BatchNorm a map is a sum, in networks that do not say it: seen while one runs.

    act2(bn2(conv2(x)) + shortcut)      the map before act2 is a sum of what bn2 returns

Only additions may be between a BatchNorm and the map: then its weight and bias say how the channels of the map are
distributed, as a method with margins reads it (OFD).
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
NORMALISES = "batch_norm"  # names of functions, also as methods
ADDS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True)
class _Made:
    """How a tensor came about.

    Args:
        version: of the tensor then; with another one it has been overwritten.
        depth: so many functions are behind each other since the image.
        norms: the BatchNorms that it is a sum of, by path, with the depths of what they returned.
    """

    version: int
    depth: int
    norms: dict[str, int] = field(default_factory=dict)


class SumsOfNorms(TorchFunctionMode):
    """Within the block, the BatchNorms that a network adds up."""

    def __init__(self, network: nn.Module):
        super().__init__()
        modules = network.named_modules()
        self._paths = {id(norm.weight): path for path, norm in modules if isinstance(norm, NORMS) and norm.affine}
        self._made = WeakIdKeyDictionary()

    def norm_of(self, tensor: Tensor) -> str | None:
        """The path of the BatchNorm of which a map is a sum; None where there is none.

        Of several, as where a shortcut has one too, the last: that of the residual branch, behind more functions. None
        where two are as far.
        """
        made = self._known(tensor)
        norms = made.norms if made else {}
        last = [path for path, depth in norms.items() if depth == max(norms.values())]
        return last[0] if len(last) == 1 else None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = _tensors((args, kwargs))
        depth = 1 + max((self._made[tensor].depth for tensor in inputs if tensor in self._made), default=0)
        sums = [(tensor.shape, made.norms) for tensor in inputs if (made := self._known(tensor)) is not None]
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        for tensor in _tensors(result):
            if tensor.is_inference() or self._known(tensor) is not None:
                continue  # a view of a parameter, or what was handed on as it is
            norms: dict[str, int] = {}
            if name == NORMALISES:
                norms = {self._paths[id(each)]: depth for each in inputs if id(each) in self._paths}
            elif name in ADDS:
                for shape, added in sums:
                    norms |= added if shape == tensor.shape else {}
            self._made[tensor] = _Made(tensor._version, depth, norms)
        return result

    def _known(self, tensor: Tensor) -> _Made | None:
        """How a tensor came about that has not been overwritten since."""
        made = self._made.get(tensor)
        return made if made is not None and made.version == tensor._version else None


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
