"""What every network of this package shares: features, head, and the maps that can be taken between them.

A map is named by the module whose output it is. Supervision attaches there with a forward hook, which may also replace
the map; hence two rules for every family: a tapped module is called once per forward, and nothing changes its output in
place afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Tap:
    """The output (B, channels, H / reduction, W / reduction) of the module `path` for images (B, 3, H, W)."""

    path: str
    channels: int
    reduction: int


@dataclass(frozen=True)
class StageEnd:
    """The last map of the stem or of a stage, the output of the module `path`: for methods that compare stages.

    Attributes:
        activation: the module whose input is this map before its last activation; None: the map has none.
        norm: the last BatchNorm before that activation, in a residual block the one before the sum; None: there is none
            that belongs to all channels.
    """

    path: str
    activation: str | None = None
    norm: str | None = None


def ends_of_blocks(depths: Sequence[int], norm: str | None) -> tuple[StageEnd, ...]:
    """Ends of a stem `conv1`, `bn1`, `relu` and of stages `layer1`, `layer2`, ... of so many blocks.

    The last activation of a block is its `relu`, the BatchNorm before it `norm`.
    """
    ends = [StageEnd("relu", "relu", "bn1")]
    for number, depth in enumerate(depths, start=1):
        block = f"layer{number}.{depth - 1}"
        ends.append(StageEnd(f"layer{number}", f"{block}.relu", norm and f"{block}.{norm}"))
    return tuple(ends)


class TappedNetwork(nn.Module):
    """Feature children called one after the other, global average pooling, one linear layer.

    A family names four things, all by module path as in the published state dicts:

    Attributes:
        feature_children: the feature part in calling order; an index into it names a stage (`LDA=5`).
        head_path: the linear layer.
        first_blocks: first block of every stage, in order. Nothing after the last of them changes the resolution.
        stage_ends: the table of stages of the published methods for maps: the stem, then the end of every stage, behind
            its last activation and before any pooling. Methods that compare stages do not take a network without it.
        dropout: share of the pooled vector that training leaves out before the linear layer.
    """

    feature_children: tuple[str, ...]
    head_path: str
    first_blocks: tuple[Tap, ...]
    stage_ends: tuple[StageEnd, ...] = ()
    dropout: float = 0.0

    @property
    def num_features(self) -> int:
        """Channels of the penultimate map."""
        return self.get_submodule(self.head_path).in_features

    @property
    def num_classes(self) -> int:
        return self.get_submodule(self.head_path).out_features

    @property
    def stages(self) -> dict[int, Tap]:
        """First block of each stage, keyed by the stage's index in `feature_children`."""
        return {
            index: tap
            for index, child in enumerate(self.feature_children)
            for tap in self.first_blocks
            if f"{tap.path}.".startswith(f"{child}.")
        }

    @property
    def penultimate(self) -> Tap:
        """The map that `forward_features` returns."""
        return Tap(self.feature_children[-1], self.num_features, self.first_blocks[-1].reduction)

    @property
    def intermediate(self) -> Tap:
        """First block at the final resolution: the paper's choice in all its networks.

        That is the last stage, except in the MobileNets and VGGs, which go on for a stage without striding.
        """
        return next(tap for tap in self.first_blocks if tap.reduction == self.penultimate.reduction)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to the penultimate map (B, num_features, H / reduction, W / reduction)."""
        features = images
        for path in self.feature_children:
            features = self.get_submodule(path)(features)
        return features

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """Penultimate map (B, num_features, h, w) of any h, w to logits (B, num_classes)."""
        pooled = features.mean(dim=(2, 3))
        if self.training and self.dropout:
            pooled = F.dropout(pooled, self.dropout)
        return self.get_submodule(self.head_path)(pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))
