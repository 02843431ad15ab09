"""Products of a chunk of rows whose cores keep their rows.

In a pass over the elements of a chunk each core takes rows of its own. A library splits a product as it likes, often by
columns, and then half of what a core reads next is in the cache of another. Between cores that share none this takes
several times as long as the pass itself. So on a CPU a product is a batch of products, each core's of its own rows.
"""

import torch
from torch import Tensor

MIN_ROWS = 64  # of a core: for fewer, preparing the other operand once a core is too much
SPLIT_DTYPES = (torch.float32, torch.float64)  # a batch in bfloat16 takes longer than it saves


def multiply(left_RC: Tensor, right_CK: Tensor, out_RK: Tensor) -> Tensor:
    """left @ right, to `out_RK`."""
    parts = _num_parts(left_RC)
    if parts == 1:
        return torch.mm(left_RC, right_CK, out=out_RK)
    torch.bmm(_split(left_RC, parts), right_CK.expand(parts, -1, -1), out=_split(out_RK, parts))
    return out_RK


def multiply_add(bias_K: Tensor, left_RC: Tensor, right_CK: Tensor, *, beta: float, alpha: float) -> Tensor:
    """beta * bias + alpha * left @ right, (R, K)."""
    parts = _num_parts(left_RC)
    if parts == 1:
        return torch.addmm(bias_K, left_RC, right_CK, beta=beta, alpha=alpha)
    right_TCK = right_CK.expand(parts, -1, -1)
    return torch.baddbmm(bias_K, _split(left_RC, parts), right_TCK, beta=beta, alpha=alpha).flatten(0, 1)


def add_product_over_rows(sum_CK: Tensor, left_RC: Tensor, right_RK: Tensor) -> None:
    """sum += left' @ right, the sum in its own precision."""
    parts = _num_parts(left_RC)
    if parts > 1:
        sum_CK += torch.bmm(_split(left_RC, parts).mT, _split(right_RK, parts)).sum(dim=0)
    elif sum_CK.dtype == left_RC.dtype:
        sum_CK.addmm_(left_RC.T, right_RK)
    else:
        sum_CK += left_RC.T @ right_RK


def sum_over_rows(x_RK: Tensor, dtype: torch.dtype) -> Tensor:
    """(K,) in `dtype`."""
    parts = _num_parts(x_RK)
    return x_RK.sum(dim=0, dtype=dtype) if parts == 1 else _split(x_RK, parts).sum(dim=1, dtype=dtype).sum(dim=0)


def _num_parts(rows_RC: Tensor) -> int:
    """One a core, where they are equal and large enough; else one."""
    if rows_RC.device.type != "cpu" or rows_RC.dtype not in SPLIT_DTYPES:
        return 1
    parts, num_rows = torch.get_num_threads(), len(rows_RC)
    return parts if num_rows % parts == 0 and num_rows >= MIN_ROWS * parts else 1


def _split(rows_RC: Tensor, parts: int) -> Tensor:
    return rows_RC.unflatten(0, (parts, -1))
