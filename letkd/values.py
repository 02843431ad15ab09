"""The values of a KD layer and its scores in one pass over the patches, forwards and backwards.

For unit features u (P, C), scaled unit templates w (K, C) and scaled unit semantic vectors m (C, K):

    s = u w'      z = gamma (s - E s) / sqrt(Var s + eps) + beta      a = ReLU(z)      v = m a / ||a||

Written out, this is a dozen passes over (P, K) tensors that no cache holds. Here the scores are the only such tensor
that is kept; everything else lives for one chunk of rows. What makes that possible:

*Statistics before the scores.* s is linear in u, so BatchNorm's batch statistics follow from the mean and the (C, C)
covariance S of the features: E s = w E u and Var s_k = w_k S w_k'.

*The norm divides afterwards.* m (a / ||a||) = (m a) / ||a||: rows of (P, C), not of (P, K). Backwards, with
h = dv / ||a|| and the row numbers c = <dv, v> / ||a||^2,

    da = h m - c a        dz = da where a > 0, else 0        dm = h' a

*BatchNorm's gradient needs no second pass.* With g = gamma / sqrt(Var s + eps) and sh the normalised scores,

    ds = dscores + g dz - g (mean(dz) + sh mean(dz sh))

where the means over patches are known only at the end. Their part r of ds is again linear in the centred features,
r = -g mean(dz) + (u - E u) w' B with B = -g mean(dz sh) / sqrt(Var s + eps), so that what it contributes to du = r w
and dw = r' u comes from (C, C) products alone.

In evaluation the running statistics take the place of the batch's and r vanishes. Under autocast products run in its
precision, and statistics and sums in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from letkd.chunks import chunk_length, row_chunks
from letkd.losses import full_precision

COSINE_EPS = 1e-12


class Statistics(NamedTuple):
    """Mean and biased variance of the scores, (K,) each."""

    mean_K: Tensor
    var_K: Tensor


def score_statistics(unit_PC: Tensor, templates_KC: Tensor) -> tuple[Statistics, Tensor, Tensor]:
    """Statistics of u w' over the patches, with the mean (C,) and covariance (C, C) of the features they come from."""
    center_C = unit_PC.mean(dim=0)
    centered_PC = unit_PC - center_C
    covariance_CC = centered_PC.T @ centered_PC / unit_PC.shape[0]
    var_K = torch.linalg.vecdot(templates_KC @ covariance_CC, templates_KC)
    return Statistics(templates_KC @ center_C, var_K.clamp_min(0)), center_C, covariance_CC


class _ValuesAndScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        unit_PC: Tensor,
        templates_KC: Tensor,
        semantic_CK: Tensor,
        gamma_K: Tensor,
        beta_K: Tensor,
        eps: float,
        running: Statistics | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = _product_dtype(unit_PC)
        if running is None:
            with full_precision(unit_PC.device):
                statistics, center_C, covariance_CC = score_statistics(unit_PC, templates_KC)
        else:
            statistics, center_C, covariance_CC = Statistics(*(x.clone() for x in running)), None, None
        rstd_K, gain_K, affine = _affine(gamma_K, beta_K, statistics, eps, dtype)
        operands = unit_PC.to(dtype), templates_KC.to(dtype), semantic_CK.to(dtype)
        scores_PK = unit_PC.new_empty(unit_PC.shape[0], templates_KC.shape[0], dtype=dtype)
        values_PC, norms_P1 = _values(*operands, *affine, scores_PK)
        ctx.set_materialize_grads(False)
        ctx.is_batch = running is None
        ctx.save_for_backward(
            unit_PC, templates_KC, *operands, *affine, scores_PK, values_PC, norms_P1,
            gain_K, rstd_K, statistics.mean_K, center_C, covariance_CC,
        )  # fmt: skip
        ctx.mark_non_differentiable(*statistics)
        return values_PC, scores_PK, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values_PC: Tensor | None, grad_scores_PK: Tensor | None, *_: None) -> tuple:
        (
            unit_PC, templates_KC, unit, templates, semantic, gain, shift, scores_PK, values_PC, norms_P1,
            gain_K, rstd_K, mean_K, center_C, covariance_CC,
        ) = ctx.saved_tensors  # fmt: skip
        if grad_values_PC is None:
            if grad_scores_PK is None:
                return (None,) * 7
            grad_PC, grad_KC = grad_scores_PK @ templates, grad_scores_PK.T @ unit
            return grad_PC.to(unit_PC), grad_KC.to(unit_PC), None, None, None, None, None
        num_patches, dtype = unit.shape[0], unit.dtype
        # Where all weights are zero the norm is clamped: ReLU lets nothing through, and float16 must not divide by it.
        grad_values_PC = torch.where(norms_P1 > COSINE_EPS, grad_values_PC / norms_P1, 0)
        pull_P1 = (torch.linalg.vecdot(grad_values_PC, values_PC)[:, None] / norms_P1).to(dtype)
        grad_values = grad_values_PC.to(dtype)

        grad_unit_PC = torch.empty_like(unit)
        grad_templates_CK, grad_semantic_CK = (templates_KC.new_zeros(*templates_KC.T.shape) for _ in range(2))
        grad_beta_K = torch.zeros_like(gain_K)
        weighted_K = torch.zeros_like(gain_K)  # sum of dz s
        length = chunk_length(*scores_PK.shape, unit.device)
        weights, grad = (torch.empty_like(scores_PK[:length]) for _ in range(2))
        for rows in row_chunks(*scores_PK.shape, unit.device):
            scores, a, d = scores_PK[rows], weights[: rows.stop - rows.start], grad[: rows.stop - rows.start]
            torch.addcmul(shift, scores, gain, out=a).relu_()
            _add_product(grad_semantic_CK, grad_values[rows].T, a)
            torch.mm(grad_values[rows], semantic, out=d)
            d.addcmul_(a, pull_P1[rows], value=-1)
            torch.ops.aten.threshold_backward.grad_input(d, a, 0, grad_input=d)
            grad_beta_K += d.sum(dim=0, dtype=gain_K.dtype)
            weighted_K += torch.mul(d, scores, out=a).sum(dim=0, dtype=gain_K.dtype)
            d.mul_(gain) if grad_scores_PK is None else torch.addcmul(grad_scores_PK[rows], d, gain, out=d)
            torch.mm(d, templates, out=grad_unit_PC[rows])
            _add_product(grad_templates_CK, unit[rows].T, d)
        grad_unit_PC = grad_unit_PC.to(unit_PC.dtype)
        grad_gamma_K = (weighted_K - mean_K * grad_beta_K) * rstd_K
        if ctx.is_batch:
            offset_K = gain_K * grad_beta_K / num_patches
            slope_KC = (gain_K * rstd_K * grad_gamma_K / num_patches)[:, None] * templates_KC
            grad_unit_PC -= offset_K @ templates_KC + (unit_PC - center_C) @ (templates_KC.T @ slope_KC)
            grad_templates_CK -= num_patches * (torch.outer(center_C, offset_K) + covariance_CC @ slope_KC.T)
        return grad_unit_PC, grad_templates_CK.T, grad_semantic_CK, grad_gamma_K, grad_beta_K, None, None


def values_and_scores(
    unit_PC: Tensor,
    templates_KC: Tensor,
    semantic_CK: Tensor,
    gamma_K: Tensor,
    beta_K: Tensor,
    *,
    eps: float,
    running: Statistics | None,
) -> tuple[Tensor, Tensor, Statistics]:
    """Values (P, C), scores (P, K), and the statistics that normalised the scores.

    Args:
        unit_PC: unit features.
        templates_KC: unit templates times their scale.
        semantic_CK: unit semantic vectors times their scale.
        gamma_K, beta_K, eps: of BatchNorm.
        running: statistics that are used instead of the batch's; no gradient passes through them.
    """
    values_PC, scores_PK, mean_K, var_K = _ValuesAndScores.apply(
        unit_PC, templates_KC, semantic_CK, gamma_K, beta_K, eps, running
    )
    return values_PC, scores_PK, Statistics(mean_K, var_K)


def values_alone(
    unit_PC: Tensor, templates_KC: Tensor, semantic_CK: Tensor, gamma_K: Tensor, beta_K: Tensor, *, eps: float,
    running: Statistics,
) -> Tensor:  # fmt: skip
    """Values (P, C) of a deployed layer, without the scores.

    Without gradients the scores are never held as a whole. While `torch.compile` or `torch.export` looks on, or
    operations are counted on the meta device, the formula stands as it is.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or unit_PC.is_meta:
        _, gain_K, (_, shift_K) = _affine(gamma_K, beta_K, running, eps, gamma_K.dtype)
        weights_PK = torch.addcmul(shift_K, unit_PC @ templates_KC.T, gain_K).relu()
        norms_P1 = torch.linalg.vector_norm(weights_PK, dim=1, keepdim=True).clamp_min(COSINE_EPS)
        return weights_PK @ semantic_CK.T / norms_P1
    dtype = _product_dtype(unit_PC)
    _, _, (gain_K, shift_K) = _affine(gamma_K, beta_K, running, eps, dtype)
    return _values(unit_PC.to(dtype), templates_KC.to(dtype), semantic_CK.to(dtype), gain_K, shift_K)[0]


def _affine(
    gamma_K: Tensor, beta_K: Tensor, statistics: Statistics, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """1 / sqrt(Var s + eps), the gain gamma of that, and BatchNorm as gain and shift of the scores in `dtype`."""
    rstd_K = torch.rsqrt(statistics.var_K + eps)
    gain_K = gamma_K * rstd_K
    rounded_K = gain_K.to(dtype)
    # The shift centres what the rounded gain makes of the mean: else the rounding would move scores far from zero.
    shift_K = beta_K - statistics.mean_K * rounded_K.to(gain_K.dtype)
    return rstd_K, gain_K, (rounded_K, shift_K.to(dtype))


def _values(
    unit_PC: Tensor, templates_KC: Tensor, semantic_CK: Tensor, gain_K: Tensor, shift_K: Tensor,
    scores_PK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Values (P, C) and norms of the weights (P, 1), in at least float32; fills `scores_PK` where it is given."""
    num_patches, num_templates = unit_PC.shape[0], templates_KC.shape[0]
    length = chunk_length(num_patches, num_templates, unit_PC.device)
    weights = unit_PC.new_empty(length, num_templates)
    precise = torch.promote_types(unit_PC.dtype, torch.float32)
    values_PC = torch.empty_like(unit_PC)
    norms_P1 = unit_PC.new_empty(num_patches, 1, dtype=precise)
    for rows in row_chunks(num_patches, num_templates, unit_PC.device):
        a = weights[: rows.stop - rows.start]
        scores = a if scores_PK is None else scores_PK[rows]
        torch.mm(unit_PC[rows], templates_KC.T, out=scores)
        torch.addcmul(shift_K, scores, gain_K, out=a).relu_()
        torch.linalg.vector_norm(a, dim=1, keepdim=True, dtype=precise, out=norms_P1[rows])
        torch.mm(a, semantic_CK.T, out=values_PC[rows])
    norms_P1.clamp_min_(COSINE_EPS)
    return values_PC / norms_P1, norms_P1


def _add_product(sum_CK: Tensor, left_CR: Tensor, right_RK: Tensor) -> None:
    """sum += left @ right, the sum in its own precision."""
    if sum_CK.dtype == left_CR.dtype:
        sum_CK.addmm_(left_CR, right_RK)
    else:
        sum_CK += left_CR @ right_RK


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would run a product with `x` in."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
