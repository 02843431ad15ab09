"""What a result is of: which options bear on it, so that runs can be compared. Standard library only, without torch.

An option bears on a result unless it is listed here: one that a method of your own brings does without being asked.
"""

import hashlib
import json
import os
import re
from typing import Any

Config = dict[str, Any]

TOP_K = 5  # of `top5`: it says nothing where there are no more classes

# Data sets whose name does not say which images they are: those of `data_dir`.
FOLDER_DATASETS = frozenset({"ImageFolder"})

SEEDS = frozenset({"seed", "seeds", "trials"})  # what sets runs apart that are averaged
JOBS = frozenset({"evaluate", "export", "probe", "kmeans", "LDA"})  # a result says which made it
# Where results.json keeps what a job on a trained network measures: a dictionary of figures for each of the weights.
MEASUREMENTS = {"evaluate": "evaluations", "probe": "linear_probe", "export": "exports"}
# What such a job takes of the network.
MEASURED = frozenset({"best", "testset", "checkpoint"})
# The rest changes where and how fast something is computed, up to rounding, and what is kept and shown of it.
PLACES = frozenset({"config", "name", "localpath", "data_dir", "memmap_dir", "fname", "mongo"})
MEANS = frozenset(
    {
        "prepare", "num_workers", "cuda", "cuda_graph", "deterministic", "test_batch_size", "memmap", "incremental",
        "disp_step", "keep_every", "watch", "images", "export_file", "top", "format", "published_weights",
        "published_top1",
    }
)  # fmt: skip
# What steers a training alone: a trained network, and the images it is measured on, are the same with any value.
# Numbers of words and sub-classes are shapes of its weights, which loading compares.
TRAINING = frozenset(
    {
        "epochs", "milestones", "learning_rate", "lr_factor", "momentum", "nesterov", "weight_decay", "batch_size",
        "val_split", "temperature", "teacher", "teacher_experiment", "teacher_weights", "supervision", "codebook",
        "decisions", "num_words", "subclasses_per_class", "lda_components", "downscale", "hint", "supervised",
        "words_teacher_place", "decisions_teacher_place",
    }
)  # fmt: skip
PREPARATION = ("image_size", "mean", "std")  # of the images; None is what the data set or the training says
NEUTRAL = SEEDS | JOBS | MEASURED | PLACES | MEANS


def bearing(options: Config) -> Config:
    """The options that bear on the result of a training; with a data set that is a folder, which folder."""
    found = {key: value for key, value in options.items() if key not in NEUTRAL}
    if options.get("dataset") in FOLDER_DATASETS and options.get("data_dir") is not None:
        found["data_dir"] = os.path.normpath(str(options["data_dir"]))
    return found


def changed_settings(own: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Options that both have, that bear on a result and differ: (own, other's). Later versions brought the rest."""
    own, other = bearing(own), bearing(other)
    return {key: (own[key], other[key]) for key in own if key in other and own[key] != other[key]}


def changed_network(trained: Config, options: Config) -> dict[str, tuple[Any, Any]]:
    """Options that make another network or images of what was trained: (trained with, measured with).

    Without those of PREPARATION, whose values the data decide where they are None, and `weights` and `trained_as`,
    which say where the network is.
    """
    ignored = TRAINING | {*PREPARATION, "weights", "trained_as"}
    changed = changed_settings(trained, options).items()
    return {key: values for key, values in changed if key not in ignored and not _is_of_a_loss(key)}


def _is_of_a_loss(option: str) -> bool:
    """Whether it is an option or the weight of a loss, like dkd.nckd: it steers a training alone."""
    return "." in option or option.endswith("_loss_coef")


def name_of_changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """What is put behind the name of a measurement that differs so; the same for the same values, and for file names.

    {"mean": (None, [0, 0, 0])} -> "-mean-" and eight digits; "" for no differences.
    """
    if not changed:
        return ""
    values = json.dumps({key: now for key, (_, now) in changed.items()}, sort_keys=True)
    return f"-{'-'.join(sorted(changed))}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def changed_measurement(options: Config) -> dict[str, tuple[Any, Any]]:
    """What a job on a trained network took instead of the last epoch and the evaluation split, likewise."""
    usual = {"best": (False,), "testset": (False,), "checkpoint": (0, -1)}
    return {
        key: (known[0], options[key]) for key, known in usual.items() if key in options and options[key] not in known
    }


def seed_of(folder: str) -> int | None:
    """The seed of a trial's folder: `seed3` is 3; None for any other, like one that was moved away to `seed3.old`."""
    found = re.fullmatch("seed(0|[1-9][0-9]*)", folder)
    return int(found[1]) if found else None
