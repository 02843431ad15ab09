"""Reading maps inside any torch network, by module path.

Forward hooks keep the network as it is; they are there while they are wanted and then go. A map is what its module
returned, whatever the network makes of the tensor afterwards: `relu(map, inplace=True)` behind a module overwrites what
is read there. So what is recorded is a copy.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from letkd.checks import suggestion


class FrozenTaps(nn.Module):
    """A frozen network that returns chosen maps: the teacher, as training sees it.

    Always in eval mode, and without gradients. The network has hooks during a call only, so several of these share one.

    Args:
        network: all of it is run: a map may also be behind `forward_features`.
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
        with recording(self.network, self.paths.values()) as outputs:
            self.network(images)
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


class _AllRead(BaseException):
    """Leaves a network whose other modules nobody asks for; not an `Exception`, which the network might catch."""


@contextmanager
def recording(network: nn.Module, paths: Iterable[str], *, leave_early: bool = False) -> Iterator[dict[str, list[Any]]]:
    """Copies of what the modules at `paths` return within the block, by path, an entry a call; the hooks go afterwards.

    What other threads run in the meantime is not recorded: they may share the network.

    Args:
        leave_early: the block, which calls the network once, ends as soon as each of the modules has returned once:
            what comes behind the last of them is not computed.
    """
    outputs: dict[str, list[Any]] = {path: [] for path in paths}
    thread = threading.get_ident()

    def keep(calls: list[Any]) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            if threading.get_ident() == thread:
                calls.append(output.clone() if isinstance(output, Tensor) else output)
                if leave_early and all(outputs.values()):
                    raise _AllRead

        return hook

    modules = [submodule(network, path) for path in outputs]  # all of them exist before one is changed
    handles = [
        module.register_forward_hook(keep(calls)) for module, calls in zip(modules, outputs.values(), strict=True)
    ]
    try:
        yield outputs
    except _AllRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
