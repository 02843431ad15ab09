"""Any data set kept as one folder of images a class.

    data_dir/train/<class>/**/*.jpg      training
    data_dir/val/<class>/**/*.jpg        evaluation; without val/, test/ is the evaluation split
    data_dir/test/<class>/**/*.jpg       beside val/: the split 'test'

Labels number the class folders of train/ in alphabetical order.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloaders.dataset import Dataset, ImageTensors, Split, Triple
from dataloaders.decoding import SquarePixels, read_files, read_size
from dataloaders.folders import (
    digest_of_files,
    find_in_class_folders,
    label_files,
    list_classes,
    load_split,
    search_class_folders,
)
from dataloaders.image_files import shown
from dataloaders.registry import LoadRequest, register_dataset

MAX_ASPECT = 1.125  # a common size this close to square becomes the image size
MEASURED_IMAGES = 5000  # of a streamed training split, evenly spaced, for its mean and std


class UnknownSizeError(ValueError):
    """Nothing says how large images shall be, and their files do not either.

    Args:
        why: the files do not.
    """

    def __init__(self, why: str):
        super().__init__(f"{why}: pass image_size, like image_size=64")
        self.why = why


def outline(data_dir: Path | None) -> dict[str, Any]:
    """A digest of the training images, and the size that they would measure."""
    if data_dir is None or not (data_dir / "train").is_dir():
        return {}
    found, _ = search_class_folders(data_dir / "train")
    first = next(iter(found.values()))[0]
    return {"images": digest_of_files(data_dir / "train", found), "image_size": min(read_size(first))}


@register_dataset("ImageFolder", outline)
def image_folder(request: LoadRequest) -> Dataset:
    folders = _split_folders(request)
    if "train" not in request.splits:
        _require_training_facts(request)
    classes = list_classes(folders["train"]) if "train" in request.splits else request.classes
    files = {split: label_files(split, find_in_class_folders(folders[split]), classes) for split in request.splits}

    image_size = request.image_size or _measure_size(files["train"].paths, request)
    splits = {split: load_split(split, files[split], image_size, request) for split in request.splits}
    mean, std = request.mean, request.std
    if mean is None or std is None:
        measured = channel_statistics(_pixels(splits["train"], image_size, request))
        mean, std = mean or measured[0], std or measured[1]
    return Dataset(
        name="ImageFolder",
        classes=classes,
        image_size=image_size,
        mean=mean,
        std=std,
        padding=image_size // 8,
        flip=True,
        **splits,
    )


def _split_folders(request: LoadRequest) -> dict[str, Path]:
    root = request.data_dir
    if root is None:
        raise ValueError(
            "ImageFolder needs data_dir: the folder that holds train/<class>/ and val/<class>/ or test/<class>/"
        )
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; data_dir must hold train/<class>/ and val/<class>/ or test/<class>/"
        )
    has_val = (root / "val").is_dir()
    folders = {"train": root / "train", "eval": root / ("val" if has_val else "test"), "test": root / "test"}
    if "eval" in request.splits and not folders["eval"].is_dir():
        raise FileNotFoundError(
            f"{root} has neither val/ nor test/: one of them must hold a folder of images for each class"
        )
    if "test" in request.splits and not has_val:
        raise FileNotFoundError(
            f"the split 'test' is a test/ beside a val/, but {root} has no val/; use the split 'eval'"
        )
    return folders


def _require_training_facts(request: LoadRequest) -> None:
    missing = [fact for fact in ("image_size", "mean", "std", "classes") if getattr(request, fact) is None]
    if missing:
        raise ValueError(
            f"ImageFolder without its split 'train' needs {', '.join(missing)}, or load 'train' to measure them"
        )


def _measure_size(paths: tuple[str, ...], request: LoadRequest) -> int:
    """The shorter side of the one, almost square size that all images share."""
    first = read_size(paths[0])
    options = {"num_workers": request.num_workers, "progress": request.progress, "label": "image sizes"}
    position = 0
    for widths, heights in read_files(read_size, paths, **options):
        differs = ((widths != first[0]) | (heights != first[1])).nonzero()
        if len(differs):
            row = int(differs[0])
            other = f"{shown(paths[position + row])} {widths[row]}x{heights[row]}"
            known = f"{shown(paths[0])} is {first[0]}x{first[1]}"
            raise UnknownSizeError(f"image sizes differ ({known}, {other})")
        position += len(widths)
    if max(first) > MAX_ASPECT * min(first):
        raise UnknownSizeError(f"the images ({shown(paths[0])}) are {first[0]}x{first[1]}, not square")
    return min(first)


def _pixels(split: Split, image_size: int, request: LoadRequest) -> Iterable[Tensor]:
    """Batches (B, H, W, 3) uint8 to measure: all of a resident split, an evenly spaced part of a streamed one."""
    if isinstance(split, ImageTensors):
        return split.images.split(1024)
    stride = math.ceil(len(split) / MEASURED_IMAGES)
    options = {"num_workers": request.num_workers, "progress": request.progress, "label": "mean and std"}
    return read_files(SquarePixels(image_size), split.paths[::stride], **options)


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel, in 0..1, of uint8 batches (B, H, W, 3)."""
    count, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        pixels = batch.reshape(-1, 3).double() / 255
        count += len(pixels)
        total += pixels.sum(0)
        squares += pixels.square().sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def classes_of_folder(data_dir: str | None) -> tuple[str, ...]:
    """The classes of a data set of this kind, of its evaluation images where it has no others; none without images."""
    splits = [] if data_dir is None else [Path(data_dir).expanduser() / name for name in ("train", "val", "test")]
    return next((list_classes(split) for split in splits if split.is_dir()), ())
