"""The teacher of a run and what was made from it: what is missing, what it is told by, and the objective made of it."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dataloaders import Dataset
from distillation.build import build_objective
from distillation.expressions import needs_teacher
from distillation.objective import Objective
from distillation.prepared import PREPARED, prepared_of
from engine.weights import UnfinishedError, find_weights
from results.places import Requirement, output_directory
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import first_line

Config = dict[str, Any]

# What a run records of what has taught it, and what that is.
FINGERPRINTS = {"teacher_fingerprint": "the teacher's weights"}
FINGERPRINTS |= {f"{name}_fingerprint": kind.what for name, kind in PREPARED.items()}


def missing_supervision(config: Config) -> Iterator[Requirement]:
    """What a distillation run needs and cannot find, in the order in which it has to be made.

    Raises:
        FileNotFoundError: a file that the command chooses is not there.
    """
    for option in PREPARED:
        if config.get(option) and not Path(config[option]).is_file():
            raise FileNotFoundError(f"{option}={config[option]}: no file {config[option]}")
    if not needs_teacher(config):
        return
    names = prepared_of(config)
    yield from missing_weights(
        config,
        network=config["teacher"],
        experiment=config["teacher_experiment"],
        chosen=config["teacher_weights"],
    )
    for name in names:
        if PREPARED[name].find(config) is None:
            yield PREPARED[name].job(config)


def missing_weights(config: Config, *, network: str, experiment: str, chosen: str | None) -> Iterator[Requirement]:
    """The weights of a network trained alone, if they are not there or not finished; a chosen file must be there."""
    directory = output_directory(config["localpath"], experiment, "train")
    published = config["published_weights"]
    try:
        find_weights(experiment=experiment, directory=directory, chosen=chosen, published=published)
    except FileNotFoundError as error:
        if chosen:
            raise
        yield Requirement(first_line(error), experiment, {"network": network}, published and Path(published))
    except UnfinishedError as error:
        what, _, _ = str(error).partition(";")
        yield Requirement(what, experiment, {"network": network, "epochs": error.epochs, "checkpoint": -1})


def teacher_weights(config: Config) -> Weights:
    """The teacher's weights of a distillation run."""
    experiment = config["teacher_experiment"]
    directory = output_directory(config["localpath"], experiment, "train")
    return find_weights(
        experiment=experiment,
        directory=directory,
        chosen=config["teacher_weights"],
        published=config["published_weights"],
    )


def supervision_fingerprints(config: Config) -> dict[str, str]:
    """Of FINGERPRINTS, those of what a distillation run would be taught by now, over the numbers alone."""
    if not needs_teacher(config):
        return {}
    found = {"teacher_fingerprint": fingerprint(teacher_weights(config).state)}
    return found | {f"{name}_fingerprint": fingerprint(PREPARED[name].numbers(config)) for name in prepared_of(config)}


def open_objective(config: Config, dataset: Dataset, keys: Collection[str] | None = None) -> Objective:
    """What a training step of an experiment computes, teacher and supervision read from their files.

    Args:
        keys: of the losses; None for all that the experiment has.
    """
    return build_objective(config, dataset, teacher_weights(config) if needs_teacher(config) else None, keys)
