"""KD layers in any torch network, supervised by a teacher that is no part of it."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

from letkd.checks import by_path, is_kind, is_network, real_number, shown, whole_number
from letkd.files import fingerprint
from letkd.inserts import Inserted, has_layers, key_of, with_forward_of
from letkd.layer import KDLayer, TokenKDLayer, kd_layer
from letkd.losses import SoftTargets, kl_to_scores
from letkd.maps import Layout, layouts, unwrapped
from letkd.reach import check_layers
from letkd.supervision import MapSupervision
from letkd.taps import FrozenTaps


class Student(nn.Module):
    """A network with KD layers: called like the network alone, with the same signature and the same outputs.

    Its state dict has the network's names below `backbone.` and those of each KD layer below `layers.` and its name,
    with `/` for `.`. The teacher is in `guidance`, outside the modules: state_dict, parameters, to and train do not
    reach it, a deep copy shares it, and `student.guidance = None` lets it go.

    Args:
        backbone: any network.
        layers: by name; the output of each takes the place of its map.
        paths: module path in the backbone behind which each layer sits, by name; by default the names are the paths.
        guidance: what `attach` makes of a teacher and its supervision.
    """

    def __new__(cls, backbone: nn.Module, *_args: Any, **_kwargs: Any) -> "Student":
        return super().__new__(with_forward_of(backbone, cls))

    def __init__(
        self,
        backbone: nn.Module,
        layers: Mapping[str, KDLayer | TokenKDLayer],
        paths: Mapping[str, str] | None = None,
        guidance: "_Guidance | None" = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.layers = nn.ModuleDict({key_of(name): layer for name, layer in layers.items()})
        self._inserted = Inserted(backbone, self.layers, {name: (paths or {}).get(name, name) for name in layers})
        self.__dict__["guidance"] = guidance  # nn.Module would register it

    def __reduce__(self) -> tuple:
        return _rebuilt, (self.backbone,), self.__getstate__()  # by its name the class would be found without forward

    @property
    def paths(self) -> dict[str, str]:
        """Module path in the backbone behind which each layer sits, by name."""
        return dict(self._inserted.paths)

    @property
    def taps(self) -> dict[str, int]:
        """Number of templates by name; with it and `alphas`, `attach` builds the same student without a teacher."""
        return {name: self.layers[key_of(name)].num_templates for name in self.paths}

    @property
    def alphas(self) -> dict[str, float]:
        """Weight of each layer's values in its output by name, which no state dict holds: for `attach(alpha=)`."""
        return {name: self.layers[key_of(name)].alpha for name in self.paths}

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._inserted.call(self.backbone, args, kwargs)

    def forward_with_scores(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """What the network returns, and the scores (P, K) of every layer by name.

        Raises:
            ValueError: a layer is called several times, or without gradients where the call has some.
        """
        return self._inserted.call_with_scores(self.backbone, args, kwargs)

    def forward_with_losses(self, images: Tensor, labels: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What the network returns for the images, and the mean KL divergence of every supervised layer by module path.

        The loss of the paper is the cross-entropy of the logits plus all divergences. The teacher and its supervision
        move to the images' device when they are on another one.

        Raises:
            ValueError: the student was attached without a teacher, the maps do not meet, or labels are none: decisions
                need whole numbers (B,) from 0. On a GPU the values of labels are asserted on the device.
        """
        if self.guidance is None:
            raise ValueError("there is no teacher to compare with: attach the student with teacher=")
        targets = self.guidance(images, labels)
        output, scores = self.forward_with_scores(images)
        losses = {}
        for path, (num_patches, targets_PK) in targets.items():
            if len(scores[path]) != num_patches:
                raise ValueError(
                    f"images {tuple(images.shape)} give {len(scores[path])} patches at {path!r} of the student and "
                    f"{num_patches} of the teacher; the two grids must be equal"
                )
            losses[path] = kl_to_scores(scores[path], targets_PK)
        return output, losses

    def distillation_loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The divergences of `forward_with_losses` alone."""
        return self.forward_with_losses(images, labels)[1]


def attach(
    model: nn.Module,
    taps: Mapping[str, MapSupervision | int],
    *,
    teacher: nn.Module | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    temperature: float = 1.0,
    images: Tensor | None = None,
    channels_last: bool | Mapping[str, bool] | None = None,
    num_prefix_tokens: int | Mapping[str, int] | None = None,
) -> Student:
    """Put KD layers behind modules of a network, whose maps are (B, C, H, W), (B, H, W, C) or tokens (B, N, C).

    The network becomes part of what is returned and is changed by it; attach a deep copy to keep it as it is. The KD
    layers are on its device. The channels are found by showing it a black image.

    Args:
        taps: by module path of the network, what supervises the layer there (a value of `make_supervision`), or the
            number of templates of a layer without supervision: enough to load a state dict and evaluate.
        teacher: the network that the supervision was made from, for training; it is frozen, and shares nothing with the
            student.
        alpha: weight of the layers' values in their outputs, for all or by path; 0 leaves the features as they are.
        temperature: tau, which multiplies the squared distances to the words.
        images: for their size, needed where no tap has supervision.
        channels_last: whether the network's maps are (B, H, W, C), for all or by path; needed where it does not show.
        num_prefix_tokens: how many tokens precede the patches, for all or by path; likewise.

    Raises:
        ValueError: an option, a path, a teacher or a grid does not fit, or what the network returns does not depend on
            the patches of a module, such as those behind the last block of a vision transformer; says what would do.
    """
    is_network("the network", model)
    is_kind("'taps'", taps, Mapping, "what supervises, or a number of templates, by module path")
    supervision = {path: tap for path, tap in taps.items() if isinstance(tap, MapSupervision)}
    temperature = real_number("'temperature'", temperature, above=0)
    _check_request(model, taps, supervision, images)
    if teacher is not None:
        _check_teacher(model, teacher, supervision)
    image_shape = next((tap.image_shape for tap in supervision.values()), None) or images.shape[1:]
    found = layouts(model, taps, image_shape, channels_last=channels_last, num_prefix_tokens=num_prefix_tokens)
    for path, tap in supervision.items():
        _check_grid(path, found[path], tap)
    alphas = by_path(alpha, taps, default=1.0, name="alpha")
    alphas = {path: real_number(f"alpha of {path!r}", weight) for path, weight in alphas.items()}
    check_layers(model, [(path, found[path], alphas[path]) for path in taps], image_shape)
    num_templates = {path: tap.num_templates if path in supervision else int(tap) for path, tap in taps.items()}
    like = next(model.parameters())
    layers = {path: kd_layer(found[path], number, alphas[path]).to(like) for path, number in num_templates.items()}
    guidance = _Guidance(unwrapped(teacher), supervision, temperature) if teacher is not None else None
    return Student(model, layers, guidance=guidance)


class _Guidance(nn.Module):
    """A frozen teacher and what its maps supervise with, by module path of the student."""

    def __init__(self, teacher: nn.Module, supervision: dict[str, MapSupervision], temperature: float):
        super().__init__()
        self.supervision = supervision
        self.taps = FrozenTaps(teacher, {path: tap.path for path, tap in supervision.items()})
        self.targets = nn.ModuleList(tap.module(temperature) for tap in supervision.values())

    def __deepcopy__(self, memo: dict) -> "_Guidance":
        return self

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, tuple[int, SoftTargets]]:
        """Number of patches and targets of every supervised layer."""
        if any(next(part).device != images.device for part in (self.taps.parameters(), self.targets.buffers())):
            self.to(images.device)
        outputs = self.taps(images)
        guided = {}
        for (path, tap), module in zip(self.supervision.items(), self.targets, strict=True):
            map_BCHW = tap.read(outputs[path])
            targets = module.targets(map_BCHW) if tap.num_subclasses is None else module.targets(map_BCHW, labels)
            guided[path] = map_BCHW[:, 0].numel(), targets
        return guided


def _rebuilt(backbone: nn.Module) -> Student:
    """A student that gets its state from a pickle."""
    return Student.__new__(Student, backbone)


def _check_request(
    model: nn.Module,
    taps: Mapping[str, MapSupervision | int],
    supervision: dict[str, MapSupervision],
    images: Tensor | None,
) -> None:
    if not taps:
        raise ValueError("no taps: name a module of the network and what supervises the layer there")
    for path, tap in taps.items():
        if path not in supervision:
            needed = "a value of make_supervision(...), or its number of templates:"
            whole_number(f"{needed} the tap of {path!r}", tap)
    if unwrapped(model) is not model:
        raise ValueError(f"the network is wrapped in {type(model).__name__}; attach first, and wrap the student")
    if has_layers(model):
        raise ValueError("the network has KD layers already: name all taps in one call, and attach to a new network")
    if len(sizes := {tap.image_shape for tap in supervision.values()}) > 1:
        raise ValueError(f"the taps were made from images of different sizes: {', '.join(map(str, sorted(sizes)))}")
    if not supervision and images is None:
        raise ValueError("no tap has supervision that knows the size of the images: give images=")
    if images is not None and (not isinstance(images, Tensor) or images.ndim != 4):
        raise ValueError(f"images= is {shown(images)}; a tensor (B, C, H, W) is needed")


def _check_teacher(model: nn.Module, teacher: nn.Module, supervision: dict[str, MapSupervision]) -> None:
    is_network("the teacher", teacher)
    if not supervision:
        raise ValueError("the teacher has nothing to supervise: all taps are numbers of templates")
    if shared := _shared(model, teacher):
        raise ValueError(
            f"teacher and student share {shared}, and the teacher is frozen: nothing of it would train; attach to "
            "another network, or to copy.deepcopy of this one"
        )
    for path, tap in supervision.items():
        if not tap.is_of(teacher):
            identity = fingerprint(unwrapped(teacher).state_dict())
            raise ValueError(
                f"the supervision of {path!r} was made from another teacher ({tap.teacher[:8]}, this one is "
                f"{identity[:8]}): make it again with make_supervision"
            )


def _shared(model: nn.Module, teacher: nn.Module) -> str | None:
    """What belongs to both networks: a module, or memory of parameters and buffers."""
    if unwrapped(teacher) is model:
        return "all of their modules"
    modules = {id(module) for module in teacher.modules()}
    tensors = {tensor.untyped_storage().data_ptr() for tensor in chain(teacher.parameters(), teacher.buffers())} - {0}
    for name, module in model.named_modules():
        if id(module) in modules:
            return f"the module {name!r}"
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.untyped_storage().data_ptr() in tensors:
            return f"the weights of {name!r}"
    return None


def _check_grid(path: str, layout: Layout, tap: MapSupervision) -> None:
    if layout.grid == tap.grid:
        return
    teacher_grid = tuple(tap.pooling * side for side in tap.grid)
    ratio = teacher_grid[0] // layout.grid[0]
    remedy = "take another map, the teacher's grid must be a multiple of the student's"
    if ratio and teacher_grid == tuple(ratio * side for side in layout.grid):
        remedy = f"make it with pooling={{{tap.path!r}: {ratio}}}"
    raise ValueError(
        f"{path!r} of the student has a grid of {layout.grid[0]} x {layout.grid[1]}, "
        f"the supervision of {tap.path!r} one of {tap.grid[0]} x {tap.grid[1]}: {remedy}"
    )
