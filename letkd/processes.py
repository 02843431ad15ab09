"""The processes that compute one thing together, each a rank, and what they sum up.

One process is rank 0 of 1: then nothing is communicated, and every function returns what it was given. Where a process
group of torch is there (`torch.distributed.init_process_group`), whose backend takes tensors of the CPU, all ranks call
these functions in the same order. A failure of one ends the others, which raise RuntimeError.

It is in this package, which needs torch alone, because codebooks and decisions are sums over ranks too; it knows
nothing of the method, and every room may use it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


class Member(NamedTuple):
    """Which of how many processes this one is."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether it is the one that keeps records."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of `number` things, in order, are this rank's: those of all ranks differ by one at most."""
        return range(self.rank * number // self.size, (self.rank + 1) * number // self.size)


ALONE = Member(0, 1)


def member() -> Member:
    """This process among those of its group."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Member(dist.get_rank(), dist.get_world_size())


def all_sum(*tensors: Tensor) -> None:
    """Put the sums over all ranks in place of tensors of equal shapes on every rank; bool is not summed."""
    if member().size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def all_least(*tensors: Tensor) -> None:
    """Likewise the least of each number."""
    if member().size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)


def of_first(tensor: Tensor) -> Tensor:
    """A copy of the first rank's, of tensors of equal shapes."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    if member().size > 1:
        dist.broadcast(copy, src=0)
    return copy


def gathered(tensor: Tensor) -> Tensor:
    """The rows (R*B, ...) of all ranks in their order, of tensors (B, ...) of equal shapes.

    The gradient is that of a sum of the losses of all ranks, every one of which computes the same from these rows: of
    R such losses the mean, as DistributedDataParallel takes it, has the gradient of one.
    """
    return _Gathered.apply(tensor) if member().size > 1 else tensor


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rank, ctx.size = member()
        rows = tensor.new_empty(ctx.size * len(tensor), *tensor.shape[1:])
        dist.all_gather(list(rows.chunk(ctx.size)), tensor.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.size * grad.chunk(ctx.size)[ctx.rank]


def of_all(value: Any) -> list[Any]:
    """What the ranks have, in their order; plain values."""
    size = member().size
    found = [value] * size
    if size > 1:
        dist.all_gather_object(found, value)
    return found


def by_first(function: Callable[..., Result], *args: Any) -> Result:
    """What `function(*args)` returns on the first rank, which alone calls it: plain values, on every rank."""
    rank, size = member()
    found = [function(*args) if rank == 0 else None]
    if size > 1:
        dist.broadcast_object_list(found)
    return found[0]


def wait_for_all() -> None:
    """Go on when every rank is here."""
    of_all(None)


class LargestOfAll:
    """The largest number that any rank has had at the call before this one, so that no rank waits for the others.

    In one process that of this call. Every rank makes the same calls, and `last` at their end.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, number: int) -> int:
        if member().size == 1:
            return number
        before = self.last()
        tensor = torch.tensor([number])
        self._pending = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True), tensor
        return before

    def last(self) -> int:
        """That of the last call; 0 where it was asked for already."""
        if self._pending is None:
            return 0
        work, tensor = self._pending
        self._pending = None
        work.wait()
        return int(tensor)
