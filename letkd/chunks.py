"""Row chunks: how a pass over a (P, K) quantity stays in the cache.

On a CPU a chunk of every intermediate tensor should stay in the last-level cache and be large enough to keep all cores
busy; on a GPU it should fill the device. Both figures are elements of one chunk. With the first a step of RN56_RN20
took least on the machine that `benchmarks/README.md` names, as with half of it (an eighth: a seventh more); the second
is 128 MiB of float32 and was not measured.
"""

from collections.abc import Iterator

import torch

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
