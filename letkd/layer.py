"""The knowledge-distillation layer: 1x1 - BatchNorm - ReLU - 1x1 with cosine products (letKD, section 3).

    scores   s = scale_t * cos(f, T_k)         supervised by the teacher's words or decisions
    weights  a = ReLU(BatchNorm(s))
    values   v = scale_v * cos(a, V_c)         learned freely
    output   f + alpha * v

Shapes: f (B, C, H, W), templates T (K, C), semantic vectors V (C, K); scores and weights as rows (P, K), P = B*H*W.
The layer stays in the student at inference: that is how the student uses the teacher's knowledge without the teacher.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letkd.patches import to_map, to_patches

TEMPLATE_SCALE_INIT = 3.0  # both from the authors' experiment files
SEMANTIC_SCALE_INIT = 1.0
COSINE_EPS = 1e-12


def _fan_in_normal(rows: int, fan_in: int) -> nn.Parameter:
    """(rows, fan_in) weights from N(0, sqrt(2 / fan_in))."""
    return nn.Parameter(torch.randn(rows, fan_in) * math.sqrt(2 / fan_in))


def scaled_cosine(x_PC: Tensor, weight_KC: Tensor, scale: Tensor) -> Tensor:
    """scale * cos(x_p, w_k) for all rows and weights, (P, K).

    The scale goes into the small weight, and the norms of the rows divide whichever is smaller, rows or products.
    """
    norms_P1 = torch.linalg.vector_norm(x_PC, dim=1, keepdim=True).clamp_min(COSINE_EPS)
    weight_KC = scale * F.normalize(weight_KC, dim=1, eps=COSINE_EPS)
    if x_PC.shape[1] < weight_KC.shape[0]:
        return (x_PC / norms_P1) @ weight_KC.T
    return (x_PC @ weight_KC.T) / norms_P1


class TemplateScores(nn.Module):
    """Scores of every patch against K templates, s = scale * cos(f, T_k); alone it is the predictor of QuEST.

    Args:
        channels: C of the map it reads.
        num_templates: K, the number of words or sub-classes that supervise the scores.
    """

    def __init__(self, channels: int, num_templates: int):
        super().__init__()
        self.templates = _fan_in_normal(num_templates, channels)
        self.scale = nn.Parameter(torch.tensor([TEMPLATE_SCALE_INIT]))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Scores as rows (P, K)."""
        return scaled_cosine(to_patches(features_BCHW), self.templates, self.scale)


class KDLayer(nn.Module):
    """Templates, BatchNorm, ReLU and semantic vectors inside a student.

    Args:
        channels: C of the map the layer reads and adds to.
        num_templates: K.
        alpha: weight of the layer's values in its output; 0 leaves the features as they are and keeps the scores.
    """

    def __init__(self, channels: int, num_templates: int, alpha: float = 1.0):
        super().__init__()
        self.alpha = alpha
        self.scores = TemplateScores(channels, num_templates)
        self.bn = nn.BatchNorm1d(num_templates)
        self.semantic_vectors = _fan_in_normal(channels, num_templates)
        self.scale = nn.Parameter(torch.tensor([SEMANTIC_SCALE_INIT]))

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, C, H, W) and the scores (P, K) that the teacher supervises."""
        scores_PK = self.scores(features_BCHW)
        if self.alpha == 0:
            return features_BCHW, scores_PK
        weights_PK = F.relu(self.bn(scores_PK))
        values_PC = scaled_cosine(weights_PK, self.semantic_vectors, self.scale)
        return features_BCHW + self.alpha * to_map(values_PC, like_BxHW=features_BCHW), scores_PK
