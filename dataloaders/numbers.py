"""Two-digit numbers: pictures of two handwritten digits side by side, 100 classes, 16 x 16 pixels, no download.

    class 10 t + u = a digit t in the left half and a digit u in the right one, each at a random height of its own

The digits are scikit-learn's 1797 of 8 x 8 (see `dataloaders/digits.py`), drawn from a fixed seed. The rows of its file
are fourteen fillings of one form, one behind the other: the same row of about 130 labels comes fourteen times. Seven
fillings are what the training pictures are made of, the other seven what the evaluation pictures are, so no digit is in
both. Numbers are not flipped.
"""

import numpy as np
import torch

from dataloaders.dataset import Dataset, ImageTensors
from dataloaders.digits import NATIVE_SIZE, enlarge
from dataloaders.registry import LoadRequest, always, refuse_test_split, register_dataset

SIZE = 2 * NATIVE_SIZE
NUM_PICTURES = 4000  # of each split, as many of every class
NUM_TRAIN_DIGITS = 906  # with the next one the eighth filling of the form begins
SEEDS = {"train": 0, "eval": 1}
# Measured on the training pictures in 0..1; a test repeats the measurement.
NUMBERS_MEAN = (0.1539,) * 3
NUMBERS_STD = (0.3078,) * 3


@register_dataset("numbers", always(SIZE, NUMBERS_MEAN, NUMBERS_STD))
def numbers(request: LoadRequest) -> Dataset:
    refuse_test_split("numbers", request, "there are writers for two splits")
    image_size = request.image_size or SIZE
    if image_size < SIZE:
        raise ValueError(f"image_size {image_size} is too small for numbers: they are {SIZE}x{SIZE}")
    return Dataset(
        name="numbers",
        classes=tuple(f"{number:02}" for number in range(100)),
        image_size=image_size,
        mean=request.mean or NUMBERS_MEAN,
        std=request.std or NUMBERS_STD,
        padding=image_size // 8,
        flip=False,
        **{split: _pictures(split, image_size) for split in request.splits},
    )


def _pictures(split: str, image_size: int) -> ImageTensors:
    from sklearn.datasets import load_digits  # takes a second to import: only these data sets should wait for it

    source = load_digits()
    own = slice(None, NUM_TRAIN_DIGITS) if split == "train" else slice(NUM_TRAIN_DIGITS, None)
    labels = np.arange(NUM_PICTURES) % 100
    picks, tops = draw(source.target[own], labels, SEEDS[split])
    pictures = side_by_side(source.images[own][picks], tops)
    return ImageTensors(enlarge(torch.from_numpy(pictures), image_size), torch.from_numpy(labels))


def draw(digits_M: np.ndarray, labels_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which digits the pictures of these classes show, and how far from the top.

    Args:
        digits_M: what each of the M digits is, 0 to 9.

    Returns:
        picks: (N, 2) indices of a left and a right digit, each uniform among those that are what the class says.
        tops: (N, 2) rows, uniform.
    """
    random = np.random.RandomState(seed)  # of numpy's generators the one whose numbers are promised to stay
    wanted_N2 = np.stack([labels_N // 10, labels_N % 10], axis=1)
    in_order, counts = digits_M.argsort(kind="stable"), np.bincount(digits_M, minlength=10)
    starts = counts.cumsum() - counts
    places_N2 = random.randint(counts[wanted_N2], dtype=np.int64)
    tops_N2 = random.randint(SIZE - NATIVE_SIZE + 1, size=wanted_N2.shape, dtype=np.int64)
    return in_order[starts[wanted_N2] + places_N2], tops_N2


def side_by_side(digits_N2HW: np.ndarray, tops_N2: np.ndarray) -> np.ndarray:
    """(N, 16, 16): two digits of 8 x 8 in the halves of an empty picture, with their first rows at `tops`."""
    pictures = np.zeros((len(digits_N2HW), SIZE, SIZE))
    rows_N2H = tops_N2[:, :, None] + np.arange(NATIVE_SIZE)
    everyone_N1 = np.arange(len(pictures))[:, None]
    for side in (0, 1):
        half = slice(side * NATIVE_SIZE, (side + 1) * NATIVE_SIZE)
        pictures[everyone_N1, rows_N2H[:, side], half] = digits_N2HW[:, side]
    return pictures
