"""What each network of a run sees of the images: what it was trained on, or what the images of the run are.

Loaders yield crops of one size, `image_size` of the data. Of these each network has its own size, interpolation and
normalisation, made on the device (`architectures.Input`), so that teacher and student see the same crop of the same
picture. Where a network has them from, field by field, the first that says it:

    <role>_size=, <role>_mean=, <role>_std=, <role>_interpolation=
    what its weights or its library tell, with <role>_input=own
    what a checkpoint of this project says that the network saw where that was not what its images were
    image_size=, mean=, std=
    what a checkpoint of this project says of the images that it was trained on
    the images of the run

`<role>` is `teacher` or `student` of a pair, or `network` of a network alone. A network that begins to train has no
checkpoint: it sees the images of the run unless options say otherwise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from architectures import InputConfig
from architectures.input import INTERPOLATIONS
from architectures.published import published
from config.options import ALONE, EMA, OPTIONS, Options
from dataloaders import Dataset
from results.settings import PREPARATION
from storage.documents import log
from storage.state_dicts import Weights

# What a network sees, by the endings of the options that say it.
FIELDS = {"image_size": "size", "mean": "mean", "std": "std", "interpolation": "interpolation"}
OWN, OF_THE_DATA = "own", "data"
RECORD = "input"  # in `data` of a checkpoint: what the network saw that was not what its images were
TEACHER = "teacher"


def role_of(options: Options) -> str:
    """What the network is called that an experiment trains."""
    return "network" if options.experiment.method == ALONE else "student"


def images_of_data(dataset: Dataset) -> InputConfig:
    """What a network sees that sees the images as they are."""
    return InputConfig(dataset.image_size, dataset.image_size, dataset.mean, dataset.std)


def said(options: Options, role: str) -> dict[str, Any]:
    """What the options say of what a network sees, by field."""
    group = options.network if role == "network" else options.pair
    found = {field: getattr(group, f"{role}_{ending}") for field, ending in FIELDS.items()} if group else {}
    return {field: value for field, value in found.items() if value is not None}


def mode(options: Options, role: str) -> str | None:
    """`<role>_input`."""
    group = options.network if role == "network" else options.pair
    return getattr(group, f"{role}_input") if group else None


def name_of(options: Options, role: str) -> str | None:
    """The network of a role."""
    return options.network.network if role == "network" else getattr(options.pair, role)


def own_input(options: Options, role: str, weights: Weights | None = None) -> dict[str, Any]:
    """What a network sees that is not said of the images of the run, by field.

    Args:
        weights: that the network has; None where it begins to train.

    Raises:
        ValueError: it shall see what it was trained on, and nothing tells all of that, or something that cannot be.
    """
    given = said(options, role)
    if mode(options, role) == OF_THE_DATA:
        return given
    if mode(options, role) == OWN:
        if lacking := untold(options, role, weights):
            raise ValueError(
                f"{role}_input=own: nothing tells all of what {name_of(options, role)} was trained on; give "
                + ", ".join(f"{name}=" for name in lacking)
            )
        told = told_by(name_of(options, role), weights)
        for name, value in named(role, told).items():
            OPTIONS[name].check(value)
        return told | given
    known = (weights and weights.data) or {}
    images = {key: known[key] for key in PREPARATION if key in known and getattr(options.data, key) is None}
    return images | known.get(RECORD, {}) | given


def untold(options: Options, role: str, weights: Weights | None) -> list[str]:
    """The options of what a network was trained on that neither they, nor its weights or library, say."""
    known = told_by(name_of(options, role), weights) | said(options, role)
    return [f"{role}_{FIELDS[key]}" for key in PREPARATION if key not in known]


def told_by(name: str, weights: Weights | None) -> dict[str, Any]:
    """What is known of the training of a network, by field: of its weights, or else of what its library publishes."""
    if weights is not None and weights.data:
        return {key: weights.data[key] for key in PREPARATION} | weights.data.get(RECORD, {})
    told = dict(weights.trained_with) if weights is not None else {}
    if not told.keys() & FIELDS.keys() and (known := published(name)):
        told = dict(known.trained_with)
    if told.get("interpolation") not in INTERPOLATIONS:
        told.pop("interpolation", None)
    return {field: told[field] for field in FIELDS if field in told}


def input_config(own: Mapping[str, Any], images: InputConfig) -> InputConfig:
    """What a network sees that has `own` of its own, of these images."""
    return InputConfig(
        crop_size=images.crop_size,
        image_size=own.get("image_size", images.image_size),
        mean=tuple(own.get("mean", images.mean)),
        std=tuple(own.get("std", images.std)),
        interpolation=own.get("interpolation", images.interpolation),
    )


def network_input(options: Options, role: str, images: InputConfig, weights: Weights | None = None) -> InputConfig:
    """What a network sees of the images of a run; see `own_input`."""
    return input_config(own_input(options, role, weights), images)


def input_of_student(options: Options, dataset: Dataset, weights: Weights | None = None) -> InputConfig:
    """What the network sees that an experiment trains.

    Args:
        weights: where it is trained.
    """
    return network_input(options, role_of(options), images_of_data(dataset), weights)


def changed_input(options: Options, weights: Weights) -> dict[str, tuple[Any, Any]]:
    """Options of what a trained network sees that make it something else than in its training: (then, now), by name.

    Args:
        weights: with a record of their training.
    """
    role, own = role_of(options), own_input(options, role_of(options), weights)
    then = told_by(name_of(options, role), weights)
    images = {key: getattr(options.data, key) or weights.data[key] for key in PREPARATION}
    fields = [*own, *(field for field in weights.data.get(RECORD, {}) if field not in own)]
    usual = {"interpolation": InputConfig.interpolation}
    then, now = usual | then, usual | images | own
    return {f"{role}_{FIELDS[key]}": (then[key], now[key]) for key in fields if then[key] != now[key]}


def named(role: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a network sees as options, of what it is by field."""
    return {f"{role}_{FIELDS[field]}": value for field, value in own.items()}


def options_of(options: Options, role: str) -> dict[str, Any]:
    """The options of what a network sees, as far as they say something."""
    how = mode(options, role)
    return named(role, said(options, role)) | ({f"{role}_input": how} if how else {})


def handed_on(options: Options, role: str) -> dict[str, Any]:
    """What a job on a network alone is told of what it sees, so that it sees what it sees in this run."""
    return {name.replace(role, "network", 1): value for name, value in options_of(options, role).items()}


def mention(role: str, seen: InputConfig, images: InputConfig) -> None:
    """Say what a network sees that is not what the images are."""
    if seen.facts() == images.facts():
        return
    log.info("%-10s sees %s", role, seen)
    if seen.image_size > seen.crop_size:
        log.info(
            "note: images of %d x %d are scaled up for the %s; if their files are larger, give image_size=%d",
            seen.crop_size, seen.crop_size, role, seen.image_size,
        )  # fmt: skip


def mention_other(options: Options, role: str, seen: InputConfig, weights: Weights) -> None:
    """Say what a network was trained on, as far as its weights tell, where it sees something else that nobody has asked
    for, and what to do.
    """
    told = told_by(name_of(options, role), weights) if weights.data or weights.trained_with else {}
    trained_on, given = input_config(told, seen), said(options, role)
    trained_on = replace(trained_on, crop_size=trained_on.image_size)
    others = [key for key in PREPARATION if key not in given and getattr(trained_on, key) != getattr(seen, key)]
    if others and mode(options, role) is None:
        own = f"{role}_input={OWN}" + (f", of a pair teacher_input={OWN}," if role == "network" else "")
        log.info(
            "note: %s was trained on %s, and the %s sees %s; %s shows it what it was trained on",
            weights.source, trained_on, role, seen, own,
        )  # fmt: skip


def check_inputs(options: Options) -> None:
    """Refuse what is said of a teacher that is none, or sees what the student sees.

    Raises:
        ValueError: names the option.
    """
    pair = options.pair
    if pair is None or pair.teacher not in (None, EMA):
        return
    if given := options_of(options, TEACHER):
        name, value = next(iter(given.items()))
        why = "the average of the student sees what the student sees" if pair.teacher == EMA else "there is no teacher"
        raise ValueError(f"{why}; leave out {name}={value}")
