"""Linear discriminant analysis from scatter matrices accumulated in one pass.

    S_w = 1/P sum_n sum_{p in n} (x_p - m_n)(x_p - m_n)^T        within classes
    S_b = 1/(N - 1) sum_n P_n (m_n - m)(m_n - m)^T                     between classes
    W^T S_w W = I,  W^T S_b W diagonal, largest first

Shapes: P patches, C channels, N classes, L components. The solution equals scikit-learn's `svd` solver up to the sign
of each component, but only (C, C) and (N, C) sums are held, in float64, whatever P is.
"""

import warnings

import torch
from torch import Tensor

from letkd.checks import class_labels
from letkd.chunks import Blocks
from letkd.losses import full_precision
from letkd.parts import by_rank, num_by_rank, summed
from letkd.processes import ALONE, Member

ROWS = 2**15  # patches that are summed at once: the memory of much more is mapped anew each time
RELATIVE_TOLERANCE = (
    1e-4  # a direction with less standard deviation than this, relative, does not count (scikit-learn's)
)
ROUNDING = 1e-13  # of float64 sums, relative: a channel whose values or squares differ by less is constant


class LDA:
    """Linear discriminant analysis with the interface of scikit-learn's estimators.

    Feed everything with `fit`, or batch after batch with `partial_fit` and then `solve`: sums are taken of blocks of
    `ROWS` patches, so that the result is the same, bit for bit.

    Args:
        n_components: L that `transform` keeps; None keeps all that exist (at most N - 1).
        member: of the processes that hold the patches, each a part of them, which it feeds; `solve` sums up.

    Attributes after `solve`:
        xbar_: (C,) float64, mean of all patches.
        scalings_: (C, R) float64, all R components in the order of their between-class variance.
        classes_: (N,) 0 to N - 1.
        rank_: rank of the within-class scatter; below C where channels are constant or dependent.
    """

    def __init__(self, n_components: int | None = None, *, member: Member = ALONE):
        self.n_components = n_components
        self.member = member
        self._blocks = Blocks(ROWS, self._add)
        self._counts_N: Tensor | None = None
        self._num_classes = 0

    def fit(self, features_PC: Tensor, labels_P: Tensor) -> "LDA":
        """Learn from features (P, C) and their classes (P,), 0 to N - 1."""
        if not len(labels_P):
            raise ValueError("LDA has seen no patches")
        num_classes = int(by_rank(labels_P.max(), self.member).amax()) + 1
        return self.partial_fit(features_PC, labels_P, num_classes=num_classes).solve()

    @torch.no_grad()
    def partial_fit(self, features_RC: Tensor, labels_R: Tensor, *, num_classes: int) -> "LDA":
        """Add a batch of patches (R, C) with their classes (R,) to the sums."""
        self._num_classes = num_classes
        self._blocks.add(features_RC, class_labels(labels_R, len(features_RC), num_classes))
        return self

    def _add(self, features_RC: Tensor, labels_R: Tensor) -> None:
        block_RC = features_RC.double()
        if self._counts_N is None:
            # Sums about a point near the mean lose no digits where the mean is far from zero.
            self._shift_C = block_RC.mean(dim=0)
            self._counts_N = torch.zeros(self._num_classes, dtype=torch.float64, device=block_RC.device)
            self._sums_NC = block_RC.new_zeros(self._num_classes, block_RC.shape[1])
            self._squares_CC = block_RC.new_zeros(block_RC.shape[1], block_RC.shape[1])
        block_RC = block_RC - self._shift_C
        self._counts_N += torch.bincount(labels_R, minlength=self._num_classes)
        self._sums_NC.index_add_(0, labels_R, block_RC)
        self._squares_CC.addmm_(block_RC.T, block_RC)

    def solve(self) -> "LDA":
        """Turn the sums into `xbar_` and `scalings_`. Where fewer components exist than were asked for, it warns.

        Raises:
            ValueError: nothing was fitted, a class has no patches, the features are not finite, or no direction
                separates the classes.
        """
        self._blocks.finish()
        if 0 in num_by_rank(0 if self._counts_N is None else 1, self.member):
            raise ValueError("LDA has seen no patches")
        counts_N, sums_NC, squares_CC, shift_C = self._sums()
        if not torch.isfinite(squares_CC).all():
            raise ValueError("LDA needs finite features; these hold inf or nan")
        if (counts_N == 0).any():
            missing = torch.nonzero(counts_N == 0).flatten().tolist()
            raise ValueError(f"LDA needs patches of every class; none of class {', '.join(map(str, missing))}")
        num_patches, num_classes = counts_N.sum(), len(counts_N)
        means_NC = sums_NC / counts_N[:, None]
        mean_C = sums_NC.sum(dim=0) / num_patches
        within_CC = squares_CC - (means_NC * counts_N[:, None]).T @ means_NC
        total_C = squares_CC.diagonal() / num_patches
        rounding_C = (ROUNDING * total_C).sqrt() + ROUNDING * (mean_C + shift_C).abs()
        whitening_CR = _whitening(within_CC / num_patches, rounding_C)
        if not whitening_CR.shape[1]:
            raise ValueError(
                f"all patches are equal inside each of {num_classes} classes: no direction separates the classes"
            )
        centred_NC = (means_NC - mean_C) * (counts_N / max(num_classes - 1, 1)).sqrt()[:, None]
        _, singular, directions = torch.linalg.svd(centred_NC @ whitening_CR, full_matrices=False)
        # The classes' means in standard deviations times sqrt(P): about 1 for patches that any class could have drawn.
        if singular[0] <= RELATIVE_TOLERANCE:
            raise ValueError(f"the means of {num_classes} classes are equal: no direction separates the classes")
        num_found = int((singular > RELATIVE_TOLERANCE * singular[0]).sum())
        if self.n_components is not None and self.n_components > num_found:
            warnings.warn(
                f"LDA of {num_classes} classes has {num_found} components, not n_components={self.n_components}: all "
                "of them are kept",
                stacklevel=2,
            )
        self.classes_ = torch.arange(num_classes, device=counts_N.device)
        self.rank_ = whitening_CR.shape[1]
        self.xbar_ = mean_C + shift_C
        # Ranks on different processors could find another sign of a component: all take the first one's.
        self.scalings_ = by_rank(whitening_CR @ directions[:num_found].T, self.member)[0]
        return self

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Counts (N,), sums (N, C) and products (C, C) of the patches of all ranks, and the point (C,) that they are
        about: the first rank's, s. About its own point t a rank has summed x - t, and x - s = (x - t) + (t - s).
        """
        shift_C = by_rank(self._shift_C, self.member)[0]
        moved_C, sum_C, number = self._shift_C - shift_C, self._sums_NC.sum(dim=0), self._counts_N.sum()
        sums_NC = self._sums_NC + self._counts_N[:, None] * moved_C
        crossed_CC = torch.outer(moved_C, sum_C + number / 2 * moved_C)
        squares_CC = self._squares_CC + crossed_CC + crossed_CC.T
        return (*(summed(part, self.member) for part in (self._counts_N, sums_NC, squares_CC)), shift_C)

    def transform(self, features_PC: Tensor) -> Tensor:
        """Projections (P, L) in float32: (x - xbar) @ scalings, first L components."""
        scalings_CL = self.scalings_[:, : self.n_components]
        with full_precision(features_PC.device):
            return torch.addmm(-(self.xbar_ @ scalings_CL).float(), features_PC.float(), scalings_CL.float())


def _whitening(covariance_CC: Tensor, rounding_C: Tensor) -> Tensor:
    """V (C, R) with V^T covariance V = I, over the R directions that vary.

    Channels are brought to unit variance first, so that the tolerance means the same for all of them. Those that vary
    by no more than rounding have no variance.
    """
    std_C = covariance_CC.diagonal().clamp_min(0).sqrt()
    constant_C = std_C <= rounding_C
    std_C = std_C.masked_fill(constant_C, 1.0)
    covariance_CC = covariance_CC.masked_fill(constant_C | constant_C[:, None], 0.0)
    correlation_CC = covariance_CC / std_C[:, None] / std_C
    variances, vectors_CC = torch.linalg.eigh(correlation_CC)
    kept = variances > RELATIVE_TOLERANCE**2
    return vectors_CC[:, kept] / variances[kept].sqrt() / std_C[:, None]
