"""What a result is of: which options bear on it, so that runs can be compared. Without torch.

What each option bears on is said where it is described (`config/options.py`). One that nobody describes, as a method of
your own brings it, bears on results. Options of earlier versions count by the names that they have today.
"""

import hashlib
import json
import os
import re
from dataclasses import MISSING
from typing import Any

from config.former_names import renamed
from config.options import OPTIONS, Augmentation, Data, Pair, Protocol, Run, names
from config.schema import options_of

Config = dict[str, Any]

TOP_K = 5  # of `top5`: it says nothing where there are no more classes
UNTRAINED = "untrained"  # what checkpoints and results say of a `classifier` that nothing has trained

# Data sets whose name does not say which images they are: those of `data_dir`.
FOLDER_DATASETS = frozenset({"ImageFolder"})

# How many images the others have, where a part of them would not be told by its name.
NUM_IMAGES = {
    "CIFAR10": {"train": 50_000, "eval": 10_000},
    "CIFAR100": {"train": 50_000, "eval": 10_000},
    "CIFAR100_10k": {"train": 10_000, "eval": 10_000},
    "ImageNet": {"train": 1_281_167, "eval": 50_000},
    "TinyImageNet": {"train": 100_000, "eval": 10_000},
}

SPLITS = {  # as tables call them
    "train": "training images", "eval": "evaluation images", "test": "test images", "unlabelled": "unlabelled images",
}  # fmt: skip

# Where results.json keeps what a job on a trained network measures: a dictionary of figures for each of the weights.
MEASUREMENTS = {"evaluate": "evaluations", "probe": "linear_probe", "layers": "kd_layers", "export": "exports"}
SEEDS = names(bears="seed")  # what sets runs apart that are averaged
JOBS = names(bears="job")  # a result says which made it
PREPARATION = tuple(key for key in OPTIONS if key in names(bears="images"))
NEUTRAL = SEEDS | JOBS | names(bears="measured") | names(bears="nothing")
# What a trained network is the same with, or what is said of it otherwise.
OF_NO_NETWORK = names(bears="training") | names(bears="images") | names(bears="input") | names(bears="weights")

# What an earlier version had no option for it did as the default says.
OF_EVERY_TRAINING = {
    key: said.default
    for group in (Protocol, Data, Augmentation, Run, Pair)
    for key, said in options_of(group).items()
    if said.bears == "training" and said.default is not MISSING
}
# What networks see, by the network that has these options: `teacher_size` of what has a `teacher`.
OF_INPUTS = {key: OPTIONS[key].default for key in OPTIONS if key in names(bears="input")}


def bearing(options: Config) -> Config:
    """The options that bear on the result of a training; with a data set that is a folder, which folder."""
    found = {key: value for key, value in renamed(options).items() if key not in NEUTRAL}
    if options.get("dataset") in FOLDER_DATASETS and options.get("data_dir") is not None:
        found["data_dir"] = os.path.normpath(str(options["data_dir"]))
    if found.get("unlabelled") is not None:
        found["unlabelled"] = os.path.normpath(str(found["unlabelled"]))
    return found


def changed_settings(own: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Options that both have, that bear on a result and differ: (own, other's). Later versions brought the rest.

    Of two trainings one may be of an earlier version that lacks an option of every training: it has the default.
    """
    own, other = (bearing(options) | _usual_inputs(options) for options in (own, other))
    if "epochs" in own and "epochs" in other:
        own, other = own | OF_EVERY_TRAINING | own, other | OF_EVERY_TRAINING | other  # in their order
    if "teacher" in own and own["teacher"] is None:  # of a method behind a network alone: each command says one
        del own["teacher"]
    return {key: (own[key], other[key]) for key in own if key in other and own[key] != other[key]}


def _usual_inputs(options: Config) -> Config:
    """What the networks of a run of an earlier version saw, which had no options for it."""
    return {key: usual for key, usual in OF_INPUTS.items() if key not in options and key.partition("_")[0] in options}


def changed_network(trained: Config, options: Config) -> dict[str, tuple[Any, Any]]:
    """Options that make another network or images of what was trained: (trained with, measured with).

    Without how images are prepared, whose values the data decide where they are None, and where the network is.
    Options and weights of losses, like dkd.nckd, steer a training alone.
    """
    changed = changed_settings(trained, options).items()
    return {key: values for key, values in changed if key not in OF_NO_NETWORK and "." not in key}


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
    usual = {"best": (False,), "average": (False,), "testset": (False,), "checkpoint": (0, -1)}
    return {
        key: (known[0], options[key]) for key, known in usual.items() if key in options and options[key] not in known
    }


def num_images(facts: Config) -> dict[str, int]:
    """By split how many images there are for a run, before any are held out, as far as it says so.

    Args:
        facts: results of a training, a measurement, or a checkpoint.
    """
    told = facts.get("num_images")
    if not isinstance(told, dict):
        told = {name: images["number"] for name, images in facts.get("data", {}).get("images", {}).items()}
    return {split: told[split] for split in SPLITS if split in told}


def other_numbers(own: dict[str, int], other: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Numbers of images that both say and that differ, by what the images are called: (own, other's)."""
    return {
        name: (own[split], other[split])
        for split, name in SPLITS.items()
        if split in own and split in other and own[split] != other[split]
    }


def seed_of(folder: str) -> int | None:
    """The seed of a trial's folder: `seed3` is 3; None for any other, like one that was moved away to `seed3.old`."""
    found = re.fullmatch("seed(0|[1-9][0-9]*)", folder)
    return int(found[1]) if found else None
