"""KL divergence from soft targets to a student's scores, without keeping the targets.

    L = 1/P sum_p KL(t_p || softmax(s_p)) = 1/P sum_p [ sum_k t_pk log t_pk - sum_k t_pk s_pk + logsumexp_k s_pk ]
    dL/ds = 1/P (softmax(s) - t)

Shapes: P patches, K words or sub-classes; scores s (P, K). The gradient needs the targets once and in the same order as
the loss, so both come in one pass over row chunks: besides the scores themselves only the gradient is ever (P, K).
The targets belong to the teacher: no gradient reaches them.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a chunk: on a CPU it should stay in the cache, on a GPU it should fill the device.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


class SoftTargets(Protocol):
    """Target distributions over K for P patches, produced a chunk of rows at a time."""

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Probabilities (stop - start, K) and their negative entropies sum_k t log t (stop - start,)."""
        ...


def full_precision(device: torch.device) -> torch.autocast:
    """The context of all supervision: inside autocast, distances in bfloat16 would choose other words."""
    return torch.autocast(device.type, enabled=False)


class _KLFromTargets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_PK: Tensor, targets: SoftTargets) -> Tensor:
        num_patches, num_words = scores_PK.shape
        dtype = torch.promote_types(scores_PK.dtype, torch.float32)
        grad_PK = torch.empty_like(scores_PK, dtype=dtype)
        loss = torch.zeros((), dtype=dtype, device=scores_PK.device)
        chunk = max(1, CHUNK_ELEMENTS.get(scores_PK.device.type, 2**18) // num_words)
        with full_precision(scores_PK.device):
            for start in range(0, num_patches, chunk):
                stop = min(start + chunk, num_patches)
                targets_CK, negative_entropy_C = targets.rows(start, stop)
                targets_CK = targets_CK.to(dtype)
                log_q_CK = torch.log_softmax(scores_PK[start:stop].to(dtype), dim=1)
                loss += negative_entropy_C.sum() - torch.dot(targets_CK.flatten(), log_q_CK.flatten())
                torch.sub(log_q_CK.exp_(), targets_CK, out=grad_PK[start:stop])
        ctx.save_for_backward(grad_PK)
        ctx.scores_dtype = scores_PK.dtype
        return loss / num_patches

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        (grad_PK,) = ctx.saved_tensors
        return (grad_PK * (grad_loss / grad_PK.shape[0])).to(ctx.scores_dtype), None


def kl_to_scores(scores_PK: Tensor, targets: SoftTargets) -> Tensor:
    """Mean over patches of KL(target || softmax(scores)), a scalar of at least float32.

    Args:
        scores_PK: the student's scores; gradients flow to them alone.
        targets: distributions over the same K, for the same P patches in the same order.
    """
    return _KLFromTargets.apply(scores_PK, targets)
