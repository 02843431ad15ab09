"""Where the losses of an experiment read its teacher, known before weights and images are: by outlines on `meta`."""

import functools
from collections.abc import Mapping
from typing import Any

from architectures import Outline, TappedNetwork, create_on_meta, outline
from dataloaders import outline_dataset
from distillation.expressions import PLACES, places_of
from distillation.signals import pooling_between

Config = Mapping[str, Any]

USUAL_SIZE = 224  # of images whose size is not known beforehand; places have the same paths for any


def teacher_path(config: Config, key: str) -> str:
    """Module path of the teacher's map that a loss reads.

    Raises:
        ValueError: the teacher has no such place.
    """
    return path_of(config, config["teacher"], places_of(config, key)[1])


def stage_of(network: str, path: str) -> int | str:
    """What `LDA=` calls a map: the index of the stage whose first block it is, or else its module path."""
    module = create_on_meta(network)
    stages = module.stages if isinstance(module, TappedNetwork) else {}
    return next((index for index, tap in stages.items() if tap.path == path), path)


def path_of(config: Config, name: str, place: str) -> str:
    """Module path of a place of a network, for the images of an experiment."""
    if place in PLACES:
        network = create_on_meta(name)
        if isinstance(network, TappedNetwork):  # says it without being measured
            return getattr(network, place).path
    return _outline(name, image_size(config)).place(place).path


def pooling(config: Config, key: str) -> int:
    """Side of the windows that bring the teacher's map to the student's grid.

    Raises:
        ValueError: the grids do not meet; names both.
    """
    student, teacher = (_outline(config[side], image_size(config)) for side in ("student", "teacher"))
    return pooling_between(student, teacher, *places_of(config, key))


def image_size(config: Config) -> int:
    """The size of the images, as far as it is known before they are read."""
    known = outline_dataset(config["dataset"], data_dir=config["data_dir"], image_size=config["image_size"])
    return known.get("image_size") or USUAL_SIZE


def table(config: Config) -> str:
    """The places of an experiment's networks, as lines."""
    sides = [side for side in ("network", "teacher", "student") if config.get(side)]
    found = [(side, _outline(config[side], image_size(config))) for side in sides]
    rows = [
        [name, place.path, str(place.channels), " x ".join(map(str, place.grid)), place.kind]
        for _, measured in found
        for name, place in measured.places.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for side, measured in found:
        size = f"{measured.image_size} x {measured.image_size}"
        lines.append(f"{side} {measured.network}, images of {size}: place, module path, channels, grid, kind")
        cells = rows[: len(measured.places)]
        rows = rows[len(measured.places) :]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
    return "\n".join(lines)


@functools.lru_cache
def _outline(name: str, size: int) -> Outline:
    return outline(create_on_meta(name, num_classes=2, image_size=size), size, name)
