"""One signal of a teacher in files: what is kept of an image, and the files of an epoch.

Logits can be kept in 16 bits: as they are where the teacher computes in bfloat16, else rounded to float16 (11 bits of
precision; beyond +-65504 they are that). With `top` = k of N classes a row has its k largest logits and one number, the
mean that all others would have if they shared their probability equally:

    rest = log(sum over the others of exp(z)) - log(N - k)

and reads z_c for the k and `rest` for the others, so that the softmax of the k is what it was. Every other signal is
kept as it is, a map with its channels last, as networks have it.

A file is whole or absent and carries a checksum. One epoch is one file, or several of about `FILE_BYTES`. A file that
is there is not written again: of two runs that have made the same one, the first that is ready leaves it.

Shapes: B images of a batch, N classes, k = `top`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from torch import Tensor

from letkd.processes import by_first, gathered, member
from storage.documents import log, names_file, save_json
from storage.tensor_files import load_tensors, save_tensors

ABOUT, LOCK = "about.json", ".lock"
SHOWN_DIGITS = 16  # of the fingerprint that a folder is called by
FILE_BYTES = 2**28  # of the rows in a file, so that none takes much memory
BYTES_AROUND = 4096  # of a file beside its rows, at most
SMALL_CLASSES = 2**15  # whose numbers fit into 16 bits

Rows = dict[str, Tensor]


# --- what is kept of an image ----------------------------------------------------------------------------------------


class Form(Protocol):
    """What is kept of a signal.

    Attributes:
        bytes_of_row: of an image; of a signal that is kept as it is, by the type that most of a network computes in.
    """

    bytes_of_row: int

    def shorten(self, signal: Tensor) -> Rows:
        """The rows (B, ...) of a signal (B, ...), on its device."""
        ...

    def restore(self, kept: Rows) -> Tensor:
        """The signal (B, ...) of rows."""
        ...

    def blank(self, size: int) -> Tensor:
        """A signal of `size` images that says nothing."""
        ...


class Shortened:
    """Logits (B, N) in 16 bits: `logits` (B, N); or `values` (B, k), `classes` (B, k) and `rest` (B,) float32.

    Args:
        top: k; None to keep all.
    """

    def __init__(self, num_classes: int, top: int | None = None):
        self.num_classes, self.top = num_classes, top
        self.type_of_classes = torch.int16 if num_classes <= SMALL_CLASSES else torch.int32
        self.bytes_of_row = 2 * num_classes if top is None else top * (2 + self.type_of_classes.itemsize) + 4

    @property
    def said(self) -> str:
        """What is kept, in words."""
        return f"{self.top} of {self.num_classes} classes" if self.top else f"{self.num_classes} classes"

    def shorten(self, signal: Tensor) -> Rows:
        if self.top is None:
            return {"logits": _in_16_bits(signal)}
        largest = signal.topk(self.top, dim=1)
        others_BN = signal.float().scatter(1, largest.indices, -math.inf)
        return {
            "values": _in_16_bits(largest.values),
            "classes": largest.indices.to(self.type_of_classes),
            "rest": others_BN.logsumexp(dim=1) - math.log(self.num_classes - self.top),
        }

    def restore(self, kept: Rows) -> Tensor:
        """In 16 bits as they are, or float32 of those that were left out."""
        if self.top is None:
            return kept["logits"]
        rest_BN = kept["rest"].unsqueeze(1).repeat(1, self.num_classes)
        return rest_BN.scatter(1, kept["classes"].long(), kept["values"].float())

    def blank(self, size: int) -> Tensor:
        return torch.zeros(size, self.num_classes)


class Whole:
    """A signal (B, ...) as it is: `values` (B, ...), of a map (B, H, W, C).

    Args:
        shape: of an image's.
        itemsize: bytes of a number.
    """

    def __init__(self, shape: tuple[int, ...], itemsize: int):
        self.shape = shape
        self.bytes_of_row = itemsize * math.prod(shape)

    def shorten(self, signal: Tensor) -> Rows:
        return {"values": (signal.permute(0, 2, 3, 1) if self._is_map else signal).contiguous()}

    def restore(self, kept: Rows) -> Tensor:
        return kept["values"].permute(0, 3, 1, 2) if self._is_map else kept["values"]

    def blank(self, size: int) -> Tensor:
        blank = torch.zeros(size, *self.shape)
        return blank.contiguous(memory_format=torch.channels_last) if self._is_map else blank

    @property
    def _is_map(self) -> bool:
        return len(self.shape) == 3


def _in_16_bits(values: Tensor) -> Tensor:
    if values.dtype in (torch.bfloat16, torch.float16):
        return values
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half()


# --- files -----------------------------------------------------------------------------------------------------------


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of all that the rows of a signal follow from, plain values by name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class SignalFiles:
    """The files of one signal in the views of a run.

        <folder>/<first digits of the fingerprint>/about.json, epoch_1.pth, epoch_2.pth, ...

    Args:
        form: what is kept of it.
        identity: all that the rows follow from; `format` among it.
        folder: in which those of a data set are.
        batch_size: of all processes together.
        steps: of an epoch.
        device: to which the rows of a step go.
    """

    def __init__(
        self,
        form: Form,
        identity: Mapping[str, Any],
        *,
        folder: Path,
        batch_size: int,
        steps: int,
        device: torch.device,
    ):
        self.form, self.device, self.batch_size, self.steps = form, device, batch_size, steps
        self.identity, self.fingerprint = dict(identity), fingerprint_of(identity)
        self.directory = folder / self.fingerprint[:SHOWN_DIGITS]
        self.part = member().share(batch_size)
        self.steps_of_file = min(steps, max(1, FILE_BYTES // (batch_size * form.bytes_of_row)))

    @property
    def bytes_of_epoch(self) -> int:
        """Of its files, as far as all is of the type that `form` expects."""
        return self.steps * self.batch_size * self.form.bytes_of_row + BYTES_AROUND * self.num_files

    @property
    def num_files(self) -> int:
        """Of an epoch."""
        return math.ceil(self.steps / self.steps_of_file)

    def missing(self, epochs: range) -> set[int]:
        """Epochs that are not there as a whole, as this process sees it."""
        numbers = range(self.num_files)
        return {epoch for epoch in epochs if not all(self._path(epoch, number).is_file() for number in numbers)}

    def open(self, epoch: int, step: int) -> "FileRows":
        """The rows of the file to which a step belongs, of this process; or room for them, where it is not there."""
        file = step // self.steps_of_file
        first = file * self.steps_of_file
        rows = FileRows(range(first, min(first + self.steps_of_file, self.steps)), self.device)
        content = self._load(epoch, rows) if member().is_first else None
        if by_first(lambda: content is not None):
            for name, values in (content or self._checked(epoch, rows)).items():
                by_step = values.view(len(rows.steps), self.batch_size, *values.shape[1:])
                rows.read(name, by_step[:, self.part.start : self.part.stop])
        return rows

    def write(self, epoch: int, rows: "FileRows") -> None:
        """Leave a file that is filled, of the rows of all processes; the first that has it writes it.

        Raises:
            OSError: it cannot be written; names it.
        """
        found = {name: _of_all_processes(values).flatten(0, 1) for name, values in rows.filled().items()}
        if not member().is_first:
            return
        path = self._path(epoch, self._number_of(rows))
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
                save_tensors(path, self._header(epoch, rows) | {"rows": found})

    def _number_of(self, rows: "FileRows") -> int:
        return rows.steps.start // self.steps_of_file

    def _path(self, epoch: int, file: int) -> Path:
        number = f"_{file + 1}" if self.steps_of_file < self.steps else ""
        return self.directory / f"epoch_{epoch}{number}.pth"

    def _load(self, epoch: int, rows: "FileRows") -> Rows | None:
        """What a file has, of all processes; None where it is not there, or is damaged, which is said."""
        path = self._path(epoch, self._number_of(rows))
        if not path.is_file():
            return None
        try:
            return self._checked(epoch, rows)
        except ValueError as error:
            log.warning("warning: %s; the teacher makes it again", error)
            path.unlink(missing_ok=True)
            return None

    def _checked(self, epoch: int, rows: "FileRows") -> Rows:
        """As `_load`.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of other rows.
        """
        path = self._path(epoch, self._number_of(rows))
        content = load_tensors(path)
        if {key: content.get(key) for key in ("format", "cache", "epoch", "part")} != self._header(epoch, rows):
            raise ValueError(f"{path} is another file that was put in its place")
        found = content.get("rows")
        expected = self.form.shorten(self.form.blank(1))
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise ValueError(f"{path} is damaged: it has no rows")
        for name, values in found.items():
            shape = (len(rows.steps) * self.batch_size, *expected[name].shape[1:])
            if not isinstance(values, Tensor) or values.shape != shape:
                raise ValueError(f"{path} is damaged: its {name} are not {' x '.join(map(str, shape))} numbers")
        return found

    def _header(self, epoch: int, rows: "FileRows") -> dict[str, Any]:
        """What a file says of its rows."""
        known = {"format": self.identity["format"], "cache": self.fingerprint, "epoch": epoch}
        return known | {"part": self._number_of(rows)}


class FileRows:
    """The rows of a file that are this process's, in memory that a GPU reads and writes without the host waiting.

    Args:
        steps: of the epoch, to which they belong.
    """

    def __init__(self, steps: range, device: torch.device):
        self.steps, self.device = steps, device
        self.are_whole = False
        self.held: Rows = {}  # (steps, B, ...)

    def read(self, name: str, values: Tensor) -> None:
        self.are_whole = True
        self.held[name] = values.pin_memory() if self.device.type == "cuda" else values.contiguous()

    def at(self, step: int) -> Rows:
        """Those of a step, on the device."""
        place = step - self.steps.start
        return {name: values[place].to(self.device, non_blocking=True) for name, values in self.held.items()}

    def put(self, step: int, kept: Rows) -> None:
        """Hold those of a step; every step, in order, has to have them."""
        for name, values in kept.items():
            if name not in self.held:
                shape = (len(self.steps), *values.shape)
                self.held[name] = torch.empty(shape, dtype=values.dtype, pin_memory=self.device.type == "cuda")
            self.held[name][step - self.steps.start].copy_(values, non_blocking=True)

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
