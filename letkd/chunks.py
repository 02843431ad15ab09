"""Row chunks: how a pass over a (P, K) quantity stays in the cache.

On a CPU a chunk of every intermediate tensor should stay in the last-level cache and be large enough to keep all cores
busy; on a GPU it should fill the device. Both figures are elements of one chunk. With the first a step of RN56_RN20
took least on the machine that `benchmarks/README.md` names, as with half of it (an eighth: a seventh more); the second
is 128 MiB of float32 and was not measured.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
MULTIPLE = 64  # of rows, so that the cores can have equal parts


def row_chunks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover all rows in order; none is longer than the first."""
    length = chunk_length(num_rows, num_columns, device)
    for start in range(0, num_rows, length):
        yield slice(start, min(start + length, num_rows))


def chunk_length(num_rows: int, num_columns: int, device: torch.device) -> int:
    """Rows of the first and longest chunk."""
    elements = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"])
    fitting = elements // num_columns
    return max(1, min(num_rows, fitting - fitting % MULTIPLE if fitting > MULTIPLE else fitting))


class Blocks:
    """Rows (R, C) of a stream with their labels (R,), handed on in blocks of `length` whatever the batches are.

    So that what is computed of them does not depend on the batches, not even in its last bits.

    Args:
        take: is called with features and labels of every block, which it must not keep.
    """

    def __init__(self, length: int, take: Callable[[Tensor, Tensor], None]):
        self.length = length
        self.take = take
        self._waiting: tuple[Tensor, Tensor] | None = None
        self._filled = 0

    def add(self, features_RC: Tensor, labels_R: Tensor) -> None:
        start = 0
        while (left := len(labels_R) - start) > 0:
            number = min(left, self.length - self._filled)
            features, labels = (rows[start : start + number] for rows in (features_RC, labels_R))
            start += number
            if number == self.length:
                self.take(features, labels)
                continue
            if self._waiting is None:
                self._waiting = features.new_empty(self.length, features.shape[1]), labels.new_empty(self.length)
            here = slice(self._filled, self._filled + number)
            self._waiting[0][here], self._waiting[1][here] = features, labels
            self._filled = here.stop
            if self._filled == self.length:
                self._hand_on()

    def finish(self) -> None:
        """Hand on the rows that are left, a shorter block."""
        if self._filled:
            self._hand_on()
        self._waiting = None

    def _hand_on(self) -> None:
        number, self._filled = self._filled, 0
        self.take(*(rows[:number] for rows in self._waiting))
