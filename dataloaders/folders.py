"""Image files and their classes, in the two layouts that data sets come in.

    folder/<class>/**/*.jpg                     a folder of images for each class
    folder/**/*.jpg and a list of "file class"  images side by side

Either is first found as `{class: paths}`; `label_files` numbers the classes, `load_split` decodes small splits.
"""

import difflib
import hashlib
import os
import re
from pathlib import Path

import torch

from dataloaders.dataset import ImageFiles, ImageTensors, Split
from dataloaders.decoding import MAX_RESIDENT_BYTES, MAX_RESIDENT_SIZE, SquarePixels, decode
from dataloaders.image_files import count_unused, counted, images_below, is_hidden, shown, visible, why_unused
from dataloaders.registry import LoadRequest
from storage.documents import log

FilesByClass = dict[str, list[str]]  # paths in sorted order
MOST_NAMED = 10  # classes in a notice
READING = b"upright\n"  # goes into the digest of images: files made before tags of orientation were applied do not fit


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones. Raises FileNotFoundError without `folder`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(folder)}: it must hold a folder of images for each class")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def list_classes(folder: Path) -> tuple[str, ...]:
    """The class folders of a training split, in label order. Raises ValueError if there are fewer than two."""
    classes = class_folders(folder)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{shown(folder)} must hold at least two class folders, it has {found}")
    return tuple(classes)


def holds_images(folder: Path) -> bool:
    """Whether images lie in `folder` itself, not in folders below it."""
    return folder.is_dir() and any(why_unused(entry) is None for entry in visible(folder))


def find_in_class_folders(folder: Path) -> FilesByClass:
    """The images at any depth below each class folder; a notice says what else is there.

    Raises:
        FileNotFoundError: there is no `folder`.
        ValueError: it holds no class folders, or an empty one, or the same folder under two names.
    """
    found, unused = search_class_folders(folder)
    _name_unused(folder, unused)
    return found


def search_class_folders(folder: Path) -> tuple[FilesByClass, dict[str, str]]:
    """The same without a notice, and what is not used: why, by path."""
    names = class_folders(folder)
    if not names:
        raise ValueError(f"{shown(folder)} holds no class folders")
    _refuse_shared_folders(folder, names)
    loose = [entry for entry in visible(folder) if not entry.is_dir()]
    unused = {entry.path: f"{why_unused(entry) or 'images'} beside the class folders" for entry in loose}
    found = {}
    for name in names:
        others: dict[str, str] = {}
        found[name] = images_below(folder / name, others)
        if not found[name]:
            has = f"; it has {counted(count_unused(others))}" if others else ""
            raise ValueError(
                f"{shown(folder / name)} holds no images (.jpg, .png and what else Pillow reads{has}); add some or "
                "remove the folder"
            )
        unused |= others
    return found, unused


def _refuse_shared_folders(folder: Path, names: list[str]) -> None:
    """Class folders may be links, but a picture has one class."""
    real = {name: (folder / name).resolve() for name in names}
    owners = {path: name for name, path in real.items()}
    for name, path in real.items():
        above = (owners[parent] for parent in (path, *path.parents) if parent in owners)
        if other := next((owner for owner in above if owner != name), None):
            raise ValueError(
                f"in {shown(folder)} pictures of {name!r} are those of {other!r} too: remove one of the links"
            )
        if path in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{shown(folder / name)} is a link to {shown(path)}, which holds it: remove the link")


def digest_of_files(folder: Path, found: FilesByClass) -> str:
    """A digest of images, by class, name and bytes on the disk.

    It is also of how images are read: what was made from them as they were read earlier is made again.
    """
    digest = hashlib.sha256(READING)
    for paths in found.values():
        for path in map(Path, paths):
            digest.update(os.fsencode(f"{path.relative_to(folder)} {path.stat().st_size}\n"))
    return digest.hexdigest()


def find_listed(folder: Path, listed: dict[str, str], source: Path) -> FilesByClass:
    """The images below `folder` by the classes that `listed`, {file name: class} read from `source`, gives them.

    Raises:
        ValueError: a listed file is not there, or an image is not listed.
    """
    unused: dict[str, str] = {}
    paths = {Path(path).name: path for path in images_below(folder, unused)}
    missing = next((file for file in listed if file not in paths), None)
    if missing is not None:
        raise ValueError(f"{source} lists {shown(missing)}, which is not in {folder}; unpack the images again")
    unlisted = next((path for file, path in paths.items() if file not in listed), None)
    if unlisted is not None:
        raise ValueError(f"{shown(unlisted)} is not listed in {source}; remove the image or add its line")
    _name_unused(folder, unused)
    found: FilesByClass = {}
    for file, path in paths.items():
        found.setdefault(listed[file], []).append(path)
    return found


def _name_unused(folder: Path, unused: dict[str, str]) -> None:
    if unused:
        log.info("note: %s holds what is not used: %s", shown(folder), counted(count_unused(unused)))


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


def label_files(split: str, found: FilesByClass, classes: tuple[str, ...], *, needs_all: bool = False) -> ImageFiles:
    """One split, class by class in label order: label i is `classes[i]`. A notice names classes that have no images.

    Raises:
        ValueError: a class that is not among `classes`, or with `needs_all` one of these that has no images.
    """
    for name, paths in found.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name!r}, the class of {shown(paths[0])}, is not one of the {len(classes)} training classes{hint}"
            )
    if missing := [name for name in classes if name not in found]:
        named = ", ".join(map(repr, missing[:MOST_NAMED])) + ", ..." * (len(missing) > MOST_NAMED)
        lacks = f"the split {split!r} has no images of {len(missing)} of {len(classes)} classes: {named}"
        if needs_all:
            raise ValueError(lacks)
        log.info("note: %s", lacks)
    counts = torch.tensor([len(found.get(name, ())) for name in classes])
    paths = tuple(path for name in classes for path in found.get(name, ()))
    return ImageFiles(paths, torch.arange(len(classes)).repeat_interleave(counts))


def in_order_of_numbers(files: ImageFiles) -> ImageFiles:
    """The files in the order of their names where these are different numbers, like 00042.png; else as they are."""
    names = [Path(path).stem for path in files.paths]
    numbers = [int(name) for name in names if name.isdecimal()]
    if len(set(numbers)) < len(names):
        return files
    return files.take(torch.tensor(sorted(range(len(names)), key=numbers.__getitem__)))


def load_split(split: str, files: ImageFiles, image_size: int, request: LoadRequest) -> Split:
    """Decode a small split, to be resident; leave a large one to be streamed.

    Each split decides alone: its pixels then do not depend on which other splits are loaded.
    """
    if image_size > MAX_RESIDENT_SIZE or len(files) * image_size**2 * 3 > MAX_RESIDENT_BYTES:
        return files
    options = {"num_workers": request.num_workers, "progress": request.progress, "label": f"decoding {split}"}
    return ImageTensors(decode(files.paths, SquarePixels(image_size), **options), files.labels, files.paths)
