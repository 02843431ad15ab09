"""What is done to training images beyond crop and flip: RandAugment, TrivialAugment, colour jitter, random erasing.

Everything that an epoch draws is drawn at once on the CPU from (seed, epoch), for each position of the epoch's order,
and each kind from numbers of its own: it follows the image, whatever else is on, and depends neither on the number of
processes nor on the batches that are done. As the draws are known there, so is which images of a batch an operation is
for: a step takes them out by indices that lie on the device, and reads nothing.

They are applied in this order, of torchvision's and timm's recipes: policy, colour jitter, erasing.
Sources: RandAugment (Cubuk et al., 2020), TrivialAugment Wide (Müller and Hutter, 2021), random erasing (Zhong et al.,
2020); operations, ranges and defaults are those of torchvision.transforms.v2 0.29, of ColorJitter too.

Shapes: N images of an epoch, n of them that an operation is for, B of a batch.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from config.options import Augmentation
from dataloaders import color, geometry
from dataloaders.augmentation import derive_seed, draw_epoch
from dataloaders.dataset import Dataset
from dataloaders.geometry import draw_boxes, uniform

NUM_LEVELS = 31  # of magnitudes, 0 to 30
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # of the image, and height by width of what is erased
LARGEST_HUE = 0.5  # of the circle

Operation = Callable[..., Tensor]  # of images (n, 3, H, W) uint8, and of their values where it has any


class Application(NamedTuple):
    """An operation on some images of an epoch.

    Attributes:
        positions: (n,) int64, ascending: where these are in the order of the epoch.
        values: (n, ...) float32, those of each; None where the operation takes none.
    """

    operation: Operation
    positions: Tensor
    values: Tensor | None = None


class Kind(NamedTuple):
    """An entry of a policy.

    Attributes:
        operation: None leaves images as they are.
        levels: (31,) float64, its magnitudes.
        is_signed: whether half of them are negated.
        values: what the operation takes, from magnitudes (n,) and the images' side; None where it takes nothing.
    """

    operation: Operation | None
    levels: Tensor = torch.zeros(NUM_LEVELS, dtype=torch.float64)
    is_signed: bool = False
    values: Callable[[Tensor, int], Tensor] | None = None


def check_augmentation(options: Augmentation) -> None:
    """Raise `ValueError` where options do not go together."""
    default = Augmentation()
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(options, key)
        if low > high:
            raise ValueError(f"{key}=[{low:g}, {high:g}] must have the smaller number first")
    if options.color_jitter and options.color_jitter[3] > LARGEST_HUE:
        raise ValueError(f"color_jitter={options.color_jitter} turns hues by more than half a circle; choose up to 0.5")
    if options.auto_augment != "randaugment":
        for key in ("randaugment_ops", "randaugment_magnitude"):
            if getattr(options, key) != getattr(default, key):
                raise ValueError(f"{key} is for auto_augment=randaugment; say that too, or leave it out")


def generator_of(seed: int, epoch: int, kind: str) -> torch.Generator:
    """The random numbers that one kind of augmentation has in an epoch."""
    return torch.Generator().manual_seed(derive_seed(seed, epoch, *kind.encode()))


# --- draws -----------------------------------------------------------------------------------------------------------


def draw(
    options: Augmentation, num_images: int, *, side: int, fill: Tensor, seed: int, epoch: int
) -> list[Application]:
    """What is done to the images of an epoch, in order.

    Args:
        side: of the images.
        fill: (3,) uint8, the colour of what is erased.
    """
    found: list[Application] = []
    if options.auto_augment:
        found += draw_policy(options, num_images, side, generator_of(seed, epoch, "auto_augment"))
    if options.color_jitter:
        found += draw_jitter(options.color_jitter, num_images, generator_of(seed, epoch, "color_jitter"))
    if options.random_erasing:
        generator = generator_of(seed, epoch, "random_erasing")
        found.append(draw_erasing(options.random_erasing, num_images, side, fill, generator))
    return found


def randaugment_space(side: int) -> list[Kind]:
    return _space(shear=0.3, translate=150 / 331 * side, rotate=30, enhance=0.9, bits_lost=4)


def trivialaugment_space() -> list[Kind]:
    return _space(shear=0.99, translate=32, rotate=135, enhance=0.99, bits_lost=6)


def _space(*, shear: float, translate: float, rotate: float, enhance: float, bits_lost: int) -> list[Kind]:
    """Fourteen kinds of which each is as likely."""
    signed = [
        (geometry.affine, shear, geometry.shear_x),
        (geometry.affine, shear, geometry.shear_y),
        (geometry.affine, translate, geometry.translate_x),
        (geometry.affine, translate, geometry.translate_y),
        (geometry.affine, rotate, geometry.rotate),
        *((operation, enhance, _factors) for operation in ENHANCEMENTS),
    ]
    bits = (8 - torch.arange(NUM_LEVELS) / ((NUM_LEVELS - 1) / bits_lost)).round().double()
    return [
        Kind(None),
        *(Kind(operation, _levels(0, highest), True, values) for operation, highest, values in signed),
        Kind(color.posterize, bits, values=_as_they_are),
        Kind(color.solarize, _levels(1, 0) * color.WHITE, values=_as_they_are),
        Kind(color.autocontrast),
        Kind(color.equalize),
    ]


ENHANCEMENTS = (color.brightness, color.saturation, color.contrast, color.sharpness)


def _levels(first: float, last: float) -> Tensor:
    """In float32 as torchvision has them, whose translations are cut off to whole pixels."""
    return torch.linspace(first, last, NUM_LEVELS).double()


def _factors(magnitudes: Tensor, side: int) -> Tensor:
    return 1 + magnitudes


def _as_they_are(magnitudes: Tensor, side: int) -> Tensor:
    return magnitudes


def draw_policy(options: Augmentation, num_images: int, side: int, generator: torch.Generator) -> Iterator[Application]:
    """RandAugment: operations one after the other, all of one level. TrivialAugment: one, of a level of its own."""
    if options.auto_augment == "trivialaugment":
        levels = torch.randint(NUM_LEVELS, (num_images,), generator=generator)
        yield from _draw_kinds(trivialaugment_space(), levels, side, generator)
        return
    levels = torch.full((num_images,), options.randaugment_magnitude)
    for _ in range(options.randaugment_ops):
        yield from _draw_kinds(randaugment_space(side), levels, side, generator)


def _draw_kinds(space: list[Kind], levels: Tensor, side: int, generator: torch.Generator) -> Iterator[Application]:
    """A kind of operation for every image; kinds that are one operation with other values are applied as one."""
    drawn = torch.randint(len(space), levels.shape, generator=generator)
    signs = 1 - 2 * torch.randint(2, levels.shape, generator=generator)
    found: dict[Operation, list[tuple[Tensor, ...]]] = defaultdict(list)
    for number, kind in enumerate(space):
        if kind.operation is None:
            continue
        positions = (drawn == number).nonzero().flatten()
        magnitudes = kind.levels[levels[positions]] * (signs[positions] if kind.is_signed else 1)
        values = () if kind.values is None else (kind.values(magnitudes, side),)
        found[kind.operation].append((positions, *values))
    for operation, parts in found.items():
        positions, *values = map(torch.cat, zip(*parts, strict=True))
        positions, order = positions.sort()
        yield Application(operation, positions, *(each[order].float() for each in values))


def draw_jitter(strengths: list[float], num_images: int, generator: torch.Generator) -> Iterator[Application]:
    """Brightness, contrast, saturation and hue in an order of its own for each image, as torchvision's ColorJitter.

    Args:
        strengths: s of the first three, of a factor uniform in 1 - s (at least 0) to 1 + s; and of the hue, which is
            turned uniformly by -s to s. What is 0 is left out.
    """
    operations = (color.brightness, color.contrast, color.saturation, color.hue)
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths[:3]] + [(-strengths[3], strengths[3])]
    values = [uniform(*bounds, (num_images,), generator).float() for bounds in ranges]
    some = [number for number, strength in enumerate(strengths) if strength]
    order = torch.rand(num_images, len(some), generator=generator, dtype=torch.float64).argsort(dim=1)
    for place in range(len(some)):
        for rank, number in enumerate(some):
            positions = (order[:, place] == rank).nonzero().flatten()
            yield Application(operations[number], positions, values[number][positions])


def draw_erasing(
    probability: float, num_images: int, side: int, fill: Tensor, generator: torch.Generator
) -> Application:
    """A rectangle, whose place, area and shape are drawn as torchvision's RandomErasing does, filled with a colour."""
    positions = (torch.rand(num_images, generator=generator) < probability).nonzero().flatten()
    low, high = ERASED_RATIO
    boxes, found = draw_boxes(
        len(positions), side, scale=ERASED_AREA, ratio=(1 / high, 1 / low), largest=side - 1, generator=generator
    )
    return Application(functools.partial(geometry.erase, color=fill), positions[found], boxes[found].float())


class WindowDraws(NamedTuple):
    """Random numbers of one epoch with resized crops, each int64 (N,), as `EpochDraws`."""

    order: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


def draw_windows(num_images: int, dataset: Dataset, options: Augmentation, *, seed: int, epoch: int) -> WindowDraws:
    """Order and flips as with padded crops, and windows as torchvision's RandomResizedCrop draws them."""
    order, _, _, flip = draw_epoch(num_images, padding=0, flip=dataset.flip, seed=seed, epoch=epoch)
    side, (low, high) = dataset.image_size, options.crop_ratio
    boxes, found = draw_boxes(
        num_images,
        side,
        scale=options.crop_scale,
        ratio=options.crop_ratio,
        largest=side,
        generator=generator_of(seed, epoch, "crop"),
    )
    # Where none fits: the largest of these ratios in the middle.
    height, width = max(1, round(side / max(1.0, low))), max(1, round(side * min(1.0, high)))
    middle = torch.tensor([(side - height) // 2, (side - width) // 2, height, width])
    windows = torch.where(found[:, None], boxes.long(), middle)
    return WindowDraws(order, *windows.unbind(1), flip)


# --- batches ---------------------------------------------------------------------------------------------------------


class Plan:
    """What is done to each batch of an epoch, on the device.

    Args:
        batch_size: of all ranks together.
        part: of each batch, whose images are given.
        num_batches: whole ones; what is behind them is not shown.
    """

    def __init__(
        self,
        applications: Iterable[Application],
        *,
        batch_size: int,
        part: range,
        num_batches: int,
        device: torch.device,
    ):
        self.steps = []
        for operation, positions, values in applications:
            batches, places = positions // batch_size, positions % batch_size
            mine = (places >= part.start) & (places < part.stop)
            ends = torch.searchsorted(batches[mine], torch.arange(num_batches + 1)).tolist()
            here = (places[mine] - part.start).to(device)
            self.steps.append((operation, ends, here, None if values is None else values[mine].to(device)))

    def __call__(self, images_BCHW: Tensor, number: int) -> Tensor:
        """What becomes of the images of batch `number`, which are channels_last as what is returned is."""
        if not self.steps:
            return images_BCHW
        images_BCHW = images_BCHW.contiguous()  # on a CPU most operations are twice as fast on planes
        for operation, ends, here, values in self.steps:
            some = slice(ends[number], ends[number + 1])
            if some.start == some.stop:
                continue
            index = here[some]
            given = () if values is None else (values[some],)
            images_BCHW[index] = operation(images_BCHW.index_select(0, index), *given)
        return images_BCHW.contiguous(memory_format=torch.channels_last)


class Transforms:
    """What a training loader does to its batches beyond crop and flip.

    Args:
        num_images: of an epoch, whether they are in a whole batch or not.
        batch_size: of all ranks together.
        part: of each batch, which this rank has.
    """

    def __init__(
        self,
        options: Augmentation,
        dataset: Dataset,
        num_images: int,
        batch_size: int,
        part: range,
        device: torch.device,
    ):
        self.options, self.side, self.num_images = options, dataset.image_size, num_images
        self.batch_size, self.part, self.device = batch_size, part, device
        self.fill = torch.tensor([round(color.WHITE * mean) for mean in dataset.mean], dtype=torch.uint8).to(device)

    def of_epoch(self, seed: int, epoch: int) -> Plan:
        applications = draw(self.options, self.num_images, side=self.side, fill=self.fill, seed=seed, epoch=epoch)
        return Plan(
            applications,
            batch_size=self.batch_size,
            part=self.part,
            num_batches=self.num_images // self.batch_size,
            device=self.device,
        )
