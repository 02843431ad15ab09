"""The teacher of a run and what was made from it: what is missing, what it is told by, and the objective made of it."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from algorithms.commands import experiment_of, words_of_run
from config.experiments import load_experiment
from config.recipes import classification
from dataloaders import Dataset
from distillation.build import build_objective
from distillation.expressions import needs_teacher, places_of
from distillation.objective import Objective
from distillation.places import pooling
from distillation.prepared import BY_WEIGHTS, PREPARED, means_home, prepared_of
from engine.weights import UnfinishedError, find_weights
from results.places import Requirement, output_directory
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import first_line

Config = dict[str, Any]

# What a run records of what has taught it, and what that is.
FINGERPRINTS = {"teacher_fingerprint": "the teacher's weights"}
FINGERPRINTS |= {f"{name}_fingerprint": kind.what for name, kind in PREPARED.items()}


SHOWN_DIGITS = 16  # of the fingerprint that a folder is called by


def with_supervision(config: Config) -> Config:
    """A pair's options with the place of its supervision, also where that follows from the weights of the teacher.

    Raises:
        FileNotFoundError: these are not there.
    """
    if config.get("supervision") or not prepared_of(config):
        return config
    return config | {"supervision": _supervision_of(config)}


def _supervision_of(config: Config) -> str:
    if found := config.get("supervision") or config["teacher_experiment"]:
        return found
    digits = fingerprint(teacher_weights(config).state)[:SHOWN_DIGITS]
    return f"{BY_WEIGHTS}.{config['dataset']}.{digits}"


def of_the_teacher(config: Config, entry: Config) -> Config:
    """The options of `kmeans`, `LDA` or `class_means` on the teacher of a pair: those of the network alone.

    Args:
        entry: the options of the entry, which the pair's command sets.

    Raises:
        FileNotFoundError: the weights of the teacher are not there.
        ValueError: its supervision is that of an experiment that is no network alone, or of another network.
    """
    supervision = _supervision_of(config)
    if config["class_means"]:
        supervision = means_home(config | {"supervision": supervision})
    given = {name: config[name] for name in (*entry, "dataset", "image_size", "mean", "std", "val_split")}
    given |= {name: config[name] for name in ("subclasses_per_class", "lda_components") if name in config}
    given |= {"weights": config["teacher_weights"], "words_teacher_place": places_of(config, "words")[1]}
    if not config["class_means"]:
        given["downscale"] = pooling(config, "words" if config["kmeans"] else "decisions")
    if supervision.startswith(f"{BY_WEIGHTS}."):
        own = classification(network=config["teacher"], dataset=config["dataset"])
        return own | given | {"name": supervision}
    experiment, own = network_alone(supervision, config)
    return own | given | {"config": experiment, "name": own.get("name")}


def network_alone(name: str, config: Config) -> tuple[str, Config]:
    """The experiment of config/ behind what trains a pair's teacher or its supervision is of, and that run's options.

    Raises:
        ValueError: it is no network alone, or another one than the teacher; or as `experiment_of`.
    """
    experiment, words = experiment_of(name, config["localpath"])
    own = load_experiment(experiment) | words
    check_trains(name, own, config["teacher"])
    return experiment, own


def check_trains(experiment: str, own: Config, network: str) -> None:
    """Refuse an experiment that does not train the network that is wanted.

    Raises:
        ValueError: says what it is.
    """
    if "network" not in own:
        raise ValueError(
            f"{experiment} is a pair: teacher_experiment and supervision name a network alone, "
            "like the teacher of that pair"
        )
    if own["network"] != network:
        raise ValueError(
            f"{experiment} trains {own['network']}, and the teacher is {network}: give its own experiment, "
            "teacher_experiment=, or its weights, teacher_weights="
        )


def missing_supervision(config: Config) -> Iterator[Requirement]:
    """What a distillation run needs and cannot find, in the order in which it has to be made.

    Raises:
        FileNotFoundError: a file that the command chooses is not there.
    """
    for option in (kind.option for kind in PREPARED.values() if kind.option):
        if config.get(option) and not Path(config[option]).is_file():
            raise FileNotFoundError(f"{option}={config[option]}: no file {config[option]}")
    if not needs_teacher(config):
        return
    names = prepared_of(config)
    experiment, chosen = config["teacher_experiment"], config["teacher_weights"]
    if experiment is None and chosen is None:
        raise ValueError(
            f"nothing says what the weights of the teacher {config['teacher']} are: give the file, teacher_weights=, "
            "or the experiment that trains it, teacher_experiment="
        )
    for requirement in missing_weights(config, network=config["teacher"], experiment=experiment, chosen=chosen):
        if requirement.published is None:
            network_alone(experiment, config)
        yield requirement
        if experiment is None:
            return
    config = with_supervision(config)
    for name in names:
        if PREPARED[name].find(config) is None:
            yield PREPARED[name].job(config)


def missing_weights(
    config: Config, *, network: str, experiment: str, chosen: str | None, directory: Path | None = None
) -> Iterator[Requirement]:
    """The weights of a network trained alone, if they are not there or not finished; a chosen file must be there.

    Args:
        directory: of that training, where it is not that of its name.
    """
    directory = directory or output_directory(config["localpath"], experiment or "", "train")
    published = config["published_weights"]
    try:
        find_weights(experiment=experiment, directory=directory, chosen=chosen, published=published)
    except FileNotFoundError as error:
        if chosen:
            raise
        experiment, options = _trained_by(config, experiment, network)
        yield Requirement(first_line(error), experiment, options, published and Path(published))
    except UnfinishedError as error:
        options = words_of_run(error.options) | {"epochs": error.epochs, "checkpoint": -1}
        yield Requirement(str(error), error.options["config"], options)


def _trained_by(config: Config, name: str, network: str) -> tuple[str, Config]:
    """The experiment and the options that train what is called `name`, an experiment or this very run."""
    if name == config.get("name"):
        return config["config"], {"name": name, "network": network}
    return name, {"network": network}


def teacher_weights(config: Config) -> Weights:
    """The teacher's weights of a distillation run."""
    experiment = config["teacher_experiment"]
    directory = output_directory(config["localpath"], experiment or "", "train")
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
    config = with_supervision(config)
    found = {"teacher_fingerprint": fingerprint(teacher_weights(config).state)}
    return found | {f"{name}_fingerprint": fingerprint(PREPARED[name].numbers(config)) for name in prepared_of(config)}


def open_objective(config: Config, dataset: Dataset, keys: Collection[str] | None = None) -> Objective:
    """What a training step of an experiment computes, teacher and supervision read from their files.

    Args:
        keys: of the losses; None for all that the experiment has.
    """
    weights = teacher_weights(config) if needs_teacher(config) else None
    return build_objective(with_supervision(config) if weights else config, dataset, weights, keys)
