"""CIFAR-10 and CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).

50,000 training and 10,000 test images of 32 x 32; the test set is the evaluation split, as in the literature.
torchvision knows the address, the checksum and the file names, downloads the archive and verifies it before unpacking.
Both happen in a folder of their own, and only whole files get their names here. The unpacked Python pickles are read
without hashing them again on every start, and as data: they run no code.
"""

import http.client
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from dataloaders.dataset import Dataset, ImageTensors, Triple
from dataloaders.registry import DEFAULT_DATA_DIR, LoadRequest, always, refuse_test_split, register_dataset

IMAGE_SIZE = 32
PADDING = 4  # the protocol of DESIGN.md section 1 and of nearly all CIFAR papers

# Per-channel statistics of the training sets; CIFAR-100's as the published protocol rounds them.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# What the pickles may ask for: arrays, as NumPy 1 and 2 rebuild them, and text of Python 2.
SAFE_GLOBALS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
SAFE_GLOBALS |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
SAFE_GLOBALS |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}

Source = type[torchvision.datasets.CIFAR10]  # CIFAR100 is a subclass


@register_dataset("CIFAR100", always(IMAGE_SIZE, CIFAR100_MEAN, CIFAR100_STD))
def cifar100(request: LoadRequest) -> Dataset:
    return _load(torchvision.datasets.CIFAR100, "fine_labels", request, CIFAR100_MEAN, CIFAR100_STD)


@register_dataset("CIFAR10", always(IMAGE_SIZE, CIFAR10_MEAN, CIFAR10_STD))
def cifar10(request: LoadRequest) -> Dataset:
    return _load(torchvision.datasets.CIFAR10, "labels", request, CIFAR10_MEAN, CIFAR10_STD)


def _load(source: Source, label_key: str, request: LoadRequest, mean: Triple, std: Triple) -> Dataset:
    name = source.__name__
    if request.image_size not in (None, IMAGE_SIZE):
        raise ValueError(
            f"image_size {request.image_size} does not fit {name}: its images are {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    refuse_test_split(name, request, "its test set is the split 'eval'")
    files = {"train": [file for file, _ in source.train_list], "eval": [file for file, _ in source.test_list]}
    meta_file = source.meta["filename"]
    folder = _ensure_files(source, request.data_dir or DEFAULT_DATA_DIR, [meta_file, *files["train"], *files["eval"]])

    classes = tuple(_read_pickle(folder / meta_file, source.meta["key"])[0])
    splits = {
        split: _read_split([folder / file for file in files[split]], label_key, len(classes))
        for split in request.splits
    }
    return Dataset(
        name=name,
        classes=classes,
        image_size=IMAGE_SIZE,
        mean=request.mean or mean,
        std=request.std or std,
        padding=PADDING,
        flip=True,
        **splits,
    )


def _ensure_files(source: Source, data_dir: Path, files: list[str]) -> Path:
    """The folder of `files`; if one is missing, unpack the archive, after downloading it unless `data_dir` has it."""
    folder = data_dir / source.base_folder
    if all((folder / file).is_file() for file in files):
        return folder
    try:
        _unpack(source, data_dir, files)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{source.__name__} is not in {folder} and its download from {source.url} failed ({error}); "
            f"offline, put {source.filename} into {data_dir}"
        ) from error
    return folder


def _unpack(source: Source, data_dir: Path, files: list[str]) -> None:
    """Put `files` into `data_dir`, each one whole or absent, whenever the process ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{source.filename}.", suffix=".part", dir=data_dir) as place:
        archive = data_dir / source.filename
        if not check_integrity(archive, source.tgz_md5):
            download_url(source.url, place, source.filename, source.tgz_md5)
            _move(Path(place, source.filename), archive)
        extract_archive(archive, place)
        for file in files:
            _move(Path(place, source.base_folder, file), data_dir / source.base_folder / file)


def _move(file: Path, target: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())
    target.parent.mkdir(exist_ok=True)
    file.replace(target)


def _read_split(paths: list[Path], label_key: str, num_classes: int) -> ImageTensors:
    parts = [_read_pickle(path, "data", label_key) for path in paths]
    for path, (pixels, labels) in zip(paths, parts, strict=True):
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not _are_integers(labels):
            raise ValueError(_corrupt(path, "its pixels are not bytes, or its labels not integers"))
        if pixels.shape != (len(labels), 3 * IMAGE_SIZE**2) or not 0 <= min(labels) <= max(labels) < num_classes:
            raise ValueError(_corrupt(path, f"{pixels.shape} pixels, {len(labels)} labels up to {max(labels)}"))
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = [label for _, labels in parts for label in labels]
    return ImageTensors(torch.from_numpy(planes).permute(0, 2, 3, 1).contiguous(), torch.tensor(labels))


def _are_integers(labels: object) -> bool:
    return isinstance(labels, list) and bool(labels) and all(type(label) is int for label in labels)


class _PlainUnpickler(pickle.Unpickler):
    """Refuses everything that is no data."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return super().find_class(module, name)


def _read_pickle(path: Path, *keys: str) -> list:
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
        return [content[key] for key in keys]
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(_corrupt(path, f"{type(error).__name__}: {error}")) from error


def _corrupt(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}); delete {path.parent} so that it is unpacked or downloaded again"
