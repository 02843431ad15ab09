"""What a loader yields, what loaders of training images have in common, and a batch of noise."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dataloaders.dataset import Dataset


class Batch(NamedTuple):
    """B images with what is known of them, all on one device.

    Attributes:
        images: (B, 3, H, W) uint8, or float32 in 0..255 where mixup blends them, pixels in channels_last layout; never
            to be changed in place, since those of a resident split can be views of it.
        labels: (B,) int64; -1 of an image without one.
        index: (B,) int64, the position of each image in its split; those of pictures without labels go on behind it.
        other_labels: (B,) int64, of the images that are mixed into these (mixup, CutMix); None where none are.
        share: (B,) float32, the weight of `labels`; `other_labels` weigh the rest. None where nothing is mixed.
        labelled: (B,) bool, which images have a label. None where all have.
        taught: (B, ...) each, what the teacher says, by the names of `distillation.signals.Signals.tensors`: its logits
            (B, N), maps (B, C, H, W), ...; None where the teacher itself is asked.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    other_labels: Tensor | None = None
    share: Tensor | None = None
    labelled: Tensor | None = None
    taught: Mapping[str, Tensor] | None = None


class TrainLoader(Protocol):
    """What yields the batches of an epoch of training images."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `skip` batches."""


def first_images(loader: Iterable[Batch], number: int = 64) -> Tensor:
    """Pixels of the first images that a loader yields, rounded: (B, 3, H, W) uint8 on the CPU, B <= `number`."""
    return next(iter(loader)).images[:number].float().round().to(torch.uint8).cpu()


def noise(size: int, dataset: Dataset, device: torch.device) -> Batch:
    """A batch of `size` made-up images with labels; none of the run's random numbers are drawn."""
    generator = torch.Generator().manual_seed(0)
    side = dataset.image_size
    pixels = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    return Batch(
        images=pixels.to(device).contiguous(memory_format=torch.channels_last),
        labels=torch.randint(dataset.num_classes, (size,), generator=generator).to(device),
        index=torch.arange(size, device=device),
    )
