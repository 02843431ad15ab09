"""Reading maps inside any torch network, by module path.

Forward hooks keep the network as it is; they are there while they are wanted and then go.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from letkd.checks import suggestion


class FrozenTaps(nn.Module):
    """A frozen network that returns chosen maps: the teacher, as training and feature extraction see it.

    Always in eval mode, and without gradients. The network has hooks during a call only, so several of these share one.

    Args:
        network: `forward_features` is run where it has one, so that the classifier costs nothing; else all of it.
        paths: module paths of the maps, under the names they are returned by.
    """

    def __init__(self, network: nn.Module, paths: Mapping[str, str]):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.paths = dict(paths)
        for path in self.paths.values():
            submodule(network, path)  # a wrong one is an error here, not in the first step

    def train(self, mode: bool = True) -> "FrozenTaps":
        """Frozen: stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, C, H, W) by name."""
        run = getattr(self.network, "forward_features", self.network)
        with recording(self.network, self.paths.values()) as outputs:
            run(images)
        return {name: outputs[path][-1] for name, path in self.paths.items()}


def submodule(network: nn.Module, path: str) -> nn.Module:
    """The module at `path`; ValueError with the paths there are when there is none."""
    try:
        if not isinstance(path, str) or not path:  # "" would be the network itself
            raise AttributeError
        return network.get_submodule(path)
    except AttributeError:
        depth = str(path).count(".")
        names = [name for name, _ in network.named_modules() if name]
        known = ", ".join(name for name in names if name.count(".") <= depth)
        raise ValueError(
            f"{type(network).__name__} has no module {path!r};{suggestion(str(path), names)} known: {known}"
        ) from None


@contextmanager
def recording(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Any]]]:
    """What the modules at `paths` return within the block, by path, an entry a call; the hooks go afterwards."""
    outputs: dict[str, list[Any]] = {path: [] for path in paths}

    def keep(calls: list[Any]) -> Callable[[nn.Module, tuple, Any], None]:
        return lambda _module, _inputs, output: calls.append(output)

    modules = [submodule(network, path) for path in outputs]  # all of them exist before one is changed
    handles = [
        module.register_forward_hook(keep(calls)) for module, calls in zip(modules, outputs.values(), strict=True)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
