"""What a loaded dataset is: its classes, its normalisation, its augmentation, and its splits.

A split is either resident, one uint8 tensor (N, H, W, 3) that loaders move to the training device whole, or a list of
files that loader workers read image by image. Labels are int64 (N,), indices into `Dataset.classes`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.options import OPTIONS

SPLIT_NAMES = ("train", "eval", "test")

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """A resident split: images (N, H, W, 3) uint8 with H = W, labels (N,) int64.

    `paths` are the N files that they were decoded from; None where images do not lie in files of their own.
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        num_images, height, width, channels = self.images.shape
        assert height == width and channels == 3 and self.images.dtype == torch.uint8
        assert self.labels.shape == (num_images,) and self.labels.dtype == torch.int64
        assert self.paths is None or len(self.paths) == num_images

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "ImageTensors":
        """The images at `indices` (M,) int64, in that order."""
        paths = None if self.paths is None else tuple(self.paths[index] for index in indices.tolist())
        return ImageTensors(self.images[indices], self.labels[indices], paths)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A streamed split: N image files in a fixed order, labels (N,) int64."""

    paths: tuple[str, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.labels.shape == (len(self.paths),) and self.labels.dtype == torch.int64

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "ImageFiles":
        """The files at `indices` (M,) int64, in that order."""
        return ImageFiles(tuple(self.paths[index] for index in indices.tolist()), self.labels[indices])


Split = ImageTensors | ImageFiles


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one image classification problem and how their images are prepared.

    `mean` and `std` are per channel for pixel values in 0..1. `padding` is the padding in pixels of the
    training crop, `flip` whether training flips images horizontally; both concern the training loader alone.

    Raises:
        ValueError: mean or std cannot be a normalisation of values in 0..1.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: Triple
    std: Triple
    padding: int
    flip: bool
    train: Split | None = None
    eval: Split | None = None
    test: Split | None = None

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            said, value = OPTIONS[key], getattr(self, key)
            try:
                said.check(list(value))
            except ValueError as error:
                raise ValueError(f"{key} {value} of {self.name} must be {said.elements} (pixels / 255)") from error
        assert 0 <= self.padding < self.image_size

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def split(self, name: str) -> Split:
        """The split called `name`: 'train', 'eval' or 'test'.

        Raises:
            ValueError: that split was not loaded.
        """
        loaded = {name: getattr(self, name) for name in SPLIT_NAMES if getattr(self, name) is not None}
        if name not in loaded:
            raise ValueError(f"{self.name} is loaded without a split {name!r}; it has {', '.join(loaded) or 'none'}")
        return loaded[name]
