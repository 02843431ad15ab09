"""CIFAR-10 and CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).

50,000 training and 10,000 test images of 32 x 32; the test set is the evaluation split, as in the literature.
They are read from Python pickles, as they are published, or from a folder of PNG files for each class:

    data_dir/cifar-100-python/{train,test,meta}           cifar-10-batches-py/ of CIFAR-10
    data_dir/train/<class>/*.png                          a tree, where `data_dir` is given and has no pickles
    data_dir/test/<class>/*.png                           or val/

torchvision knows the address of the pickles, their checksum and their names, downloads the archive and verifies it
before unpacking. Both happen in a folder of their own, and only whole files get their names here. The unpacked pickles
are read without hashing them again on every start, and as data: they run no code.

The order of the training images decides which of them a seed draws. That of a tree is the order of its file names where
these are different numbers, over all classes of a split: a tree whose files are called by their number in the pickles
trains to the same bits. Otherwise it is class by class, in each by name.

CIFAR100_10k, "CIFAR-100/10k", has a fifth of CIFAR-100's training images and all of its test images, for comparisons
that shall take hours instead of days. It is ours; its figures stand beside no published ones. Of each class it takes
the 100 images whose pixels have the smallest SHA-256 (bytes in the order height, width, channels), class by class in
the order of these digests: the same images in the same order from any copy of CIFAR-100.
"""

import dataclasses
import hashlib
import http.client
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from dataloaders.dataset import Dataset, ImageTensors, Triple
from dataloaders.decoding import SquarePixels, decode
from dataloaders.folders import (
    digest_of_files,
    find_in_class_folders,
    in_order_of_numbers,
    label_files,
    search_class_folders,
)
from dataloaders.image_files import shown
from dataloaders.registry import DEFAULT_DATA_DIR, LoadRequest, Outliner, always, refuse_test_split, register_dataset

if TYPE_CHECKING:  # torchvision and what it imports take two seconds: only who reads its images should wait for it
    from torchvision.datasets import CIFAR10

IMAGE_SIZE = 32
NUM_TRAIN = 50_000
PER_CLASS = 100  # training images of CIFAR100_10k
EVALUATION_FOLDERS = ("test", "val")  # of a tree
PADDING = 4  # the protocol of DESIGN.md section 1 and of nearly all CIFAR papers

# Per-channel statistics of the training sets; CIFAR-100's as the published protocol rounds them.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# What the pickles may ask for: arrays, as NumPy 1 and 2 rebuild them, and text of Python 2.
SAFE_GLOBALS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
SAFE_GLOBALS |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
SAFE_GLOBALS |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}

# In label order; the published pickles say them, a tree has to have them.
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905  a literal would be a line for each
)

Source: TypeAlias = "type[CIFAR10]"  # CIFAR100 is a subclass
Splits = dict[str, ImageTensors]


def _published(name: str) -> Source:
    """What torchvision knows of a data set."""
    from torchvision import datasets

    return getattr(datasets, name)


def _outline(name: str, mean: Triple, std: Triple) -> Outliner:
    """The name says which images a data set has, but not those of a tree that lacks some of them."""
    known = always(IMAGE_SIZE, mean, std)

    def outline(data_dir: Path | None) -> dict[str, Any]:
        facts = known(data_dir)
        if data_dir and _is_tree(_published(name), data_dir) and (data_dir / "train").is_dir():
            found, _ = search_class_folders(data_dir / "train")
            if sum(map(len, found.values())) != NUM_TRAIN:
                facts["images"] = digest_of_files(data_dir / "train", found)
        return facts

    return outline


@register_dataset("CIFAR100", _outline("CIFAR100", CIFAR100_MEAN, CIFAR100_STD))
def cifar100(request: LoadRequest) -> Dataset:
    return _load(_published("CIFAR100"), "fine_labels", CIFAR100_CLASSES, request, CIFAR100_MEAN, CIFAR100_STD)


@register_dataset("CIFAR100_10k", _outline("CIFAR100", CIFAR100_MEAN, CIFAR100_STD))
def cifar100_10k(request: LoadRequest) -> Dataset:
    whole = cifar100(request)
    train = whole.train and _smallest_digests(whole.train, PER_CLASS)
    return dataclasses.replace(whole, name="CIFAR100_10k", train=train)


@register_dataset("CIFAR10", _outline("CIFAR10", CIFAR10_MEAN, CIFAR10_STD))
def cifar10(request: LoadRequest) -> Dataset:
    return _load(_published("CIFAR10"), "labels", CIFAR10_CLASSES, request, CIFAR10_MEAN, CIFAR10_STD)


def _load(
    source: Source, label_key: str, classes: tuple[str, ...], request: LoadRequest, mean: Triple, std: Triple
) -> Dataset:
    name = source.__name__
    if request.image_size not in (None, IMAGE_SIZE):
        raise ValueError(
            f"image_size {request.image_size} does not fit {name}: its images are {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    refuse_test_split(name, request, "its test set is the split 'eval'")
    if _is_tree(source, request.data_dir):
        splits = {split: _read_tree(name, split, classes, request) for split in request.splits}
    else:
        classes, splits = _read_pickles(source, label_key, request)
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


def _smallest_digests(split: ImageTensors, per_class: int) -> ImageTensors:
    """Of each class so many images, those whose pixels have the smallest SHA-256, class by class in this order."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in split.images.numpy()]
    ordered = torch.tensor(sorted(range(len(split)), key=digests.__getitem__))
    labels = split.labels[ordered]
    return split.take(torch.cat([ordered[labels == label][:per_class] for label in labels.unique()]))


def _is_tree(source: Source, data_dir: Path | None) -> bool:
    """Whether a folder that the user names has class folders, and neither the pickles nor their archive."""
    if data_dir is None or (data_dir / source.base_folder).exists() or (data_dir / source.filename).exists():
        return False
    return any((data_dir / folder).is_dir() for folder in ("train", *EVALUATION_FOLDERS))


def _read_tree(name: str, split: str, classes: tuple[str, ...], request: LoadRequest) -> ImageTensors:
    """A split of PNG files, which have the very pixels: other formats that Pillow reads need not.

    Raises:
        FileNotFoundError, ValueError: it is not laid as the head of this module says, or not all of it is `name`.
    """
    folder = request.data_dir / "train" if split == "train" else _evaluation_folder(name, request.data_dir)
    try:
        files = in_order_of_numbers(label_files(split, find_in_class_folders(folder), classes, needs_all=True))
        if other := next((path for path in files.paths if Path(path).suffix.lower() != ".png"), None):
            raise ValueError(f"{shown(other)} is no PNG file")
        read = SquarePixels(IMAGE_SIZE, exact=True)
        options = {"num_workers": request.num_workers, "progress": request.progress, "label": f"decoding {split}"}
        return ImageTensors(decode(files.paths, read, **options), files.labels, files.paths)
    except ValueError as error:
        raise ValueError(f"{name} in {shown(request.data_dir)}: {error}") from error


def _evaluation_folder(name: str, data_dir: Path) -> Path:
    found = [data_dir / folder for folder in EVALUATION_FOLDERS if (data_dir / folder).is_dir()]
    if len(found) != 1:
        has = "both test/ and val/" if found else "neither test/ nor val/"
        raise FileNotFoundError(f"{shown(data_dir)} has {has}: one of them must hold the test images of {name}")
    return found[0]


def _read_pickles(source: Source, label_key: str, request: LoadRequest) -> tuple[tuple[str, ...], Splits]:
    """Classes and splits as they are published, after a download where they are missing."""
    files = {"train": [file for file, _ in source.train_list], "eval": [file for file, _ in source.test_list]}
    meta_file = source.meta["filename"]
    folder = _ensure_files(source, request.data_dir or DEFAULT_DATA_DIR, [meta_file, *files["train"], *files["eval"]])
    classes = tuple(_read_pickle(folder / meta_file, source.meta["key"])[0])
    splits = {
        split: _read_split([folder / file for file in files[split]], label_key, len(classes))
        for split in request.splits
    }
    return classes, splits


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
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

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
