"""Reading and changing maps inside any torch network, by module path.

Forward hooks keep the network as it is: its state dict keeps the names of the published checkpoints, and a network
without KD layers is the same module. Hooks that read are there while they are wanted and then go. Those that place KD
layers stay, and are objects, not closures, so that a deep copy of a network carries copies of its KD layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


class Student(nn.Module):
    """A backbone with KD layers at module paths; called like the backbone, images -> logits.

    Args:
        backbone: any network; its own state-dict names appear below `backbone.`.
        layers: KD layers by name; the output of each takes its map's place.
        paths: module path in the backbone where each layer sits.
    """

    def __init__(self, backbone: nn.Module, layers: Mapping[str, nn.Module], paths: Mapping[str, str]):
        super().__init__()
        self.backbone = backbone
        self.layers = nn.ModuleDict(layers)
        self._scores = _Scores()
        for name, layer in self.layers.items():
            submodule(backbone, paths[name]).register_forward_hook(_Insert(layer, self._scores, name))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N)."""
        return self.backbone(images)

    def forward_with_scores(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, N), and the scores (P, K) of every layer by name."""
        self._scores.wanted = True
        try:
            logits = self.backbone(images)
            return logits, dict(self._scores)
        finally:
            self._scores.wanted = False
            self._scores.clear()


def submodule(network: nn.Module, path: str) -> nn.Module:
    """The module at `path`; ValueError with the paths there are when there is none."""
    try:
        if not isinstance(path, str) or not path:  # "" would be the network itself
            raise AttributeError
        return network.get_submodule(path)
    except AttributeError:
        depth = str(path).count(".")
        known = ", ".join(name for name, _ in network.named_modules() if name.count(".") <= depth and name)
        raise ValueError(f"{type(network).__name__} has no module {path!r}; known: {known}") from None


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


class _Scores(dict[str, Tensor]):
    """Scores of the layers by name, while they are wanted."""

    wanted = False


class _Insert:
    def __init__(self, layer: nn.Module, scores: _Scores, name: str):
        self.layer = layer
        self.scores = scores
        self.name = name

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        changed, scores = self.layer(output, with_scores=self.scores.wanted)
        if self.scores.wanted:
            self.scores[self.name] = scores
        return changed
