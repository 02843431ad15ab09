"""Any data set kept as one folder of images a class.

    data_dir/train/<class>/**/*.jpg      training
    data_dir/val/<class>/**/*.jpg        evaluation; without val/, test/ is the evaluation split
    data_dir/test/<class>/**/*.jpg       beside val/: the split 'test'

Labels number the class folders of train/ in alphabetical order.
"""

import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from dataloaders.dataset import Dataset, ImageFiles, ImageTensors, Split, Triple
from dataloaders.decoding import MAX_RESIDENT_BYTES, MAX_RESIDENT_SIZE, SquarePixels, decode, read_files, read_size
from dataloaders.registry import LoadRequest, register_dataset

MAX_ASPECT = 1.125  # a common size this close to square becomes the image size
MEASURED_IMAGES = 5000  # of a streamed training split, evenly spaced, for its mean and std


@register_dataset("ImageFolder")
def image_folder(request: LoadRequest) -> Dataset:
    folders = _split_folders(request)
    if "train" not in request.splits:
        _require_training_facts(request)
    classes = _list_classes(folders["train"]) if "train" in request.splits else request.classes
    files = {split: _list_files(folders[split], classes) for split in request.splits}

    image_size = request.image_size or _measure_size(files["train"].paths, request)
    splits = {split: _load_split(split, files[split], image_size, request) for split in request.splits}
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
    for split in request.splits:
        if not folders[split].is_dir():
            raise FileNotFoundError(
                f"there is no folder {folders[split]}: it must hold a folder of images for each class"
            )
    return folders


def _require_training_facts(request: LoadRequest) -> None:
    missing = [fact for fact in ("image_size", "mean", "std", "classes") if getattr(request, fact) is None]
    if missing:
        raise ValueError(
            f"ImageFolder without its split 'train' needs {', '.join(missing)}, or load 'train' to measure them"
        )


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(folder: Path) -> tuple[str, ...]:
    classes = _class_folders(folder)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{folder} must hold at least two class folders, it has {found}")
    return tuple(classes)


def _list_files(folder: Path, classes: tuple[str, ...]) -> ImageFiles:
    """All images below the class folders of one split, class by class in label order."""
    labels = {name: label for label, name in enumerate(classes)}
    paths, counts = [], torch.zeros(len(classes), dtype=torch.int64)
    names = _class_folders(folder)
    if not names:
        raise ValueError(f"{folder} holds no class folders")
    for name in names:
        if name not in labels:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{folder / name} is not one of the {len(classes)} training classes{hint}")
    for name in sorted(names, key=labels.__getitem__):
        found = _images_below(folder / name)
        if not found:
            raise ValueError(
                f"{folder / name} holds no images ({' '.join(IMG_EXTENSIONS)}); add some or remove the folder"
            )
        paths.extend(found)
        counts[labels[name]] = len(found)
    return ImageFiles(tuple(paths), torch.arange(len(classes)).repeat_interleave(counts))


def _images_below(folder: Path) -> list[str]:
    walk = os.walk(folder, followlinks=True)  # several times faster than Path.rglob on a million files
    return sorted(
        f"{parent}{os.sep}{file}"
        for parent, _, files in walk
        for file in files
        if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith(".")
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
            other = f"{paths[position + row]} {widths[row]}x{heights[row]}"
            raise ValueError(f"image sizes differ ({paths[0]} is {first[0]}x{first[1]}, {other}): pass image_size")
        position += len(widths)
    if max(first) > MAX_ASPECT * min(first):
        raise ValueError(f"the images ({paths[0]}) are {first[0]}x{first[1]}, not square: pass image_size")
    return min(first)


def _load_split(split: str, files: ImageFiles, image_size: int, request: LoadRequest) -> Split:
    """Decide for every split alone: its pixels then do not depend on which other splits are loaded."""
    if image_size > MAX_RESIDENT_SIZE or len(files) * image_size**2 * 3 > MAX_RESIDENT_BYTES:
        return files
    options = {"num_workers": request.num_workers, "progress": request.progress, "label": f"decoding {split}"}
    return ImageTensors(decode(files.paths, image_size, **options), files.labels)


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
