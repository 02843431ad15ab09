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
from letkd.parts import by_rank, summed
from letkd.processes import ALONE, Member


def fit_subclasses(
    projected_PL: Tensor,
    labels_P: Tensor,
    *,
    num_classes: int,
    num_subclasses: int,
    seed: int = 0,
    on_class: Callable[[], None] | None = None,
    member: Member = ALONE,
) -> tuple[Tensor, Tensor]:
    """k-means inside every class.

    Args:
        on_class: called for every class that is done, on a CPU by several threads.
        member: of the processes that hold the patches, each a part of them. A class that lies with one is fitted there
            alone, at the same time as those of others; one that lies with several is fitted by all.

    Returns:
        Centres (N*S, L), class by class, and the sub-class of every patch (P,) that was given, 0 to N*S - 1.

    Raises:
        ValueError: a class has fewer patches than sub-classes, or equal ones alone, or a label is none.
    """
    labels_P = class_labels(labels_P, len(projected_PL), num_classes)
    counts_RN = by_rank(torch.bincount(labels_P, minlength=num_classes), member).tolist()
    counts, own = [sum(counts_R) for counts_R in zip(*counts_RN, strict=True)], counts_RN[member.rank]
    for label, count in enumerate(counts):
        if count < num_subclasses:
            raise ValueError(f"class {label} has {count} patches, too few for {num_subclasses} sub-classes")
    rows_of_class = labels_P.argsort(stable=True).split(own)
    centers_ML = projected_PL.new_zeros(num_classes * num_subclasses, projected_PL.shape[1])
    members_P = torch.empty_like(labels_P)

    def fit_class(label: int, together: Member = ALONE) -> None:
        rows_R, first = rows_of_class[label], label * num_subclasses
        try:
            kmeans = KMeans(num_subclasses, random_state=seed, member=together)
            kmeans.fit(projected_PL.index_select(0, rows_R))
        except ValueError as error:
            raise ValueError(f"class {label}: {error}") from error
        centers_ML[first : first + num_subclasses] = kmeans.cluster_centers_
        members_P[rows_R] = kmeans.labels_ + first
        if on_class:
            on_class()

    in_parallel(fit_class, [n for n in range(num_classes) if own[n] == counts[n]], projected_PL.device)
    centers_ML = summed(centers_ML, member)
    for label, counts_R in enumerate(zip(*counts_RN, strict=True)):
        if max(counts_R) < counts[label]:
            fit_class(label, member)
        elif on_class and own[label] == 0:
            on_class()  # another rank has done it
    return centers_ML, members_P


def decision_matrix(
    projected_PL: Tensor, members_P: Tensor, *, num_targets: int, member: Member = ALONE
) -> tuple[Tensor, Tensor]:
    """Prototypes and D from the sub-class of every patch.

    Args:
        projected_PL: patches in LDA space.
        members_P: sub-class of every patch, 0 to N*S - 1.
        num_targets: N*S.
        member: of the processes that hold the patches, each a part of them.

    Returns:
        Prototypes (N*S, L) and D (N*S, N*S), both float32. A sub-class without members decides for itself.

    Raises:
        ValueError: a sub-class that there is not, or features that are not finite.
    """
    if members_P.shape != projected_PL.shape[:1] or (
        len(members_P) and (members_P.min() < 0 or members_P.max() >= num_targets)
    ):
        raise ValueError(f"members {tuple(members_P.shape)} must be sub-classes 0 to {num_targets - 1}, one a patch")
    if not torch.isfinite(summed(projected_PL.sum(), member)):
        raise ValueError("decisions need finite features; these hold inf or nan")
    counts_M = summed(torch.bincount(members_P, minlength=num_targets), member)
    sums_ML = torch.zeros(num_targets, projected_PL.shape[1], dtype=torch.float64, device=projected_PL.device)
    for rows_RL, members_R in zip(projected_PL.split(ROWS), members_P.split(ROWS), strict=True):
        sums_ML.index_add_(0, members_R, rows_RL.double())
    prototypes_ML = (summed(sums_ML, member) / counts_M.clamp_min(1)[:, None]).to(projected_PL.dtype)

    empty_M = counts_M == 0
    searched_ML = prototypes_ML.masked_fill(empty_M[:, None], torch.finfo(prototypes_ML.dtype).max ** 0.25)
    decided_P, _ = nearest(projected_PL, searched_ML)
    pairs = summed(torch.bincount(members_P * num_targets + decided_P, minlength=num_targets**2), member)
    decisions_MM = pairs.view(num_targets, num_targets).float() / counts_M.clamp_min(1)[:, None]
    decisions_MM.diagonal()[empty_M] = 1.0
    return prototypes_ML.float(), decisions_MM
