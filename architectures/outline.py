"""Outlines: which maps a network has, of which sizes, measured by showing it one black image.

    outline(create_model("resnet20"), image_size=32, name="resnet20").place("stage2")
    Place(path="layer2", channels=32, grid=(16, 16), ...)

What a method for maps asks of a network is a name: "penultimate", "intermediate", a stage of the table of stages, or
any module path. The networks of this package name their default places (`TappedNetwork`); those of any other are found
(`architectures.finding`), and whether a module returns a map (B, C, H, W), a map (B, H, W, C) or tokens (B, N, C) is
seen by showing it a larger image too, on `meta`.
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from architectures.finding import ACTIVATIONS, Seen, find_places
from architectures.norms import SumsOfNorms
from architectures.on_meta import ShapesAlone, run_on_meta
from architectures.tapped import TappedNetwork
from letkd.maps import Layout, as_map, evaluating, larger_sides, layout_of
from letkd.reach import reaches_output

NAMED = 5  # module paths in an error, where no default place was found


@dataclass(frozen=True)
class Place:
    """Where a map (B, channels, *grid) is read in a network, and how it lies in what is read there.

    Attributes:
        path: of the module that is hooked. Of one that is called several times, the last call counts; no default place
            is one, and no KD layer stands there.
        grid: height and width, at the image size of the outline.
        is_input: the map is the module's first input, not its output. Whoever records it sets the module's `inplace` to
            False: it is an activation, which would overwrite the map.
        norm: the last BatchNorm before that activation; None where none belongs to all of its channels, or several do.
        changed_later: the network overwrites the tensor afterwards (`residual += x`): whoever records it clones it.
        prefix: of tokens (B, N, channels), how many precede the patches; None: a map.
        channels_last: the map is (B, *grid, channels).
    """

    path: str
    channels: int
    grid: tuple[int, int]
    is_input: bool = False
    norm: str | None = None
    changed_later: bool = False
    prefix: int | None = None
    channels_last: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.channels, self.grid, self.prefix, self.channels_last)

    @property
    def kind(self) -> str:
        """What is read there, in words."""
        if self.prefix is not None:
            return f"tokens, {self.prefix} before the patches" if self.prefix else "tokens"
        return "map with channels last" if self.channels_last else "map"

    @property
    def sizes(self) -> str:
        """Channels and grid, in words."""
        return f"{self.channels} channels, {' x '.join(map(str, self.grid))}"

    def read(self, tensor: Tensor) -> Tensor:
        """The map (B, channels, *grid) in what is read there: a view, or a copy of what the network overwrites."""
        found = as_map(tensor, self.prefix, self.channels_last)
        return found.clone() if self.changed_later else found


@dataclass(frozen=True)
class Outline:
    """The places of a network. Written by hand, it stands for a network that is not there.

    Attributes:
        network: what messages call it.
        num_features: channels of the pooled vector, which is what enters the classifier.
        head: path of the linear classifier; None where the logits come from another module.
        stages: names in `places`, from the stem to the last stage.
        places: maps by name.
        befores: by stage, the map before the last activation.
        modules: by path, the output of every module that returns one map, or tokens that are one.
    """

    network: str
    image_size: int
    num_classes: int
    num_features: int
    head: str | None
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
        if self.modules and not self.places:  # nothing was found to stand at its default
            last = [f"{path} ({place.sizes})" for path, place in self.modules.items()][-NAMED:]
            others = [f"a module path, of which the last are {', '.join(last)}"]
        raise self._missing(f"place {name!r}", name, self.places, others)

    def before(self, name: str) -> Place:
        """The map of a stage before its last activation; the map itself where a stage ends without one.

        Raises:
            ValueError: there is no such stage.
        """
        if name in self.befores:
            return self.befores[name]
        raise self._missing(f"map before an activation {name!r}", name, self.befores, [])

    def _missing(self, what: str, name: str, known: Mapping[str, Place], others: list[str]) -> ValueError:
        nearest = difflib.get_close_matches(name, [*known, *(self.modules if others else ())], n=1)
        hint = f" did you mean {nearest[0]!r}?" if nearest else ""
        places = (f"{name} ({place.path}: {place.sizes})" for name, place in known.items())
        listed = ", or ".join([", ".join(places) or "none", *others])
        return ValueError(f"{self.network} has no {what};{hint} it has: {listed}")


def outline(network: nn.Module, image_size: int, name: str | None = None) -> Outline:
    """Measures a network, wherever its parameters are, also on `meta`. Nothing of it is changed.

    Args:
        image_size: height and width of the images.
        name: what messages call it, e.g. "resnet56"; its class by default.

    Raises:
        ValueError: it does not return logits (batch, classes) for an image, or does not take one of this size.
    """
    name = name or type(network).__name__
    if isinstance(network, TappedNetwork):
        return _named(network, image_size, name)
    return _found(network, image_size, name)


def _named(network: TappedNetwork, image_size: int, name: str) -> Outline:
    """The outline of a network that names its places. What its modules return with four axes is (B, C, H, W)."""
    ends = {"stem" if not index else f"stage{index}": end for index, end in enumerate(network.stage_ends)}
    activations = {stage: end.activation for stage, end in ends.items() if end.activation is not None}
    measured = _measured(network, image_size, set(activations.values()))
    outputs, inputs = measured.outputs, measured.inputs
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


def _found(network: nn.Module, image_size: int, name: str) -> Outline:
    """The outline of any other network."""
    paths = {module: path for path, module in network.named_modules() if path}
    activations = [path for module, path in paths.items() if isinstance(module, ACTIVATIONS)]
    try:
        measured = _measured(network, image_size, activations, SumsOfNorms(network))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} does not take images of {image_size} x {image_size}: {reason}") from error
    logits = measured.logits
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{name} returns {what} for an image; a network must return its logits (batch, classes)")
    outputs = {paths[module]: seen for module, seen in measured.outputs.items() if module in paths}
    larger = _larger_shapes_on_meta(network, image_size)
    layouts = _layouts(network, outputs, larger)
    once = {path: layout for path, layout in layouts.items() if measured.calls[network.get_submodule(path)] == 1}

    def reaches(path: str) -> bool:
        return reaches_output(network, path, layouts[path], (3, image_size, image_size))

    found = find_places(network, Seen(outputs, once, _grids(once, larger), measured.features, logits, reaches))
    modules = {path: _place(path, outputs[path], layout) for path, layout in layouts.items()}
    default = {"penultimate": found.penultimate, "intermediate": found.intermediate} | found.stages
    places = {place: modules[path] for place, path in default.items() if path is not None}
    befores = {stage: places[stage] for stage in found.stages}
    for stage, path in found.activations.items():
        befores[stage] = _place(
            path, measured.inputs[path], layouts[found.stages[stage]], is_input=True, norm=measured.norms[path]
        )
    if found.head is not None:
        num_features = network.get_submodule(found.head).in_features
    else:
        num_features = places["penultimate"].channels if "penultimate" in places else 0
    return Outline(
        network=name,
        image_size=image_size,
        num_classes=logits.shape[1],
        num_features=num_features,
        head=found.head,
        stages=tuple(found.stages),
        places=places,
        befores=befores,
        modules=modules,
    )


def _layouts(
    network: nn.Module, outputs: Mapping[str, "_Seen"], larger: Mapping[str, tuple[int, ...]]
) -> dict[str, Layout]:
    """Layouts of what modules return, without what is no map.

    Where the larger image was refused, sides say what nothing else does, but of modules without parameters, such as the
    dropout of attention weights (1, heads, tokens, tokens).
    """
    layouts = {}
    for path, (tensor, _) in outputs.items():
        infer = path not in larger and any(True for _ in network.get_submodule(path).parameters())
        with suppress(ValueError):
            layouts[path] = layout_of(network, path, tuple(tensor.shape), larger.get(path), infer=infer)
    return layouts


def _grids(layouts: Mapping[str, Layout], larger: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Grids for the larger image, without what is pooled and does not grow; the own ones where it was refused."""
    if any(path not in larger for path in layouts):
        return {path: layout.grid for path, layout in layouts.items()}
    grids = {}
    for path, layout in layouts.items():
        shape = larger[path]
        if layout.prefix is None:
            grid = shape[1:3] if layout.channels_last else shape[2:]
        else:
            grid = (math.isqrt(shape[1] - layout.prefix),) * 2
        if grid != layout.grid:
            grids[path] = grid
    return grids


_Seen = tuple[Tensor, int]  # a tensor, and its version when it was seen: each change in place counts one up


@dataclass(frozen=True)
class _Measured:
    """What the modules return and what the activations take, each in its last of `calls`, for one black image.

    `features` is what `forward_features` returned, where the network has it and `forward_head`, as those of timm.
    `norms` are the BatchNorms of which the inputs are sums, where these are wanted.
    """

    outputs: dict[nn.Module, _Seen]
    inputs: dict[str, _Seen]
    features: Any
    logits: Any
    calls: Counter[nn.Module]
    norms: dict[str, str | None]


def _place(
    path: str, seen: _Seen, layout: Layout | None = None, *, is_input: bool = False, norm: str | None = None
) -> Place:
    tensor, version = seen
    if layout is None:
        _, channels, height, width = tensor.shape
        layout = Layout(channels, (height, width))
    changed = tensor._version != version
    return Place(path, layout.channels, layout.grid, is_input, norm, changed, layout.prefix, layout.channels_last)


def _measured(
    network: nn.Module, image_size: int, activations: Iterable[str], sums: SumsOfNorms | None = None
) -> _Measured:
    outputs: dict[nn.Module, _Seen] = {}
    inputs: dict[str, _Seen] = {}
    calls: Counter[nn.Module] = Counter()
    norms: dict[str, str | None] = {}
    in_place = {path: getattr(network.get_submodule(path), "inplace", False) for path in activations}

    def keep_output(module: nn.Module, _inputs: tuple, output: Any) -> None:
        calls[module] += 1
        outputs.pop(module, None)
        if isinstance(output, Tensor):
            outputs[module] = output, output._version

    def keep_input(path: str, tensor: Tensor) -> None:
        norms[path] = sums.norm_of(tensor) if sums else None
        if in_place[path]:  # not in this pass, but for all who read what it overwrites under another path
            increment_version(tensor)
        inputs[path] = tensor, tensor._version

    parameter = next(network.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    features = None
    with (
        _in_eval_mode(network, in_place),
        torch.inference_mode(False),
        torch.no_grad(),
        ShapesAlone() if parameter.is_meta else nullcontext(),
        sums or nullcontext(),
    ):
        handles = [module.register_forward_hook(keep_output) for module in network.modules()]
        handles += [
            network.get_submodule(path).register_forward_pre_hook(
                lambda _module, arguments, path=path: keep_input(path, arguments[0])
            )
            for path in in_place
        ]
        try:
            if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
                features = network.forward_features(image)
                logits = network.forward_head(features)
            else:
                logits = network(image)
        finally:
            for handle in handles:
                handle.remove()
    return _Measured(outputs, inputs, features, logits, calls, norms)


def _larger_shapes_on_meta(network: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what all modules return, by path, as far as the network takes an image of another size."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[path] = tuple(output.shape)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, path=path: keep(path, output))
        for path, module in network.named_modules()
        if path
    ]
    try:
        with suppress(Exception):  # it may refuse this size in any way
            run_on_meta(network, (3, *larger_sides((image_size,) * 2)))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@contextmanager
def _in_eval_mode(network: nn.Module, activations: Iterable[str]) -> Iterator[None]:
    """Eval mode, and activations that do not overwrite their inputs; all is as before afterwards."""
    overwriting = [module for module in map(network.get_submodule, activations) if getattr(module, "inplace", False)]
    for module in overwriting:
        module.inplace = False
    try:
        with evaluating(network):
            yield
    finally:
        for module in overwriting:
            module.inplace = True
