"""Where the pixels of a batch of images come from, each image by its own numbers: torchvision's definitions, batched.

    affine(image)[i, j] = image[round(M (j, i, 1))], black outside      positions from the middle of the image
    resized crop        = bilinear between the pixels of a window, to the size of the image

Windows are inside of their images, so that resizing never makes smaller: torchvision's antialiasing has no part in it.

Shapes: images (n, 3, H, W) uint8, matrices (n, 6), boxes (n, 4) of top, left, height, width; the result is like the
images, which stay as they are.
"""

import math

import torch
from torch import Tensor


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """The nearest pixels at the places that each image's matrix, row by row, says.

    Shears, translations and rotations of torchvision.transforms.v2 with its defaults: nearest, and black outside.
    """
    _, _, height, width = images.shape
    middle = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=images.device) - middle[0]
    y = (torch.arange(height, device=images.device) - middle[1])[:, None]
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    columns = ((a * x + b * y) + c).add_(middle[0]).round_()
    rows = ((d * x + e * y) + f).add_(middle[1]).round_()
    nearest_columns, nearest_rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1)
    inside = (columns == nearest_columns).logical_and_(rows == nearest_rows)
    index = nearest_rows.long().mul_(width).add_(nearest_columns.long())
    found = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return found.view(images.shape).mul_(inside[:, None].to(torch.uint8))


def shear_x(amounts: Tensor, side: int) -> Tensor:
    """(n, 6) matrices that move rows sideways, by `amounts` (n,) pixels for each row below the upper edge."""
    return _matrices((1, amounts, amounts * side / 2), (0, 1, 0))


def shear_y(amounts: Tensor, side: int) -> Tensor:
    return _matrices((1, 0, 0), (amounts, 1, amounts * side / 2))


def translate_x(pixels: Tensor, side: int) -> Tensor:
    """To the right, by whole pixels: fractions are cut off."""
    return _matrices((1, 0, -pixels.trunc()), (0, 1, 0))


def translate_y(pixels: Tensor, side: int) -> Tensor:
    return _matrices((1, 0, 0), (0, 1, -pixels.trunc()))


def rotate(degrees: Tensor, side: int) -> Tensor:
    """Counterclockwise, about the middle."""
    angles = degrees.deg2rad()
    return _matrices((angles.cos(), -angles.sin(), 0), (angles.sin(), angles.cos(), 0))


def _matrices(*rows: tuple[Tensor | float, ...]) -> Tensor:
    entries = [entry for row in rows for entry in row]
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    return torch.stack([torch.zeros_like(like) + entry for entry in entries], dim=1)


def erase(images: Tensor, boxes: Tensor, *, color: Tensor) -> Tensor:
    """A box of each image filled with a colour (3,) uint8."""
    height, width = images.shape[2:]
    top, left, high, wide = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside_rows = (rows >= top) & (rows < top + high)
    inside_columns = (columns >= left) & (columns < left + wide)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return torch.where(inside[:, None], color.view(3, 1, 1), images)


class ResizedCropFlip:
    """Windows of images of a resident (N, H, W, 3) uint8 tensor, resized to the images' size and flipped."""

    def __init__(self, images_NHWC: Tensor):
        num_images, self.height, self.width, self.channels = images_NHWC.shape
        self.rows = images_NHWC.reshape(num_images * self.height, self.width * self.channels)

    def __call__(
        self, picks_B: Tensor, top_B: Tensor, left_B: Tensor, height_B: Tensor, width_B: Tensor, flip_B: Tensor
    ) -> Tensor:
        """(B, H, W, 3) uint8: of images `picks` the windows at (top, left), mirrored where flip is 1."""
        batch = len(picks_B)
        upper, lower, down = _neighbours(top_B, height_B, self.height)
        above, below = (
            self.rows.index_select(0, (picks_B[:, None] * self.height + place).flatten()).view(batch, self.height, -1)
            for place in (upper, lower)
        )
        lines = _between(above, below, down[..., None]).view(-1, self.channels)
        first = torch.arange(batch * self.height, device=lines.device).view(batch, -1, 1) * self.width
        *places, across = (
            torch.where(flip_B[:, None] > 0, values.flip(1), values)
            for values in _neighbours(left_B, width_B, self.width)
        )
        shape = batch, self.height, self.width, self.channels
        to_the_left, to_the_right = (
            lines.index_select(0, (first + place[:, None, :]).flatten()).view(shape) for place in places
        )
        return _between(to_the_left, to_the_right, across[:, None, :, None]).round_().to(torch.uint8)


def _neighbours(start_B: Tensor, length_B: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each (B, side): the source positions on either side of every pixel of the resized window, and how far it is from
    the first to the second.
    """
    pixels = torch.arange(side, device=start_B.device) + 0.5
    last = length_B[:, None] - 1
    position = (pixels * length_B[:, None]).div_(side).sub_(0.5).clamp_(min=0)
    first = position.long().clamp_(max=last)
    second = (first + 1).clamp_(max=last)
    return first + start_B[:, None], second + start_B[:, None], position - first


def _between(one: Tensor, other: Tensor, part: Tensor) -> Tensor:
    one, other = one.float(), other.float()
    return (other - one).mul_(part).add_(one)


def draw_boxes(
    num_images: int,
    side: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    largest: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Boxes (num_images, 4) float64 of whole numbers within squares, and whether there is one: (num_images,) bool.

    The first of ten that fits, each with an area uniform in `scale` of the square's and with the logarithm of width by
    height uniform in `ratio`, at a uniform place: torchvision's RandomResizedCrop and RandomErasing.

    Args:
        largest: side that a box may have.
    """
    shape, options = (10, num_images), {"generator": generator, "dtype": torch.float64}
    areas = side**2 * uniform(*scale, shape, generator)
    ratios = uniform(*map(math.log, ratio), shape, generator).exp()
    widths, heights = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (widths >= 1) & (widths <= largest) & (heights >= 1) & (heights <= largest)
    first = fits.int().argmax(dim=0, keepdim=True)
    width, height = (lengths.gather(0, first)[0] for lengths in (widths, heights))
    across, down = torch.rand(2, num_images, **options)
    return torch.stack(
        [(down * (side - height + 1)).floor(), (across * (side - width + 1)).floor(), height, width], dim=1
    ), fits.any(dim=0)


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Float64 numbers between two."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
