"""The teacher of a run and what was made from it: what is missing, what it is told by, and the objective made of it."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from algorithms.commands import network_alone, words_of_run
from algorithms.starting import read_start
from architectures import create_model
from config.options import Job, Options
from dataloaders import Dataset
from distillation.build import build_objective
from distillation.expressions import check_teacher, needs_weights
from distillation.inputs import (
    OWN,
    TEACHER,
    check_inputs,
    handed_on,
    images_of_data,
    mode,
    name_of,
    named,
    network_input,
    own_input,
    role_of,
    said,
    told_by,
    untold,
)
from distillation.objective import Objective
from distillation.places import image_size
from distillation.prepared import BY_WEIGHTS, PREPARED, images_for_teacher, prepared_of
from engine.records import log
from engine.weights import UnfinishedError, find_weights
from results.places import Requirement, output_directory
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import first_line

# What a run records of what has taught it, and what that is.
FINGERPRINTS = {"teacher_fingerprint": "the teacher's weights"}
FINGERPRINTS |= {f"{name}_fingerprint": kind.what for name, kind in PREPARED.items()}


SHOWN_DIGITS = 16  # of the fingerprint that a folder is called by


def with_inputs(options: Options) -> Options:
    """The options of a training with what weights say of what its networks see, before images are open: all of it where
    `student_input=own` or `teacher_input=own` asks for it, and the size of what the teacher sees where that is another
    than that of the images. Of a teacher that is yet to be trained here see `for_new_teacher`.

    Raises:
        FileNotFoundError, ValueError: as `read_start` and `own_input`.
    """
    options = for_new_teacher(options)
    role, found = role_of(options), {}
    if mode(options, role) == OWN:
        found |= named(role, own_input(options, role, read_start(options)))
    if needs_weights(options):
        own = own_input(options, TEACHER, weights_so_far(options))
        if mode(options, TEACHER) == OWN:
            found |= named(TEACHER, own)
        elif own.get("image_size") not in (None, image_size(options)):
            found |= named(TEACHER, {"image_size": own["image_size"]})
    return options.changed(**found) if found else options


def for_new_teacher(options: Options) -> Options:
    """The options of a training whose teacher its experiment is yet to train: on the images of the run, so that these
    are what `teacher_input=own` shows it, where nothing else tells it.
    """
    pair = options.pair
    is_asked = pair is not None and mode(options, TEACHER) == OWN and needs_weights(options)
    if not is_asked or pair.teacher_weights or not pair.teacher_experiment:
        return options
    return options if weights_so_far(options) is not None else for_new_network(options, TEACHER)


def for_new_network(options: Options, role: str) -> Options:
    """The options of a job on a network that is yet to be trained here: as `for_new_teacher`."""
    is_untold = mode(options, role) == OWN and not options.experiment.published_weights and untold(options, role, None)
    return options.changed(**{f"{role}_input": None}) if is_untold else options


def largest_size(options: Options) -> tuple[int, str] | None:
    """The largest size of what a network of a run sees, or was trained on as its library tells, and its name.

    Raises:
        FileNotFoundError, ValueError: as `with_inputs`.
    """
    options = with_inputs(options)
    roles = [role_of(options), *([TEACHER] if needs_weights(options) else [])]
    told = [(name_of(options, role), told_by(name_of(options, role), None) | said(options, role)) for role in roles]
    return max(((known["image_size"], name) for name, known in told if "image_size" in known), default=None)


def with_supervision(options: Options) -> Options:
    """A pair's options with the place of its supervision, also where that follows from the weights of the teacher, and
    as `with_inputs`.

    Raises:
        FileNotFoundError: these are not there.
    """
    options = with_inputs(options)
    return options.changed(supervision=supervision_of(options)) if prepared_of(options) else options


def supervision_of(options: Options) -> str:
    """The experiment that a pair's supervision lies under, or what stands for one.

    Raises:
        FileNotFoundError: the weights of the teacher, by which it is called, are not there.
    """
    if found := (options.words and options.words.supervision) or options.pair.teacher_experiment:
        return found
    digits = teacher_weights(options).fingerprint[:SHOWN_DIGITS]
    return f"{BY_WEIGHTS}.{options.data.dataset}.{digits}"


def missing_supervision(options: Options) -> Iterator[Requirement]:
    """What a distillation run needs and cannot find, in the order in which it has to be made.

    Raises:
        FileNotFoundError: a file that the command chooses is not there.
    """
    for kind in PREPARED.values():
        if (file := kind.chosen(options)) and not Path(file).is_file():
            raise FileNotFoundError(f"{kind.option}={file}: no file {file}")
    check_teacher(options)
    check_inputs(options)
    if not needs_weights(options):
        return
    names, pair = prepared_of(options), options.pair
    experiment, chosen = pair.teacher_experiment, pair.teacher_weights
    if experiment is None and chosen is None:
        raise ValueError(
            f"nothing says what the weights of the teacher {pair.teacher} are: give the file, teacher_weights=, "
            "or the experiment that trains it, teacher_experiment="
        )
    sees = handed_on(for_new_teacher(options), TEACHER) | images_for_teacher(options)
    for requirement in missing_weights(options, network=pair.teacher, experiment=experiment, chosen=chosen, sees=sees):
        if requirement.published is None:
            network_alone(experiment, options.run.localpath, pair.teacher)
        yield requirement
        if experiment is None:
            return
    options = with_supervision(options)
    for name in names:
        if PREPARED[name].find(options) is None:
            yield PREPARED[name].job(options)


def missing_weights(
    options: Options,
    *,
    network: str,
    experiment: str,
    chosen: str | None,
    directory: Path | None = None,
    sees: Mapping[str, Any] | None = None,
) -> Iterator[Requirement]:
    """The weights of a network trained alone, if they are not there or not finished; a chosen file must be there.

    Args:
        directory: of that training, where it is not that of its name.
        sees: the options of that training that say what the network sees.
    """
    directory = directory or output_directory(options.run.localpath, experiment or "", "train")
    published = options.experiment.published_weights
    try:
        find_weights(experiment=experiment, directory=directory, chosen=chosen, published=published, network=network)
    except FileNotFoundError as error:
        if chosen:
            raise
        experiment, told = _trained_by(options.job, experiment, network)
        yield Requirement(first_line(error), experiment, told | dict(sees or {}), published and Path(published))
    except UnfinishedError as error:
        told = words_of_run(error.options) | {"epochs": error.epochs, "checkpoint": -1}
        yield Requirement(str(error), error.options["config"], told)


def _trained_by(job: Job, name: str, network: str) -> tuple[str, dict[str, Any]]:
    """The experiment and the options that train what is called `name`, an experiment or this very run."""
    if name == job.name:
        return job.config, {"name": name, "network": network}
    return name, {"network": network}


def teacher_weights(options: Options) -> Weights:
    """The teacher's weights of a distillation run."""
    pair = options.pair
    return find_weights(
        experiment=pair.teacher_experiment,
        directory=output_directory(options.run.localpath, pair.teacher_experiment or "", "train"),
        chosen=pair.teacher_weights,
        published=options.experiment.published_weights,
        network=pair.teacher,
    )


def weights_so_far(options: Options) -> Weights | None:
    """The teacher's weights, where these are needed and there."""
    try:
        return teacher_weights(options) if needs_weights(options) else None
    except (FileNotFoundError, UnfinishedError):
        return None


def supervision_fingerprints(options: Options) -> dict[str, str]:
    """Of FINGERPRINTS, those of what a distillation run would be taught by now, over the numbers alone."""
    if not needs_weights(options):
        return {}
    options = with_supervision(options)
    found = {"teacher_fingerprint": teacher_weights(options).fingerprint}
    numbers = {name: PREPARED[name].numbers(options) for name in prepared_of(options)}
    return found | {f"{name}_fingerprint": fingerprint(tensors) for name, tensors in numbers.items()}


def open_objective(options: Options, dataset: Dataset, keys: Collection[str] | None = None) -> Objective:
    """What a training step of an experiment computes, teacher and supervision read from their files.

    Args:
        keys: of the losses; None for all that the experiment has.
    """
    if not needs_weights(options):
        return build_objective(with_inputs(options), dataset, None, keys)
    weights = teacher_weights(options)
    log.info("teacher    %s from %s", options.pair.teacher, weights.source)
    return build_objective(with_supervision(options), dataset, weights, keys)


def drawn_objective(options: Options, dataset: Dataset) -> Objective:
    """As `open_objective`, of random numbers where teacher and supervision would be read: a step costs the same."""
    options, weights = with_inputs(options), None
    if needs_weights(options):
        seen = network_input(options, TEACHER, images_of_data(dataset))
        name = options.pair.teacher
        network = create_model(name, num_classes=dataset.num_classes, image_size=seen.image_size)
        weights = Weights(network.state_dict(), Path("random numbers"))
    return build_objective(options, dataset, weights, drawn=True)
