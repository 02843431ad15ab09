"""The knowledge-distillation layer: 1x1 - BatchNorm - ReLU - 1x1 with cosine products (letKD, section 3).

    scores   s = scale_t * cos(f, T_k)         supervised by the teacher's words or decisions
    weights  a = ReLU(BatchNorm(s))
    values   v = scale_v * cos(a, V_c)         learned freely
    output   f + alpha * v

Shapes: f (B, C, H, W), templates T (K, C), semantic vectors V (C, K); scores and weights as rows (P, K), P = B*H*W.
The layer stays in the student at inference: that is how the student uses the teacher's knowledge without the teacher.
`letkd.values` has the arithmetic. Where operations are recorded the formula stands as it is.

BatchNorm is a module of torch that holds its settings: momentum (None for the mean over all batches), eps, affine,
track_running_stats and its own mode are followed. `convert_sync_batchnorm` makes its statistics those of all ranks.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from letkd.maps import Layout, as_map
from letkd.patches import to_map, to_patches
from letkd.values import COSINE_EPS, Statistics, values_alone, values_and_scores

TEMPLATE_SCALE_INIT = 3.0  # both from the authors' experiment files
SEMANTIC_SCALE_INIT = 1.0


def _fan_in_normal(rows: int, fan_in: int) -> nn.Parameter:
    """(rows, fan_in) weights from N(0, sqrt(2 / fan_in))."""
    return nn.Parameter(torch.randn(rows, fan_in) * math.sqrt(2 / fan_in))


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, or of zeros; of float16, where `COSINE_EPS` is 0, by lengths in float32."""
    if rows.dtype == torch.float16:
        return F.normalize(rows.float(), dim=1, eps=COSINE_EPS).to(rows.dtype)
    return F.normalize(rows, dim=1, eps=COSINE_EPS)


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
        return self.unit_patches(features_BCHW) @ self.scaled_templates().T

    def unit_patches(self, features_BCHW: Tensor) -> Tensor:
        """Patches of length 1 (P, C)."""
        patches_PC = to_patches(features_BCHW).to(self.templates.dtype)  # under autocast too
        return _unit(patches_PC)

    def scaled_templates(self) -> Tensor:
        """Templates of length `scale` (K, C): their products with unit patches are the scores."""
        return self.scale * _unit(self.templates)


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

    @property
    def num_templates(self) -> int:
        """K."""
        return len(self.scores.templates)

    def forward(self, features_BCHW: Tensor, *, with_scores: bool = True) -> tuple[Tensor, Tensor | None]:
        """Output (B, C, H, W) and the scores (P, K) that the teacher supervises.

        Args:
            with_scores: False where nobody compares them: then a deployed layer never holds them, and None is returned.

        Raises:
            ValueError: a single patch has no statistics where those of the batch are used, as in training.
        """
        if self.alpha == 0:
            # A copy for the scores: the network may overwrite the features, which their gradient needs.
            return features_BCHW, self.scores(features_BCHW.clone()) if with_scores else None
        operands = self._operands(features_BCHW)
        is_batch = self.bn.training or self.bn.running_mean is None
        if _is_traced(features_BCHW) or (torch.is_grad_enabled() and not is_batch and not with_scores):
            values_PC, scores_PK = self._formula(*operands[:3])
        elif is_batch:
            values_PC, scores_PK = self._of_batch(operands)
        else:
            running = Statistics(self.bn.running_mean, self.bn.running_var)
            if with_scores:
                values_PC, scores_PK, *_ = values_and_scores(*operands, eps=self.bn.eps, running=running)
            else:
                values_PC, scores_PK = values_alone(*operands, eps=self.bn.eps, running=running), None
        return self._add(features_BCHW, values_PC), scores_PK if with_scores else None

    def _operands(self, features_BCHW: Tensor) -> tuple[Tensor, ...]:
        unit_PC, templates_KC = self.scores.unit_patches(features_BCHW), self.scores.scaled_templates()
        semantic_CK = self.scale * _unit(self.semantic_vectors)
        gamma_K, beta_K = self.bn.weight, self.bn.bias
        if gamma_K is None:
            gamma_K = templates_KC.new_ones(len(templates_KC))
        if beta_K is None:
            beta_K = templates_KC.new_zeros(len(templates_KC))
        return unit_PC, templates_KC, semantic_CK, gamma_K, beta_K

    def _formula(self, unit_PC: Tensor, templates_KC: Tensor, semantic_CK: Tensor) -> tuple[Tensor, Tensor]:
        scores_PK = unit_PC @ templates_KC.T
        weights_PK = F.relu(self.bn(scores_PK.to(templates_KC.dtype)))  # under autocast too
        return _unit(weights_PK) @ semantic_CK.T, scores_PK

    def _of_batch(self, operands: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Values and scores by the batch's own statistics, which the running ones follow in training."""
        group = self._ranks()
        if len(operands[0]) == 1 and group is None:
            raise ValueError("a KD layer takes statistics of more than one patch; this batch has one")
        values_PC, scores_PK, batch, num_patches = values_and_scores(
            *operands, eps=self.bn.eps, running=None, group=group
        )
        if self.bn.training and self.bn.track_running_stats:
            self.bn.num_batches_tracked += 1
            if group is not None or num_patches:
                self._track(batch, num_patches)
        return values_PC, scores_PK

    def _ranks(self) -> "dist.ProcessGroup | None":
        """The processes whose patches are one batch, where BatchNorm is synchronised among several."""
        if not (hasattr(self.bn, "process_group") and self.bn.training):  # SyncBatchNorm has it, or what is like it
            return None
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = self.bn.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @torch.no_grad()
    def _track(self, batch: Statistics, num_patches: int | Tensor) -> None:
        """Move the running statistics towards the batch's, as BatchNorm does: the variance without its bias."""
        momentum = self.bn.momentum
        if momentum is None:  # the mean over all batches
            momentum = self.bn.num_batches_tracked.to(batch.mean_K).reciprocal()
        self.bn.running_mean.lerp_(batch.mean_K, momentum)
        self.bn.running_var.lerp_(batch.var_K * (num_patches / (num_patches - 1)), momentum)

    def _add(self, features_BCHW: Tensor, values_PC: Tensor) -> Tensor:
        # In the type of the features: under autocast the rest of the network would run on a float32 sum otherwise.
        return features_BCHW + self.alpha * to_map(values_PC.to(features_BCHW.dtype), like_BxHW=features_BCHW)


def _is_traced(features: Tensor) -> bool:
    """Whether the operations are recorded or counted: then they must be the formula's, for a batch of any size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or features.is_meta


class ChannelsLastKDLayer(KDLayer):
    """A KD layer for maps (B, H, W, C)."""

    def forward(self, map_BHWC: Tensor, *, with_scores: bool = True) -> tuple[Tensor, Tensor | None]:
        """Output (B, H, W, C), and the scores (P, K), as `KDLayer`."""
        map_BCHW, scores_PK = super().forward(map_BHWC.permute(0, 3, 1, 2), with_scores=with_scores)
        return map_BCHW.permute(0, 2, 3, 1), scores_PK


class TokenKDLayer(nn.Module):
    """A KD layer for tokens (B, N, C), of which the first `prefix` are no patches and pass unchanged."""

    def __init__(self, layer: KDLayer, prefix: int):
        super().__init__()
        self.layer = layer
        self.prefix = prefix

    @property
    def num_templates(self) -> int:
        """K."""
        return self.layer.num_templates

    @property
    def alpha(self) -> float:
        """Weight of the layer's values in its output."""
        return self.layer.alpha

    def forward(self, tokens_BNC: Tensor, *, with_scores: bool = True) -> tuple[Tensor, Tensor | None]:
        """Output (B, N, C), and the scores (P, K) of the patches, P = B * (N - prefix), as `KDLayer`."""
        map_BCHW, scores_PK = self.layer(as_map(tokens_BNC, self.prefix), with_scores=with_scores)
        return torch.cat((tokens_BNC[:, : self.prefix], map_BCHW.flatten(2).mT), dim=1), scores_PK


def kd_layer(layout: Layout, num_templates: int, alpha: float = 1.0) -> KDLayer | TokenKDLayer:
    """A KD layer, freshly drawn, for what a module of this layout returns."""
    kind = ChannelsLastKDLayer if layout.channels_last else KDLayer
    layer = kind(layout.channels, num_templates, alpha)
    return layer if layout.prefix is None else TokenKDLayer(layer, layout.prefix)
