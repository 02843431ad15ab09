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

Three products of K C^2 take the place of passes over (P, K). Where a map has few patches of many channels, as behind
pooling, they are the dearer ones: then the statistics are taken of the scores, dz is kept, and a second pass adds r.

*Statistics of all ranks.* A synchronised BatchNorm sums 2K + 1 numbers over the ranks forwards: how many patches, the
sums of s, then those of (s - E s)^2; and backwards the 2K sums of dz and dz sh. They are the same whichever way a rank
takes to its own statistics, so that ranks may have different numbers of patches. Its features stay centred by their own
mean, and where E s is not w times this mean, the difference belongs to r.

In evaluation the running statistics take the place of the batch's and r vanishes. Under autocast products run in its
precision, and statistics and sums in float32.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from letkd.chunks import chunk_length, row_chunks
from letkd.losses import autocast_is_on, full_precision
from letkd.products import add_product_over_rows, multiply, sum_over_rows

COSINE_EPS = 1e-12
SQUARED_CHANNELS_A_PATCH = 27  # a pass over an element takes about a nanosecond, 6 C^2 / P operations at 160 GFLOP/s


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


def _has_few_patches(unit_PC: Tensor) -> bool:
    """Whether products of K C^2 would cost more than further passes over (P, K)."""
    num_patches, channels = unit_PC.shape
    return channels**2 > SQUARED_CHANNELS_A_PATCH * num_patches


def _statistics_of(scores_PK: Tensor, dtype: torch.dtype) -> Statistics:
    mean_K = scores_PK.mean(dim=0, dtype=dtype)
    deviation_K = torch.linalg.vector_norm(scores_PK.to(dtype) - mean_K, dim=0)
    return Statistics(mean_K, deviation_K.square_() / len(scores_PK))


def _of_all_ranks(statistics: Statistics, num_patches: int, group: "dist.ProcessGroup") -> tuple[Statistics, Tensor]:
    """Statistics over the patches of all ranks, and how many these are; a rank may have none."""
    mean_K, var_K = statistics if num_patches else (torch.zeros_like(x) for x in statistics)
    sums = torch.cat((num_patches * mean_K, mean_K.new_tensor([num_patches])))
    dist.all_reduce(sums, group=group)
    total = sums[-1]
    mean_all_K = sums[:-1] / total
    deviations_K = num_patches * (var_K + (mean_K - mean_all_K).square())
    dist.all_reduce(deviations_K, group=group)
    return Statistics(mean_all_K, deviations_K / total), total


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
        group: "dist.ProcessGroup | None",
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int | Tensor]:
        dtype = _product_dtype(unit_PC)
        operands = unit_PC.to(dtype), templates_KC.to(dtype), semantic_CK.to(dtype)
        scores_PK = unit_PC.new_empty(unit_PC.shape[0], templates_KC.shape[0], dtype=dtype)
        center_C = covariance_CC = None
        has_scores = running is None and _has_few_patches(unit_PC)
        if has_scores:
            statistics = _statistics_of(multiply(operands[0], operands[1].T, scores_PK), unit_PC.dtype)
        elif running is None:
            with full_precision(unit_PC.device):
                statistics, center_C, covariance_CC = score_statistics(unit_PC, templates_KC)
        else:
            statistics = Statistics(*(x.clone() for x in running))
        num_patches: int | Tensor = len(unit_PC)
        if group is not None:
            statistics, num_patches = _of_all_ranks(statistics, num_patches, group)
        rstd_K, gain_K, affine = _affine(gamma_K, beta_K, statistics, eps, dtype)
        values_PC, norms_P1 = _values(*operands, *affine, scores_PK, has_scores=has_scores)
        ctx.set_materialize_grads(False)
        ctx.is_batch, ctx.group, ctx.num_patches = running is None, group, num_patches
        ctx.save_for_backward(
            *_Saved(
                unit_PC, templates_KC, *operands, *affine, scores_PK, values_PC, norms_P1,
                gain_K, rstd_K, statistics.mean_K, center_C, covariance_CC,
            )
        )  # fmt: skip
        ctx.mark_non_differentiable(*statistics, *([] if group is None else [num_patches]))
        return values_PC, scores_PK, *statistics, num_patches

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values_PC: Tensor | None, grad_scores_PK: Tensor | None, *_: None) -> tuple:
        saved = _Saved(*ctx.saved_tensors)
        if grad_values_PC is not None:
            backward = _Backward(
                saved,
                grad_values_PC,
                grad_scores_PK,
                is_batch=ctx.is_batch,
                group=ctx.group,
                num_patches=ctx.num_patches,
            )
            return *backward.run(), None, None, None
        if grad_scores_PK is None:
            return (None,) * 8
        grad_PC, grad_KC = grad_scores_PK @ saved.templates, grad_scores_PK.T @ saved.unit
        return grad_PC.to(saved.unit_PC), grad_KC.to(saved.unit_PC), *(None,) * 6


class _Saved(NamedTuple):
    """For the backward pass: operands in full precision and as products take them, results, and BatchNorm."""

    unit_PC: Tensor
    templates_KC: Tensor
    unit: Tensor
    templates: Tensor
    semantic: Tensor
    gain: Tensor
    shift: Tensor
    scores_PK: Tensor
    values_PC: Tensor
    norms_P1: Tensor
    gain_K: Tensor
    rstd_K: Tensor
    mean_K: Tensor
    center_C: Tensor | None
    covariance_CC: Tensor | None


class _Backward:
    """The gradients, summed up chunk by chunk."""

    def __init__(
        self, saved: _Saved, grad_values_PC: Tensor, grad_scores_PK: Tensor | None, *, is_batch: bool,
        group: "dist.ProcessGroup | None", num_patches: int | Tensor,
    ):  # fmt: skip
        self.saved = saved
        self.group, self.num_patches = group, num_patches
        # Where all weights are zero the norm is clamped: ReLU lets nothing through, and float16 must not divide by it.
        h_PC = torch.where(saved.norms_P1 > COSINE_EPS, grad_values_PC / saved.norms_P1, 0)
        pull_P1 = torch.linalg.vecdot(h_PC, saved.values_PC)[:, None] / saved.norms_P1
        self.h, self.pull = h_PC.to(saved.unit.dtype), pull_P1.to(saved.unit.dtype)
        self.grad_scores_PK = grad_scores_PK
        self.is_batch = is_batch
        self.is_late = is_batch and saved.covariance_CC is None  # ds waits until the means of dz are known
        self.chunks = list(row_chunks(*saved.scores_PK.shape, saved.unit.device))

        self.grad_unit = torch.empty_like(saved.unit)
        self.grad_templates_CK, self.grad_semantic_CK = (
            saved.templates_KC.new_zeros(*saved.templates_KC.T.shape) for _ in range(2)
        )
        self.grad_beta_K, self.weighted_K = (torch.zeros_like(saved.gain_K) for _ in range(2))  # sums of dz, dz s

    def run(self) -> tuple[Tensor, ...]:
        """Gradients of unit features, templates, semantic vectors, gamma and beta."""
        saved = self.saved
        first = saved.scores_PK[: chunk_length(*saved.scores_PK.shape, saved.unit.device)]
        weights, ds = torch.empty_like(first), torch.empty_like(first)
        kept = torch.empty_like(saved.scores_PK) if self.is_late else None
        for rows in self.chunks:
            length = rows.stop - rows.start
            chunk = ds[:length] if kept is None else kept[rows]
            self._to_scores(rows, weights[:length], chunk)
            if kept is None:
                self._to_operands(rows, chunk)
        grad_gamma_K = (self.weighted_K - saved.mean_K * self.grad_beta_K) * saved.rstd_K
        if self.is_batch:
            beta_all_K, gamma_all_K = self._over_ranks(self.grad_beta_K, grad_gamma_K)
            offset_K = saved.gain_K * beta_all_K / self.num_patches
            slope_K = saved.gain_K * saved.rstd_K * gamma_all_K / self.num_patches
            if kept is not None:
                self._add_means_to_scores(kept, offset_K, slope_K)
        grad_unit_PC = self.grad_unit.to(saved.unit_PC.dtype)
        if self.is_batch and kept is None:
            if self.group is not None:
                offset_K = offset_K + slope_K * (saved.templates_KC @ saved.center_C - saved.mean_K)
            self._add_means_to_operands(grad_unit_PC, offset_K, slope_K)
        return grad_unit_PC, self.grad_templates_CK.T, self.grad_semantic_CK, grad_gamma_K, self.grad_beta_K

    def _over_ranks(self, *sums_K: Tensor) -> tuple[Tensor, ...]:
        """The sums over the patches of all ranks, where BatchNorm is synchronised."""
        if self.group is None:
            return sums_K
        sums = torch.stack(sums_K)
        dist.all_reduce(sums, group=self.group)
        return tuple(sums)

    def _to_scores(self, rows: slice, a: Tensor, d: Tensor) -> None:
        """ds of some rows, but for r, to `d`; `a` is room."""
        saved, scores, h = self.saved, self.saved.scores_PK[rows], self.h[rows]
        torch.addcmul(saved.shift, scores, saved.gain, out=a).relu_()
        add_product_over_rows(self.grad_semantic_CK, h, a)
        multiply(h, saved.semantic, d)
        d.addcmul_(a, self.pull[rows], value=-1)
        torch.ops.aten.threshold_backward.grad_input(d, a, 0, grad_input=d)
        self.grad_beta_K += sum_over_rows(d, self.grad_beta_K.dtype)
        self.weighted_K += sum_over_rows(torch.mul(d, scores, out=a), self.weighted_K.dtype)
        if self.grad_scores_PK is None:
            d.mul_(saved.gain)
        else:
            torch.addcmul(self.grad_scores_PK[rows], d, saved.gain, out=d)

    def _to_operands(self, rows: slice, ds: Tensor) -> None:
        multiply(ds, self.saved.templates, self.grad_unit[rows])
        add_product_over_rows(self.grad_templates_CK, self.saved.unit[rows], ds)

    def _add_means_to_scores(self, ds_PK: Tensor, offset_K: Tensor, slope_K: Tensor) -> None:
        """r = slope (mean - s) - offset, row by row."""
        constant_K = slope_K * self.saved.mean_K - offset_K
        for rows in self.chunks:
            scores = self.saved.scores_PK[rows].to(slope_K.dtype)
            r = torch.addcmul(constant_K, scores, slope_K, value=-1)
            self._to_operands(rows, r.add_(ds_PK[rows]).to(ds_PK.dtype))

    def _add_means_to_operands(self, grad_unit_PC: Tensor, offset_K: Tensor, slope_K: Tensor) -> None:
        """r w and r' u from products of (C, C)."""
        saved = self.saved
        slope_KC = slope_K[:, None] * saved.templates_KC
        through_CC = saved.templates_KC.T @ slope_KC
        grad_unit_PC -= offset_K @ saved.templates_KC + (saved.unit_PC - saved.center_C) @ through_CC
        pulled_CK = torch.outer(saved.center_C, offset_K) + saved.covariance_CC @ slope_KC.T
        self.grad_templates_CK -= len(saved.unit) * pulled_CK


def values_and_scores(
    unit_PC: Tensor,
    templates_KC: Tensor,
    semantic_CK: Tensor,
    gamma_K: Tensor,
    beta_K: Tensor,
    *,
    eps: float,
    running: Statistics | None,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Statistics, int | Tensor]:
    """Values (P, C), scores (P, K), the statistics that normalised the scores, and the number of patches behind them.

    Args:
        unit_PC: unit features.
        templates_KC: unit templates times their scale.
        semantic_CK: unit semantic vectors times their scale.
        gamma_K, beta_K, eps: of BatchNorm.
        running: statistics that are used instead of the batch's; no gradient passes through them.
        group: of the ranks whose patches are one batch.
    """
    if running is None and group is None and not len(unit_PC):  # of no patches there are no statistics
        running = Statistics(torch.zeros_like(gamma_K), torch.ones_like(gamma_K))
    values_PC, scores_PK, mean_K, var_K, num_patches = _ValuesAndScores.apply(
        unit_PC, templates_KC, semantic_CK, gamma_K, beta_K, eps, running, group
    )
    return values_PC, scores_PK, Statistics(mean_K, var_K), num_patches


def values_alone(
    unit_PC: Tensor, templates_KC: Tensor, semantic_CK: Tensor, gamma_K: Tensor, beta_K: Tensor, *, eps: float,
    running: Statistics,
) -> Tensor:  # fmt: skip
    """Values (P, C) of a deployed layer, without gradients: the scores are never held as a whole."""
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
    scores_PK: Tensor | None = None, *, has_scores: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Values (P, C) and norms of the weights (P, 1), in at least float32.

    Fills `scores_PK` where it is given, unless it has them already.
    """
    num_patches, num_templates = unit_PC.shape[0], templates_KC.shape[0]
    length = chunk_length(num_patches, num_templates, unit_PC.device)
    weights = unit_PC.new_empty(length, num_templates)
    precise = torch.promote_types(unit_PC.dtype, torch.float32)
    values_PC = torch.empty_like(unit_PC)
    norms_P1 = unit_PC.new_empty(num_patches, 1, dtype=precise)
    for rows in row_chunks(num_patches, num_templates, unit_PC.device):
        a = weights[: rows.stop - rows.start]
        scores = a if scores_PK is None else scores_PK[rows]
        if not has_scores:
            multiply(unit_PC[rows], templates_KC.T, scores)
        torch.addcmul(shift_K, scores, gain_K, out=a).relu_()
        torch.linalg.vector_norm(a, dim=1, keepdim=True, dtype=precise, out=norms_P1[rows])
        multiply(a, semantic_CK.T, values_PC[rows])
    norms_P1.clamp_min_(COSINE_EPS)
    return values_PC / norms_P1, norms_P1


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would run a product with `x` in."""
    if x.dtype != torch.float64 and autocast_is_on(x.device):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
