"""Lloyd's k-means over millions of patches: the codebook of words and the sub-classes of a class.

    assign  i(p) = argmin_k ||x_p - mu_k||^2 = argmin_k (||mu_k||^2 - 2 x_p.mu_k)
    update  mu_k = mean of the patches with i(p) = k

Shapes: P patches, C channels, K clusters. No subsampling: every patch takes part in every iteration. A cluster that
lost all its patches is refilled with half of the largest one.
"""

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

NUM_ITERATIONS = 20  # of the paper's codebooks
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}  # of a (rows, K) block of distances
SPLIT = 1 / 1024  # relative distance between the two halves of a split cluster
BACKENDS = ("auto", "faiss", "torch")


class KMeans:
    """k-means with the interface of scikit-learn's estimators.

    Args:
        num_clusters: K.
        num_iterations: Lloyd iterations; always all of them, as in the paper.
        seed: of the initial centroids, which are K different patches.
        backend: "faiss" (on its GPU where it has one), "torch" (on the features' device), or "auto": faiss where it
            is installed, otherwise torch with a warning.
        on_iteration: called with (iteration from 1, objective) after every iteration.

    Attributes after `fit`:
        centroids_: (K, C) float32 on the features' device.
        objectives_: sum of squared distances to the centroid that each iteration assigned to, a list of floats.
    """

    def __init__(
        self,
        num_clusters: int,
        *,
        num_iterations: int = NUM_ITERATIONS,
        seed: int = 0,
        backend: str = "auto",
        on_iteration: Callable[[int, float], None] | None = None,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"unknown k-means backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.num_clusters = num_clusters
        self.num_iterations = num_iterations
        self.seed = seed
        self.backend = backend
        self.on_iteration = on_iteration

    @torch.no_grad()
    def fit(self, features_PC: Tensor) -> "KMeans":
        """Learn the centroids of `features_PC` (P, C), float32.

        Raises:
            ValueError: more clusters than patches, or features that are not finite.
        """
        num_patches = features_PC.shape[0]
        if not 1 <= self.num_clusters <= num_patches:
            raise ValueError(f"k-means of {num_patches} patches cannot have {self.num_clusters} clusters")
        if not torch.isfinite(features_PC.sum()):
            raise ValueError("k-means needs finite features; these hold inf or nan")
        step = self._faiss_step(features_PC) if self._uses_faiss() else _lloyd_step
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.randperm(num_patches, generator=generator)[: self.num_clusters]
        self.centroids_ = features_PC[first.to(features_PC.device)].clone()
        self.objectives_ = []
        for iteration in range(1, self.num_iterations + 1):
            self.centroids_, objective = step(features_PC, self.centroids_)
            self.objectives_.append(objective)
            if self.on_iteration:
                self.on_iteration(iteration, objective)
        return self

    @torch.no_grad()
    def predict(self, features_PC: Tensor) -> Tensor:
        """Index of the nearest centroid of every patch, (P,)."""
        return nearest(features_PC, self.centroids_)[0]

    def _uses_faiss(self) -> bool:
        installed = importlib.util.find_spec("faiss") is not None
        if self.backend == "faiss" and not installed:
            raise ValueError("k-means backend 'faiss' is not installed; install faiss-gpu or faiss-cpu, or use 'torch'")
        if self.backend == "auto" and not installed:
            warnings.warn("faiss is not installed: k-means runs in torch", stacklevel=3)
        return installed and self.backend != "torch"

    def _faiss_step(self, features_PC: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
        import faiss

        host_PC = features_PC.float().contiguous().cpu().numpy()
        gpu = faiss.get_num_gpus() > 0

        def step(features_PC: Tensor, centroids_KC: Tensor) -> tuple[Tensor, float]:
            lloyd = faiss.Kmeans(
                host_PC.shape[1],
                len(centroids_KC),
                niter=1,
                seed=self.seed,
                gpu=gpu,
                min_points_per_centroid=1,
                max_points_per_centroid=len(host_PC),
            )
            lloyd.train(host_PC, init_centroids=centroids_KC.cpu().numpy())
            return torch.from_numpy(lloyd.centroids).to(features_PC.device), float(lloyd.obj[-1])

        return step


def nearest(features_PC: Tensor, centroids_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest centroid (P,), and its ||mu||^2 - 2 x.mu (P,): the squared distance less ||x||^2."""
    bias_K = centroids_KC.square().sum(dim=1)
    index_P = torch.empty(len(features_PC), dtype=torch.int64, device=features_PC.device)
    partial_P = torch.empty_like(features_PC[:, 0])
    rows = max(1, CHUNK_ELEMENTS.get(features_PC.device.type, 2**20) // len(centroids_KC))
    for start in range(0, len(features_PC), rows):
        chunk = slice(start, start + rows)
        distances_RK = torch.addmm(bias_K, features_PC[chunk], centroids_KC.T, alpha=-2)
        torch.min(distances_RK, dim=1, out=(partial_P[chunk], index_P[chunk]))
    return index_P, partial_P


def _lloyd_step(features_PC: Tensor, centroids_KC: Tensor) -> tuple[Tensor, float]:
    num_clusters = len(centroids_KC)
    index_P, partial_P = nearest(features_PC, centroids_KC)
    objective = _squared_norm(features_PC) + partial_P.sum(dtype=torch.float64).item()
    counts_K = torch.bincount(index_P, minlength=num_clusters)
    sums_KC = torch.zeros_like(centroids_KC).index_add_(0, index_P, features_PC)
    means_KC = sums_KC / counts_K.clamp_min(1)[:, None]
    return _refill_empty(means_KC, counts_K), max(objective, 0.0)


def _squared_norm(features_PC: Tensor) -> float:
    """Sum of ||x_p||^2, accumulated in float64 over row chunks."""
    return sum(rows.square().sum(dtype=torch.float64).item() for rows in features_PC.split(2**20))


def _refill_empty(centroids_KC: Tensor, counts_K: Tensor) -> Tensor:
    """Move every empty cluster beside the largest remaining one, which it then shares."""
    counts = counts_K.tolist()
    for empty in [k for k, count in enumerate(counts) if count == 0]:
        largest = max(range(len(counts)), key=counts.__getitem__)
        centroids_KC[empty] = centroids_KC[largest] * (1 + SPLIT)
        centroids_KC[largest] *= 1 - SPLIT
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return centroids_KC
