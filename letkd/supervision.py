"""The offline part of letKD for any torch network: what maps of a teacher supervise with, made once and saved.

    first run     LDA of every map for decisions, from sums over all its patches
    second run    of every map all patches, or `max_patches` random ones
    then          k-means -> words; k-means inside every class -> sub-classes -> decision matrix

Shapes: P patches, C channels, L LDA components, K words, N classes, S sub-classes a class, M = N*S.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from letkd.checks import (
    MAX_SEED,
    at,
    by_path,
    is_kind,
    is_network,
    label_tensor,
    nearest_first,
    whole_number,
    whole_numbers,
)
from letkd.codebook import Codebook
from letkd.decisions import decision_matrix, fit_subclasses
from letkd.kmeans import KMeans
from letkd.lda import LDA
from letkd.maps import as_map, evaluating, layouts, unwrapped
from letkd.patches import pool_map, to_patches
from letkd.subclasses import SubclassTargets
from letkd.taps import recording

FORMAT = "letkd-supervision-1"
NUM_COMPONENTS = 60  # L of the paper
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


@dataclass(frozen=True)
class MapSupervision(TeacherMap):
    """What a map supervises with; a value of `attach(taps=...)`.

    `tensors` are `centroids` (K, C) for words, and for decisions with `num_subclasses` S they are `scalings` (C, L),
    `xbar` (C,), `centers` (M, L) and `decisions` (M, M).
    """

    tensors: dict[str, Tensor]
    num_subclasses: int | None = None

    @property
    def num_templates(self) -> int:
        """K or M, the templates of a KD layer that it supervises."""
        return len(self.tensors["centroids" if self.num_subclasses is None else "centers"])

    def module(self, temperature: float = 1.0) -> Codebook | SubclassTargets:
        """The frozen tensors as the module that makes targets of them."""
        if self.num_subclasses is None:
            return Codebook(self.tensors["centroids"], temperature)
        tensors = (self.tensors[name] for name in ("scalings", "xbar", "centers", "decisions"))
        return SubclassTargets(*tensors, num_subclasses=self.num_subclasses)


class Supervision(dict[str, MapSupervision]):
    """What the maps of a teacher supervise with, by the teacher's module paths."""

    def __missing__(self, path: str) -> MapSupervision:
        raise KeyError(f"no supervision of {path!r}; there is {nearest_first(path, self)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `load_supervision`: whole or not at all.

        Raises:
            OSError: it cannot be written; an earlier file of that name survives.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        content = {"format": FORMAT, "maps": {name: vars(found) for name, found in self.items()}}
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def load_supervision(path: str | os.PathLike[str]) -> Supervision:
    """Read what `Supervision.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; make_supervision(...).save(path) makes it")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} is damaged, or no torch file: {type(error).__name__} on reading") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not fit")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds no supervision ({FORMAT})")
    try:
        return Supervision({name: MapSupervision(**found) for name, found in content["maps"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no complete supervision ({FORMAT})") from error


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
    batches = _Batches(loader, next(teacher.parameters()).device)
    layout = {"channels_last": channels_last, "num_prefix_tokens": num_prefix_tokens}
    sources = _teacher_maps(teacher, batches, [*words, *decisions], pooling, layout)
    ldas = _fit_ldas(teacher, {path: sources[path] for path in decisions}, batches, num_classes)
    for path, lda in ldas.items():
        lda.num_components = min(num_components, lda.scalings_.shape[1])
        say(f"{path}: {lda.num_components} of {lda.scalings_.shape[1]} LDA components")
    samples = _hold_patches(teacher, sources, batches, ldas, max_patches, seed)

    made = {}
    for path, source in sources.items():
        rows, labels_P = samples.pop(path).finish()
        say(f"{path}: {len(rows)} patches of {batches.num_images} images")
        with at(path):
            if path in words:
                tensors = _fit_words(rows, words[path], seed, lambda line, path=path: say(f"{path}: {line}"))
            else:
                tensors = _fit_decisions(rows, labels_P, ldas[path], num_classes, decisions[path], seed)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        made[path] = MapSupervision(**vars(source), tensors=tensors, num_subclasses=decisions.get(path))
    return Supervision(made)


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over parameters and buffers in their order: equal for equal weights, however the module is wrapped."""
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


class _Batches:
    """The loader's batches on the teacher's device, checked; every run must give the same images and labels.

    A run is summed up in one number that does not depend on the order: the bits of every image, each times a random
    number of its place, times an odd number for the label. Integers wrap, so that the sum is exact.
    """

    def __init__(self, loader: Loader, device: torch.device):
        self.loader = loader
        self.device = device
        self._example = self._first()[:1]
        self.image_shape = tuple(self._example.shape[1:])
        self.num_images: int | None = None
        self._digest: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) and labels (B,), int64."""
        digest, number = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for batch in self.loader:
            images, labels_B = (part.to(self.device) for part in _checked(batch))
            if images.shape[1:] != self.image_shape:
                raise ValueError(f"the loader gives images {self.image_shape} and {tuple(images.shape[1:])}; one size")
            digest += self._digest_of(images, labels_B)
            number += len(labels_B)
            yield images, labels_B
        if self._digest is not None and (number != self.num_images or digest != self._digest):
            raise ValueError(OTHER_IMAGES)
        self._digest, self.num_images = digest, number

    def check_taken(self, teacher: nn.Module) -> None:
        """Show the teacher an image of the loader. Raises ValueError where it fails: of another type, for instance."""
        image = self._example.to(self.device)
        try:
            with evaluating(teacher), torch.no_grad():
                _features_of(teacher)(image)
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
    batches: _Batches,
    paths: list[str],
    pooling: int | Mapping[str, int],
    layout_options: dict[str, Any],
) -> dict[str, TeacherMap]:
    """The maps at module paths, as a black image of the loader's size shows them."""
    sides = by_path(pooling, paths, default=1, name="pooling")
    sides = {path: whole_number(f"pooling of {path!r}", side) for path, side in sides.items()}
    identity = fingerprint(teacher)
    batches.check_taken(teacher)
    maps = {}
    for path, layout in layouts(
        teacher, paths, batches.image_shape, run=_features_of(teacher), **layout_options
    ).items():
        (height, width), side = layout.grid, sides[path]
        if height % side or width % side:
            raise ValueError(f"the {height} x {width} grid of {path!r} cannot be pooled {side} x {side}")
        maps[path] = TeacherMap(
            path=path, prefix=layout.prefix, channels_last=layout.channels_last, channels=layout.channels,
            pooling=side, grid=(height // side, width // side), image_shape=batches.image_shape, teacher=identity,
        )  # fmt: skip
    return maps


def _features_of(teacher: nn.Module) -> Callable[[Tensor], Any]:
    """The part of the teacher that `FrozenTaps` runs in training."""
    return getattr(teacher, "forward_features", teacher)


def _patches(
    teacher: nn.Module, sources: dict[str, TeacherMap], batches: _Batches
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Patches (R, C) float32 of every map by path, and labels (B,), batch after batch on the teacher's device."""
    with evaluating(teacher), recording(teacher, sources) as outputs:
        for images, labels_B in batches:
            if sources:
                _features_of(teacher)(images)
            maps = {path: source.read(outputs[path].pop()).float() for path, source in sources.items()}
            yield {path: to_patches(map_BCHW) for path, map_BCHW in maps.items()}, labels_B


def _fit_ldas(
    teacher: nn.Module, sources: dict[str, TeacherMap], batches: _Batches, num_classes: int | None
) -> dict[str, LDA]:
    """LDA of every map; without maps the images are only counted."""
    ldas = {path: LDA() for path in sources}
    for patches, labels_B in _patches(teacher, sources, batches):
        for path, lda in ldas.items():
            _check_labels(labels_B, num_classes)
            labels_R = _patch_labels(labels_B, patches[path])
            lda.partial_fit(patches[path], labels_R, num_classes=num_classes)
    for path, lda in ldas.items():
        with at(path):
            lda.solve()
    return ldas


def _hold_patches(
    teacher: nn.Module,
    sources: dict[str, TeacherMap],
    batches: _Batches,
    ldas: dict[str, LDA],
    limit: int,
    seed: int,
) -> dict[str, "_Sample"]:
    """Patches of every map with the labels of their images, projected where there is an LDA."""
    num_images = batches.num_images
    samples = {
        path: _Sample(num_images * source.grid[0] * source.grid[1], limit, seed) for path, source in sources.items()
    }
    for patches, labels_B in _patches(teacher, sources, batches):
        for path, sample in samples.items():
            rows = ldas[path].transform(patches[path]) if path in ldas else patches[path]
            sample.add(rows, _patch_labels(labels_B, rows))
    return samples


def _check_labels(labels_B: Tensor, num_classes: int) -> None:
    least, largest = labels_B.min().item(), labels_B.max().item()
    if least < 0 or largest >= num_classes:
        raise ValueError(
            f"the loader gives labels {least} to {largest}; num_classes={num_classes} allows 0 to {num_classes - 1}"
        )


def _patch_labels(labels_B: Tensor, patches_RC: Tensor) -> Tensor:
    """The label (R,) of every patch's image."""
    return labels_B.repeat_interleave(len(patches_RC) // len(labels_B))


class _Sample:
    """All rows of a stream of `total`, or so many random ones, with their labels and in their order."""

    def __init__(self, total: int, limit: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self._chosen = None if total <= limit else torch.randperm(total, generator=generator)[:limit].sort().values
        self._total, self._seen, self._size, self._filled = total, 0, min(total, limit), 0
        self._rows: Tensor | None = None
        self._labels: Tensor | None = None

    def add(self, rows: Tensor, labels: Tensor) -> None:
        if self._rows is None:
            self._rows = rows.new_empty(self._size, rows.shape[1])
            self._labels = labels.new_empty(self._size)
        first, self._seen = self._seen, self._seen + len(rows)
        self._check(self._seen <= self._total)
        if self._chosen is not None:
            here = slice(*torch.searchsorted(self._chosen, torch.tensor([first, self._seen])).tolist())
            chosen = (self._chosen[here] - first).to(rows.device)
            rows, labels = rows[chosen], labels[chosen]
        place = slice(self._filled, self._filled + len(rows))
        self._rows[place], self._labels[place] = rows, labels
        self._filled = place.stop

    def finish(self) -> tuple[Tensor, Tensor]:
        self._check(self._seen == self._total)
        return self._rows, self._labels

    def _check(self, agrees: bool) -> None:
        if not agrees:
            raise ValueError(OTHER_IMAGES)


def _fit_words(patches_PC: Tensor, num_words: int, seed: int, say: Callable[[str], None]) -> dict[str, Tensor]:
    def report(iteration: int, objective: float) -> None:
        say(f"k-means iteration {iteration}, objective {objective:.6g}")

    return {"centroids": KMeans(num_words, seed=seed, on_iteration=report).fit(patches_PC).centroids_}


def _fit_decisions(
    projected_PL: Tensor, labels_P: Tensor, lda: LDA, num_classes: int, num_subclasses: int, seed: int
) -> dict[str, Tensor]:
    centers_ML, members_P = fit_subclasses(
        projected_PL, labels_P, num_classes=num_classes, num_subclasses=num_subclasses, seed=seed
    )
    _, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=len(centers_ML))
    scalings_CL = lda.scalings_[:, : lda.num_components]
    return {"scalings": scalings_CL, "xbar": lda.xbar_, "centers": centers_ML, "decisions": decisions_MM}
