"""What stands in front of a network: pixels, brought to its image size and normalised as in its training.

    (pixel / 255 - mean) / std = pixel * scale + shift         scale = 1 / (255 std), shift = -mean / std

    model = nn.Sequential(Input(dataset.mean, dataset.std), network)    # takes the pixels that loaders yield

Shapes: B images, H x W pixels of the batch, h x w those that the network sees.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Input(nn.Module):
    """Pixels (B, 3, H, W), uint8 or floats in 0..255, to normalised images (B, 3, h, w) float32 in channels_last.

    It has no state: a network with an input in front of it saves the same weights.

    Args:
        mean, std: per channel, for pixel values in 0..1.
        image_size: h = w; images of another size are resized (bilinear, antialiased). None takes them as they are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], image_size: int | None = None):
        super().__init__()
        self.mean, self.std, self.image_size = tuple(mean), tuple(std), image_size
        mean_C, std_C = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        self.register_buffer("scale", (1 / (255 * std_C)).float(), persistent=False)
        self.register_buffer("shift", (-mean_C / std_C).float(), persistent=False)

    @property
    def key(self) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
        """Inputs with equal keys make the same of the same pixels: one result serves them all."""
        return self.mean, self.std, self.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if self.image_size is not None and pixels.shape[2:] != size:
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        pixels_BHWC = pixels.permute(0, 2, 3, 1)
        # Repeated along a row of pixels, so that the CPU's inner loop runs over w * 3 values and not over 3.
        scale, shift = (values.repeat(pixels_BHWC.shape[2]) for values in (self.scale, self.shift))
        rows = pixels_BHWC.flatten(2).float()
        return torch.addcmul(shift, rows, scale).view(pixels_BHWC.shape).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}, image_size={self.image_size}"
