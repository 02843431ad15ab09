"""Image files and their classes, in the two layouts that data sets come in.

    folder/<class>/**/*.jpg                     a folder of images for each class
    folder/**/*.jpg and a list of "file class"  images side by side

Either is first found as `{class: paths}`; `label_files` numbers the classes, `load_split` decodes small splits.
"""

import difflib
import os
import re
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from dataloaders.dataset import ImageFiles, ImageTensors, Split
from dataloaders.decoding import MAX_RESIDENT_BYTES, MAX_RESIDENT_SIZE, decode
from dataloaders.registry import LoadRequest

FilesByClass = dict[str, list[str]]  # paths in sorted order


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones. Raises FileNotFoundError without `folder`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: it must hold a folder of images for each class")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_classes(folder: Path) -> tuple[str, ...]:
    """The class folders of a training split, in label order. Raises ValueError if there are fewer than two."""
    classes = class_folders(folder)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{folder} must hold at least two class folders, it has {found}")
    return tuple(classes)


def holds_images(folder: Path) -> bool:
    """Whether images lie in `folder` itself, not in folders below it."""
    return folder.is_dir() and any(_is_image(entry.name) for entry in folder.iterdir())


def find_in_class_folders(folder: Path) -> FilesByClass:
    """The images at any depth below each class folder.

    Raises:
        FileNotFoundError: there is no `folder`.
        ValueError: it holds no class folders, or an empty one.
    """
    found = {name: _images_below(folder / name) for name in class_folders(folder)}
    if not found:
        raise ValueError(f"{folder} holds no class folders")
    for name, paths in found.items():
        if not paths:
            raise ValueError(
                f"{folder / name} holds no images ({' '.join(IMG_EXTENSIONS)}); add some or remove the folder"
            )
    return found


def find_listed(folder: Path, listed: dict[str, str], source: Path) -> FilesByClass:
    """The images below `folder` by the classes that `listed`, {file name: class} read from `source`, gives them.

    Raises:
        ValueError: a listed file is not there, or an image is not listed.
    """
    paths = {Path(path).name: path for path in _images_below(folder)}
    missing = next((file for file in listed if file not in paths), None)
    if missing is not None:
        raise ValueError(f"{source} lists {missing}, which is not in {folder}; unpack the images again")
    unlisted = next((path for file, path in paths.items() if file not in listed), None)
    if unlisted is not None:
        raise ValueError(f"{unlisted} is not listed in {source}; remove the image or add its line")
    found: FilesByClass = {}
    for file, path in paths.items():
        found.setdefault(listed[file], []).append(path)
    return found


def read_list(source: Path) -> dict[str, str]:
    """{file: class}: the first two fields of each line, which tabs, spaces or commas separate.

    Raises:
        ValueError: a line without two fields, or a second one for the same file.
    """
    listed: dict[str, str] = {}
    for number, line in enumerate(source.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        file, *fields = re.split(r"[\s,]+", line.strip())
        if not fields or file in listed:
            problem = "lists a file a second time" if fields else "is not a file and its class"
            raise ValueError(f"{source} line {number} {problem}: {line[:80]!r}")
        listed[file] = fields[0]
    return listed


def find_root(name: str, data_dir: Path, archive_folder: str, remedy: str) -> Path:
    """The folder of train/ and val/: the one an archive unpacks in `data_dir`, or `data_dir` itself.

    Raises:
        FileNotFoundError: neither holds one of them; ends in `remedy`.
    """
    for root in (data_dir / archive_folder, data_dir):
        if (root / "train").is_dir() or (root / "val").is_dir():
            return root
    raise FileNotFoundError(f"{name} is not in {data_dir}: {remedy}")


def order_classes(root: Path, request: LoadRequest, found: dict[str, FilesByClass]) -> tuple[str, ...]:
    """Classes in label order: the folders of train/; without that folder those requested, or of the images found."""
    if (root / "train").is_dir():
        return list_classes(root / "train")
    return request.classes or tuple(sorted(found["eval"]))


def label_files(found: FilesByClass, classes: tuple[str, ...]) -> ImageFiles:
    """One split, class by class in label order: label i is `classes[i]`.

    Raises:
        ValueError: a class that is not among `classes`.
    """
    for name, paths in found.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name!r}, the class of {paths[0]}, is not one of the {len(classes)} training classes{hint}"
            )
    counts = torch.tensor([len(found.get(name, ())) for name in classes])
    paths = tuple(path for name in classes for path in found.get(name, ()))
    return ImageFiles(paths, torch.arange(len(classes)).repeat_interleave(counts))


def load_split(split: str, files: ImageFiles, image_size: int, request: LoadRequest) -> Split:
    """Decode a small split, to be resident; leave a large one to be streamed.

    Each split decides alone: its pixels then do not depend on which other splits are loaded.
    """
    if image_size > MAX_RESIDENT_SIZE or len(files) * image_size**2 * 3 > MAX_RESIDENT_BYTES:
        return files
    options = {"num_workers": request.num_workers, "progress": request.progress, "label": f"decoding {split}"}
    return ImageTensors(decode(files.paths, image_size, **options), files.labels)


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMG_EXTENSIONS) and not file.startswith(".")


def _images_below(folder: Path) -> list[str]:
    walk = os.walk(folder, followlinks=True)  # several times faster than Path.rglob on a million files
    return sorted(f"{parent}{os.sep}{file}" for parent, _, files in walk for file in files if _is_image(file))
