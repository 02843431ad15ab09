"""Image files to RGB pixels: colour modes, geometry, and decoding many files with worker processes.

Processes, not threads: Pillow spends the time of a small image in Python, and two threads were slower than one.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from dataloaders.image_files import check_regular, image_formats, shown

# A split up to these limits is decoded once and kept as one uint8 tensor; a larger one is streamed from its files.
MAX_RESIDENT_SIZE = 96
MAX_RESIDENT_BYTES = 2 * 2**30

DECODE_BATCH = 64  # images that a worker hands over at a time

# Gives the items of an iterable, of which there are so many, and shows how far what it is called has come.
Tracker = Callable[[Iterable[Any], int, str], Iterable[Any]]

# What Pillow raises for files that are damaged, cut short, too large, or no images at all. It looks at what a file
# holds and not at its name: any of its some forty readers may be the one that fails.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError, LookupError, NotImplementedError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


# How a picture is turned upright, by the orientation that its camera has noted (Exif 2.3, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # these exchange width and height


class ImageError(ValueError):
    """An image file that cannot be used; the message is one line naming it."""


def read_rgb(path: str) -> Image.Image:
    """Decode one file to an RGB image, upright as its orientation tag says; of several pictures in a file the first.

    Raises:
        ImageError: the file is missing, damaged, cut short, or of a kind whose values have no known range.
    """
    with _open(path) as image:
        image.load()  # some files have their tags at the end; and a TIFF is upright then, without its tag
        turn = _UPRIGHT.get(_orientation(image))
        upright = to_rgb(image)
        return upright if turn is None else upright.transpose(turn)


def read_size(path: str) -> tuple[int, int]:
    """(width, height) of the upright image, from its file's header. Raises `ImageError` as `read_rgb` does."""
    with _open(path) as image:
        width, height = image.size
        # Pillow tells the upright size of a TIFF; and a PNG may have to be decoded for its tag.
        is_upright = width == height or image.format == "TIFF" or _orientation(image) not in _SIDEWAYS
        return (width, height) if is_upright else (height, width)


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    """An image file; what fails on it inside the context is an `ImageError` that names it."""
    try:
        check_regular(path)
        with Image.open(path, formats=image_formats()) as image:
            yield image
    except _PILLOW_ERRORS as error:
        raise _unreadable(path, error) from error


def _orientation(image: Image.Image) -> int:
    """1 is upright, and what is taken where tags cannot be read: pixels are worth more than what stands beside them."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        return 1
    return found if isinstance(found, int) else 1


def _unreadable(path: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"there is no image {shown(path)}")
    reason = type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "it is of no format that is read"  # Pillow's message repeats the path
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif str(error):
        reason = shown(error)
    return ImageError(f"cannot read image {shown(path)}: {reason}; replace or remove it")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB with 8 bits a channel; transparency is dropped, 16-bit grey is scaled by 255/65535.

    Raises:
        ValueError: floating-point pixels, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integer pixels in {values.min()}..{values.max()} are not 16-bit")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")


def fit_square(image: Image.Image, image_size: int) -> Image.Image:
    """Scale the shorter side, then crop the centre: the geometry of evaluation, and of resident training images.

    Small images keep their border. Large ones follow the ImageNet convention, 256 pixels for a crop of 224.
    """
    import torchvision.transforms.functional as TF  # takes two seconds, and pictures that are embedded need none

    shorter = image_size if image_size <= MAX_RESIDENT_SIZE else int(image_size * 256 / 224)
    if min(image.size) != shorter:
        image = TF.resize(image, [shorter], antialias=True)
    return image if image.size == (image_size, image_size) else TF.center_crop(image, [image_size, image_size])


class SquarePixels:
    """Callable: path to (image_size, image_size, 3) uint8. With `exact` an image of another size is an `ImageError`."""

    def __init__(self, image_size: int, *, exact: bool = False):
        self.image_size, self.exact = image_size, exact

    def __call__(self, path: str) -> np.ndarray:
        image, side = read_rgb(path), self.image_size
        if self.exact and image.size != (side, side):
            width, height = image.size
            raise ImageError(f"image {shown(path)} is {width}x{height}, and those of this data set are {side}x{side}")
        return np.array(fit_square(image, side))


class Reader(torch.utils.data.Dataset):
    """`read(key)` as a torch dataset whose keys its sampler chooses; goes with `collate`."""

    def __init__(self, read: Callable[[Any], Any]):
        self.read = read

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.read(key)
        except ImageError as error:
            return error  # as a value: a DataLoader would bury the one line in a worker's traceback


def collate(samples: list) -> Any:
    """Stack samples, or hand on the first error among them; `checked` raises it in the main process."""
    error = next((sample for sample in samples if isinstance(sample, ImageError)), None)
    return error or default_collate(samples)


def checked(batches: DataLoader) -> Iterator[Any]:
    """The batches of a loader over a `Reader`. Raises the `ImageError` that one of its reads met."""
    for batch in batches:
        if isinstance(batch, ImageError):
            # A new one: raising `batch` would tie this frame into a cycle, and workers freed by the cycle
            # collector miss their signal to stop, which costs five seconds each.
            raise ImageError(*batch.args)
        yield batch


def read_files(
    read: Callable[[str], Any], paths: Sequence[str], *, num_workers: int, progress: Tracker | None, label: str
) -> Iterator[Any]:
    """`read(path)` of every path in order, collated by `DECODE_BATCH`; `progress` shows it as `label`."""
    loader = DataLoader(
        Reader(read),
        batch_size=DECODE_BATCH,
        sampler=paths,
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator(),  # its own: reading files must not advance the global random state
    )
    batches = checked(loader)
    yield from batches if progress is None else progress(batches, len(loader), label)


def decode(
    paths: Sequence[str], read: SquarePixels, *, num_workers: int, progress: Tracker | None, label: str
) -> Tensor:
    """(N, image_size, image_size, 3) uint8 of N files."""
    images = torch.empty((len(paths), read.image_size, read.image_size, 3), dtype=torch.uint8)
    batches = read_files(read, paths, num_workers=num_workers, progress=progress, label=label)
    for target, batch in zip(images.split(DECODE_BATCH), batches, strict=True):
        target.copy_(batch)
    return images
