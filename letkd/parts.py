"""Rows that the processes of a run hold together, each a part of them: what they find out of all rows.

The rows of a rank follow on those of the rank before it, so that a row has the number that it has in one process. All
ranks call these functions in the same order and get the same. Sums are exact up to the order of their terms; rows that
a rank sends are added to zeros, which changes no bit of them. Of one process everything is what it was given.

Shapes: P rows of this rank, C columns, R ranks, E rows that are looked for.
"""

import torch
from torch import Tensor

from letkd.processes import Member, all_sum


def summed(tensor: Tensor, member: Member) -> Tensor:
    """The sum over ranks of tensors of one shape, in their type; they stay as they are."""
    if member.size == 1:
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)
    all_sum(total)
    return total


def by_rank(tensor: Tensor, member: Member) -> Tensor:
    """(R, ...): the tensors of all ranks, of one shape."""
    if member.size == 1:
        return tensor.unsqueeze(0)
    found = tensor.new_zeros(member.size, *tensor.shape)
    found[member.rank] = tensor
    return summed(found, member)


def num_by_rank(num_rows: int, member: Member) -> list[int]:
    """How many rows each rank has."""
    return [num_rows] if member.size == 1 else by_rank(torch.tensor(num_rows), member).tolist()


def take(rows_PC: Tensor, index_E: Tensor, member: Member) -> Tensor:
    """(E, C): rows by their numbers among those of all ranks."""
    if member.size == 1:
        return rows_PC[index_E]
    here_E = index_E - sum(num_by_rank(len(rows_PC), member)[: member.rank])
    is_own_E = (here_E >= 0) & (here_E < len(rows_PC))
    return _sent(rows_PC, here_E[is_own_E], is_own_E, member)


def largest(rows_PC: Tensor, values_P: Tensor, number: int, member: Member) -> Tensor:
    """(E, C): of the rows of all ranks the E = `number` with the largest values, the largest first."""
    own = values_P.topk(min(number, len(values_P)))
    if member.size == 1:
        return rows_PC[own.indices]
    values_E = values_P.new_full((number,), -torch.inf)
    values_E[: len(own.values)] = own.values
    chosen_E = by_rank(values_E, member).flatten().topk(number).indices
    is_own_E = chosen_E // number == member.rank
    return _sent(rows_PC, own.indices[chosen_E[is_own_E] % number], is_own_E, member)


def _sent(rows_PC: Tensor, here: Tensor, is_own_E: Tensor, member: Member) -> Tensor:
    """(E, C), of which this rank has the rows `here`."""
    found_EC = rows_PC.new_zeros(len(is_own_E), rows_PC.shape[1])
    found_EC[is_own_E] = rows_PC[here]
    return summed(found_EC, member)
