"""What maps of a teacher supervise with: made for any torch network, saved with what made it, and read.

    first run     LDA of every map for decisions, from sums over all its patches
    second run    of every map all patches, or `max_patches` random ones
    then          k-means -> words; k-means inside every class -> sub-classes -> decision matrix        (`letkd.fit`)

A file holds maps by module path, each with what it is a map of, its tensors, and a record of what made it. The
framework's jobs write the same files.

Shapes: P patches, C channels, L LDA components, K words, N classes, S sub-classes a class, M = N*S.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from letkd.checks import (
    MAX_SEED,
    by_path,
    is_kind,
    is_network,
    label_tensor,
    nearest_first,
    whole_number,
    whole_numbers,
)
from letkd.codebook import Codebook
from letkd.files import describe_value, fingerprint, is_dense, load_tensors, pack, write_whole
from letkd.fit import NUM_COMPONENTS, Batch, Decisions, Progress, Words, fit_maps
from letkd.maps import as_map, evaluating, layouts, unwrapped
from letkd.patches import pool_map, to_patches
from letkd.subclasses import SubclassTargets
from letkd.taps import recording

FORMAT = "letkd-supervision-2"
EARLIER_FORMAT = "letkd-supervision-1"  # with fingerprints by `earlier_fingerprint`, and without records
CODEBOOK_TENSORS = ("centroids",)  # (K, C)
DECISION_TENSORS = ("scalings", "xbar", "centers", "decisions")  # (C, R), (C,), (M, L), (M, M)
MAX_PATCHES = 2**22  # more than CIFAR-100 has on an 8 x 8 grid, 3.2 million; 1 GiB at 64 channels

DIGESTED = 16  # images whose bits are summed at once
BATCH = (
    "a batch must be a pair (images, labels): floating-point images (B, C, H, W) as the teacher takes them, and their "
    "classes (B,), whole numbers"
)
OTHER_IMAGES = (
    "the loader gave other images in its second run: the same ones with the same labels are needed, in any order and "
    "without random augmentation"
)

Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TeacherMap:
    """A map of a teacher at its students' grid.

    `path` is the module of the teacher, `prefix` and `channels_last` are the `Layout` of what it returns, `pooling` is
    the side of the windows that the map is averaged over, and `channels` and `grid` (height, width) what comes out of
    that for images of `image_shape`. `teacher` is the fingerprint of the teacher's weights.
    """

    path: str
    prefix: int | None
    pooling: int
    channels: int
    grid: tuple[int, int]
    image_shape: tuple[int, int, int]
    teacher: str
    channels_last: bool = field(default=False, kw_only=True)  # earlier files do not have it

    def read(self, output: Tensor) -> Tensor:
        """The map (B, C, H, W) from what the module returned."""
        return pool_map(as_map(output, self.prefix, self.channels_last), self.pooling)

    def is_of(self, network: nn.Module) -> bool:
        """Whether it is a map of a network with these weights."""
        network = unwrapped(network)
        return self.teacher == fingerprint(network.state_dict()) or self.teacher == earlier_fingerprint(network)


@dataclass(frozen=True)
class MapSupervision(TeacherMap):
    """What a map supervises with; a value of `attach(taps=...)`.

    `tensors` are `centroids` (K, C) for words, and for decisions with `num_subclasses` S they are `scalings` (C, R) of
    which the first L are used, `xbar` (C,), `centers` (M, L), `prototypes` (M, L) and `decisions` (M, M). `record` says
    what made them: options, numbers and versions, as plain values.
    """

    tensors: dict[str, Tensor]
    num_subclasses: int | None = None
    record: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def num_templates(self) -> int:
        """K or M, the templates of a KD layer that it supervises."""
        return len(self.tensors["centroids" if self.num_subclasses is None else "centers"])

    def module(self, temperature: float = 1.0) -> Codebook | SubclassTargets:
        """The frozen tensors as the module that makes targets of them."""
        if self.num_subclasses is None:
            return Codebook(self.tensors["centroids"], temperature)
        return SubclassTargets(*(self.tensors[name] for name in DECISION_TENSORS), num_subclasses=self.num_subclasses)

    def check_tensors(self, source: str | os.PathLike[str]) -> None:
        """Refuse a file, `source`, whose tensors are not there, or not of shapes that belong together."""
        is_words = self.num_subclasses is None
        check_dense(self.tensors, CODEBOOK_TENSORS if is_words else DECISION_TENSORS, source)
        if is_words and self.tensors["centroids"].ndim != 2:
            shape = tuple(self.tensors["centroids"].shape)
            raise ValueError(f"{source} holds words of shape {shape}, not (words, channels)")
        if not is_words:
            check_decisions(self.tensors, source)
            whole_number(f"{source} holds no decision scores: the number of sub-classes", self.num_subclasses)
            if (rows := len(self.tensors["centers"])) % self.num_subclasses:
                raise ValueError(f"{source} holds {rows} sub-classes, not {self.num_subclasses} of each class")

    def check_numbers(self, source: str | os.PathLike[str]) -> None:
        """Refuse a file, `source`, with numbers that are not finite, or not there."""
        check_finite(self.tensors, source)


def check_dense(tensors: Mapping[str, Any], names: Iterable[str], source: str | os.PathLike[str]) -> None:
    """Refuse a file that has something else under these names than dense floating-point numbers."""
    for name in names:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{source} is damaged: it holds no tensor {name!r}")
        if not is_dense(tensor):
            raise ValueError(f"{source} is damaged: its tensor {name!r} is {describe_value(tensor)}, not dense numbers")
        if not tensor.is_floating_point():
            raise ValueError(
                f"{source} is damaged: its tensor {name!r} holds {tensor.dtype}, not floating-point numbers"
            )


def check_decisions(tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse decision scores whose shapes do not belong together."""
    shapes = {name: tuple(tensors[name].shape) for name in DECISION_TENSORS}
    scalings, xbar, centers, decisions = shapes.values()
    belong = len(xbar) == 1 and len(scalings) == len(centers) == 2 and decisions == 2 * centers[:1]
    if not belong or scalings[0] != xbar[0] or scalings[1] < centers[1]:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{source} holds no decision scores: shapes that do not belong together ({listed})")


def check_finite(tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse numbers that are not finite, or fewer than a shape claims."""
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{source} is damaged: its tensor {name!r} {tuple(tensor.shape)} has fewer numbers")
        if not tensor.isfinite().all():
            raise ValueError(f"{source} is damaged: it holds values that are not finite")


class Supervision(dict[str, MapSupervision]):
    """What the maps of a teacher supervise with, by the teacher's module paths."""

    def __missing__(self, path: str) -> MapSupervision:
        raise KeyError(f"no supervision of {path!r}; there is {nearest_first(path, self)}")

    def content(self) -> dict[str, Any]:
        """What a file of it holds."""
        return {"format": FORMAT, "maps": {path: vars(found) for path, found in self.items()}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `load_supervision`: whole or not at all.

        Raises:
            OSError: it cannot be written; an earlier file of that name survives.
        """
        write_whole(Path(path), pack(self.content()))


def load_supervision(path: str | os.PathLike[str]) -> Supervision:
    """Read what `Supervision.save` or a job of the framework wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; make_supervision(...).save(path) makes it")
    supervision = read_supervision(load_tensors(path), path)
    for found in supervision.values():
        found.check_numbers(path)
    return supervision


def read_supervision(content: Mapping[str, Any], source: str | os.PathLike[str]) -> Supervision:
    """The supervision in what a file holds; whether its numbers are finite is not looked at.

    Args:
        source: of the content, for errors.

    Raises:
        ValueError: it is none, or lacks something.
    """
    form = content.get("format")
    if form not in (FORMAT, EARLIER_FORMAT):
        raise ValueError(f"{source} holds no supervision ({FORMAT})")
    try:
        found = Supervision({path: MapSupervision(**facts) for path, facts in content["maps"].items()})
        if form == FORMAT and not all(isinstance(facts.get("record"), dict) for facts in content["maps"].values()):
            raise ValueError(f"{source} is damaged: it has no record of what made it")
        for supervision in found.values():
            if len(supervision.grid) != 2 or len(supervision.image_shape) != 3:
                raise TypeError
            supervision.check_tensors(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} holds no complete supervision ({form})") from error
    return found


@torch.no_grad()
def make_supervision(
    teacher: nn.Module,
    loader: Loader,
    *,
    words: Mapping[str, int] | None = None,
    decisions: Mapping[str, int] | None = None,
    num_classes: int | None = None,
    num_components: int = NUM_COMPONENTS,
    pooling: int | Mapping[str, int] = 1,
    channels_last: bool | Mapping[str, bool] | None = None,
    num_prefix_tokens: int | Mapping[str, int] | None = None,
    max_patches: int = MAX_PATCHES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Supervision:
    """Words and sub-class decisions of maps of a teacher (letKD, supplementary, algorithms 1 and 2).

    Runs on the teacher's device and in eval mode, and leaves the teacher as it was. The loader is run through twice.

    Args:
        loader: gives batches of images (B, C, H, W) and labels (B,): all training images without augmentation, the same
            in both runs, in any order.
        words: number of words K by module path of the teacher. letKD-1 has 4096 at the last map.
        decisions: number of sub-classes S of a class by module path. letKD-2 has 8 after the first block of the last
            stage.
        num_classes: N, labels being 0 to N - 1; for decisions.
        num_components: LDA components L that are kept; at most N - 1 exist.
        pooling: side of the windows that a teacher's map is averaged over to have the grid of its student's, for all
            maps or by path.
        channels_last: whether the teacher's maps are (B, H, W, C), for all or by path; needed where the network does
            not show it.
        num_prefix_tokens: how many tokens precede the patches, for all or by path; likewise.
        max_patches: of a map with more patches so many random ones are held, for k-means and decisions; LDA sees all.
            The memory is 4 * C bytes for each, 4 * L with decisions.
        seed: of k-means and the random patches.
        progress: takes a line of text now and then; `print`, for instance.

    Raises:
        ValueError: module paths, numbers, images or labels do not fit; says which.
    """
    words = whole_numbers("words", words, what="numbers of words", least=2)  # one would be likely everywhere
    decisions = whole_numbers("decisions", decisions, what="numbers of sub-classes")
    _check_request(teacher, words, decisions, num_classes, loader)
    num_components = whole_number("'num_components'", num_components)
    max_patches = whole_number("'max_patches'", max_patches)
    seed = whole_number("'seed'", seed, least=0, most=MAX_SEED)
    if progress is not None:
        is_kind("'progress'", progress, Callable, "a function that takes a line of text, like print,")
    say = progress or (lambda _line: None)
    teacher = unwrapped(teacher)
    device = next(teacher.parameters()).device
    images = _Images(loader, device, num_classes if decisions else None)
    layout = {"channels_last": channels_last, "num_prefix_tokens": num_prefix_tokens}
    maps = _teacher_maps(teacher, images, [*words, *decisions], pooling, layout)
    fitted = fit_maps(
        NetworkPatches(teacher, maps, images),
        words=words,
        decisions=decisions,
        num_classes=num_classes,
        num_components=num_components,
        max_patches=max_patches,
        seed=seed,
        hold=partial(torch.empty, device=device),
        follow=lambda now: _say(say, now),
    )
    made = {}
    for path, found in fitted.items():
        record = {
            "num_images": images.num_images,
            "patches": found.num_patches,
            "max_patches": max_patches,
            "seed": seed,
        }
        say(f"{path}: {found.num_patches} patches of {images.num_images} images")
        if isinstance(found, Decisions):
            record["lda_components"] = num_components
            say(f"{path}: {found.lda.n_components} of {found.lda.scalings_.shape[1]} LDA components")
        made[path] = supervise(maps[path], found, record)
    return Supervision(made)


def _say(say: Callable[[str], None], now: Progress) -> None:
    """A line for every phase and every iteration of k-means for words."""
    if not now.done:
        say(f"{now.number} of {now.count}: {now.what} of {', '.join(now.paths)}")
    elif now.inertia is not None:
        say(f"{now.paths[0]}: k-means iteration {now.done}, inertia {now.inertia:.6g}")


def supervise(found_at: TeacherMap, fitted: Words | Decisions, record: Mapping[str, Any]) -> MapSupervision:
    """What a map supervises with, as `fit_maps` has made it; `record` says of what. Figures and versions are added."""
    figures: dict[str, Any]
    if isinstance(fitted, Words):
        figures = {"inertia": fitted.kmeans.inertia_}
    else:
        figures = {"components": fitted.lda.n_components, "rank": fitted.lda.rank_}
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return MapSupervision(
        **vars(found_at),
        tensors=fitted.tensors,
        num_subclasses=None if isinstance(fitted, Words) else fitted.num_subclasses,
        record={**record, **figures, "versions": versions},
    )


def earlier_fingerprint(network: nn.Module) -> str:
    """The fingerprint in files of EARLIER_FORMAT: SHA-256 over parameters and buffers in their order."""
    digest = hashlib.sha256()
    for tensor in chain(network.parameters(), network.buffers()):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_request(
    teacher: nn.Module, words: dict[str, int], decisions: dict[str, int], num_classes: int | None, loader: Loader
) -> None:
    is_network("the teacher", teacher)
    if not words and not decisions:
        raise ValueError("no map to make supervision of: name one in `words` or `decisions`")
    if both := sorted(words.keys() & decisions.keys()):
        raise ValueError(f"{both[0]!r} stands in `words` and in `decisions`; a map supervises one way")
    if decisions and num_classes is None:
        raise ValueError("`decisions` need `num_classes`")
    if num_classes is not None:
        whole_number("'num_classes'", num_classes)
    if isinstance(loader, Iterator):
        raise ValueError(
            f"the loader is a {type(loader).__name__}, which ends after one run; a DataLoader can run again"
        )


class Images(Protocol):
    """Images (B, C, H, W) as a network takes them and their classes (B,), on its device; the same in each reading."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class NetworkPatches:
    """The patches of a network's maps over images: a `letkd.fit.PatchSource` that runs the network each time.

    It runs as far as the last of the maps that are asked for. The network should be frozen.
    """

    def __init__(self, network: nn.Module, maps: Mapping[str, TeacherMap], images: Images):
        self.network = network
        self.maps = dict(maps)
        self.images = images

    def num_patches(self, path: str) -> int:
        return self.images.num_images * prod(self.maps[path].grid)

    def channels(self, path: str) -> int:
        return self.maps[path].channels

    @torch.no_grad()
    def batches(self, paths: Iterable[str]) -> Iterator[Batch]:
        paths = list(paths)
        with evaluating(self.network):
            for images, labels_B in self.images:
                with recording(self.network, paths, leave_early=True) as outputs:
                    self.network(images)
                batch = {}
                for path in paths:
                    patches_RC = to_patches(self.maps[path].read(outputs[path][-1]).float())
                    batch[path] = patches_RC, labels_B.repeat_interleave(len(patches_RC) // len(labels_B))
                yield batch


class _Images:
    """The loader's batches on the teacher's device, checked; every run must give the same images and labels.

    A run is summed up in one number that does not depend on the order: the bits of every image, each times a random
    number of its place, times an odd number for the label. Integers wrap, so that the sum is exact.
    """

    def __init__(self, loader: Loader, device: torch.device, num_classes: int | None):
        self.loader = loader
        self.device = device
        self.num_classes = num_classes  # None where labels may be any
        self._example = self._first()[:1]
        self.image_shape = tuple(self._example.shape[1:])
        self._number: int | None = None
        self._digest: Tensor | None = None

    @property
    def num_images(self) -> int:
        """Known after a run."""
        if self._number is None:
            for _ in self:
                pass
        return self._number

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) and labels (B,), int64."""
        digest, number = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for batch in self.loader:
            images, labels_B = (part.to(self.device) for part in _checked(batch))
            if images.shape[1:] != self.image_shape:
                raise ValueError(f"the loader gives images {self.image_shape} and {tuple(images.shape[1:])}; one size")
            if self.num_classes is not None:
                _check_labels(labels_B, self.num_classes)
            digest += self._digest_of(images, labels_B)
            number += len(labels_B)
            if self._number is not None and number > self._number:
                raise ValueError(OTHER_IMAGES)
            yield images, labels_B
        if self._digest is not None and (number != self._number or digest != self._digest):
            raise ValueError(OTHER_IMAGES)
        self._digest, self._number = digest, number

    def check_taken(self, teacher: nn.Module) -> None:
        """Show the teacher an image of the loader. Raises ValueError where it fails: of another type, for instance."""
        image = self._example.to(self.device)
        try:
            with evaluating(teacher), torch.no_grad():
                teacher(image)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the teacher does not take the loader's images {tuple(image.shape)} of {image.dtype}: "
                f"{' '.join(str(error).split())}; {BATCH}"
            ) from error

    def _first(self) -> Tensor:
        try:
            first = next(iter(self.loader), None)
        except TypeError as error:
            raise ValueError(f"the loader is a {type(self.loader).__name__} that gives no batches; {BATCH}") from error
        if first is None:
            raise ValueError("the loader gives no images")
        return _checked(first)[0]

    def _digest_of(self, images: Tensor, labels_B: Tensor) -> Tensor:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[images.itemsize]
        limits, generator = torch.iinfo(integers), torch.Generator().manual_seed(0)
        places = torch.randint(limits.min, limits.max, self.image_shape, generator=generator, dtype=integers)
        places = places.to(self.device)
        parts = images.contiguous().view(integers).split(DIGESTED)
        sums_B = torch.cat([(part * places).sum(dim=(1, 2, 3), dtype=torch.int64) for part in parts])
        return (sums_B * (2 * labels_B + 1)).sum()


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        number = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(f"the loader gives a {type(batch).__name__}{number}; {BATCH}")
    images, labels_B = batch
    if not isinstance(images, Tensor):
        raise ValueError(f"the loader gives a {type(images).__name__} as images; {BATCH}")
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(f"the loader gives images {tuple(images.shape)} of {images.dtype}; {BATCH}")
    try:
        return images, label_tensor(labels_B, len(images))
    except ValueError as error:
        raise ValueError(f"the loader's {error}; {BATCH}") from error


def _teacher_maps(
    teacher: nn.Module,
    images: _Images,
    paths: list[str],
    pooling: int | Mapping[str, int],
    layout_options: dict[str, Any],
) -> dict[str, TeacherMap]:
    """The maps at module paths, as a black image of the loader's size shows them."""
    sides = by_path(pooling, paths, default=1, name="pooling")
    sides = {path: whole_number(f"pooling of {path!r}", side) for path, side in sides.items()}
    identity = fingerprint(teacher.state_dict())
    images.check_taken(teacher)
    maps = {}
    for path, layout in layouts(teacher, paths, images.image_shape, **layout_options).items():
        (height, width), side = layout.grid, sides[path]
        if height % side or width % side:
            raise ValueError(f"the {height} x {width} grid of {path!r} cannot be pooled {side} x {side}")
        maps[path] = TeacherMap(
            path=path, prefix=layout.prefix, channels_last=layout.channels_last, channels=layout.channels,
            pooling=side, grid=(height // side, width // side), image_shape=images.image_shape, teacher=identity,
        )  # fmt: skip
    return maps


def _check_labels(labels_B: Tensor, num_classes: int) -> None:
    least, largest = labels_B.min().item(), labels_B.max().item()
    if least < 0 or largest >= num_classes:
        raise ValueError(
            f"the loader gives labels {least} to {largest}; num_classes={num_classes} allows 0 to {num_classes - 1}"
        )
