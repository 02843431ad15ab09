"""Handwritten digits: scikit-learn's bundled 8 x 8 copy of the UCI test set (Alpaydin & Kaynak, 1998).

1797 grey images, ten classes, no download: a data set on which the whole pipeline runs in seconds. In file order the
first half trains and the second half evaluates. Its rows are forms, filled in one behind the other
(`dataloaders/numbers.py`), and the halves part just before the end of the seventh of fourteen: the first eight
evaluation images are of a form that is trained on, all others of forms that are not. Digits are not flipped.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.dataset import Dataset, ImageTensors
from dataloaders.registry import LoadRequest, always, refuse_test_split, register_dataset

DEFAULT_IMAGE_SIZE = 16
NATIVE_SIZE = 8
GREY_LEVELS = 16  # pixels are 0..16: the ink found in 4 x 4 blocks of a bitmap
NUM_TRAIN = 898
# Measured on the 898 training images at 16 x 16 in 0..1; a test repeats the measurement.
DIGITS_MEAN = (0.3074,) * 3
DIGITS_STD = (0.3203,) * 3


@register_dataset("digits", always(DEFAULT_IMAGE_SIZE, DIGITS_MEAN, DIGITS_STD))
def digits(request: LoadRequest) -> Dataset:
    refuse_test_split("digits", request, "its second half is the split 'eval'")
    image_size = request.image_size or DEFAULT_IMAGE_SIZE
    if image_size < NATIVE_SIZE:
        raise ValueError(f"image_size {image_size} is too small for digits: they are {NATIVE_SIZE}x{NATIVE_SIZE}")
    from sklearn.datasets import load_digits  # takes a second to import: only this dataset should wait for it

    source = load_digits()
    images = enlarge(torch.from_numpy(source.images), image_size)
    labels = torch.from_numpy(source.target).long()
    halves = {"train": slice(None, NUM_TRAIN), "eval": slice(NUM_TRAIN, None)}
    return Dataset(
        name="digits",
        classes=tuple(str(digit) for digit in source.target_names),
        image_size=image_size,
        mean=request.mean or DIGITS_MEAN,
        std=request.std or DIGITS_STD,
        padding=image_size // 8,
        flip=False,
        **{split: ImageTensors(images[halves[split]], labels[halves[split]]) for split in request.splits},
    )


def enlarge(grey: Tensor, image_size: int) -> Tensor:
    """(N, 8, 8) grey levels in 0..16 to (N, image_size, image_size, 3) uint8, bilinear."""
    levels = F.interpolate(grey.unsqueeze(1).double(), size=image_size, mode="bilinear", align_corners=False)
    return (levels * (255 / GREY_LEVELS)).round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3)
