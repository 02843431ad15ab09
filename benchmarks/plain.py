"""The method written down as the paper states it, to be measured against: nothing in letKD uses this.

One operation for every symbol: full distance matrices, one-hot assignments, softmax taken for the target and again for
the scores, `kl_div`, 1x1 convolutions on maps, BatchNorm2d, a host read for every recorded figure. It is correct, and
it is what one writes first.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letkd import KDLayer


class PlainKDLayer(nn.Module):
    """scale_t * conv1x1(f / ||f||) - BatchNorm2d - ReLU - scale_v * conv1x1(a / ||a||), from a `KDLayer`'s weights."""

    def __init__(self, layer: KDLayer):
        super().__init__()
        num_templates, channels = layer.scores.templates.shape
        self.alpha = layer.alpha
        self.templates = nn.Parameter(layer.scores.templates.detach().clone().view(num_templates, channels, 1, 1))
        self.template_scale = nn.Parameter(layer.scores.scale.detach().clone())
        self.bn = nn.BatchNorm2d(num_templates)
        self.semantic_vectors = nn.Parameter(
            layer.semantic_vectors.detach().clone().view(channels, num_templates, 1, 1)
        )
        self.scale = nn.Parameter(layer.scale.detach().clone())

    def forward(self, features_BCHW: Tensor, *, with_scores: bool = True) -> tuple[Tensor, Tensor]:
        unit = F.normalize(features_BCHW, dim=1)
        scores = self.template_scale * F.conv2d(unit, F.normalize(self.templates, dim=1))
        weights = F.normalize(F.relu(self.bn(scores)), dim=1)
        values = self.scale * F.conv2d(weights, F.normalize(self.semantic_vectors, dim=1))
        return features_BCHW + self.alpha * values, scores


def squared_distances(patches_PC: Tensor, points_KC: Tensor) -> Tensor:
    """||t - mu||^2 for all pairs, (P, K)."""
    return patches_PC.square().sum(dim=1, keepdim=True) - 2 * patches_PC @ points_KC.T + points_KC.square().sum(dim=1)


def word_loss(scores_BKHW: Tensor, map_BCHW: Tensor, centroids_KC: Tensor) -> tuple[Tensor, dict[str, float]]:
    """KL to the soft words of the teacher's map, and its figures read by the host."""
    patches_PC = map_BCHW.permute(0, 2, 3, 1).reshape(-1, map_BCHW.shape[1]).float()
    distances_PK = squared_distances(patches_PC, centroids_KC)
    one_hot_PK = F.one_hot(distances_PK.argmin(dim=1), len(centroids_KC)).float()
    soft_PK = F.softmax(-distances_PK, dim=1)
    scores_PK = scores_BKHW.permute(0, 2, 3, 1).reshape(-1, scores_BKHW.shape[1]).float()
    loss = F.kl_div(F.log_softmax(scores_PK, dim=1), soft_PK, reduction="batchmean")
    usage_K = one_hot_PK.mean(dim=0)
    figures = {
        "perplexity": torch.exp(-(usage_K * torch.log(usage_K + 1e-10)).sum()).item(),
        "mean_max_assignment": soft_PK.max(dim=1).values.mean().item(),
        "word_accuracy": (scores_PK.argmax(dim=1) == one_hot_PK.argmax(dim=1)).float().mean().item(),
    }
    return loss, figures


def decision_targets(
    map_BCHW: Tensor,
    labels_B: Tensor,
    *,
    weight_LC: Tensor,
    offset_L: Tensor,
    centers_NSL: Tensor,
    decisions_MM: Tensor,
) -> Tensor:
    """Decision rows (P, M) of the nearest sub-class of each image's class, among distances to all of them."""
    batch, _, height, width = map_BCHW.shape
    num_classes, num_subclasses, _ = centers_NSL.shape
    patches_PC = map_BCHW.permute(0, 2, 3, 1).reshape(-1, map_BCHW.shape[1]).float()
    projected_PL = patches_PC @ weight_LC.T + offset_L
    distances_PM = squared_distances(projected_PL, centers_NSL.flatten(0, 1))
    labels_P = labels_B.view(batch, 1).expand(batch, height * width).flatten()
    own_PM = F.one_hot(labels_P, num_classes).repeat_interleave(num_subclasses, dim=1).bool()
    nearest_P = distances_PM.masked_fill(~own_PM, float("inf")).argmin(dim=1)
    return F.one_hot(nearest_P, len(decisions_MM)).float() @ decisions_MM


def decision_loss(scores_BKHW: Tensor, map_BCHW: Tensor, labels_B: Tensor, **tensors: Tensor) -> Tensor:
    """KL to `decision_targets`."""
    scores_PM = scores_BKHW.permute(0, 2, 3, 1).reshape(-1, scores_BKHW.shape[1]).float()
    targets_PM = decision_targets(map_BCHW, labels_B, **tensors)
    return F.kl_div(F.log_softmax(scores_PM, dim=1), targets_PM, reduction="batchmean")


class PlainStep:
    """One training step of letKD-1 or letKD-2 from the same weights and supervision as an objective of ours.

    Args:
        student: a backbone with `PlainKDLayer`s inside, called for logits and scores.
        teacher: from images to maps by the names of the layers.
        supervision: tensors that `word_loss` and `decision_loss` take, by the same names.
    """

    def __init__(
        self, student: nn.Module, teacher: Callable[[Tensor], Mapping[str, Tensor]],
        supervision: Mapping[str, dict[str, Tensor]], optimizer: torch.optim.Optimizer, precision: torch.autocast,
    ):  # fmt: skip
        self.student = student
        self.teacher = teacher
        self.supervision = supervision
        self.optimizer = optimizer
        self.precision = precision

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Every recorded figure, read by the host."""
        with self.precision:
            maps = self.teacher(images)
            logits, scores = self.student.forward_with_scores(images)
        losses = {"ce": F.cross_entropy(logits.float(), labels)}
        figures = {}
        if "penultimate" in scores:
            losses["words"], figures = word_loss(
                scores["penultimate"], maps["penultimate"], **self.supervision["penultimate"]
            )
        if "intermediate" in scores:
            losses["decisions"] = decision_loss(
                scores["intermediate"], maps["intermediate"], labels, **self.supervision["intermediate"]
            )
        loss = sum(losses.values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        figures["top1"] = (logits.argmax(dim=1) == labels).float().mean().item()
        return figures | {name: value.item() for name, value in losses.items()} | {"loss": loss.item()}
