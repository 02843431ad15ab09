"""Soft visual-word targets from a frozen k-means codebook (letKD-1, and QuEST).

    p = softmax_k(-tau * ||t - mu_k||^2) = softmax_k(tau * (2 t.mu_k - ||mu_k||^2))

The squared norm of the patch is the same for all k and cancels in the softmax, so one matrix product with a bias gives
the logits. Shapes: P patches, C channels of the teacher's penultimate map, K words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letkd.losses import SoftTargets, full_precision, softmax_and_logsumexp
from letkd.patches import to_patches
from letkd.products import multiply_add


class Codebook(nn.Module):
    """K frozen centroids of the teacher's patches.

    Args:
        centroids_KC: cluster centres in the teacher's feature space.
        temperature: tau, which multiplies the squared distances (1 in the paper).
    """

    def __init__(self, centroids_KC: Tensor, temperature: float = 1.0):
        super().__init__()
        if centroids_KC.ndim != 2:
            raise ValueError(f"a codebook has shape (words, channels), this one {tuple(centroids_KC.shape)}")
        self.temperature = temperature
        # Not in a state dict: a codebook has a file of its own.
        self.register_buffer("centroids", centroids_KC.detach().clone(), persistent=False)
        self.register_buffer("bias", -centroids_KC.detach().square().sum(dim=1), persistent=False)

    @property
    def num_words(self) -> int:
        return self.centroids.shape[0]

    def logits(self, patches_PC: Tensor) -> Tensor:
        """tau * (2 t.mu - ||mu||^2), (P, K): logits of the soft assignment, largest for the nearest word."""
        patches_PC = patches_PC.to(self.centroids.dtype)
        with full_precision(patches_PC.device):
            return multiply_add(
                self.bias, patches_PC, self.centroids.T, beta=self.temperature, alpha=2 * self.temperature
            )

    @torch.no_grad()
    def soft_assignment(self, features_BCHW: Tensor) -> Tensor:
        """p (P, K), whole; training goes through `targets`, which never holds it."""
        return self.logits(to_patches(features_BCHW)).softmax(dim=1)

    @torch.no_grad()
    def hard_assignment(self, features_BCHW: Tensor) -> Tensor:
        """Index of the nearest word of every patch, (P,)."""
        return self.logits(to_patches(features_BCHW)).argmax(dim=1)

    def targets(self, features_BCHW: Tensor) -> SoftTargets:
        """The soft words of a teacher's map, as `kl_to_scores` takes them."""
        return _WordTargets(self, to_patches(features_BCHW.detach()))

    @torch.no_grad()
    def statistics(self, features_BCHW: Tensor, scores_PK: Tensor) -> dict[str, Tensor]:
        """What one wants to see of a batch now and then, on the device: scalars, and counts by word.

        `perplexity`: exp of the entropy of the hard assignments, 1 (one word used) to K (all used alike).
        `mean_max_assignment`: mean of the largest soft assignment, 0 to 1.
        `word_accuracy`: percent of patches whose best-scored template is their nearest word.
        `words`: how many patches each word is nearest to, (K,).
        """
        soft_PK = self.soft_assignment(features_BCHW)
        largest_P, nearest_P = soft_PK.max(dim=1)
        counts_K = torch.bincount(nearest_P, minlength=self.num_words)
        usage_K = counts_K / nearest_P.numel()
        return {
            "perplexity": torch.special.entr(usage_K).sum().exp(),
            "mean_max_assignment": largest_P.mean(),
            "word_accuracy": 100 * (scores_PK.argmax(dim=1) == nearest_P).float().mean(),
            "words": counts_K,
        }


@dataclass(frozen=True)
class _WordTargets:
    codebook: Codebook
    patches_PC: Tensor

    def rows(self, chunk: slice) -> tuple[Tensor, Tensor]:
        logits_RK = self.codebook.logits(self.patches_PC[chunk])
        p_RK, logsumexp_R = softmax_and_logsumexp(logits_RK)
        return p_RK, torch.linalg.vecdot(p_RK, logits_RK) - logsumexp_R
