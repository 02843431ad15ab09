"""KD layers in any torch network, supervised by a teacher that is no part of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from letkd.layer import KDLayer
from letkd.losses import SoftTargets, kl_to_scores
from letkd.maps import Layout, as_map, layouts
from letkd.supervision import MapSupervision, by_path, fingerprint
from letkd.taps import FrozenTaps, Student, _Insert


class TokenKDLayer(nn.Module):
    """A KD layer for tokens (B, N, C), of which the first `prefix` are no patches and pass unchanged."""

    def __init__(self, layer: KDLayer, prefix: int):
        super().__init__()
        self.layer = layer
        self.prefix = prefix

    def forward(self, tokens_BNC: Tensor, *, with_scores: bool = True) -> tuple[Tensor, Tensor | None]:
        """Output (B, N, C), and the scores (P, K) of the patches, P = B * (N - prefix), as `KDLayer`."""
        map_BCHW, scores_PK = self.layer(as_map(tokens_BNC, self.prefix), with_scores=with_scores)
        return torch.cat((tokens_BNC[:, : self.prefix], map_BCHW.flatten(2).mT), dim=1), scores_PK


class AttachedStudent(Student):
    """A network with KD layers: called like the network alone, and with the same outputs. `attach` makes it.

    Its state dict has the network's names below `backbone.` and those of each KD layer below `layers.` and the module
    path with `/` for `.`. The teacher is in `guidance`, outside the modules: state_dict, parameters, to and train do
    not reach it, a deep copy shares it, and `student.guidance = None` lets it go.

    Args:
        layers: by module path of the backbone.
        taps: number of templates by module path; with it `attach` builds the same student without a teacher.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Mapping[str, KDLayer | TokenKDLayer],
        taps: Mapping[str, int],
        guidance: "_Guidance | None",
    ):
        paths = {path.replace(".", "/"): path for path in layers}
        super().__init__(backbone, {name: layers[path] for name, path in paths.items()}, paths)
        self.paths = paths
        self.taps = dict(taps)
        self.__dict__["guidance"] = guidance  # nn.Module would register it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self.backbone(*args, **kwargs)

    def forward_with_scores(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What the network returns, and the scores (P, K) of every layer by module path."""
        output, scores = super().forward_with_scores(images)
        return output, {self.paths[name]: found for name, found in scores.items()}

    def forward_with_losses(self, images: Tensor, labels: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What the network returns for the images, and the mean KL divergence of every supervised layer by module path.

        The loss of the paper is the cross-entropy of the logits plus all divergences. The teacher and its supervision
        move to the images' device when they are on another one.

        Raises:
            ValueError: the student was attached without a teacher, or the maps do not meet.
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
) -> AttachedStudent:
    """Put KD layers behind modules of a network, whose maps are (B, C, H, W) or tokens (B, N, C).

    The network becomes part of what is returned and is changed by it; attach a deep copy to keep it as it is. The KD
    layers are on its device. The channels are found by showing it a black image.

    Args:
        taps: by module path of the network, what supervises the layer there (a value of `make_supervision`), or the
            number of templates of a layer without supervision: enough to load a state dict and evaluate.
        teacher: the network that the supervision was made from, for training; it is frozen.
        alpha: weight of the layers' values in their outputs, for all or by path; 0 leaves the features as they are.
        temperature: tau, which multiplies the squared distances to the words.
        images: for their size, needed where no tap has supervision.

    Raises:
        ValueError: a path, a teacher or a grid does not fit; says what would.
    """
    supervision = {path: tap for path, tap in taps.items() if isinstance(tap, MapSupervision)}
    _check_request(model, taps, supervision, teacher, images)
    image_shape = next((tap.image_shape for tap in supervision.values()), None) or images.shape[1:]
    found = layouts(model, taps, image_shape)
    for path, tap in supervision.items():
        _check_grid(path, found[path], tap)
    alphas = by_path(alpha, taps, default=1.0, name="alpha")
    num_templates = {path: tap if isinstance(tap, int) else tap.num_templates for path, tap in taps.items()}
    like = next(model.parameters())
    layers = {path: _layer(found[path], number, alphas[path]).to(like) for path, number in num_templates.items()}
    guidance = _Guidance(teacher, supervision, temperature) if teacher is not None else None
    return AttachedStudent(model, layers, num_templates, guidance)


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


def _layer(layout: Layout, num_templates: int, alpha: float) -> KDLayer | TokenKDLayer:
    layer = KDLayer(layout.channels, num_templates, alpha)
    return layer if layout.prefix is None else TokenKDLayer(layer, layout.prefix)


def _check_request(
    model: nn.Module,
    taps: Mapping[str, MapSupervision | int],
    supervision: dict[str, MapSupervision],
    teacher: nn.Module | None,
    images: Tensor | None,
) -> None:
    if not taps:
        raise ValueError("no taps: name a module of the network and what supervises the layer there")
    if any(isinstance(hook, _Insert) for module in model.modules() for hook in module._forward_hooks.values()):
        raise ValueError("the network has KD layers already: name all taps in one call, and attach to a new network")
    if len(sizes := {tap.image_shape for tap in supervision.values()}) > 1:
        raise ValueError(f"the taps were made from images of different sizes: {', '.join(map(str, sorted(sizes)))}")
    if not supervision and images is None:
        raise ValueError("no tap has supervision that knows the size of the images: give images=")
    if teacher is None:
        return
    if not supervision:
        raise ValueError("the teacher has nothing to supervise: all taps are numbers of templates")
    identity = fingerprint(teacher)
    for path, tap in supervision.items():
        if tap.teacher != identity:
            raise ValueError(
                f"the supervision of {path!r} was made from another teacher ({tap.teacher[:8]}, this one is "
                f"{identity[:8]}): make it again with make_supervision"
            )


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
