"""Rows that several processes hold together, each a part of them: what has to be summed up to fit them as one would.

Rank r of N holds the rows that follow on those of rank r - 1, so that a row has the same number as in one process that
holds all of them. Every rank calls the same methods in the same order, and all get the same results. Sums are exact but
for the order of their terms; what one rank sends is added to zeros, which changes no bit of it.

Shapes: P rows of this rank, C columns, N ranks, E rows that are looked for.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Alone:
    """One process, which holds all rows."""

    rank, number = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of tensors of one shape, in their type; they are not changed."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(N, ...): those of all ranks, of one shape."""
        return tensor.unsqueeze(0)

    def counts(self, num_rows: int) -> list[int]:
        """Numbers of rows of all ranks."""
        return [num_rows]

    def take(self, rows_PC: Tensor, index_E: Tensor) -> Tensor:
        """(E, C): rows by their numbers among all; these are the same on all ranks."""
        return rows_PC[index_E]

    def largest(self, rows_PC: Tensor, values_P: Tensor, number: int) -> Tensor:
        """(E, C): of all rows the E = `number` with the largest values, the largest first."""
        return rows_PC[values_P.topk(number).indices]


ALONE = Alone()


class Ranks(Alone):
    """The processes of a group of torch.distributed; it must take tensors of the CPU, and those of the rows' device.

    Args:
        group: None for all processes.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.number = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        parts = tensor.new_zeros(self.number, *tensor.shape)
        parts[self.rank] = tensor
        return self.sum(parts)

    def counts(self, num_rows: int) -> list[int]:
        return self.gather(torch.tensor(num_rows)).tolist()

    def take(self, rows_PC: Tensor, index_E: Tensor) -> Tensor:
        here_E = index_E - sum(self.counts(len(rows_PC))[: self.rank])
        is_own_E = (here_E >= 0) & (here_E < len(rows_PC))
        return self._sent(rows_PC, here_E[is_own_E], is_own_E)

    def largest(self, rows_PC: Tensor, values_P: Tensor, number: int) -> Tensor:
        own = values_P.topk(min(number, len(values_P)))
        values_E = values_P.new_full((number,), -torch.inf)
        values_E[: len(own.values)] = own.values
        chosen_E = self.gather(values_E).flatten().topk(number).indices
        is_own_E = chosen_E // number == self.rank
        return self._sent(rows_PC, own.indices[chosen_E[is_own_E] % number], is_own_E)

    def _sent(self, rows_PC: Tensor, here: Tensor, is_own_E: Tensor) -> Tensor:
        """(E, C) of which this rank has those rows."""
        found_EC = rows_PC.new_zeros(len(is_own_E), rows_PC.shape[1])
        found_EC[is_own_E] = rows_PC[here]
        return self.sum(found_EC)
