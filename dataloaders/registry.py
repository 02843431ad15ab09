"""Datasets by name. A new family is one file with `@register_dataset` functions and one import in `__init__.py`."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.dataset import SPLIT_NAMES, Dataset, Triple
from dataloaders.decoding import Tracker


@dataclass(frozen=True)
class LoadRequest:
    """What a registered function receives; `load_dataset` explains the fields. None means: the dataset's own."""

    splits: tuple[str, ...]
    data_dir: Path | None
    image_size: int | None
    mean: Triple | None
    std: Triple | None
    classes: tuple[str, ...] | None
    num_workers: int
    progress: Tracker | None


Builder = Callable[[LoadRequest], Dataset]
Outliner = Callable[[Path | None], dict[str, Any]]  # of `data_dir`

DEFAULT_DATA_DIR = Path("data")  # of datasets that come as one archive, which unpacks into a folder of its own

_BUILDERS: dict[str, Builder] = {}
_OUTLINERS: dict[str, Outliner] = {}


def register_dataset(name: str, outline: Outliner | None = None) -> Callable[[Builder], Builder]:
    """Decorator: make a function from request to `Dataset` known to `load_dataset` as `name`.

    Args:
        outline: from `data_dir` to what `outline_dataset` returns where nothing is given, as far as it is known.
    """

    def register(builder: Builder) -> Builder:
        assert name not in _BUILDERS, f"dataset {name!r} is registered twice"
        _BUILDERS[name] = builder
        if outline is not None:
            _OUTLINERS[name] = outline
        return builder

    return register


def list_datasets() -> list[str]:
    """The names `load_dataset` knows, sorted."""
    return sorted(_BUILDERS)


def unknown_name(kind: str, name: str, known: Sequence[str]) -> ValueError:
    """A one-line error for a `name` that is not among `known`, the nearest names first."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"unknown {kind} {name!r};{hint} known: {', '.join(known)}")


def refuse_test_split(name: str, request: LoadRequest, reason: str) -> None:
    """For a dataset without a third labelled split: `reason` says in a few words why.

    Raises:
        ValueError: the split 'test' is asked for.
    """
    if "test" in request.splits:
        raise ValueError(f"{name} has no split 'test': {reason}; choose from train, eval")


def load_dataset(
    name: str,
    *,
    splits: Sequence[str] = ("train", "eval"),
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    num_workers: int = 0,
    progress: Tracker | None = None,
) -> Dataset:
    """Load a dataset by name.

    Args:
        splits: which of 'train', 'eval', 'test' to load; nothing else is read. What an evaluation needs to know of a
            training split that it does not load (`image_size`, `mean`, `std`, `classes`) is in its checkpoint.
        data_dir: where the files are, or go when they are downloaded.
        image_size: side in pixels of the square images.
        mean, std: normalisation per channel for pixel values in 0..1.
        classes: the class names in label order; data with other classes is refused.
        num_workers: processes that decode images while loading; 0 decodes in this one.
        progress: shows how far reading files is: called with an iterable, its length and a few words, it gives the
            items of the iterable. None shows nothing.

    Raises:
        ValueError: unknown name or split, a bad argument, classes that differ, or data that is not as it should be.
        FileNotFoundError: data that is missing and cannot be downloaded.
    """
    if name not in _BUILDERS:
        raise unknown_name("dataset", name, list_datasets())
    for split in splits:
        if split not in SPLIT_NAMES:
            raise unknown_name("split", split, SPLIT_NAMES)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size {image_size} must be at least 1 pixel")
    request = LoadRequest(
        splits=tuple(splits),
        data_dir=_folder(data_dir),
        image_size=image_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        classes=None if classes is None else tuple(classes),
        num_workers=num_workers,
        progress=progress,
    )
    dataset = _BUILDERS[name](request)
    if request.classes is not None:
        refuse_other_classes(dataset, request.classes)
    return dataset


def outline_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What tells the training images of a data set, and how they are prepared, from others; none is decoded.

    Returns:
        `image_size`, `mean` and `std` as far as they are given or known beforehand, and where the name does not say
        which images they are `images`, a digest of their files.
    """
    given = {"image_size": image_size, "mean": mean and list(mean), "std": std and list(std)}
    outline = _OUTLINERS.get(name, lambda data_dir: {})
    own = outline(_folder(data_dir))
    return own | {key: value for key, value in given.items() if value is not None}


def _folder(data_dir: str | Path | None) -> Path | None:
    """A folder as a user writes it, who may mean his home by ~.

    Raises:
        ValueError: there is no user of the name behind ~.
    """
    try:
        return None if data_dir is None else Path(data_dir).expanduser()
    except RuntimeError as error:
        raise ValueError(f"data_dir={data_dir}: there is no user of that name; write ./~... for a folder") from error


def always(image_size: int, mean: Triple, std: Triple) -> Outliner:
    """The outline of a data set whose name says which images it has."""
    return lambda data_dir: {"image_size": image_size, "mean": list(mean), "std": list(std)}


def refuse_other_classes(dataset: Dataset, expected: tuple[str, ...], trained: str = "the model") -> None:
    """Refuse classes that are not those, in this order, that something was trained on.

    Args:
        trained: what it is, for the error.

    Raises:
        ValueError: names the first class that is another.
    """
    if dataset.classes == expected:
        return
    message = f"{dataset.name} has {dataset.num_classes} classes where {len(expected)} are expected"
    pairs = zip(dataset.classes, expected, strict=False)
    first = next((index for index, (found, wanted) in enumerate(pairs) if found != wanted), None)
    if first is not None:
        message += f"; class {first} is {dataset.classes[first]!r}, expected {expected[first]!r}"
    raise ValueError(f"{message}: use the data {trained} was trained on")
