"""What a loader yields."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B images with what is known of them, all on one device.

    Attributes:
        images: (B, 3, H, W) uint8, pixels in channels_last layout; never to be changed in place, since those of a
            resident split can be views of it.
        labels: (B,) int64.
        index: (B,) int64, the position of each image in its split.
        other_labels: (B,) int64, of the images that are mixed into these (mixup, CutMix); None where none are.
        share: (B,) float32, the weight of `labels`; `other_labels` weigh the rest. None where nothing is mixed.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    other_labels: Tensor | None = None
    share: Tensor | None = None
