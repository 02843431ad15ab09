"""Pictures without classes in training batches: `unlabelled=DIR`, beside labelled images or alone.

    batch of B = [labelled | unlabelled]        round(unlabelled_share * B) unlabelled ones, with label -1

Of a batch that goes through the networks in equal parts, for processes or `accumulate`, every part is such a batch, so
that the mean over the labelled images of a part is as much of the whole as that of any other.

An epoch is a pass over the labelled images, and where there are none in a batch one over the pictures. Beside labelled
images the pictures go round: each is seen once before any is seen again, in an order and with augmentation that follow
from (seed, pass), so that what a step sees follows from (seed, epoch, step) here too. They are prepared and augmented
as the labelled ones, and their index goes on behind those.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloaders.augmentation import derive_seed
from dataloaders.batch import Batch
from dataloaders.dataset import Dataset, ImageFiles, ImageTensors, Split
from dataloaders.decoding import MAX_RESIDENT_BYTES, SquarePixels, Tracker, decode
from dataloaders.facts import split_facts
from dataloaders.folders import digest_of_files, log
from dataloaders.image_files import count_unused, counted, images_below, shown
from dataloaders.loaders import make_train_loader

NO_LABEL = -1
OF_PICTURES = -1  # beside a run's seed in that of the pictures' draws: no epoch has this number


def numbers_of(batch_size: int, share: float) -> tuple[int, int]:
    """How many images of a batch are labelled, and how many are not; a half is rounded to an even number.

    Raises:
        ValueError: none is unlabelled, or all are though the share is not 1.
    """
    unlabelled = round(share * batch_size)
    if unlabelled == 0 or (unlabelled == batch_size and share < 1):
        none = "unlabelled" if unlabelled == 0 else "labelled"
        raise ValueError(
            f"unlabelled_share={share:g} of batch_size={batch_size} leaves no {none} image; choose another share or a "
            "larger batch"
        )
    return batch_size - unlabelled, unlabelled


def check_parts(batch_size: int, share: float, number: int, parts: str) -> None:
    """Refuse a batch that has no equal parts with as many labelled images in each.

    Args:
        number: of the parts.
        parts: what they are, for the error.

    Raises:
        ValueError: names both numbers.
    """
    labelled, unlabelled = numbers_of(batch_size, share)
    if labelled % number or unlabelled % number:
        raise ValueError(
            f"batch_size={batch_size} with unlabelled_share={share:g} is {labelled} labelled and {unlabelled} other "
            f"images, which {parts} cannot share equally; choose multiples of {number}"
        )


def find_pictures(folder: str | Path) -> tuple[ImageFiles, dict[str, int]]:
    """All images at any depth below a folder, in the order of their paths, and how many there are of what is none.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"unlabelled={shown(folder)}: there is no such folder; it must hold image files, at any depth")
    unused: dict[str, str] = {}
    paths = images_below(root, unused)
    others = count_unused(unused)
    if not paths:
        has = f"; it has {counted(others)}" if others else ""
        raise ValueError(f"unlabelled={shown(folder)} holds no images (.jpg, .png and what else Pillow reads{has})")
    return ImageFiles(tuple(paths), torch.full((len(paths),), NO_LABEL)), others


def digest_of_pictures(folder: str | Path) -> str:
    """A digest of the pictures of a folder, by name and bytes on the disk, and of how they are read.

    Raises:
        ValueError: as `find_pictures`.
    """
    files, _ = find_pictures(folder)
    return digest_of_files(Path(folder).expanduser(), {"": list(files.paths)})


def refuse_evaluation(folder: str | Path, data_dir: str | Path | None, *, val_split: int = 0) -> None:
    """Refuse a folder with images that evaluate, as far as the folders of a data set tell it before it is open:
    what is trained on them measures nothing of other images. `usable_pictures` looks at the images themselves.

    Args:
        data_dir: of the labelled images, where folders in it are the splits.
        val_split: so many of train/ evaluate.

    Raises:
        ValueError: names the folder of these images.
    """
    if data_dir is None:
        return
    root = Path(folder).expanduser().resolve()
    for split in ("val", "test", *(["train"] if val_split else [])):
        held = Path(data_dir).expanduser().resolve() / split
        if held.is_dir() and (root == held or root in held.parents or held in root.parents):
            raise ValueError(
                f"unlabelled={shown(folder)} has images of {shown(held)}, which measure what is trained; choose a "
                "folder without them"
            )


def usable_pictures(folder: str | Path, dataset: Dataset) -> tuple[ImageFiles, dict[str, int]]:
    """As `find_pictures`, of what can train beside the images of an open data set; none is decoded.

    Raises:
        ValueError: as there, or some of them evaluate, or they are too large to be held as the training images are.
    """
    files, others = find_pictures(folder)
    _refuse_evaluated(folder, files, dataset)
    size = dataset.image_size
    needed = len(files) * size**2 * 3
    if isinstance(dataset.split("train"), ImageTensors) and needed > MAX_RESIDENT_BYTES:
        raise ValueError(
            f"unlabelled={shown(folder)}: {len(files)} images of {size}x{size} need {needed / 2**30:.1f} GiB, and at "
            f"most {MAX_RESIDENT_BYTES / 2**30:.0f} are held in memory; choose fewer, or a smaller image_size"
        )
    return files, others


def _refuse_evaluated(folder: str | Path, files: ImageFiles, dataset: Dataset) -> None:
    held = {path for split in (dataset.eval, dataset.test) if split is not None for path in _real(split.paths or ())}
    if not held:
        return
    found = [path for path, real in zip(files.paths, _real(files.paths), strict=True) if real in held]
    if found:
        raise ValueError(
            f"unlabelled={shown(folder)} has images that measure what is trained, {len(found)} of {len(files)}, like "
            f"{shown(found[0])}; choose a folder without them"
        )


def _real(paths: Iterable[str]) -> Iterator[Path]:
    """Where files lie behind all links, each folder looked at once."""
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        real = folders[path.parent] / path.name
        yield real.resolve() if real.is_symlink() else real


def open_pictures(
    folder: str | Path, dataset: Dataset, *, num_workers: int = 0, progress: Tracker | None = None
) -> Split:
    """The pictures of a folder as a split beside the training images of a data set: decoded where these are.

    A notice says what else is there.

    Raises:
        ImageError: a file that is decoded cannot be; names it.
        ValueError: as `usable_pictures`.
    """
    files, others = usable_pictures(folder, dataset)
    if others:
        log.info("note: %s holds what is not used: %s", shown(folder), counted(others))
    if not isinstance(dataset.split("train"), ImageTensors):
        return files
    options = {"num_workers": num_workers, "progress": progress, "label": "decoding unlabelled"}
    return ImageTensors(decode(files.paths, SquarePixels(dataset.image_size), **options), files.labels, files.paths)


@dataclasses.dataclass(frozen=True, eq=False)
class Unlabelled:
    """Pictures without classes, and their share of training batches.

    Args:
        pictures: their labels are -1.
        share: above 0, up to 1.
    """

    pictures: Split
    share: float

    def facts(self) -> dict[str, Any]:
        """What tells the pictures from others, as `image_facts` of a split."""
        return split_facts(self.pictures)

    def steps(self, dataset: Dataset, batch_size: int) -> int:
        """Of an epoch."""
        labelled, unlabelled = numbers_of(batch_size, self.share)
        return len(dataset.split("train")) // labelled if labelled else len(self.pictures) // unlabelled

    def check(self, dataset: Dataset, batch_size: int) -> None:
        """Refuse a batch that has more images of either kind than there are.

        Raises:
            ValueError: names both numbers.
        """
        there = {"labelled": len(dataset.split("train")), "unlabelled": len(self.pictures)}
        for (kind, number), wanted in zip(there.items(), numbers_of(batch_size, self.share), strict=True):
            if wanted > number:
                raise ValueError(
                    f"a batch of batch_size={batch_size} with unlabelled_share={self.share:g} has {wanted} {kind} "
                    f"images, and there are {number}; choose a smaller batch_size or another share"
                )

    def make_train_loader(
        self, dataset: Dataset, *, batch_size: int, seed: int, accumulate: int, **options: Any
    ) -> "BesideUnlabelled":
        """As `make_train_loader`, of batches with this share of the pictures.

        Args:
            batch_size: of both kinds, of all ranks together.
            accumulate: in so many parts a rank's batch is used; each has its share.

        Raises:
            ValueError: as there, or as `check`.
        """
        self.check(dataset, batch_size)
        labelled, unlabelled = numbers_of(batch_size, self.share)
        loader, steps = None, None
        if labelled:
            loader = make_train_loader(dataset, batch_size=labelled, seed=seed, **options)
            steps = len(loader)
        others = make_train_loader(
            dataclasses.replace(dataset, train=self.pictures),
            batch_size=unlabelled,
            seed=derive_seed(seed, OF_PICTURES),
            steps=steps,
            **options,
        )
        return BesideUnlabelled(loader, others, accumulate, num_labelled=len(dataset.split("train")))


class BesideUnlabelled:
    """Batches of a training loader with those of pictures behind them.

    Args:
        labelled: None where batches have pictures alone.
        unlabelled: as many batches.
        accumulate: as above.
        num_labelled: labelled images there are, where the index of the pictures begins.
    """

    def __init__(self, labelled: Any | None, unlabelled: Any, accumulate: int, *, num_labelled: int):
        self.labelled, self.unlabelled = labelled, unlabelled
        self.accumulate, self.num_labelled = accumulate, num_labelled

    def __len__(self) -> int:
        return len(self.unlabelled)

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `skip` batches."""
        for loader in filter(None, (self.labelled, self.unlabelled)):
            loader.set_epoch(epoch, skip=skip)

    def __iter__(self) -> Iterator[Batch]:
        if self.labelled is None:
            for batch in self.unlabelled:
                yield self._pictures(batch)
            return
        for batch, pictures in zip(self.labelled, self.unlabelled, strict=True):
            known = batch._replace(labelled=torch.ones_like(batch.labels, dtype=torch.bool))
            yield self._joined(known, self._pictures(pictures))

    def _pictures(self, batch: Batch) -> Batch:
        nowhere = torch.zeros_like(batch.labels, dtype=torch.bool)
        return batch._replace(index=batch.index + self.num_labelled, labelled=nowhere)

    def _joined(self, one: Batch, other: Batch) -> Batch:
        """Part by part, those of one in front of those of the other."""

        def join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            if first is None:
                return None
            pairs = zip(first.chunk(self.accumulate), second.chunk(self.accumulate), strict=True)
            return torch.cat([part for pair in pairs for part in pair])

        return Batch(*(join(*pair) for pair in zip(one, other, strict=True)))
