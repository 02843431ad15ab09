"""Words and decisions of maps, made from their patches (letKD, supplementary, algorithms 1 and 2).

    words        k-means over the patches
    decisions    LDA over the patches; k-means of the projections inside every class -> sub-classes -> decision matrix

The patches come from a source that can be read again: tensors, a mapped file, or a network that is run over its images
once more. Of a map with more than `max_patches` patches so many random ones are held; LDA sees all of them. What is
made does not depend on the batches in which the source gives them.

Where several processes hold the patches (`member`), the source of each gives its part of them: rank r the images that
follow on those of rank r - 1. It reads and holds these alone, and all return the same words and decisions, those of one
process up to the order of sums.

Shapes: P patches, C channels, L LDA components, K words, N classes, S sub-classes a class, M = N*S; R rows of a batch.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from letkd.checks import at
from letkd.chunks import Blocks
from letkd.decisions import decision_matrix, fit_subclasses
from letkd.kmeans import KMeans
from letkd.lda import LDA, ROWS
from letkd.parts import num_by_rank
from letkd.processes import ALONE, Member

NUM_COMPONENTS = 60  # L of the paper

Batch = Mapping[str, tuple[Tensor, Tensor]]  # patches (R, C) float32 and the classes of their images (R,), by map
Held = tuple[Tensor, Tensor]  # patches (P, C) or their projections (P, L), and classes (P,)
Hold = Callable[[int, int], Tensor]  # room for so many rows and columns of float32


class PatchSource(Protocol):
    """Patches of some maps of the same images. Each reading gives the same ones, best in the same order."""

    def num_patches(self, path: str) -> int: ...

    def channels(self, path: str) -> int: ...

    def batches(self, paths: Iterable[str]) -> Iterator[Batch]:
        """All patches of the maps at these paths; every batch has some of some of them."""
        ...


class HeldPatches:
    """A source of patches that are in memory, or in a mapped file."""

    def __init__(self, maps: Mapping[str, Held]):
        self.maps = dict(maps)

    def num_patches(self, path: str) -> int:
        return len(self.maps[path][0])

    def channels(self, path: str) -> int:
        return self.maps[path][0].shape[1]

    def batches(self, paths: Iterable[str]) -> Iterator[Batch]:
        for path in paths:
            for rows in zip(*(part.split(ROWS) for part in self.maps[path]), strict=True):
                yield {path: rows}


class Progress(NamedTuple):
    """How far `fit_maps` is.

    Attributes:
        number, count: of the phase, from 1. Every phase begins with `done` 0.
        what, paths: what is done, and of which maps.
        done, total: patches, passes of k-means over them, or classes. `total` is None where the first reading is for
            LDA: a source need not know its number of patches before.
        inertia: of the iteration of k-means for words that is done, else None.
    """

    number: int
    count: int
    what: str
    paths: tuple[str, ...]
    done: int
    total: int | None
    inertia: float | None = None


Follow = Callable[[Progress], None]


@dataclass(frozen=True)
class Words:
    """The codebook of a map: the fitted k-means of so many patches, those of all ranks."""

    kmeans: KMeans
    num_patches: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        """On the CPU, as `MapSupervision` has them."""
        return _on_cpu(centroids=self.kmeans.cluster_centers_)


@dataclass(frozen=True)
class Decisions:
    """The sub-classes of a map and how it decides between them, from the projections of so many patches, those of all
    ranks.
    """

    lda: LDA
    num_subclasses: int
    num_patches: int
    centers_ML: Tensor
    prototypes_ML: Tensor
    decisions_MM: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """On the CPU, as `MapSupervision` has them; `scalings` are all that exist."""
        return _on_cpu(
            scalings=self.lda.scalings_, xbar=self.lda.xbar_, centers=self.centers_ML, prototypes=self.prototypes_ML,
            decisions=self.decisions_MM,
        )  # fmt: skip


def _on_cpu(**tensors: Tensor) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def fit_maps(
    source: PatchSource,
    *,
    words: Mapping[str, int] | None = None,
    decisions: Mapping[str, int] | None = None,
    num_classes: int | None = None,
    num_components: int = NUM_COMPONENTS,
    max_patches: int | None = None,
    seed: int = 0,
    incremental: bool = True,
    hold: Hold = torch.empty,
    follow: Follow | None = None,
    member: Member = ALONE,
) -> dict[str, Words | Decisions]:
    """Words and decisions by map.

    Args:
        words: number of words K by map.
        decisions: number of sub-classes S of a class by map.
        num_classes: N; for decisions.
        num_components: LDA components that are kept, as far as there are so many.
        max_patches: of a map with more, so many random ones are held, for k-means and decision matrix; None holds all.
            Of several ranks all together hold so many.
        seed: of k-means and the random patches.
        incremental: read the source a first time for LDA, and then hold projections alone. Otherwise the patches of all
            maps are held, unless there are more than `max_patches`, and LDA reads these: the result is the same.
        hold: gives room for patches or projections.
        follow: is told how far it is with this rank's part; by other threads too, and never by two at once.
        member: of the processes that read the images, each a part of them.

    Raises:
        ValueError: patches or numbers do not fit; names the map.
    """
    words, decisions = dict(words or {}), dict(decisions or {})
    paths = [*words, *decisions]
    if not incremental and max_patches is not None:
        incremental = any(sum(num_by_rank(source.num_patches(path), member)) > max_patches for path in decisions)
    limit = {"max_patches": max_patches, "seed": seed, "hold": hold, "member": member}
    phases = _Phases(1 + bool(decisions) + len(words) + 2 * len(decisions), follow)
    read = _Read(source, phases)
    if incremental:
        phases.begin("LDA", decisions, None)
        ldas = _fit_ldas(read, decisions, num_classes, num_components, member)
        phases.begin("reading patches", paths, _total(source, paths))
        held = hold_patches(read, paths, **limit, ldas=ldas)
    else:
        phases.begin("reading patches", paths, _total(source, paths))
        held = hold_patches(read, paths, **limit)
        patches = _Read(HeldPatches({path: held.pop(path) for path in decisions}), phases)
        phases.begin("LDA", decisions, 2 * _total(patches, decisions))
        ldas = _fit_ldas(patches, decisions, num_classes, num_components, member)
        held |= hold_patches(patches, decisions, **limit, ldas=ldas)
        del patches
    fitted: dict[str, Words | Decisions] = {}
    for path in paths:
        rows, labels_P = held.pop(path)
        with at(path):
            if path in words:
                fitted[path] = _fit_words(rows, words[path], seed, path, phases, member)
            else:
                sizes = {"num_classes": num_classes, "num_subclasses": decisions[path]}
                fitted[path] = _fit_decisions(
                    rows, labels_P, ldas[path], **sizes, seed=seed, path=path, phases=phases, member=member
                )
    return fitted


class _Phases:
    """Tells a callback how far each phase is, one after the other."""

    def __init__(self, count: int, follow: Follow | None):
        self._follow = follow or (lambda progress: None)
        self._now = Progress(0, count, "", (), 0, 0)
        self._lock = threading.Lock()  # classes are done by several threads

    def begin(self, what: str, paths: Iterable[str], total: int | None) -> None:
        """Without maps there is no such phase."""
        if paths := tuple(paths):
            self._now = Progress(self._now.number + 1, self._now.count, what, paths, 0, total)
            self._follow(self._now)

    def advance(self, done: int = 1, inertia: float | None = None) -> None:
        with self._lock:
            self._now = self._now._replace(done=self._now.done + done, inertia=inertia)
            self._follow(self._now)


class _Read:
    """A source whose readings advance the present phase."""

    def __init__(self, source: PatchSource, phases: _Phases):
        self.source, self.phases = source, phases
        self.num_patches, self.channels = source.num_patches, source.channels

    def batches(self, paths: Iterable[str]) -> Iterator[Batch]:
        for batch in self.source.batches(paths):
            yield batch
            self.phases.advance(sum(len(labels_R) for _, labels_R in batch.values()))


def _total(source: PatchSource, paths: Iterable[str]) -> int:
    return sum(source.num_patches(path) for path in paths)


def hold_patches(
    source: PatchSource,
    paths: Iterable[str],
    *,
    max_patches: int | None = None,
    seed: int = 0,
    hold: Hold = torch.empty,
    ldas: Mapping[str, LDA] | None = None,
    member: Member = ALONE,
) -> dict[str, Held]:
    """Patches (P, C) and classes (P,) by map; with an LDA the projections (P, L) instead. Reads the source once."""
    samples = {}
    for path in paths:
        counts = num_by_rank(source.num_patches(path), member)
        chosen = _chosen(counts, member.rank, max_patches, seed)
        samples[path] = _Sample(counts[member.rank], chosen, source.channels(path), hold, (ldas or {}).get(path))
    for batch in source.batches(list(samples)):
        for path, (features_RC, labels_R) in batch.items():
            samples[path].add(features_RC, labels_R)
    return {path: sample.finish() for path, sample in samples.items()}


def _chosen(counts: list[int], rank: int, max_patches: int | None, seed: int) -> Tensor | None:
    """Numbers, among its own and in order, of a rank's patches that are among `max_patches` random ones of all ranks.

    None where all are.
    """
    total, first = sum(counts), sum(counts[:rank])
    if max_patches is None or max_patches >= total:
        return None
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:max_patches].sort().values
    own = slice(*torch.searchsorted(chosen, torch.tensor([first, first + counts[rank]])).tolist())
    return chosen[own] - first


class _Sample:
    """All patches of a stream of `total`, or the chosen ones, with their classes and in their order."""

    def __init__(self, total: int, chosen: Tensor | None, channels: int, hold: Hold, lda: LDA | None = None):
        number = total if chosen is None else len(chosen)
        self._chosen = chosen
        self._total, self._seen, self._filled = total, 0, 0
        self._lda = lda
        self._rows = hold(number, channels if lda is None else lda.n_components)
        self._labels = torch.empty(number, dtype=torch.int64, device=self._rows.device)
        self._blocks = Blocks(ROWS, self._keep)

    def add(self, features_RC: Tensor, labels_R: Tensor) -> None:
        first, self._seen = self._seen, self._seen + len(labels_R)
        self._check(self._seen <= self._total)
        if self._chosen is not None:
            here = slice(*torch.searchsorted(self._chosen, torch.tensor([first, self._seen])).tolist())
            chosen = (self._chosen[here] - first).to(features_RC.device)
            features_RC, labels_R = features_RC[chosen], labels_R[chosen]
        self._blocks.add(features_RC, labels_R)

    def _keep(self, features_RC: Tensor, labels_R: Tensor) -> None:
        here = slice(self._filled, self._filled + len(labels_R))
        self._rows[here] = features_RC if self._lda is None else self._lda.transform(features_RC)
        self._labels[here] = labels_R
        self._filled = here.stop

    def finish(self) -> Held:
        self._check(self._seen == self._total)
        self._blocks.finish()
        return self._rows, self._labels

    def _check(self, agrees: bool) -> None:
        if not agrees:
            raise ValueError(f"the source has {self._total} patches and gave {self._seen}; it must give the same again")


def _fit_ldas(
    source: PatchSource, paths: Iterable[str], num_classes: int | None, num_components: int, member: Member
) -> dict[str, LDA]:
    """LDA of all patches of every map. Of fewer components than were asked for, all are kept."""
    ldas = {path: LDA(member=member) for path in paths}
    for batch in source.batches(list(ldas)) if ldas else ():
        for path, (features_RC, labels_R) in batch.items():
            ldas[path].partial_fit(features_RC, labels_R, num_classes=num_classes)
    for path, lda in ldas.items():
        with at(path):
            lda.solve()
        lda.n_components = min(num_components, lda.scalings_.shape[1])
    return ldas


def _fit_words(patches_PC: Tensor, num_words: int, seed: int, path: str, phases: _Phases, member: Member) -> Words:
    def report(_iteration: int, inertia: float) -> None:
        phases.advance(inertia=inertia)

    kmeans = KMeans(num_words, random_state=seed, on_iteration=report, member=member)
    phases.begin(f"k-means of {num_words} words", [path], kmeans.max_iter + 1)
    kmeans.fit(patches_PC)
    phases.advance()  # after the iterations every patch was assigned once more
    return Words(kmeans, sum(num_by_rank(len(patches_PC), member)))


def _fit_decisions(
    projected_PL: Tensor,
    labels_P: Tensor,
    lda: LDA,
    *,
    num_classes: int,
    num_subclasses: int,
    seed: int,
    path: str,
    phases: _Phases,
    member: Member,
) -> Decisions:
    phases.begin("sub-classes", [path], num_classes)
    centers_ML, members_P = fit_subclasses(
        projected_PL,
        labels_P,
        num_classes=num_classes,
        num_subclasses=num_subclasses,
        seed=seed,
        on_class=phases.advance,
        member=member,
    )
    phases.begin("decisions", [path], 1)
    prototypes_ML, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=len(centers_ML), member=member)
    phases.advance()
    num_patches = sum(num_by_rank(len(projected_PL), member))
    return Decisions(lda, num_subclasses, num_patches, centers_ML, prototypes_ML, decisions_MM)
