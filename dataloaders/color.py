"""Colours of a batch of images, each changed by its own number: torchvision's definitions, batched.

    brightness   f x                          grey = floor(0.2989 r + 0.587 g + 0.114 b)
    saturation   f x + (1 - f) grey           blurred = (sum of the 3 x 3 around x, 4 x added) / 13
    contrast     f x + (1 - f) mean(grey)
    sharpness    x + (1 - f) (blurred - x)    inside of the border
    hue          turned by a part f of the whole circle, saturation and value of HSV kept

Sums are of whole numbers and exact, everything else is done in operations that IEEE 754 rounds in one way only: an
image has the same bits in any batch. They are those of torchvision.transforms.v2.functional on uint8, but for
fractions that it rounds otherwise in float32: these differ by 1 of 255.

Shapes: images (n, 3, H, W) uint8, the numbers (n,) float32; the result is like the images, which stay as they are.
"""

import torch
from torch import Tensor

BLACK, WHITE = 0, 255
NUM_VALUES = 256
RED, GREEN, BLUE = 2989.0, 5870.0, 1140.0  # parts of the grey in 10,000
OF_GREY = 10_000
SECTORS = 6  # of the circle of hues


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _to_pixels(images.float().mul_(_by_image(factors)))


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    values = images.float()
    return _blend(values, _grey(values), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Against the mean grey of each image."""
    values = images.float()
    return _blend(values, _grey(values).mean(dim=(2, 3), keepdim=True, dtype=torch.float64).float(), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Below 1 smoother, above it sharper; the pixels at the border stay."""
    values = images.float()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    window = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inside = values[..., 1:-1, 1:-1]
    blurred = window.add_(4 * inside).div_(13).round_()
    inside += blurred.sub_(inside).mul_(1 - _by_image(factors))
    return _to_pixels(values)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turned by -0.5 to 0.5 of the circle.

    With value v, chroma c and hue h in sixths of the circle, red is v - c (2 - |h - 3|), green v - c (|h - 2| - 1) and
    blue v - c (|h - 4| - 1), what is in brackets within 0..1.
    """
    red, green, blue = images.float().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = chroma.clamp(min=1)  # of a grey pixel, whose hue is 0: there is nothing to turn
    of_green, of_blue = ((blue - red) / divisor).add_(2), ((red - green) / divisor).add_(4)
    hues = torch.where(value == red, (green - blue) / divisor, torch.where(value == green, of_green, of_blue))
    hues += (SECTORS * turns).view(-1, 1, 1)
    hues -= (hues / SECTORS).floor_().mul_(SECTORS)
    weights = 2 - (hues - 3).abs_(), (hues - 2).abs_().sub_(1), (hues - 4).abs_().sub_(1)
    channels = [value - weight.clamp_(0, 1).mul_(chroma) for weight in weights]
    # A hair less than 256 parts, each cut off: how torchvision turns 0..1 into uint8.
    return torch.stack(channels, dim=1).mul_((NUM_VALUES - 1e-3) / WHITE).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest bits of every value are left, 0 to 8 of them."""
    masks = torch.bitwise_left_shift(WHITE, 8 - bits.long()).to(torch.uint8)
    return images & _by_image(masks)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """What is not below the threshold, in 0..255, is inverted."""
    inverted = (images >= _by_image(thresholds)).to(torch.uint8)
    return images ^ inverted.mul_(WHITE)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched from its darkest to its brightest value; one of a single value stays."""
    lowest, highest = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    varies = highest > lowest
    scale = torch.where(varies, (highest - lowest) * (1 / WHITE), 1.0)
    return _to_pixels(images.float().sub_(lowest * varies).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Each channel's values spread so that they are equally frequent, by the table that Pillow makes of a histogram."""
    num_images, channels, height, width = images.shape
    planes = images.reshape(num_images * channels, height * width).long()
    counts = torch.zeros(len(planes), NUM_VALUES, dtype=torch.int32, device=images.device)
    counts.scatter_add_(1, planes, counts.new_ones(1).expand_as(planes))
    of_highest = counts.gather(1, planes.amax(dim=1, keepdim=True))
    step = (height * width - of_highest) // 255
    below = counts.cumsum(dim=1, dtype=torch.int32) - counts  # pixels darker than each value
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=WHITE)
    same = torch.arange(NUM_VALUES, dtype=torch.int32, device=images.device)
    table = torch.where(step > 0, table, same).to(torch.uint8)
    return table.gather(1, planes).view(images.shape)


def _by_image(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


def _grey(values: Tensor) -> Tensor:
    """(n, 1, H, W) float32 of whole numbers, of such (n, 3, H, W)."""
    red, green, blue = values.split(1, dim=1)
    return (red * RED).add_(green * GREEN).add_(blue * BLUE).div_(OF_GREY).floor_()


def _blend(values: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Of `values` in place."""
    factors = _by_image(factors)
    return _to_pixels(values.mul_(factors).add_((1 - factors) * others))


def _to_pixels(values: Tensor) -> Tensor:
    """Cut off, as torchvision does."""
    return values.clamp_(BLACK, WHITE).to(torch.uint8)
