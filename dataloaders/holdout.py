"""Model selection without the test set: some training images are held out and evaluated instead."""

import dataclasses

import torch
from torch import Tensor

from dataloaders.augmentation import derive_seed
from dataloaders.dataset import Dataset


def hold_out(dataset: Dataset, num_images: int, *, seed: int) -> Dataset:
    """The data set with `num_images` of its training images as split 'eval', and its former 'eval' as 'test'.

    All classes give the same number of images, or one more or less; a class too small for that gives all but one. Which
    images depends on the training labels and `seed` alone. Normalisation stays as it is.

    Raises:
        ValueError: too few images for one of each class, or so many that a class could not train; no training
            split is loaded, or there is a split 'test' already.
    """
    train = dataset.split("train")
    most = len(train) - dataset.num_classes
    if not dataset.num_classes <= num_images <= most:
        raise ValueError(
            f"cannot hold out {num_images} of the {len(train)} training images of {dataset.name}: choose "
            f"{dataset.num_classes} (one of each class) to {most} (one of each class remains)"
        )
    if dataset.test is not None:
        raise ValueError(
            f"{dataset.name} is loaded with a split 'test', which its 'eval' would replace: load it without"
        )
    held, rest = _draw_evenly(train.labels, num_images, seed)
    return dataclasses.replace(dataset, train=train.take(rest), eval=train.take(held), test=dataset.eval)


def _draw_evenly(labels: Tensor, num_drawn: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices into labels (N,) that are drawn, and the others, both ascending.

    Images are dealt in turns, at each turn one of every class; the last image of a class waits until all have ended.
    """
    num_images = len(labels)
    shuffled = torch.randperm(num_images, generator=torch.Generator().manual_seed(derive_seed(seed)))
    place = labels[shuffled].argsort(stable=True)  # in the shuffled row, class by class
    counts = labels.bincount()
    counts = counts[counts > 0]
    ends = counts.cumsum(0)
    turn = torch.arange(num_images) - (ends - counts).repeat_interleave(counts)
    turn[ends - 1] = num_images
    dealt = place[(turn * num_images + place).argsort()]  # within a turn as shuffled: chance, not class number, decides
    drawn = torch.zeros(num_images, dtype=torch.bool)
    drawn[shuffled[dealt[:num_drawn]]] = True
    return drawn.nonzero().flatten(), (~drawn).nonzero().flatten()
