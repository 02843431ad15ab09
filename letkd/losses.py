"""KL divergence from soft targets to a student's scores, without keeping the targets.

    L = 1/P sum_p KL(t_p || q_p),  q = softmax(s)
      = 1/P sum_p [ sum_k t_pk log t_pk - sum_k t_pk s_pk + logsumexp_k s_pk ]
    dL/ds = 1/P (q - t)

Shapes: P patches, K words or sub-classes; scores s (P, K). The gradient needs the targets once and in the same order as
the loss, so both come in one pass over row chunks: besides the scores themselves only the gradient is ever (P, K).
In float16 most of 1/P (q - t) would round to 0 before the factor of a GradScaler meets it in the backward pass. There
q - t is kept, in the range of the type, and what it is multiplied by comes in float32.
The logarithms of (P, K) probabilities are never taken: where a softmax is known, its logsumexp follows from the largest
entry, logsumexp_k s_k = max s - log max q.
The targets belong to the teacher: no gradient reaches them.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from letkd.chunks import row_chunks

FLOAT16_RANGE = 2.0**15  # |q - t| <= 1 times this is a number of float16


class SoftTargets(Protocol):
    """Target distributions over K for P patches, produced a chunk of rows at a time."""

    def rows(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Probabilities (rows, K) and their negative entropies sum_k t log t (rows,)."""
        ...


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast chooses the types of products; on `meta` there is none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager:
    """The context in which a device computes in the types that it is given."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _ExactProducts:
    """Contexts without TensorFloat-32, which is a setting of the process: the first of all threads' sets it, and the
    last restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._before = ""

    def __enter__(self) -> None:
        products = torch.backends.cuda.matmul
        with self._lock:
            if not self._num_inside:
                self._before = products.fp32_precision  # also what was set in the older ways, which do not read this
                products.fp32_precision = "ieee"
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                torch.backends.cuda.matmul.fp32_precision = self._before


_EXACT_PRODUCTS = _ExactProducts()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """The context of all supervision: distances in bfloat16 or TensorFloat-32 would choose other words."""
    with _EXACT_PRODUCTS, no_autocast(device):
        yield


def softmax_and_logsumexp(logits_PK: Tensor, out_PK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax (P, K) and logsumexp (P,) of every row; the softmax is written to `out_PK` where it is given."""
    q_PK = torch.softmax(logits_PK, dim=1, out=out_PK)
    return q_PK, logits_PK.amax(dim=1) - q_PK.amax(dim=1).log()


class _KLFromTargets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_PK: Tensor, targets: SoftTargets, weights_P: Tensor | None) -> Tensor:
        dtype = torch.promote_types(scores_PK.dtype, torch.float32)
        grad_PK = torch.empty_like(scores_PK)
        loss = torch.zeros((), dtype=dtype, device=scores_PK.device)
        with full_precision(scores_PK.device):
            for rows in row_chunks(*scores_PK.shape, scores_PK.device):
                scores_RK = scores_PK[rows].to(dtype)
                targets_RK, negative_entropy_R = targets.rows(rows)
                targets_RK = targets_RK.to(dtype)
                grad_RK = grad_PK[rows]
                q_RK, logsumexp_R = softmax_and_logsumexp(scores_RK, grad_RK if grad_RK.dtype == dtype else None)
                divergence_R = negative_entropy_R + logsumexp_R - torch.linalg.vecdot(targets_RK, scores_RK)
                q_RK.sub_(targets_RK)
                weights_R = None if weights_P is None else weights_P[rows].to(dtype)
                loss += divergence_R.sum() if weights_R is None else torch.dot(weights_R, divergence_R)
                if grad_RK.dtype == torch.float16:
                    torch.mul(q_RK, FLOAT16_RANGE, out=grad_RK)
                elif weights_R is None:
                    torch.div(q_RK, scores_PK.shape[0], out=grad_RK)
                else:
                    torch.mul(q_RK, weights_R.unsqueeze(1), out=grad_RK)
        ctx.save_for_backward(grad_PK, weights_P if grad_PK.dtype == torch.float16 else None)
        return loss if weights_P is not None else loss / max(1, scores_PK.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        grad_PK, weights_P = ctx.saved_tensors
        if grad_PK.dtype == torch.float16:
            return _multiplied(grad_PK, grad_loss / FLOAT16_RANGE, weights_P), None, None
        if grad_loss.device.type == "cpu" and grad_loss == 1:  # reading it is free there, a pass over (P, K) is not
            return grad_PK, None, None
        return grad_PK * grad_loss.to(grad_PK.dtype), None, None


def _multiplied(difference_PK: Tensor, factor: Tensor, weights_P: Tensor | None) -> Tensor:
    """The gradient in float16, of q - t times `FLOAT16_RANGE`; rounded once, behind all products."""
    grad_PK = torch.empty_like(difference_PK)
    for rows in row_chunks(*grad_PK.shape, grad_PK.device):
        weights_R1 = 1 / len(grad_PK) if weights_P is None else weights_P[rows].to(factor.dtype).unsqueeze(1)
        torch.mul(difference_PK[rows].to(factor.dtype), factor * weights_R1, out=grad_PK[rows])
    return grad_PK


def kl_to_scores(scores_PK: Tensor, targets: SoftTargets, weights_P: Tensor | None = None) -> Tensor:
    """Mean over patches of KL(target || softmax(scores)), a scalar of at least float32; of no patches it is 0.

    Args:
        scores_PK: the student's scores; gradients flow to them alone.
        targets: distributions over the same K, for the same P patches in the same order.
        weights_P: of the patches in a sum, instead of 1/P each.
    """
    return _KLFromTargets.apply(scores_PK, targets, weights_P)
