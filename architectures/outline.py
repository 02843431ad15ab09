"""Outlines: which maps a network has, of which sizes, measured by showing it one black image.

    outline(create_model("resnet20"), image_size=32, name="resnet20").place("stage2")
    Place(path="layer2", channels=32, grid=(16, 16), ...)

What a method for maps asks of a network is a name: "penultimate", "intermediate", a stage of the table of stages, or
any module path. A network only names its default places (`TappedNetwork`); their sizes are measured.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from architectures.tapped import TappedNetwork


@dataclass(frozen=True)
class Place:
    """Where a map (B, channels, *grid) is read in a network.

    Attributes:
        path: of the module that is hooked. Of one that is called several times, the last call counts.
        grid: height and width, at the image size of the outline.
        is_input: the map is the module's first input, not its output. Whoever records it sets the module's `inplace` to
            False: it is an activation, which would overwrite the map.
        norm: the last BatchNorm before that activation; None where none belongs to all of its channels.
        changed_later: the network overwrites the tensor afterwards (`residual += x`): whoever records it clones it.
    """

    path: str
    channels: int
    grid: tuple[int, int]
    is_input: bool = False
    norm: str | None = None
    changed_later: bool = False


@dataclass(frozen=True)
class Outline:
    """The places of a network. Written by hand, it stands for a network that is not there.

    Attributes:
        network: what messages call it.
        num_features: channels of the pooled vector, which is what enters the classifier.
        head: path of the linear classifier.
        stages: names in `places`, from the stem to the last stage.
        places: maps by name.
        befores: by stage, the map before the last activation.
        modules: by path, the output of every module that returns one map.
    """

    network: str
    image_size: int
    num_classes: int
    num_features: int
    head: str
    stages: tuple[str, ...]
    places: Mapping[str, Place]
    befores: Mapping[str, Place] = field(default_factory=dict)
    modules: Mapping[str, Place] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        """The map of this name, or the output of the module at this path.

        Raises:
            ValueError: there is neither.
        """
        if name in self.places:
            return self.places[name]
        if name in self.modules:
            return self.modules[name]
        others = ["a module path"] if self.modules else []
        raise self._missing(f"place {name!r}", name, self.places, others)

    def before(self, name: str) -> Place:
        """The map of a stage before its last activation; the map itself where a stage ends without one.

        Raises:
            ValueError: there is no such stage.
        """
        if name in self.befores:
            return self.befores[name]
        raise self._missing(f"map before an activation {name!r}", name, self.befores, [])

    def _missing(self, what: str, name: str, known: Collection[str], others: list[str]) -> ValueError:
        nearest = difflib.get_close_matches(name, [*known, *(self.modules if others else ())], n=1)
        hint = f" did you mean {nearest[0]!r}?" if nearest else ""
        listed = ", or ".join([", ".join(known) or "none", *others])
        return ValueError(f"{self.network} has no {what};{hint} it has: {listed}")


def outline(network: TappedNetwork, image_size: int, name: str | None = None) -> Outline:
    """Measures a network, wherever its parameters are, also on `meta`. Nothing of it is changed.

    Args:
        image_size: height and width of the images.
        name: what messages call it, e.g. "resnet56"; its class by default.
    """
    name = name or type(network).__name__
    ends = {"stem" if not index else f"stage{index}": end for index, end in enumerate(network.stage_ends)}
    activations = {stage: end.activation for stage, end in ends.items() if end.activation is not None}
    outputs, inputs = _measured(network, image_size, set(activations.values()))
    modules = {
        path: _place(path, outputs[module])
        for path, module in network.named_modules(remove_duplicate=False)
        if path and module in outputs and outputs[module][0].ndim == 4
    }
    named = {"penultimate": network.penultimate.path, "intermediate": network.intermediate.path}
    named |= {stage: end.path for stage, end in ends.items()}
    for place, path in [*named.items(), *activations.items()]:
        if path not in (modules if path == named[place] else inputs):
            raise ValueError(f"{name} says that its {place} is at {path!r}, where no map passes")
    places = {place: modules[path] for place, path in named.items()}
    befores = {stage: places[stage] for stage in ends}
    for stage, path in activations.items():
        befores[stage] = _place(path, inputs[path], is_input=True, norm=ends[stage].norm)
    return Outline(
        network=name,
        image_size=image_size,
        num_classes=network.num_classes,
        num_features=network.num_features,
        head=network.head_path,
        stages=tuple(ends),
        places=places,
        befores=befores,
        modules=modules,
    )


_Seen = tuple[Tensor, int]  # a tensor, and its version when it was seen: each change in place counts one up


def _place(path: str, seen: _Seen, *, is_input: bool = False, norm: str | None = None) -> Place:
    tensor, version = seen
    _, channels, height, width = tensor.shape
    return Place(path, channels, (height, width), is_input, norm, changed_later=tensor._version != version)


def _measured(
    network: nn.Module, image_size: int, activations: Iterable[str]
) -> tuple[dict[nn.Module, _Seen], dict[str, _Seen]]:
    """What the modules return and what the activations take, each in its last call, for one black image."""
    outputs: dict[nn.Module, _Seen] = {}
    inputs: dict[str, _Seen] = {}
    in_place = {path: getattr(network.get_submodule(path), "inplace", False) for path in activations}

    def keep_output(module: nn.Module, _inputs: tuple, output: Any) -> None:
        outputs.pop(module, None)
        if isinstance(output, Tensor):
            outputs[module] = output, output._version

    def keep_input(path: str, tensor: Tensor) -> None:
        if in_place[path]:  # not in this pass, but for all who read what it overwrites under another path
            increment_version(tensor)
        inputs[path] = tensor, tensor._version

    parameter = next(network.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    with _evaluating(network, in_place), torch.inference_mode(False), torch.no_grad():
        handles = [module.register_forward_hook(keep_output) for module in network.modules()]
        handles += [
            network.get_submodule(path).register_forward_pre_hook(
                lambda _module, arguments, path=path: keep_input(path, arguments[0])
            )
            for path in in_place
        ]
        try:
            network(image)
        finally:
            for handle in handles:
                handle.remove()
    return outputs, inputs


@contextmanager
def _evaluating(network: nn.Module, activations: Iterable[str]) -> Iterator[None]:
    """Eval mode, and activations that do not overwrite their inputs; all is as before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    overwriting = [module for module in map(network.get_submodule, activations) if getattr(module, "inplace", False)]
    network.eval()
    for module in overwriting:
        module.inplace = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in overwriting:
            module.inplace = True
