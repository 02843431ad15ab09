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
from distillation.cached_signals import BYTES_AROUND, FileRows, Form, Shortened, SignalFiles, Whole, fingerprint_of
from distillation.objective import Teacher
from distillation.signals import Network
from letkd.processes import by_first, member
from storage.documents import log

FOLDER = "teacher_cache"


# --- room for it -----------------------------------------------------------------------------------------------------


def check_size(options: Options, dataset: Dataset, *, is_new: bool) -> None:
    """Refuse a cache that cannot be or does not fit on its disk, before anything that the run needs is made.

    Args:
        is_new: whether nothing of it can be there, because the teacher is still to be trained.

    Raises:
        ValueError: as `check_top` and `check_room`.
    """
    if options.pair is None or options.pair.teacher_cache is None:
        return
    check_top(options, dataset.num_classes)
    if is_new and options.pair.teacher_cache == LOGITS:  # the size of others follows from the network
        rows = len(dataset.split("train")) // options.protocol.batch_size * options.protocol.batch_size
        row = Shortened(dataset.num_classes, options.pair.teacher_cache_top).bytes_of_row
        check_room(options.protocol.epochs * (rows * row + BYTES_AROUND), _folder(options))


def check_top(options: Options, num_classes: int) -> None:
    """Refuse to keep so many logits of an image that none is left out.

    Raises:
        ValueError: says how many classes there are.
    """
    top = options.pair.teacher_cache_top
    if top is not None and top >= num_classes:
        raise ValueError(f"teacher_cache_top={top} must be below the {num_classes} classes; leave it out to keep all")


def check_room(needed: int, folder: Path) -> None:
    """Refuse to begin with what a folder cannot take, or its disk has no room for.

    Args:
        needed: bytes.

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
        raise ValueError(
            f"teacher_cache= needs {in_bytes(needed)} in {folder}, and its disk has {in_bytes(room)} left; choose "
            "another, teacher_cache_dir=, fewer epochs, or, of logits, fewer of an image, teacher_cache_top="
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
        self.signals = {name: SignalFiles(form, identities[name], **known) for name, form in forms.items()}
        self.epochs_read = 0

    @property
    def num_logits(self) -> str:
        """In words how many are kept of an image, where logits alone are, and shortened; else nothing."""
        form = self.signals[LOGITS].form if LOGITS in self.signals else None
        if not isinstance(form, Shortened):
            return ""
        return f"{form.top} of {form.num_classes}" if form.top else f"{form.num_classes}"

    @property
    def fingerprint(self) -> str:
        """Of all that the rows follow from."""
        prints = {name: signal.fingerprint for name, signal in self.signals.items()}
        return next(iter(prints.values())) if len(prints) == 1 else fingerprint_of(prints)

    @property
    def directory(self) -> Path:
        """Of the only signal, or of all."""
        return next(iter(self.signals.values())).directory if len(self.signals) == 1 else self.folder

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records."""
        return {"fingerprint": self.fingerprint, "directory": str(self.directory), "epochs_read": self.epochs_read}

    def blank(self, size: int) -> dict[str, Tensor]:
        """Signals of `size` images that say nothing."""
        return {name: signal.form.blank(size).to(self.device) for name, signal in self.signals.items()}

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
            log.info(said, ", ".join(self.signals), _epochs(len(epochs)), self.directory)
            return
        there = f"; {len(epochs) - len(lacking)} more are there" if len(lacking) < len(epochs) else ""
        needed = sum(len(missing[name]) * signal.bytes_of_epoch for name, signal in self.signals.items())
        what = f"{self.num_logits} classes" if self.num_logits else ", ".join(name for name in missing if missing[name])
        log.info(
            "teacher cache: %s for %s of %s images, %s, in %s%s",
            in_bytes(needed), _epochs(len(lacking)), f"{self.num_images:,}", what, self.directory, there,
        )  # fmt: skip
        check_room(needed, self.directory)

    def is_whole(self, epochs: int) -> bool:
        """Whether all signals of so many epochs, from the first on, are there."""
        return not any(self._missing(range(1, epochs + 1)).values())

    def _missing(self, epochs: range) -> dict[str, set[int]]:
        """By signal the epochs that are not there as a whole."""
        return by_first(lambda: {name: signal.missing(epochs) for name, signal in self.signals.items()})

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
        rows = {name: signal.open(epoch, skip) for name, signal in self.signals.items()}
        first = min(skip if each.are_whole else each.steps.start for each in rows.values())
        loader.set_epoch(epoch, skip=first)
        all_read, was_lacking = True, None
        for step, batch in enumerate(loader, first):
            for name, signal in self.signals.items():
                if step not in rows[name].steps:
                    rows[name] = signal.open(epoch, step)
            is_lacking = not all(each.are_whole for each in rows.values())
            if is_lacking is not was_lacking:
                self.teacher.to(self.device if is_lacking else torch.device("cpu"))
            all_read, was_lacking = all_read and not is_lacking, is_lacking
            said = self._run(batch) if is_lacking else {}
            taught = {name: self._at(step, name, rows[name], said.get(name), epoch) for name in self.signals}
            if step == self.steps - 1:
                self.epochs_read += all_read
            if step >= skip:
                yield batch._replace(taught=taught)

    def _at(self, step: int, name: str, rows: FileRows, said: Tensor | None, epoch: int) -> Tensor:
        """A signal of a step, from a file or from what the teacher said, which is then kept."""
        signal = self.signals[name]
        if rows.are_whole:
            return signal.form.restore(rows.at(step))
        kept = signal.form.shorten(said)
        if rows.put(step, kept):
            signal.write(epoch, rows)
        return signal.form.restore(kept)

    @torch.no_grad()
    def _run(self, batch: Batch) -> dict[str, Tensor]:
        """What the teacher says of a batch, computed as an objective does."""
        assert len(batch.images) == self.images, "a batch of another size"
        with self.autocast():
            parts = [self.teacher(self.teacher.input(part)).tensors() for part in batch.images.chunk(self.parts)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.signals}


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
        ValueError: as `check_top`.
    """
    pair, protocol = options.pair, options.protocol
    if pair is None or pair.teacher_cache is None:
        return None
    check_top(options, dataset.num_classes)
    if pair.teacher_cache == LOGITS:
        forms: dict[str, Form] = {LOGITS: Shortened(dataset.num_classes, pair.teacher_cache_top)}
    else:
        forms = whole_forms(teacher.network, dataset.num_classes, itemsize=2 if options.run.precision == "bf16" else 4)
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
