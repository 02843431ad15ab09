"""What tells data from other data, as plain values that a network keeps."""

import hashlib
from pathlib import Path
from typing import Any

from dataloaders.dataset import SPLIT_NAMES, Dataset, ImageTensors, Split


def image_facts(dataset: Dataset) -> dict[str, Any]:
    """What tells the `images` of each split from others: their number, and a digest of them and their labels.

    A resident split is told by its pixels, a streamed one by its files' names and sizes.
    """
    loaded = {name: split for name in SPLIT_NAMES if (split := getattr(dataset, name)) is not None}
    return {"images": {name: split_facts(split) for name, split in loaded.items()}}


def split_facts(split: Split) -> dict[str, Any]:
    """What tells the images of a split from others."""
    return {"number": len(split), "sha256": _digest(split)}


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.labels.numpy())
    if isinstance(split, ImageTensors):
        digest.update(split.images.contiguous().numpy())
    else:
        for path in map(Path, split.paths):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """What a network must remember of the data it was trained on, as plain values."""
    return {
        "classes": list(dataset.classes),
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
