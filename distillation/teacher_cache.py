"""The teacher's logits of the views of a run, kept in files: another run with the same views reads them.

What a training image looks like in an epoch, beside which others it stands and with which it is mixed, follows from the
seed of the views, the epoch and the options that shape views, and not from what trains. So a row of logits belongs to
an epoch and a place in it, place = step * batch_size + position in the batch, and a run that has the same views, the
same teacher and the same input in front of it needs no teacher: its batches bring the rows (`Batch.taught`).

Logits are kept in 16 bits: as they are where the teacher computes in bfloat16, else rounded to float16 (11 bits of
precision; beyond +-65504 they are that). With `top` = k of N classes a row has its k largest logits and one number, the
mean that all others would have if they shared their probability equally:

    rest = log(sum over the others of exp(z)) - log(N - k)

and reads z_c for the k and `rest` for the others, so that the softmax of the k is what it was. A run that writes trains
with what it writes: all runs with one cache see the same numbers.

    <localpath>/teacher_cache/<dataset>/<first digits of the fingerprint>/about.json, epoch_1.pth, epoch_2.pth, ...

A file is whole or absent and carries a checksum. One epoch is one file, or several of about `FILE_BYTES`. A file that
is there is not written again: of two runs that have made the same one, the first that is ready leaves it.

Shapes: B images of a batch, N classes, k = `top`.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from config.options import Options
from dataloaders import Batch, Dataset, TrainLoader
from distillation.cache_options import FORMAT, fingerprint_of, identity_of
from distillation.objective import Teacher
from letkd.processes import by_first, gathered, member
from storage.documents import log, names_file, save_json
from storage.tensor_files import load_tensors, save_tensors

FOLDER, ABOUT, LOCK = "teacher_cache", "about.json", ".lock"
SHOWN_DIGITS = 16  # of the fingerprint that a folder is called by
FILE_BYTES = 2**28  # of the rows in a file, so that none takes much memory
BYTES_AROUND = 4096  # of a file beside its rows, at most
SMALL_CLASSES = 2**15  # whose numbers fit into 16 bits

Rows = dict[str, Tensor]


# --- rows ------------------------------------------------------------------------------------------------------------


def shorten(logits_BN: Tensor, top: int | None) -> Rows:
    """What is kept of logits, on their device.

    Returns:
        `logits` (B, N); or `values` (B, k), `classes` (B, k) and `rest` (B,) float32. Logits are float16 or bfloat16.
    """
    if top is None:
        return {"logits": _in_16_bits(logits_BN)}
    num_classes = logits_BN.shape[1]
    largest = logits_BN.topk(top, dim=1)
    others_BN = logits_BN.float().scatter(1, largest.indices, -math.inf)
    return {
        "values": _in_16_bits(largest.values),
        "classes": largest.indices.to(_type_of_classes(num_classes)),
        "rest": others_BN.logsumexp(dim=1) - math.log(num_classes - top),
    }


def restore(kept: Rows, num_classes: int) -> Tensor:
    """Logits (B, N) of what `shorten` has kept: in 16 bits as they are, or float32 of those that were left out."""
    if "logits" in kept:
        return kept["logits"]
    rest_BN = kept["rest"].unsqueeze(1).repeat(1, num_classes)
    return rest_BN.scatter(1, kept["classes"].long(), kept["values"].float())


def bytes_of_row(num_classes: int, top: int | None) -> int:
    """What is kept of an image."""
    return 2 * num_classes if top is None else top * (2 + _type_of_classes(num_classes).itemsize) + 4


def _in_16_bits(values: Tensor) -> Tensor:
    if values.dtype in (torch.bfloat16, torch.float16):
        return values
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half()


def _type_of_classes(num_classes: int) -> torch.dtype:
    return torch.int16 if num_classes <= SMALL_CLASSES else torch.int32


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
    if is_new:
        rows = len(dataset.split("train")) // options.protocol.batch_size * options.protocol.batch_size
        row = bytes_of_row(dataset.num_classes, options.pair.teacher_cache_top)
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
            f"{there} cannot be written, and teacher_cache=logits writes there; choose another, teacher_cache_dir="
        )
    room = by_first(lambda: shutil.disk_usage(there).free)
    if needed > room:
        raise ValueError(
            f"teacher_cache=logits needs {in_bytes(needed)} in {folder}, and its disk has {in_bytes(room)} left; "
            "choose another, teacher_cache_dir=, fewer epochs, or fewer logits of an image, teacher_cache_top="
        )


def _folder(options: Options) -> Path:
    """In which the caches of all data sets are."""
    return Path(options.pair.teacher_cache_dir or Path(options.run.localpath, FOLDER))


# --- the cache of a run ----------------------------------------------------------------------------------------------


class TeacherCache:
    """The rows of a run's views, from files or, where they are not there, from its teacher, which then writes them.

    Args:
        teacher: on the CPU; it goes to the device for the epochs that are missing.
        dataset: as it trains.
        identity: as `identity_of` returns it.
        folder: in which the caches of all data sets are.
        batch_size: of all processes together.
        parts: in so many the teacher takes the images of a step, as a training without a cache does.
        autocast: makes the context in which it runs.

    Attributes:
        fingerprint: of all that the rows follow from.
        epochs_read: so many epochs of this run had their rows from files.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: Dataset,
        identity: Mapping[str, Any],
        *,
        folder: Path,
        batch_size: int,
        parts: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ):
        self.teacher, self.device, self.autocast, self.parts = teacher, device, autocast, parts
        self.identity, self.fingerprint = dict(identity), fingerprint_of(identity)
        self.directory = folder / dataset.name / self.fingerprint[:SHOWN_DIGITS]
        self.num_classes, self.top = dataset.num_classes, identity["top"]
        self.batch_size, self.part = batch_size, member().share(batch_size)
        self.steps = len(dataset.split("train")) // batch_size
        step_bytes = batch_size * bytes_of_row(self.num_classes, self.top)
        self.steps_of_file = min(self.steps, max(1, FILE_BYTES // step_bytes))
        self.epochs_read = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records."""
        return {"fingerprint": self.fingerprint, "directory": str(self.directory), "epochs_read": self.epochs_read}

    def blank(self, size: int) -> Tensor:
        """Logits (`size`, N) that say nothing."""
        return torch.zeros(size, self.num_classes, device=self.device)

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
        missing = by_first(self._missing, epochs)
        if not missing:
            said = "teacher cache: the logits of %s are in %s; the teacher does not run"
            log.info(said, _epochs(len(epochs)), self.directory)
            return
        there = f"; {len(epochs) - missing} more are there" if missing < len(epochs) else ""
        needed = missing * (self.steps * self.batch_size * bytes_of_row(self.num_classes, self.top) + BYTES_AROUND)
        kept = f"{self.top} of {self.num_classes}" if self.top else str(self.num_classes)
        log.info(
            "teacher cache: %s for %s of %s images, %s classes, in %s%s",
            in_bytes(needed), _epochs(missing), f"{self.steps * self.batch_size:,}", kept, self.directory, there,
        )  # fmt: skip
        check_room(needed, self.directory)

    def is_whole(self, epochs: int) -> bool:
        """Whether the rows of so many epochs, from the first on, are there."""
        return not by_first(self._missing, range(1, epochs + 1))

    def _missing(self, epochs: range) -> int:
        """How many epochs are not there as a whole."""
        files = range(math.ceil(self.steps / self.steps_of_file))
        return sum(not all(self._path(epoch, file).is_file() for file in files) for epoch in epochs)

    def over(self, loader: TrainLoader, epoch: int, *, skip: int) -> Iterator[Batch]:
        """The batches of an epoch with the teacher's logits, without the first `skip`.

        Where the file of the first of them is not there, the teacher also looks at those before it that belong into
        that file. A step waits for nothing; a file is read before its first step, and written before its last.

        Raises:
            OSError: a file cannot be read or written; names it.
        """
        assert len(loader) == self.steps, "batches of others"
        if skip == self.steps:
            return
        rows = self._open(epoch, skip // self.steps_of_file)
        first = skip if rows.are_whole else skip // self.steps_of_file * self.steps_of_file
        loader.set_epoch(epoch, skip=first)
        all_read = rows.are_whole
        for step, batch in enumerate(loader, first):
            file, place = divmod(step, self.steps_of_file)
            if place == 0 and step > first:
                rows = self._open(epoch, file)
                all_read &= rows.are_whole
            if rows.are_whole:
                kept = rows.at(place)
            else:
                kept = self._run(batch)
                rows.put(place, kept)
                if place == rows.steps - 1:
                    self._write(epoch, file, rows)
            if step == self.steps - 1:
                self.epochs_read += all_read
            if step >= skip:
                yield batch._replace(taught=restore(kept, self.num_classes))

    @torch.no_grad()
    def _run(self, batch: Batch) -> Rows:
        """What the teacher says of a batch, shortened; computed as an objective does."""
        assert len(batch.images) == len(self.part), "a batch of another size"
        with self.autocast():
            said = [self.teacher(self.teacher.input(part)).logits for part in batch.images.chunk(self.parts)]
        return shorten(torch.cat(said), self.top)

    def _path(self, epoch: int, file: int) -> Path:
        number = f"_{file + 1}" if self.steps_of_file < self.steps else ""
        return self.directory / f"epoch_{epoch}{number}.pth"

    def _open(self, epoch: int, file: int) -> "_EpochRows":
        """The rows of a file, of this process; or none yet, and the teacher on the device."""
        content = self._load(epoch, file) if member().is_first else None
        is_there = by_first(lambda: content is not None)
        self.teacher.to(torch.device("cpu") if is_there else self.device)
        rows = _EpochRows(self._steps_in(file), self.device)
        if is_there:
            for name, values in (content or self._checked(epoch, file)).items():
                by_step = values.view(rows.steps, self.batch_size, *values.shape[1:])
                rows.read(name, by_step[:, self.part.start : self.part.stop])
        return rows

    def _steps_in(self, file: int) -> int:
        return min(self.steps_of_file, self.steps - file * self.steps_of_file)

    def _load(self, epoch: int, file: int) -> Rows | None:
        """The rows of all processes in a file; None where it is not there, or is damaged, which is said."""
        path = self._path(epoch, file)
        if not path.is_file():
            return None
        try:
            return self._checked(epoch, file)
        except ValueError as error:
            log.warning("warning: %s; the teacher makes it again", error)
            path.unlink(missing_ok=True)
            return None

    def _checked(self, epoch: int, file: int) -> Rows:
        """As `_load`.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of other rows.
        """
        path = self._path(epoch, file)
        content = load_tensors(path)
        if {key: content.get(key) for key in ("format", "cache", "epoch", "part")} != self._header(epoch, file):
            raise ValueError(f"{path} is another file that was put in its place")
        rows = content.get("rows")
        expected = shorten(torch.zeros(1, self.num_classes), self.top)
        if not isinstance(rows, dict) or rows.keys() != expected.keys():
            raise ValueError(f"{path} is damaged: it has no rows")
        for name, values in rows.items():
            shape = (self._steps_in(file) * self.batch_size, *expected[name].shape[1:])
            if not isinstance(values, Tensor) or values.shape != shape:
                raise ValueError(f"{path} is damaged: its {name} are not {' x '.join(map(str, shape))} numbers")
        return rows

    def _header(self, epoch: int, file: int) -> dict[str, Any]:
        """What a file says of its rows."""
        return {"format": FORMAT, "cache": self.fingerprint, "epoch": epoch, "part": file}

    def _write(self, epoch: int, file: int, rows: "_EpochRows") -> None:
        """Leave a file that is filled, of the rows of all processes; the first that has it writes it."""
        found = {name: _of_all_processes(values).flatten(0, 1) for name, values in rows.filled().items()}
        if not member().is_first:
            return
        path = self._path(epoch, file)
        lock = self.directory / LOCK
        with ExitStack() as stack:
            with names_file(lock):
                self.directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(lock, fallback_to_soft=False))
            for piece in self.directory.glob(".*.part"):  # of a process that was killed: nobody else writes now
                piece.unlink()
            if not (about := self.directory / ABOUT).is_file():
                save_json(about, {"fingerprint": self.fingerprint, **self.identity})
            if not path.is_file():
                save_tensors(path, self._header(epoch, file) | {"rows": found})


class _EpochRows:
    """The rows of a file that are this process's, in memory that a GPU reads and writes without the host waiting."""

    def __init__(self, steps: int, device: torch.device):
        self.steps, self.device = steps, device
        self.are_whole = False
        self.held: Rows = {}  # (steps, B, ...)

    def read(self, name: str, values: Tensor) -> None:
        self.are_whole = True
        self.held[name] = values.pin_memory() if self.device.type == "cuda" else values.contiguous()

    def at(self, place: int) -> Rows:
        """Those of a step, on the device."""
        return {name: values[place].to(self.device, non_blocking=True) for name, values in self.held.items()}

    def put(self, place: int, kept: Rows) -> None:
        for name, values in kept.items():
            if name not in self.held:
                shape = (self.steps, *values.shape)
                self.held[name] = torch.empty(shape, dtype=values.dtype, pin_memory=self.device.type == "cuda")
            self.held[name][place].copy_(values, non_blocking=True)

    def filled(self) -> Rows:
        """All of them, when what is on its way from the device has come."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return self.held


def _of_all_processes(values: Tensor) -> Tensor:
    """The rows (steps, B, ...) of all processes, of whose batches each has a part."""
    size = member().size
    if size == 1:
        return values
    found = gathered(values.contiguous().view(torch.uint8)).view(values.dtype)
    return torch.cat(found.chunk(size), dim=1)


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
    return TeacherCache(
        teacher,
        dataset,
        identity_of(options, teacher, dataset, images),
        folder=_folder(options),
        batch_size=protocol.batch_size,
        parts=protocol.accumulate,
        device=device,
        autocast=autocast,
    )


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def in_bytes(number: int) -> str:
    """2400000000 -> '2.4 GB'."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1000:.0f} kB"
