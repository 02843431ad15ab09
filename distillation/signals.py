"""What a network says of a batch: its signals, and which of them a loss reads.

Everything is as the network computes it; maps are (B, C, H, W), whatever the network has them as. A loss pools and
resizes for itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import Outline, Place, TappedNetwork, outline
from letkd import KDLayer, Student
from letkd.layer import ChannelsLastKDLayer, TokenKDLayer
from letkd.maps import as_map, evaluating
from letkd.processes import gathered
from letkd.taps import submodule

BY_PLACE = ("maps", "preact")  # signals that a network has by the name of a place


@dataclass(frozen=True)
class Wanted:
    """Which signals of a network are read.

    Args:
        maps, preact: names of places in the network's outline: a map, and the map before its last activation.
        inner: names of layers inside a student whose scores are read.
    """

    logits: bool = False
    pooled: bool = False
    head: bool = False
    maps: tuple[str, ...] = ()
    preact: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()

    @property
    def reads_classes(self) -> bool:
        """Whether it reads what depends on which classes the network tells apart."""
        return self.logits or self.head

    def __or__(self, other: "Wanted") -> "Wanted":
        """What either reads."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Wanted(
            **{
                name: tuple(dict.fromkeys(one + two)) if isinstance(one, tuple) else one or two
                for name, (one, two) in pairs.items()
            }
        )


@dataclass(frozen=True)
class Head:
    """A linear classifier as a function of pooled vectors (B, C): logits (B, N)."""

    weight: Tensor  # (N, C)
    bias: Tensor | None

    def __call__(self, pooled_BC: Tensor) -> Tensor:
        return F.linear(pooled_BC, self.weight, self.bias)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Head":
        """The classifier of other tensors."""
        return Head(function(self.weight), None if self.bias is None else function(self.bias))


@dataclass(frozen=True)
class Signals:
    """What was wanted of a network for a batch; the rest is None or not there.

    Attributes:
        logits: (B, N); in a loss float32, and so is `pooled`.
        pooled: (B, C), what enters the classifier.
        maps: (B, C, H, W) by the name of the place, behind the layers that a student has there.
        preact: likewise, before the place's last activation.
        inner: scores (P, K) of a student's KD layers by name, P = B * H * W.
        head: the classifier; a teacher's is frozen, and gradients pass to its input.
    """

    logits: Tensor | None = None
    pooled: Tensor | None = None
    maps: Mapping[str, Tensor] = None
    preact: Mapping[str, Tensor] = None
    inner: Mapping[str, Tensor] = None
    head: Head | None = None

    def in_float32(self) -> "Signals":
        """Logits and pooled vectors in float32 at least; maps keep their type until a loss sums them."""
        wide = {
            name: value.float()
            for name in ("logits", "pooled")
            if (value := getattr(self, name)) is not None and value.dtype in (torch.bfloat16, torch.float16)
        }
        return replace(self, **wide) if wide else self

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors of a batch, by one name each: `logits`, `pooled`, `maps/<place>`, `preact/<place>`; no scores."""
        whole = {name: value for name in ("logits", "pooled") if (value := getattr(self, name)) is not None}
        by_place = ((kind, name, value) for kind in BY_PLACE for name, value in (getattr(self, kind) or {}).items())
        return whole | {f"{kind}/{name}": value for kind, name, value in by_place}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], head: Head | None = None) -> "Signals":
        """What `tensors` has taken apart, with a classifier beside it."""
        by_kind: dict[str, dict[str, Tensor]] = {kind: {} for kind in BY_PLACE}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if name:
                by_kind[kind][name] = value
        return cls(logits=tensors.get("logits"), pooled=tensors.get("pooled"), head=head, **by_kind)

    def gathered(self, wanted: Wanted) -> "Signals":
        """Of these what is wanted, of the images of all processes of a run."""
        return Signals(
            logits=gathered(self.logits) if wanted.logits else None,
            pooled=gathered(self.pooled) if wanted.pooled else None,
            maps={name: gathered(self.maps[name]) for name in wanted.maps},
            preact={name: gathered(self.preact[name]) for name in wanted.preact},
            inner={name: gathered(self.inner[name]) for name in wanted.inner},
            head=self.head,
        )


class Network:
    """A network and where its maps are; called with prepared images (B, 3, H, W), it returns signals.

    Args:
        module: images to logits; a `Student` may have KD layers.
        outline: of the network, or of the student's backbone.
        wanted: the signals that a call returns.

    Raises:
        ValueError: the outline has no such place, or no linear classifier whose input or weights are wanted.
    """

    def __init__(self, module: nn.Module, outline: Outline, wanted: Wanted = Wanted(logits=True)):
        self.module = module
        self.outline = outline
        self.wanted = wanted
        self.backbone = backbone_of(module)
        if (wanted.pooled or wanted.head) and outline.head is None:
            raise ValueError(f"{outline.network} has no pooled vector and no head: its logits come from no Linear")
        self.maps = {name: outline.place(name) for name in wanted.maps}
        self.preact = {name: outline.before(name) for name in wanted.preact}
        for place in (*self.maps.values(), *self.preact.values()):
            activation = submodule(self.backbone, place.path)
            if place.is_input and hasattr(activation, "inplace"):
                activation.inplace = False  # it would overwrite what is read

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """The KD layers in it, by the names of their places."""
        return self.module.layers if isinstance(self.module, Student) else {}

    def place_of_layer(self, name: str) -> Place:
        """Where a KD layer sits."""
        return self.outline.place(self.module.paths[name])

    def pooling_of(self, teacher: "Network", place: str, teacher_place: str | None = None) -> int:
        """As `pooling_between`, of this network and its teacher."""
        return pooling_between(self.outline, teacher.outline, place, teacher_place or place)

    def pools(self, place: str) -> bool:
        """Whether what enters the classifier is the mean of a map over its positions, as seen with an image."""
        if self.outline.head is None or self.outline.place(place).channels != self.outline.num_features:
            return False
        parameter = next(self.module.parameters())
        side = self.outline.image_size
        image = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side).to(parameter)
        with evaluating(self.module), torch.no_grad():
            found = self.reading(Wanted(pooled=True, maps=(place,)))(image)
        mean = found.maps[place].mean(dim=(2, 3))
        return torch.allclose(found.pooled, mean, rtol=1e-3, atol=1e-4 * mean.abs().max().item())

    def reading(self, wanted: Wanted) -> "Network":
        """The same network, of which other signals are read."""
        return Network(self.module, self.outline, wanted)

    def places_read(self) -> dict[str, Place]:
        """Where the signals that have places are read, by their names in `Signals.tensors`."""
        return {f"{kind}/{name}": place for kind in BY_PLACE for name, place in getattr(self, kind).items()}

    def head(self) -> Head:
        """The classifier of a network that has one, as every network has where it is wanted."""
        linear = submodule(self.backbone, self.outline.head)
        return Head(linear.weight, linear.bias)

    def __call__(self, images: Tensor) -> Signals:
        wanted = self.wanted
        places = {("maps", name): place for name, place in self.maps.items()}
        places |= {("preact", name): place for name, place in self.preact.items()}
        if wanted.pooled:
            places["pooled", ""] = Place(self.outline.head, self.outline.num_features, (), is_input=True)
        with self._recording(places) as found:
            logits, inner = self._run(images)
        by_kind: dict[str, dict[str, Tensor]] = {"maps": {}, "preact": {}, "pooled": {}}
        for kind, name in places:
            by_kind[kind][name] = found[kind, name]
        return Signals(
            logits=logits if wanted.logits else None,
            pooled=by_kind["pooled"].get(""),
            maps=by_kind["maps"],
            preact=by_kind["preact"],
            inner=inner,
            head=self.head() if wanted.head else None,
        )

    def _run(self, images: Tensor) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """Logits, and scores of the KD layers; without logits where nothing behind the maps is wanted."""
        if self.wanted.inner:
            return self.module.forward_with_scores(images)
        if self.wanted.logits or self.wanted.pooled:
            return self.module(images), {}
        # Of other networks a map may also be behind `forward_features`.
        (self.backbone.forward_features if isinstance(self.backbone, TappedNetwork) else self.module)(images)
        return None, {}

    @contextmanager
    def _recording(self, places: Mapping[Any, Place]) -> Iterator[dict[Any, Tensor]]:
        """The tensors at places during the block; of a module that is called twice the last call counts."""
        found: dict[Any, Tensor] = {}
        with ExitStack() as stack:
            for key, place in places.items():
                module = submodule(self.backbone, place.path)
                register = module.register_forward_pre_hook if place.is_input else module.register_forward_hook
                stack.enter_context(register(_keep(found, key, place)))
            yield found


def pooling_between(student: Outline, teacher: Outline, place: str, teacher_place: str) -> int:
    """Side of the windows over which the teacher's map at a place is averaged, to have the student's grid.

    Raises:
        ValueError: the teacher's grid is no multiple of the student's; names both.
    """
    own, other = student.place(place).grid, teacher.place(teacher_place).grid
    ratio = other[0] // own[0]
    if not ratio or other != tuple(ratio * side for side in own):
        small, large = (f"({height} x {width})" for height, width in (own, other))
        that = "that" if place == teacher_place else f"the {place} map"
        seen = ""
        if student.image_size != teacher.image_size:
            own, other = (f"{side} x {side}" for side in (student.image_size, teacher.image_size))
            seen = f"; it sees images of {other} and the student of {own}: choose teacher_size= or student_size="
        raise ValueError(
            f"the {teacher_place} map of {teacher.network} {large} is no whole multiple of {that} of "
            f"{student.network} {small}{seen}"
        )
    return ratio


def measured(module: nn.Module, image_size: int, name: str | None = None) -> Network:
    """A network with its outline, KD layers included; nothing of it is changed.

    Args:
        module: images to logits; a `Student` may have KD layers.
        image_size, name: as `outline` takes them.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()  # KD layers are not among the modules of the backbone, and would move their running statistics
    try:
        return Network(module, outline(backbone_of(module), image_size, name))
    finally:
        for part, mode in modes:
            part.training = mode


def plain_kd_layer(layer: KDLayer | TokenKDLayer) -> KDLayer:
    """The KD layer of maps in one of tokens."""
    return layer.layer if isinstance(layer, TokenKDLayer) else layer


def map_at(layer: KDLayer | TokenKDLayer, features: Tensor) -> Tensor:
    """The map (B, C, H, W) in what a KD layer takes or returns: a copy, because the network may overwrite it."""
    prefix = layer.prefix if isinstance(layer, TokenKDLayer) else None
    return as_map(features, prefix, isinstance(layer, ChannelsLastKDLayer)).clone()


def _keep(found: dict[Any, Tensor], key: Any, place: Place) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        found[key] = place.read(inputs[0] if place.is_input else output)

    return keep


def backbone_of(module: nn.Module) -> nn.Module:
    """The network without its KD layers."""
    return module.backbone if isinstance(module, Student) else module
