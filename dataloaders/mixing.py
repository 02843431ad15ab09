"""Mixed training images: mixup and CutMix.

    mixup     x = l x_i + (1 - l) x_j                                            l from Beta(mixup, mixup)
    CutMix    x = x_j in a box of sides H sqrt(1 - l) and W sqrt(1 - l), x_i around it    l from Beta(cutmix, cutmix)

The label of x_i has the share l, and in CutMix the exact part of the picture that is left around the box; the label of
x_j has the rest. As published, one l and one box serve a batch, and the centre of the box is any pixel, so that what
reaches over the edge is cut off. Teacher and student see the same mixture.

Image j is the neighbour of image i in the batch: those at 2k and 2k + 1 are mixed with each other. The authors draw a
permutation of the batch; here the order of an epoch is drawn anew, so that a neighbour is any other image, and equal
even parts of a batch hold whole pairs, so that what an image looks like does not depend on the number of processes.

All of an epoch is drawn on the CPU from (seed, epoch), apart from all else that is drawn. Boxes and shares are numbers
of the host, so nothing is copied to or read from a device.

Sources: Zhang, Cisse, Dauphin, Lopez-Paz: *mixup: Beyond Empirical Risk Minimization*, ICLR 2018; Yun, Han, Oh, Chun,
Choe, Yoo: *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019. That a
batch is one or the other, with a probability, where both are on: timm.

Shapes: B images of a batch, H x W pixels.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.options import Protocol
from dataloaders.augmentation import derive_seed
from dataloaders.batch import Batch, TrainLoader

OWN = -0x6D69780A  # sets these random numbers apart from those of images and ranks, which are counted from 0


class Mix(NamedTuple):
    """What is drawn for a batch.

    Attributes:
        kind: "mixup", "cutmix", or None where the batch is not mixed.
        share: l, in 0..1.
        top, left: the centre of the box, as shares of H and W below 1.
    """

    kind: str | None = None
    share: float = 1.0
    top: float = 0.0
    left: float = 0.0


def with_mixing(loader: TrainLoader, protocol: Protocol, *, seed: int) -> TrainLoader:
    """The batches of a training loader, mixed as the options say; the loader itself where they mix nothing.

    Args:
        loader: each of its batches has an even number of images.
    """
    return MixedLoader(loader, protocol, seed) if mixes(protocol) else loader


def mixes(protocol: Protocol) -> bool:
    """Whether a training has mixed images."""
    return bool(protocol.mixup or protocol.cutmix)


def named(protocol: Protocol) -> str:
    """The options that mix images, with their values, for messages."""
    return " and ".join(f"{key}={value:g}" for key in ("mixup", "cutmix") if (value := getattr(protocol, key)))


def check_pairs(protocol: Protocol, size: int = 1) -> None:
    """Refuse a batch that has no pairs of images to mix for each of `size` processes.

    Raises:
        ValueError: names batch_size and what mixes.
    """
    if mixes(protocol) and protocol.batch_size % (2 * size):
        where = f" in each of {size} processes" if size > 1 else ""
        raise ValueError(
            f"{named(protocol)}: images are mixed in pairs, and batch_size={protocol.batch_size} leaves one over"
            f"{where}; choose a multiple of {2 * size}"
        )


class MixedLoader:
    """The batches of another loader, each mixed by what is drawn for it.

    All batches of a run have the same types: both labels and the share are there also where nothing is mixed, and the
    pixels are float32 in 0..255 where mixup is on.
    """

    def __init__(self, loader: TrainLoader, protocol: Protocol, seed: int):
        self.loader, self.protocol, self.seed = loader, protocol, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip
        self.loader.set_epoch(epoch, skip=skip)

    def __iter__(self) -> Iterator[Batch]:
        drawn = draw_mixes(self.protocol, len(self), seed=self.seed, epoch=self.epoch)
        for number, batch in enumerate(self.loader, start=self.skip):
            yield mixed(batch, drawn[number], blends=self.protocol.mixup > 0)


def draw_mixes(protocol: Protocol, num_batches: int, *, seed: int, epoch: int) -> list[Mix]:
    """What is drawn for the batches of an epoch, from 1, in their order."""
    if protocol.mix_off_epoch and epoch > protocol.mix_off_epoch:
        return [Mix()] * num_batches
    random = np.random.RandomState(derive_seed(seed, epoch, OWN))  # its numbers are promised to stay, beta's too
    chance, switch, top, left = random.random_sample((4, num_batches)).tolist()
    alphas = {kind: getattr(protocol, kind) for kind in ("mixup", "cutmix")}
    shares = {kind: random.beta(alpha, alpha, num_batches).tolist() for kind, alpha in alphas.items() if alpha}
    found = []
    for number in range(num_batches):
        is_cut = len(shares) == 2 and switch[number] < protocol.mix_switch
        kind = "cutmix" if is_cut or "mixup" not in shares else "mixup"
        is_mixed = chance[number] < protocol.mix_probability
        found.append(Mix(kind, shares[kind][number], top[number], left[number]) if is_mixed else Mix())
    return found


def mixed(batch: Batch, mix: Mix, *, blends: bool) -> Batch:
    """The images of a batch mixed with their neighbours, with both labels.

    Args:
        blends: whether batches of the run are blended, so that the pixels of all are float32.
    """
    images_BHWC = batch.images.permute(0, 2, 3, 1)
    if blends:
        images_BHWC = images_BHWC.float()
    share = mix.share
    if mix.kind == "mixup":
        images_BHWC = torch.lerp(neighbours(images_BHWC), images_BHWC, share)
    elif mix.kind == "cutmix":
        height, width = images_BHWC.shape[1:3]
        rows, columns = box(mix, height, width)
        share = 1 - len(rows) * len(columns) / (height * width)
        pasted = neighbours(images_BHWC[:, rows.start : rows.stop, columns.start : columns.stop])
        images_BHWC = images_BHWC.clone()
        images_BHWC[:, rows.start : rows.stop, columns.start : columns.stop] = pasted
    return batch._replace(
        images=images_BHWC.permute(0, 3, 1, 2),
        other_labels=neighbours(batch.labels),
        share=torch.full(batch.labels.shape, share, device=batch.labels.device),
    )


def neighbours(values_B: Tensor) -> Tensor:
    """(B, ...) with the entries at 2k and 2k + 1 in each other's place."""
    return values_B.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def box(mix: Mix, height: int, width: int) -> tuple[range, range]:
    """Rows and columns of the box of CutMix that lie in the picture; either may be empty.

    Sides are rounded down to even numbers of pixels, as in the authors' code.
    """

    def along(size: int, centre: float) -> range:
        half, middle = int(size * math.sqrt(1 - mix.share)) // 2, int(size * centre)
        return range(max(middle - half, 0), min(middle + half, size))

    return along(height, mix.top), along(width, mix.left)
