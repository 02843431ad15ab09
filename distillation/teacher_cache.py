"""What a teacher says of the views of a run, kept in files: another run with the same views reads it.

What a training image looks like in an epoch, beside which others it stands and with which it is mixed, follows from the
seed of the views, the epoch and the options that shape views, and not from what trains. So what the teacher says of it
belongs to an epoch and a place in it, place = step * batch_size + position in the batch, and a run that has the same
views, the same teacher and the same input in front of it needs no teacher: its batches bring the rows (`Batch.taught`).

Each signal has files of its own (`distillation/cached_signals.py`), and a run reads those that its losses want: the
maps that one method has had written serve another. Where one of them is not there, the teacher runs, and what was not
there is written. A run that writes trains with what it writes: all runs with one cache see the same numbers.

    <localpath>/teacher_cache/<dataset>/<first digits of the fingerprint>/about.json, epoch_1.pth, epoch_2.pth, ...
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.options import Options
from dataloaders import Batch, Dataset, TrainLoader
from distillation.cache_options import LOGITS, identity_of
from distillation.cached_signals import (
    BYTES_AROUND,
    FileRows,
    Form,
    Rows,
    Shortened,
    SignalFiles,
    Whole,
    fingerprint_of,
)
from distillation.objective import Teacher
from distillation.signals import Network
from letkd.processes import by_first, member
from storage.documents import log

FOLDER = "teacher_cache"


# --- room for it -----------------------------------------------------------------------------------------------------


def check_size(options: Options, dataset: Dataset, *, untrained: Teacher | None) -> None:
    """Refuse a cache that cannot be or does not fit on its disk, before anything that the run needs is made.

    Args:
        untrained: the teacher, where it is still to be trained, so that nothing of the cache can be there.

    Raises:
        ValueError: as `forms_of` and `check_room`.
    """
    if options.pair is None or options.pair.teacher_cache is None:
        return
    check_top(options, dataset.num_classes)
    if untrained is not None:
        steps = len(dataset.split("train")) // options.protocol.batch_size
        forms = forms_of(options, untrained.network, dataset.num_classes)
        row = sum(form.bytes_of_row for form in forms.values())
        needed = steps * options.protocol.batch_size * row + BYTES_AROUND * len(forms)
        check_room(options.protocol.epochs * needed, _folder(options), is_whole=options.pair.teacher_cache != LOGITS)


def check_top(options: Options, num_classes: int) -> None:
    """Refuse to keep so many logits of an image that none is left out.

    Raises:
        ValueError: says how many classes there are.
    """
    top = options.pair.teacher_cache_top
    if top is not None and top >= num_classes:
        raise ValueError(f"teacher_cache_top={top} must be below the {num_classes} classes; leave it out to keep all")


def check_room(needed: int, folder: Path, *, is_whole: bool) -> None:
    """Refuse to begin with what a folder cannot take, or its disk has no room for.

    Args:
        needed: bytes.
        is_whole: whether all signals are kept as they are, and not logits alone.

    Raises:
        ValueError: says that it cannot be written; or how much is needed, and how much room there is.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if by_first(lambda: not os.access(there, os.W_OK)):
        raise ValueError(
            f"{there} cannot be written, and teacher_cache= writes there; choose another, teacher_cache_dir="
        )
    room = by_first(lambda: shutil.disk_usage(there).free)
    if needed > room:
        fewer = "" if is_whole else ", or fewer logits of an image, teacher_cache_top="
        raise ValueError(
            f"teacher_cache= needs {in_bytes(needed)} in {folder}, and its disk has {in_bytes(room)} left; choose "
            f"fewer epochs, another disk, teacher_cache_dir={fewer}"
        )


def _folder(options: Options) -> Path:
    """In which the caches of all data sets are."""
    return Path(options.pair.teacher_cache_dir or Path(options.run.localpath, FOLDER))


# --- the cache of a run ----------------------------------------------------------------------------------------------


class TeacherCache:
    """The signals of a run's views, from files or, where they are not there, from its teacher, which then writes them.

    Args:
        teacher: on the CPU; it goes to the device for the epochs that are missing.
        dataset: as it trains.
        forms: of the signals that are read, by the names that `Signals.tensors` gives them.
        identities: of each, as `identity_of` returns it.
        folder: in which the caches of all data sets are.
        batch_size: of all processes together.
        parts: in so many the teacher takes the images of a step, as a training without a cache does.
        autocast: makes the context in which it runs.

    Attributes:
        epochs_read: so many epochs of this run had all their rows from files.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: Dataset,
        forms: Mapping[str, Form],
        identities: Mapping[str, Mapping[str, Any]],
        *,
        folder: Path,
        batch_size: int,
        parts: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ):
        self.teacher, self.device, self.autocast, self.parts = teacher, device, autocast, parts
        self.folder = folder / dataset.name
        self.images = batch_size // member().size
        self.steps = len(dataset.split("train")) // batch_size
        self.num_images = self.steps * batch_size
        known = {"folder": self.folder, "batch_size": batch_size, "steps": self.steps, "device": device}
        found = {name: SignalFiles(form, identities[name], **known) for name, form in forms.items()}
        self.names = {name: files.fingerprint for name, files in found.items()}
        self.files = {files.fingerprint: files for files in found.values()}  # one place may have several names
        self.epochs_read = 0

    @property
    def fingerprint(self) -> str:
        """Of all that the rows follow from."""
        return next(iter(self.files)) if len(self.files) == 1 else fingerprint_of(self.names)

    @property
    def directory(self) -> Path:
        """Of the only signal, or of all."""
        return next(iter(self.files.values())).directory if len(self.files) == 1 else self.folder

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records."""
        return {"fingerprint": self.fingerprint, "directory": str(self.directory), "epochs_read": self.epochs_read}

    def blank(self, size: int) -> dict[str, Tensor]:
        """Signals of `size` images that say nothing."""
        return {name: self.files[key].form.blank(size).to(self.device) for name, key in self.names.items()}

    def announce(self, first: int, last: int) -> None:
        """Say how large it is, or that it is there, and refuse what does not fit on the disk.

        Args:
            first, last: epochs that the run has before it.

        Raises:
            ValueError: as `check_room`.
        """
        epochs = range(first, last + 1)
        if not epochs:
            return
        missing = self._missing(epochs)
        lacking = set().union(*missing.values())
        if not lacking:
            said = "teacher cache: %s of %s, read from %s; the teacher does not run"
            log.info(said, ", ".join(self.names), _epochs(len(epochs)), self.directory)
            return
        there = f"; {len(epochs) - len(lacking)} more are there" if len(lacking) < len(epochs) else ""
        needed = sum(len(missing[key]) * files.bytes_of_epoch for key, files in self.files.items())
        form = next(iter(self.files.values())).form
        is_whole = isinstance(form, Whole)
        what = ", ".join(name for name, key in self.names.items() if missing[key]) if is_whole else form.said
        log.info(
            "teacher cache: %s for %s of %s images, %s, in %s%s",
            in_bytes(needed), _epochs(len(lacking)), f"{self.num_images:,}", what, self.directory, there,
        )  # fmt: skip
        check_room(needed, self.directory, is_whole=is_whole)

    def is_whole(self, epochs: int) -> bool:
        """Whether all signals of so many epochs, from the first on, are there."""
        return not any(self._missing(range(1, epochs + 1)).values())

    def _missing(self, epochs: range) -> dict[str, set[int]]:
        """By files the epochs that are not there as a whole."""
        return by_first(lambda: {key: files.missing(epochs) for key, files in self.files.items()})

    def over(self, loader: TrainLoader, epoch: int, *, skip: int) -> Iterator[Batch]:
        """The batches of an epoch with what the teacher says, without the first `skip`.

        Where the file of the first of them is not there, the teacher also looks at those before it that belong into
        that file. A step waits for nothing; a file is read before its first step, and written before its last.

        Raises:
            OSError: a file cannot be read or written; names it.
        """
        assert len(loader) == self.steps, "batches of others"
        if skip == self.steps:
            return
        rows = {key: files.open(epoch, skip) for key, files in self.files.items()}
        first = min(skip if each.are_whole else each.steps.start for each in rows.values())
        loader.set_epoch(epoch, skip=first)
        all_read, did_lack = True, None
        for step, batch in enumerate(loader, first):
            for key, files in self.files.items():
                if step == rows[key].steps.stop:
                    del rows[key]  # so that its memory is free where no batch has a part of it
                    rows[key] = files.open(epoch, step)
            lacking = [key for key, each in rows.items() if not each.are_whole and step in each.steps]
            if bool(lacking) is not did_lack:
                self.teacher.to(self.device if lacking else torch.device("cpu"))
            did_lack = bool(lacking)
            all_read &= not lacking
            kept = self._keep(epoch, step, batch, {key: rows[key] for key in lacking}) if lacking else {}
            if step == self.steps - 1:
                self.epochs_read += all_read
            if step >= skip:
                kept |= {key: each.at(step) for key, each in rows.items() if each.are_whole}
                taught = {key: files.form.restore(kept[key]) for key, files in self.files.items()}
                yield batch._replace(taught={name: taught[key] for name, key in self.names.items()})

    @torch.no_grad()
    def _keep(self, epoch: int, step: int, batch: Batch, lacking: Mapping[str, FileRows]) -> dict[str, Rows]:
        """The rows of a step that no file has, of what the teacher says of its batch; a file that is filled is written.

        The teacher computes as it does in an objective.
        """
        assert len(batch.images) == self.images, "a batch of another size"
        with self.autocast():
            parts = [self.teacher(self.teacher.input(part)).tensors() for part in batch.images.chunk(self.parts)]
        kept = {}
        for name, key in self.names.items():
            if key in lacking and key not in kept:
                said = parts[0][name] if len(parts) == 1 else torch.cat([part[name] for part in parts])
                kept[key] = self.files[key].form.shorten(said)
                lacking[key].put(step, kept[key])
                if step == lacking[key].steps[-1]:
                    self.files[key].write(epoch, lacking[key])
        return kept


def open_cache(
    options: Options,
    teacher: Teacher,
    dataset: Dataset,
    images: Mapping[str, Any],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> TeacherCache | None:
    """The cache that an experiment asks for; None where it asks for none.

    Args:
        dataset, images: as those of `identity_of`.
        autocast: the context of the networks.

    Raises:
        ValueError: as `check_top` and `forms_of`.
    """
    pair, protocol = options.pair, options.protocol
    if pair is None or pair.teacher_cache is None:
        return None
    check_top(options, dataset.num_classes)
    forms = forms_of(options, teacher.network, dataset.num_classes)
    return TeacherCache(
        teacher,
        dataset,
        forms,
        {name: identity_of(options, teacher, dataset, images, signal=name) for name in forms},
        folder=_folder(options),
        batch_size=protocol.batch_size,
        parts=protocol.accumulate,
        device=device,
        autocast=autocast,
    )


def forms_of(options: Options, network: Network, num_classes: int) -> dict[str, Form]:
    """Of the signals that a cache keeps of a teacher, in what form.

    Raises:
        ValueError: nothing that is read of the teacher differs from image to image.
    """
    pair = options.pair
    if pair.teacher_cache == LOGITS:
        return {LOGITS: Shortened(num_classes, pair.teacher_cache_top)}
    forms = whole_forms(network, num_classes, itemsize=2 if options.run.precision == "bf16" else 4)
    if not forms:
        raise ValueError(
            f"{options.experiment.method} reads nothing that the teacher says of an image: leave out "
            f"teacher_cache={pair.teacher_cache}"
        )
    return forms


def whole_forms(network: Network, num_classes: int, itemsize: int) -> dict[str, Form]:
    """Of every signal that is read of a network with so many classes, as it is."""
    shapes = {name: (place.channels, *place.grid) for name, place in network.places_read().items()}
    if network.wanted.logits:
        shapes[LOGITS] = (num_classes,)
    if network.wanted.pooled:
        shapes["pooled"] = (network.outline.num_features,)
    return {name: Whole(shape, itemsize) for name, shape in sorted(shapes.items())}


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def in_bytes(number: int) -> str:
    """2400000000 -> '2.4 GB'."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1000:.0f} kB"
