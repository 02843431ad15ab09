"""Files of supervision that tests look into, change, and make up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from letkd import MapSupervision
from storage.tensor_files import load_tensors, save_tensors

FACTS = {"teacher": "teacher", "tap": "path", "downscale": "pooling", "grid": "grid", "image_size": "image_shape"}


def read_map(path: Path) -> dict[str, Any]:
    """The only map in a file."""
    (found,) = load_tensors(path)["maps"].values()
    return found


def write_map(path: Path, found: Mapping[str, Any]) -> None:
    """Put a map in the place of the one that is in a file."""
    save_tensors(path, load_tensors(path) | {"maps": {found["path"]: dict(found)}})


def change_tensors(path: Path, **tensors: Tensor) -> None:
    """Put other tensors into the map of a file."""
    found = read_map(path)
    write_map(path, found | {"tensors": found["tensors"] | tensors})


def change_fact(path: Path, fact: str, value: Any) -> None:
    """Let a file say something else of its making, by the name that runs have for it."""
    found = read_map(path)
    if fact in FACTS:
        found[FACTS[fact]] = (3, value, value) if fact == "image_size" else value
    else:
        assert fact in found["record"]
        found["record"][fact] = value
    write_map(path, found)


def fact_of(path: Path, fact: str) -> Any:
    found = read_map(path)
    value = found[FACTS[fact]] if fact in FACTS else found["record"][fact]
    return value[1] if fact == "image_size" else value


def made_up(
    path: str, tensors: dict[str, Tensor], teacher: str, *, grid: tuple[int, int], image_size: int, pooling: int = 1,
    num_subclasses: int | None = None, **record: Any,
) -> MapSupervision:  # fmt: skip
    """Supervision of a network of ours, with these tensors."""
    channels = tensors["centroids" if num_subclasses is None else "scalings"].shape[0 if num_subclasses else 1]
    return MapSupervision(
        path=path, prefix=None, pooling=pooling, channels=channels, grid=grid, image_shape=(3, image_size, image_size),
        teacher=teacher, tensors=tensors, num_subclasses=num_subclasses, record=record,
    )  # fmt: skip
