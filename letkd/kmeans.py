"""Lloyd's k-means over millions of patches: the codebook of words and the sub-classes of a class.

    assign  a(x) = argmin_k d_k(x) = argmax_k (2 x.mu_k - ||mu_k||^2),  with d_k(x) = ||x - mu_k||
    update  mu_k = mean of the patches with a(x) = k

Shapes: P patches, C channels, K clusters; R rows of a chunk or block of patches, B blocks, M clusters that a block is
compared with. No subsampling and no approximation: every iteration assigns every patch to its nearest centroid. A
cluster that lost all its patches moves to the patch that is farthest from its own centroid.

On a GPU every patch is compared with every centroid. On a CPU most of these products are left out, because the triangle
inequality says what they cannot find. Patches near each other form a block, and a block b keeps for every cluster k how
much farther away than their own centroid that of k is, at least, for all of its patches (these are the lower bounds of
Elkan, "Using the Triangle Inequality to Accelerate k-Means", ICML 2003, kept for blocks instead of single patches):

    s_bk <= min_{x in b} d_k(x) - d_a(x)        so that only the k with s_bk <= 0 need comparing

    at first                       s_bk = ||mu_a - mu_k|| - 2 r       b holds patches of one cluster a; r = max_x d_a(x)
    centroids move by delta_k      s_bk decreases by delta_k + max_{x in b} delta_a(x)
    b was compared with k          s_bk = sqrt(r^2 + q) - r           q = min_x d_k^2 - d_a^2, nobody's own cluster anew

The last line holds because d_k - d_a = sqrt(d_a^2 + d_k^2 - d_a^2) - d_a grows with d_k^2 - d_a^2 and falls with d_a.
A patch that changes its cluster stays in its block: its own distance only falls. Every bound gives up more than the
rounding of float arithmetic could have added to it.
"""

import difflib
import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from letkd.chunks import row_chunks
from letkd.losses import full_precision
from letkd.parts import by_rank, largest, num_by_rank, summed, take
from letkd.processes import ALONE, Member

NUM_ITERATIONS = 20  # of the paper's codebooks
BACKENDS = ("torch", "faiss")
GROUP = 64  # columns that are reduced together
ALIGNMENT = 16  # columns of a product; with an odd number it takes half as long again
ROWS = 2**16  # of a pass over (rows, C)
# For so few clusters, like the sub-classes of a class, a product has patches side by side instead of clusters.
FEW_CLUSTERS, CACHED_ROWS = 8, 2**13
# Blocks pay where a CPU has many clusters to compare, and their (B, K) and (K, K) bounds stay below 256 MiB each.
BLOCK_ROWS, MAX_BOUNDS = 512, 2**26
MIN_CLUSTERS, MAX_CLUSTERS, MIN_PATCHES_A_CLUSTER = 2**10, 2**13, 2**6


class KMeans:
    """k-means with the interface of scikit-learn's estimators.

    Args:
        n_clusters: K. More than there are patches is an error, as in scikit-learn: a student's layer has K templates.
        max_iter: Lloyd iterations; always all of them, as in the paper.
        random_state: seed of the initial centroids, which are K different patches.
        backend: "torch", on the features' device, or "faiss", which assigns on its GPUs where it has any.
        on_iteration: called with (iteration from 1, its inertia) after every iteration.
        member: of the processes that hold the patches, each a part of them; all fit theirs together.

    Attributes after `fit`; of several processes all have the same, but for `labels_`:
        cluster_centers_: (K, C) on the features' device.
        labels_: (P,) nearest centre of every patch that was given.
        inertia_: sum of squared distances to those.
        inertias_: of each iteration to the centres that it assigned to, before they moved; a list of floats.
        n_iter_: number of iterations.
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        max_iter: int = NUM_ITERATIONS,
        random_state: int = 0,
        backend: str = "torch",
        on_iteration: Callable[[int, float], None] | None = None,
        member: Member = ALONE,
    ):
        if backend not in BACKENDS:
            known = sorted(BACKENDS, key=lambda name: -difflib.SequenceMatcher(None, name, backend).ratio())
            raise ValueError(f"unknown k-means backend {backend!r}; known: {', '.join(known)}")
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.random_state = random_state
        self.backend = backend
        self.on_iteration = on_iteration
        self.member = member

    @torch.no_grad()
    def fit(self, features_PC: Tensor) -> "KMeans":
        """Learn the centres of `features_PC` (P, C), float32.

        Raises:
            ValueError: more clusters than patches, patches that are all equal, or features that are not finite.
        """
        member = self.member
        num_patches = sum(num_by_rank(len(features_PC), member))
        if not 1 <= self.n_clusters <= num_patches:
            raise ValueError(f"k-means of {num_patches} patches cannot have {self.n_clusters} clusters")
        assign = (_FaissAssignment if self.backend == "faiss" else _Assignment)(features_PC, member)
        means = _Means(features_PC, self.n_clusters, member)
        generator = torch.Generator().manual_seed(self.random_state)
        first = torch.randperm(num_patches, generator=generator)[: self.n_clusters]
        self.cluster_centers_ = take(features_PC, first.to(features_PC.device), member)
        _check_different(features_PC, self.cluster_centers_, num_patches, member)
        self.inertias_ = []
        for iteration in range(1, self.max_iter + 1):
            index_P, inertia = assign(self.cluster_centers_)
            self.cluster_centers_, empty_E = means.update(index_P)
            if len(empty_E):
                self.cluster_centers_[empty_E] = largest(features_PC, assign.distances_P, len(empty_E), member)
            self.inertias_.append(inertia)
            if self.on_iteration:
                self.on_iteration(iteration, inertia)
        self.labels_, self.inertia_ = assign(self.cluster_centers_)
        self.n_iter_ = self.max_iter
        return self

    @torch.no_grad()
    def predict(self, features_PC: Tensor) -> Tensor:
        """Index of the nearest centre of every patch, (P,)."""
        return nearest(features_PC, self.cluster_centers_)[0]


def nearest(features_PC: Tensor, centroids_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest centroid (P,), and its ||mu||^2 - 2 x.mu (P,): the squared distance less ||x||^2."""
    if len(centroids_KC) <= FEW_CLUSTERS:
        return _nearest_of_few(features_PC, centroids_KC)
    num_clusters = len(centroids_KC)
    width = min(GROUP, num_clusters)
    padding = -num_clusters % width
    weight_KC = F.pad(2 * centroids_KC, (0, 0, 0, padding))
    bias_K = F.pad(-centroids_KC.square().sum(dim=1), (0, padding), value=-torch.inf)
    place_W = _places(width, features_PC)
    index_P = torch.empty(len(features_PC), dtype=torch.int64, device=features_PC.device)
    partial_P = torch.empty_like(features_PC[:, 0])

    def assign(rows: slice) -> None:
        # The largest of each group, and then its place in one group alone.
        scores_RGW = torch.addmm(bias_K, features_PC[rows], weight_KC.T).unflatten(1, (-1, width))
        best_R, group_R = scores_RGW.amax(dim=2).max(dim=1)
        scores_RW = scores_RGW.gather(1, group_R[:, None, None].expand(-1, 1, width))[:, 0]
        index_P[rows] = _place(scores_RW, best_R[:, None], place_W, dim=1)
        index_P[rows].add_(group_R, alpha=width)
        torch.neg(best_R, out=partial_P[rows])

    in_parallel(assign, row_chunks(len(features_PC), len(bias_K), features_PC.device), features_PC.device)
    return index_P, partial_P


def _nearest_of_few(features_PC: Tensor, centroids_KC: Tensor) -> tuple[Tensor, Tensor]:
    weight_KC, bias_K1 = 2 * centroids_KC, -centroids_KC.square().sum(dim=1, keepdim=True)
    place_K1 = _places(len(centroids_KC), features_PC)[:, None]
    index_P = torch.empty(len(features_PC), dtype=torch.int64, device=features_PC.device)
    partial_P = torch.empty_like(features_PC[:, 0])

    def assign(rows: slice) -> None:
        scores_KR = torch.addmm(bias_K1, weight_KC, features_PC[rows].T)
        best_R = torch.amax(scores_KR, dim=0, out=partial_P[rows])
        index_P[rows] = _place(scores_KR, best_R, place_K1, dim=0)

    starts = range(0, len(features_PC), CACHED_ROWS)
    in_parallel(assign, (slice(start, start + CACHED_ROWS) for start in starts), features_PC.device)
    return index_P, partial_P.neg_()


def _places(number: int, like: Tensor) -> Tensor:
    """Places 0, 1, ... counted from the end, for `_place`."""
    return torch.arange(number, 0, -1.0, device=like.device)


def _place(scores: Tensor, best: Tensor, places: Tensor, dim: int) -> Tensor:
    """The first place with the best score, as a float; 0 where that is nan. Overwrites the scores.

    By arithmetic, because `max` and `argmax` ask on a CPU for every score whether it is larger, and guess wrong.
    """
    number = places.numel()
    return scores.eq_(best).mul_(places).amax(dim).neg_().add_(number).remainder_(number)


class _Assignment:
    """The nearest centroid of every patch, for centroids that move from call to call."""

    def __init__(self, features_PC: Tensor, member: Member):
        self.features_PC = features_PC
        self.member = member
        self.squared_norms_P = _finite_squared_norms(features_PC, member)
        self._index_P: Tensor | None = None
        self._partial_P: Tensor  # ||mu||^2 - 2 x.mu of the nearest
        self._blocks: _Blocks | None = None

    def __call__(self, centroids_KC: Tensor) -> tuple[Tensor, float]:
        """Index of the nearest centroid (P,), overwritten by the next call, and the sum of all squared distances, those
        of other ranks too.
        """
        if self._index_P is None or not _blocks_pay(self.features_PC, len(centroids_KC)):
            self._index_P, self._partial_P = nearest(self.features_PC, centroids_KC)
        else:
            if self._blocks is None:
                self._blocks = _Blocks(self.features_PC, self.squared_norms_P, self._index_P, centroids_KC)
            self._partial_P = self._blocks.reassign(self._index_P, centroids_KC)
        inertia = self.squared_norms_P.sum(dtype=torch.float64) + self._partial_P.sum(dtype=torch.float64)
        return self._index_P, max(summed(inertia, self.member).item(), 0.0)

    @property
    def distances_P(self) -> Tensor:
        """Squared, of every patch to the centroid that it was assigned to."""
        return self.squared_norms_P + self._partial_P


def _blocks_pay(features_PC: Tensor, num_clusters: int) -> bool:
    return (
        features_PC.device.type == "cpu"
        and MIN_CLUSTERS <= num_clusters <= MAX_CLUSTERS
        and len(features_PC) >= MIN_PATCHES_A_CLUSTER * num_clusters
    )


class _Blocks:
    """Blocks of near patches with the bounds that the head of this module derives.

    Args:
        index_P: a nearby centroid of every patch; patches that share one share blocks.
        centroids_KC: where the centroids are now.
    """

    def __init__(self, features_PC: Tensor, squared_norms_P: Tensor, index_P: Tensor, centroids_KC: Tensor):
        self.features_PC = features_PC
        self.squared_norms_P = squared_norms_P
        self.centroids_KC = centroids_KC
        # Float sums of C products are off by less than this, relative to the squared norms of patch and centroid.
        self.rounding = 4 * (features_PC.shape[1] + 16) * torch.finfo(features_PC.dtype).eps

        own_P = _squared_distances(features_PC, centroids_KC, index_P)
        order_P = own_P.argsort()
        order_P = order_P[index_P[order_P].argsort(stable=True)]  # by cluster, in it from the inside out
        num_rows = max(BLOCK_ROWS, len(order_P) * len(centroids_KC) // MAX_BOUNDS)
        members = order_P.split(torch.bincount(index_P, minlength=len(centroids_KC)).tolist())
        self.blocks = [rows_R for rows_P in members if len(rows_P) for rows_R in rows_P.split(num_rows)]
        outermost_B = torch.stack([rows_R[-1] for rows_R in self.blocks])

        norms_K = centroids_KC.square().sum(dim=1)
        apart_KK = torch.addmm(norms_K, centroids_KC, centroids_KC.T, alpha=-2).add_(norms_K[:, None])
        error = self.rounding * (norms_K.amax() + squared_norms_P.amax())
        apart_KK.sub_(error).clamp_min_(0).sqrt_()
        self.slack_BK = apart_KK[index_P[outermost_B]]
        self.slack_BK -= 2 * (own_P[outermost_B] + error).sqrt()[:, None]

    def reassign(self, index_P: Tensor, centroids_KC: Tensor) -> Tensor:
        """Bring `index_P` up to date with centroids that moved; ||mu||^2 - 2 x.mu (P,) of the nearest."""
        moved_K = (centroids_KC - self.centroids_KC).norm(dim=1) * (1 + self.rounding)
        self.centroids_KC = centroids_KC
        weight_KC = 2 * centroids_KC
        bias_K = -centroids_KC.square().sum(dim=1)
        partial_P = torch.empty_like(self.squared_norms_P)

        def compare(block: int) -> None:
            rows_R, slack_K = self.blocks[block], self.slack_BK[block]
            own_R, norms_R = index_P[rows_R], self.squared_norms_P[rows_R]
            slack_K -= moved_K + moved_K[own_R].amax()
            near_M = torch.nonzero(slack_K <= 0).flatten()
            near_M = torch.cat([near_M, near_M[-1:].expand(-len(near_M) % ALIGNMENT)])
            bias_M = bias_K[near_M]
            scores_RM = torch.addmm(
                bias_M, self.features_PC.index_select(0, rows_R), weight_KC.index_select(0, near_M).T
            )
            best_R = scores_RM.amax(dim=1)
            partial_P[rows_R] = -best_R

            own_score_R = scores_RM.gather(1, torch.searchsorted(near_M, own_R)[:, None])[:, 0]
            changed = torch.nonzero(best_R > own_score_R).flatten()
            index_P[rows_R[changed]] = near_M[scores_RM[changed].argmax(dim=1)]

            error = self.rounding * (norms_R.amax() - bias_M.amin())
            radius = (norms_R - best_R).amax().clamp_min(0) + error
            gap_M = scores_RM.sub_(best_R[:, None]).amax(dim=0).neg_().sub_(error).clamp_min_(0)
            slack_K[near_M] = (radius + gap_M).sqrt_() - radius.sqrt()

        in_parallel(compare, range(len(self.blocks)), self.features_PC.device)
        return partial_P


class _FaissAssignment:
    """The nearest centroid of every patch, found by faiss."""

    def __init__(self, features_PC: Tensor, member: Member):
        if importlib.util.find_spec("faiss") is None:
            raise ValueError("k-means backend 'faiss' is not installed; install faiss-gpu or faiss-cpu, or use 'torch'")
        import faiss

        _finite_squared_norms(features_PC, member)
        self.member = member
        self.device = features_PC.device
        self.host_PC = features_PC.float().contiguous().cpu().numpy()
        self.index = faiss.IndexFlatL2(self.host_PC.shape[1])
        if faiss.get_num_gpus() > 0:
            self.index = faiss.index_cpu_to_all_gpus(self.index)

    def __call__(self, centroids_KC: Tensor) -> tuple[Tensor, float]:
        self.index.reset()
        self.index.add(centroids_KC.float().cpu().numpy())
        distances_P1, index_P1 = map(torch.from_numpy, self.index.search(self.host_PC, 1))
        self.distances_P = distances_P1[:, 0].to(self.device)
        inertia = summed(distances_P1.sum(dtype=torch.float64), self.member)
        return index_P1[:, 0].to(self.device), inertia.item()


class _Means:
    """Means of the clusters, from sums that follow the patches that change their cluster."""

    def __init__(self, features_PC: Tensor, num_clusters: int, member: Member):
        self.features_PC = features_PC
        self.num_clusters = num_clusters
        self.member = member
        self._index_P: Tensor | None = None  # what the sums are of; these are of this rank's patches
        self._sums_KC = features_PC.new_zeros(num_clusters, features_PC.shape[1], dtype=torch.float64)

    def update(self, index_P: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (K, C) of the clusters `index_P` (P,), and which of them are empty (E,)."""
        if self._index_P is None:
            self._index_P = index_P.clone()
            for features_RC, index_R in zip(self.features_PC.split(ROWS), index_P.split(ROWS), strict=True):
                self._sums_KC.index_add_(0, index_R, features_RC.double())
        else:
            self._follow(index_P)
        sums_KC, counts_K = self._sums_KC, torch.bincount(index_P, minlength=self.num_clusters)
        if self.member.size > 1:  # together: to begin a sum over ranks takes longer than it
            both = summed(torch.cat([sums_KC, counts_K[:, None]], dim=1), self.member)
            sums_KC, counts_K = both[:, :-1], both[:, -1]
        means_KC = sums_KC / counts_K.clamp_min(1)[:, None]
        return means_KC.to(self.features_PC.dtype), torch.nonzero(counts_K == 0).flatten()

    def _follow(self, index_P: Tensor) -> None:
        for rows_R in torch.nonzero(index_P != self._index_P).flatten().split(ROWS):
            features_RC = self.features_PC.index_select(0, rows_R).double()
            self._sums_KC.index_add_(0, index_P[rows_R], features_RC)
            self._sums_KC.index_add_(0, self._index_P[rows_R], features_RC, alpha=-1)
        self._index_P.copy_(index_P)


def _check_different(features_PC: Tensor, first_KC: Tensor, num_patches: int, member: Member) -> None:
    """Refuse patches that are all equal, and warn of fewer different ones than clusters, as scikit-learn does.

    Looks at so many patches that there are enough; most often K random ones are.
    """
    num_clusters, different_DC = len(first_KC), first_KC.unique(dim=0)
    if len(different_DC) == num_clusters:
        return
    for features_RC in features_PC.split(ROWS):
        different_DC = torch.cat([different_DC, features_RC]).unique(dim=0)
        if len(different_DC) >= num_clusters:
            break
    # So many of each rank are enough; one that has fewer repeats its last.
    sent_K = torch.arange(num_clusters, device=different_DC.device).clamp_max(len(different_DC) - 1)
    different_DC = by_rank(different_DC[sent_K], member).flatten(0, 1).unique(dim=0)
    if len(different_DC) == 1 < num_clusters:
        raise ValueError(f"k-means needs different patches; all {num_patches} are equal")
    if len(different_DC) < num_clusters:
        warnings.warn(
            f"only {len(different_DC)} of {num_patches} patches are different: some of {num_clusters} clusters are "
            "copies of others",
            stacklevel=3,
        )


def _finite_squared_norms(features_PC: Tensor, member: Member) -> Tensor:
    norms_P = _squared_norms(features_PC)
    if not torch.isfinite(summed(norms_P.sum(), member)):
        raise ValueError("k-means needs finite features; these hold inf or nan")
    return norms_P


def _squared_norms(features_PC: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features_PC, dim=1).square_()


def _squared_distances(features_PC: Tensor, centroids_KC: Tensor, index_P: Tensor) -> Tensor:
    """||x - mu_index||^2 (P,), from the differences."""
    pairs = zip(features_PC.split(ROWS), index_P.split(ROWS), strict=True)
    return torch.cat([_squared_norms(features_RC - centroids_KC[index_R]) for features_RC, index_R in pairs])


def in_parallel(work: Callable[[Any], None], items: Iterable[Any], device: torch.device) -> None:
    """Call `work` for every item; on a CPU one thread a core takes its share of them, and no operator uses several.

    The items are small: splitting every single operator between the cores would cost more than it saves.
    """
    inference = torch.is_inference_mode_enabled()  # it belongs to a thread, like `no_grad`

    def share(worker: int, num_workers: int) -> None:
        with torch.inference_mode(inference), torch.no_grad(), full_precision(device):
            for item in itertools.islice(items, worker, None, num_workers):
                work(item)

    num_workers = torch.get_num_threads()
    if device.type != "cpu" or num_workers == 1:
        share(0, 1)
        return
    items = list(items)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_workers) as pool:
            list(pool.map(share, range(num_workers), [num_workers] * num_workers))
    finally:
        torch.set_num_threads(num_workers)
