"""Weights that a training starts from, in place of those that were drawn: `init=`, of a student or a network alone.

A student with KD layers takes those of its backbone alone, and its layers stay as they were drawn; or all of them from
a student with the same layers. A classifier of other classes is not taken. Nothing else of the run is another: what is
drawn after the student is the same.
"""

from torch import nn

from architectures.classifier import classifier_of
from config.options import Options
from dataloaders import Dataset
from distillation.build import knows_classes, network_name
from distillation.signals import backbone_of
from engine.records import log
from engine.weights import read_published
from storage.state_dicts import Weights, load_strictly

WHOLE = "backbone."  # what names begin with of a student with KD layers, beside its layers


def start_of(options: Options) -> str | None:
    """What a training starts from; None where it is drawn.

    Raises:
        ValueError: two options say different files.
    """
    said = {
        "init": options.experiment.init,
        "student_weights": options.pair and options.pair.student_weights,
        "weights": options.network and options.network.weights,
    }
    said = {key: value for key, value in said.items() if value}
    if len(set(said.values())) > 1:
        raise ValueError(f"{' and '.join(f'{key}={value}' for key, value in said.items())} are two; leave out one")
    return next(iter(said.values()), None)


def read_start(options: Options) -> Weights | None:
    """The weights that a training starts from.

    Raises:
        FileNotFoundError, ValueError: as `read_published`, or as `start_of`.
    """
    source = start_of(options)
    return None if source is None else read_published(source, network_name(options))


def load_start(student: nn.Module, options: Options, dataset: Dataset) -> str | None:
    """Put the weights that a training starts from into its student, which was drawn; returns their fingerprint.

    Raises:
        FileNotFoundError, ValueError: as `read_start`, or they do not fit.
    """
    weights = read_start(options)
    if weights is None:
        return None
    name = network_name(options)
    backbone = backbone_of(student)
    is_whole = backbone is not student and any(key.startswith(WHOLE) for key in weights.state)
    target, before = (student, WHOLE) if is_whole else (backbone, "")
    classifier = [f"{before}{key}" for key in classifier_of(name)]
    state, own = weights.state, target.state_dict()
    if classifier and not knows_classes(weights, dataset):
        state = state | {key: own[key] for key in classifier}
        log.info(
            "note: the classifier (%s) is new, of the %d classes of %s: %s has others",
            ", ".join(classifier), dataset.num_classes, dataset.name, weights.source,
        )  # fmt: skip
    load_strictly(target, state, source=weights.source, what=f"{name} with {dataset.num_classes} classes")
    kept = ", but for its KD layers" if target is not student else ""
    log.info("start      %s from %s%s", name, weights.source, kept)
    return weights.fingerprint
