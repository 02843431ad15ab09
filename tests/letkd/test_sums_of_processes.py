"""What the processes of a run sum up together; in one process nothing is another."""

from typing import Any

import pytest
import torch
from rank_tools import on_ranks
from torch import Tensor

from letkd.processes import ALONE, LargestOfAll, Member, all_least, all_sum, by_first, gathered, member, of_all


def compute(rank: int) -> dict[str, Any]:
    called, (own, size) = [], member()
    total, least = torch.tensor([1.0, own]), torch.tensor([own, -own])
    all_sum(total)
    all_least(least)
    part = torch.arange(4.0).view(2, 2).add(10 * own).requires_grad_()
    rows = gathered(part)
    weights = torch.arange(rows.numel(), dtype=torch.float32).view_as(rows)
    (weights * rows.square()).sum().backward()
    largest = LargestOfAll()
    heard = [largest(number) for number in (0, 7 * (own == size - 1), 0)] + [largest.last(), largest.last()]
    return {
        "member": (own, size),
        "total": total.tolist(),
        "least": least.tolist(),
        "rows": rows.detach(),
        "grad": part.grad / size,  # as DistributedDataParallel takes the mean
        "of all": of_all(f"rank {own}"),
        "by first": by_first(lambda: called.append(own) or "said"),
        "called": called,
        "heard": heard,
    }


def whole(size: int) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, and the gradient of a sum over them."""
    rows = torch.cat([torch.arange(4.0).view(2, 2).add(10 * rank) for rank in range(size)]).requires_grad_()
    (torch.arange(rows.numel(), dtype=torch.float32).view_as(rows) * rows.square()).sum().backward()
    return rows.detach(), rows.grad


def test_three_processes(tmp_path):
    found = on_ranks(3, compute, tmp_path)
    rows, grad = whole(3)
    for rank, one in enumerate(found):
        assert one["member"] == (rank, 3)
        assert one["total"] == [3, 3] and one["least"] == [0, -2]
        assert torch.equal(one["rows"], rows) and torch.equal(one["grad"], grad[2 * rank : 2 * rank + 2])
        assert one["of all"] == ["rank 0", "rank 1", "rank 2"]
        assert one["by first"] == "said" and one["called"] == [0] * (rank == 0)
        assert one["heard"] == [0, 0, 7, 0, 0]  # one call later


def test_one_process():
    found = compute(0)
    rows, grad = whole(1)
    assert found["member"] == (0, 1) == ALONE and found["total"] == [1, 0]
    assert torch.equal(found["rows"], rows) and torch.equal(found["grad"], grad)
    assert found["of all"] == ["rank 0"] and found["called"] == [0]
    assert found["heard"] == [0, 7, 0, 0, 0]  # at once


@pytest.mark.parametrize("number", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_partition_in_order(number, size):
    shares = [Member(rank, size).share(number) for rank in range(size)]
    assert [each for share in shares for each in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
