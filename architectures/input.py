"""What stands in front of a network: pixels, brought to its image size and normalised as in its training.

    (pixel / 255 - mean) / std = pixel * scale + shift         scale = 1 / (255 std), shift = -mean / std

    model = nn.Sequential(Input(dataset.mean, dataset.std), network)    # takes the pixels that loaders yield

Shapes: B images, H x W pixels of the batch, h x w those that the network sees.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How images are resized, and what torch calls it; `nearest` is that of Pillow, which reckons with centres of pixels.
INTERPOLATIONS = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


@dataclass(frozen=True)
class InputConfig:
    """What a network sees of square pictures: `Input` makes it.

    Args:
        crop_size: side of the pictures, as loaders yield them.
        image_size: side of what the network sees.
        mean, std: per channel, for values in 0..1.
        interpolation: between the two sizes, one of `INTERPOLATIONS`.
    """

    crop_size: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    @property
    def resizes(self) -> bool:
        return self.image_size != self.crop_size

    def module(self) -> "Input":
        return Input(self.mean, self.std, self.image_size if self.resizes else None, self.interpolation)

    def facts(self) -> dict[str, Any]:
        """The same as plain values; of pictures that stay as they are without what is said of resizing."""
        found = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return found if self.resizes else {key: found[key] for key in ("image_size", "mean", "std")}

    def __str__(self) -> str:
        size, crop = (f"{side} x {side}" for side in (self.image_size, self.crop_size))
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        resized = f" ({self.interpolation} from {crop})" if self.resizes else ""
        return f"images of {size}{resized}, mean {mean}, std {std}"


class Input(nn.Module):
    """Pixels (B, 3, H, W), uint8 or floats in 0..255, to normalised images (B, 3, h, w) float32 in channels_last.

    It has no state: a network with an input in front of it saves the same weights.

    Args:
        mean, std: per channel, for pixel values in 0..1.
        image_size: h = w; images of another size are resized, as `resize` does it. None takes them as they are.
        interpolation: one of `INTERPOLATIONS`.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        interpolation: str = "bilinear",
    ):
        super().__init__()
        self.mean, self.std, self.image_size = tuple(mean), tuple(std), image_size
        self.interpolation = interpolation
        mean_C, std_C = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        self.register_buffer("scale", (1 / (255 * std_C)).float(), persistent=False)
        self.register_buffer("shift", (-mean_C / std_C).float(), persistent=False)

    @property
    def key(self) -> tuple[tuple[float, ...], tuple[float, ...], int | None, str | None]:
        """Inputs with equal keys make the same of the same pixels: one result serves them all."""
        return self.mean, self.std, self.image_size, self.interpolation if self.image_size else None

    def forward(self, pixels: Tensor) -> Tensor:
        if self.image_size is not None and pixels.shape[2:] != (self.image_size, self.image_size):
            pixels = resize(pixels.float(), self.image_size, self.interpolation)
        pixels_BHWC = pixels.permute(0, 2, 3, 1)
        # Repeated along a row of pixels, so that the CPU's inner loop runs over w * 3 values and not over 3.
        scale, shift = (values.repeat(pixels_BHWC.shape[2]) for values in (self.scale, self.shift))
        rows = pixels_BHWC.flatten(2).float()
        return torch.addcmul(shift, rows, scale).view(pixels_BHWC.shape).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        resized = "" if self.image_size is None else f", interpolation={self.interpolation}"
        return f"mean={self.mean}, std={self.std}, image_size={self.image_size}{resized}"


def resize(pixels: Tensor, image_size: int, interpolation: str) -> Tensor:
    """Pixels (B, C, H, W) in 0..255 as (B, C, image_size, image_size).

    As torchvision resizes tensors: bilinear and bicubic with antialiasing, and bicubic cut to 0..255.
    """
    resized = _interpolated(pixels, (image_size, image_size), interpolation)
    return resized.clamp(0, 255) if interpolation == "bicubic" else resized


def resize_rows(pixels: Tensor, number: int, interpolation: str) -> Tensor:
    """(B, C, H, W) as (B, C, number, W), likewise and not cut: of one axis alone."""
    return _interpolated(pixels, (number, pixels.shape[3]), interpolation)


def _interpolated(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    return F.interpolate(pixels, size, mode=INTERPOLATIONS[interpolation], antialias=interpolation != "nearest")
