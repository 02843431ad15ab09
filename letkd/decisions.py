"""Sub-classes of every class and how the teacher decides between all of them (letKD-2, offline part).

    rho   (N*S, L)      S k-means centres inside each of the N classes, in LDA space, ordered class by class
    q_i                 prototype of sub-class i: the mean of its members
    D[i, j]             share of the members of sub-class i whose nearest prototype, among all N*S, is j

Shapes: P patches, L LDA components, N classes, S sub-classes a class.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from letkd.checks import class_labels
from letkd.kmeans import ROWS, KMeans, in_parallel, nearest
from letkd.ranks import ALONE, Alone


def fit_subclasses(
    projected_PL: Tensor,
    labels_P: Tensor,
    *,
    num_classes: int,
    num_subclasses: int,
    seed: int = 0,
    on_class: Callable[[], None] | None = None,
    ranks: Alone = ALONE,
) -> tuple[Tensor, Tensor]:
    """k-means inside every class.

    Args:
        on_class: called for every class that is done, on a CPU by several threads.
        ranks: the processes that hold the patches, each a part of them. A class that lies with one is fitted there
            alone, at the same time as those of others; one that lies with several is fitted by all.

    Returns:
        Centres (N*S, L), class by class, and the sub-class of every patch (P,) that was given, 0 to N*S - 1.

    Raises:
        ValueError: a class has fewer patches than sub-classes, or equal ones alone, or a label is none.
    """
    labels_P = class_labels(labels_P, len(projected_PL), num_classes)
    by_rank = ranks.gather(torch.bincount(labels_P, minlength=num_classes)).tolist()
    counts, own = [sum(of_ranks) for of_ranks in zip(*by_rank, strict=True)], by_rank[ranks.rank]
    for label, count in enumerate(counts):
        if count < num_subclasses:
            raise ValueError(f"class {label} has {count} patches, too few for {num_subclasses} sub-classes")
    rows_of_class = labels_P.argsort(stable=True).split(own)
    centers_ML = projected_PL.new_zeros(num_classes * num_subclasses, projected_PL.shape[1])
    members_P = torch.empty_like(labels_P)

    def fit_class(label: int, together: Alone = ALONE) -> None:
        rows_R, first = rows_of_class[label], label * num_subclasses
        try:
            kmeans = KMeans(num_subclasses, random_state=seed, ranks=together)
            kmeans.fit(projected_PL.index_select(0, rows_R))
        except ValueError as error:
            raise ValueError(f"class {label}: {error}") from error
        centers_ML[first : first + num_subclasses] = kmeans.cluster_centers_
        members_P[rows_R] = kmeans.labels_ + first
        if on_class:
            on_class()

    in_parallel(fit_class, [n for n in range(num_classes) if own[n] == counts[n]], projected_PL.device)
    centers_ML = ranks.sum(centers_ML)
    for label, of_ranks in enumerate(zip(*by_rank, strict=True)):
        if max(of_ranks) < counts[label]:
            fit_class(label, ranks)
        elif on_class and own[label] == 0:
            on_class()  # another rank has done it
    return centers_ML, members_P


def decision_matrix(
    projected_PL: Tensor, members_P: Tensor, *, num_targets: int, ranks: Alone = ALONE
) -> tuple[Tensor, Tensor]:
    """Prototypes and D from the sub-class of every patch.

    Args:
        projected_PL: patches in LDA space.
        members_P: sub-class of every patch, 0 to N*S - 1.
        num_targets: N*S.
        ranks: the processes that hold the patches, each a part of them.

    Returns:
        Prototypes (N*S, L) and D (N*S, N*S), both float32. A sub-class without members decides for itself.

    Raises:
        ValueError: a sub-class that there is not, or features that are not finite.
    """
    if members_P.shape != projected_PL.shape[:1] or (
        len(members_P) and (members_P.min() < 0 or members_P.max() >= num_targets)
    ):
        raise ValueError(f"members {tuple(members_P.shape)} must be sub-classes 0 to {num_targets - 1}, one a patch")
    if not torch.isfinite(ranks.sum(projected_PL.sum())):
        raise ValueError("decisions need finite features; these hold inf or nan")
    counts_M = ranks.sum(torch.bincount(members_P, minlength=num_targets))
    sums_ML = torch.zeros(num_targets, projected_PL.shape[1], dtype=torch.float64, device=projected_PL.device)
    for rows_RL, members_R in zip(projected_PL.split(ROWS), members_P.split(ROWS), strict=True):
        sums_ML.index_add_(0, members_R, rows_RL.double())
    prototypes_ML = (ranks.sum(sums_ML) / counts_M.clamp_min(1)[:, None]).to(projected_PL.dtype)

    empty_M = counts_M == 0
    searched_ML = prototypes_ML.masked_fill(empty_M[:, None], torch.finfo(prototypes_ML.dtype).max ** 0.25)
    decided_P, _ = nearest(projected_PL, searched_ML)
    pairs = ranks.sum(torch.bincount(members_P * num_targets + decided_P, minlength=num_targets**2))
    decisions_MM = pairs.view(num_targets, num_targets).float() / counts_M.clamp_min(1)[:, None]
    decisions_MM.diagonal()[empty_M] = 1.0
    return prototypes_ML.float(), decisions_MM
