"""Where the losses of an experiment read its teacher, known before weights and images are: by outlines on `meta`."""

import functools

from torch import nn

from architectures import Outline, TappedNetwork, create_on_meta, outline
from config.options import EMA, Options
from dataloaders import outline_dataset
from distillation.expressions import PLACES, places_of, teacher_network
from distillation.inputs import TEACHER, own_input, role_of, said
from distillation.signals import pooling_between

USUAL_SIZE = 224  # of images whose size is not known beforehand; places have the same paths for any


def teacher_path(options: Options, key: str) -> str:
    """Module path of the teacher's map that a loss reads.

    Raises:
        ValueError: the teacher has no such place.
    """
    name, place = options.pair.teacher, places_of(options, key)[1]
    if place in PLACES:
        network = _structure(name)
        if isinstance(network, TappedNetwork):  # says it without being measured
            return getattr(network, place).path
    return _outline(name, size_for(options, TEACHER)).place(place).path


def stage_of(network: str, path: str) -> int | str:
    """What `LDA=` calls a map: the index of the stage whose first block it is, or else its module path."""
    module = _structure(network)
    stages = module.stages if isinstance(module, TappedNetwork) else {}
    return next((index for index, tap in stages.items() if tap.path == path), path)


def pooling(options: Options, key: str) -> int:
    """Side of the windows that bring the teacher's map to the student's grid.

    Raises:
        ValueError: the grids do not meet; names both.
    """
    pair = options.pair
    student = _outline(pair.student, size_for(options, role_of(options)))
    teacher = _outline(pair.teacher, size_for(options, TEACHER))
    return pooling_between(student, teacher, *places_of(options, key))


def image_size(options: Options) -> int:
    """The size of the images, as far as it is known before they are read."""
    data = options.data
    known = outline_dataset(data.dataset, data_dir=options.run.data_dir, image_size=data.image_size)
    return known.get("image_size") or USUAL_SIZE


def size_for(options: Options, role: str) -> int:
    """The size of the images that a network sees, likewise; of one that is trained as far as options say it."""
    chosen = said(options, role).get("image_size")
    return chosen or own_input(options, role).get("image_size") or image_size(options)


def table(options: Options) -> str:
    """The places of an experiment's networks, as lines."""
    pair = options.pair
    sides = {"teacher": teacher_network(pair), "student": pair.student} if pair else {}
    names = {side: name for side, name in sides.items() if name} or {"network": options.network.network}
    own = role_of(options)
    roles = {side: TEACHER if side == TEACHER and pair.teacher != EMA else own for side in names}
    found = [(side, _outline(name, size_for(options, roles[side]))) for side, name in names.items()]
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
def _structure(name: str) -> nn.Module:
    return create_on_meta(name)


@functools.lru_cache
def _outline(name: str, size: int) -> Outline:
    return outline(create_on_meta(name, num_classes=2, image_size=size), size, name)
