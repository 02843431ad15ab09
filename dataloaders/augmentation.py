"""Batched augmentation straight from a resident uint8 tensor, and its random numbers.

Random crop with reflect padding and horizontal flip are one gather: with w_o the source index of every pixel of a
window at offset o of the padded axis,

    out[b, i, j] = images[n_b, w_{top_b}[i], w_{left_b}[j']]     j' = j, or W - 1 - j where image b is flipped

which is torchvision's RandomCrop(size, padding, padding_mode="reflect") then RandomHorizontalFlip, drawn for each
image on its own. Where the padding is zeros, its RandomCrop(size, padding), what lies outside the image is black: 0
before it is normalised. A whole epoch is drawn at once on the CPU from (seed, epoch): it is the same on every device,
and there is no generator state to save.
Source of the idea: device-resident CIFAR (github.com/KellerJordan/cifar10-airbench).

Shapes: N images, B images of a batch, H = W the image side.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


def derive_seed(*parts: int) -> int:
    """A 32-bit seed for this tuple of numbers.

    A hash, because torch's CPU generator uses the low 32 bits of its seed only: arithmetic such as
    `seed * 2**32 + epoch` would drop the seed, and `seed + epoch` would make neighbouring seeds share epochs.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


class EpochDraws(NamedTuple):
    """Random numbers of one epoch, each int64 (N,): position p shows image order[p], cropped and flipped by entry p."""

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor


def draw_epoch(num_images: int, *, padding: int, flip: bool, seed: int, epoch: int) -> EpochDraws:
    """Permutation, crop offsets (uniform in 0..2*padding) and flips (probability 1/2, or none), on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    order = torch.randperm(num_images, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, num_images), generator=generator)
    flips = torch.randint(2 if flip else 1, (num_images,), generator=generator)
    return EpochDraws(order, top, left, flips)


class ReflectCropFlip:
    """Crops and flips images of a resident (N, H, W, 3) uint8 tensor, as in the module's equation."""

    def __init__(self, images_NHWC: Tensor, padding: int):
        num_images, height, width, channels = images_NHWC.shape
        assert padding < min(height, width), "reflection reaches one image side at most"
        device = images_NHWC.device
        self.height, self.width = height, width
        # Rows of three bytes under one flat index: on a CPU this gathers 2.5x faster than images[n, rows, columns].
        self.pixels = images_NHWC.reshape(num_images * height * width, channels)
        self.rows = _windows(height, padding).to(device)
        columns = _windows(width, padding)
        self.columns = torch.stack([columns, columns.flip(1)]).to(device)

    def __call__(self, picks_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor) -> Tensor:
        """(B, H, W, 3) uint8: images `picks`, their windows at (top, left), mirrored where flip is 1."""
        rows_BH = picks_B[:, None] * self.height + self.rows[top_B]
        index_BHW = rows_BH[:, :, None] * self.width + self.columns[flip_B, left_B][:, None, :]
        return self.pixels.index_select(0, index_BHW.flatten()).view(*index_BHW.shape, -1)


class ZeroCropFlip(ReflectCropFlip):
    """The same with zeros around the images: what is reflected is put out."""

    def __init__(self, images_NHWC: Tensor, padding: int):
        super().__init__(images_NHWC, padding)
        device = images_NHWC.device
        self.rows_inside = _inside(self.height, padding).to(device)
        columns = _inside(self.width, padding)
        self.columns_inside = torch.stack([columns, columns.flip(1)]).to(device)

    def __call__(self, picks_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor) -> Tensor:
        inside_BHW = self.rows_inside[top_B][:, :, None] & self.columns_inside[flip_B, left_B][:, None, :]
        return super().__call__(picks_B, top_B, left_B, flip_B) * inside_BHW[..., None]


CROPS = {"reflect": ReflectCropFlip, "zeros": ZeroCropFlip}  # by what is around the images


def _windows(size: int, padding: int) -> Tensor:
    """(2 * padding + 1, size): row o holds the source indices of the window at offset o of the reflect-padded axis."""
    position = torch.arange(-padding, size + padding).abs()
    reflected = (size - 1) - (size - 1 - position).abs()
    return reflected.unfold(0, size, 1).contiguous()


def _inside(size: int, padding: int) -> Tensor:
    """(2 * padding + 1, size) bool: which positions of these windows are on the axis and not on its padding."""
    position = torch.arange(-padding, size + padding)
    return ((position >= 0) & (position < size)).unfold(0, size, 1).contiguous()
