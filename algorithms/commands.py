"""Command lines that make what a job lacks."""

import shlex
from typing import Any

from algorithms.base import Config
from config.experiments import default_config, with_networks
from config.options import OPTIONS
from results.places import Requirement

TORCHVISION_ADDRESS = "https://download.pytorch.org/models"


def command_for(requirement: Requirement, config: Config) -> str:
    """The command line that makes what is missing.

    Raises:
        ValueError: as `handed_on`.
    """
    file = requirement.published
    if file is not None and is_torchvision(requirement):
        return f"curl --location --create-dirs --output {file} {TORCHVISION_ADDRESS}/{file.name}"
    if file is not None:
        return f"python download_cifar100_teacher.py {file.parent.name}"
    words = " ".join(f"{key}={quoted(value)}" for key, value in handed_on(requirement, config).items())
    return f"python main_classification.py with config={requirement.experiment} {words}".rstrip()


def is_torchvision(requirement: Requirement) -> bool:
    """Whether it is a file of torchvision's, which is not downloaded here."""
    return requirement.published is not None and requirement.published.parent.name == "torchvision"


def handed_on(requirement: Requirement, config: Config) -> Config:
    """What the preparing job must be told because its own defaults differ.

    Raises:
        ValueError: the experiment that prepares is a pair.
    """
    defaults = default_config(requirement.experiment)
    if "network" not in defaults and requirement.experiment != config["config"]:
        raise ValueError(
            f"{requirement.experiment} is a pair: teacher_experiment and supervision name a network alone, "
            "like the teacher of that pair"
        )
    wanted = {key: config[key] for key, said in OPTIONS.items() if said.inherited} | requirement.options
    defaults = with_networks(defaults, wanted)
    return {key: value for key, value in wanted.items() if value != defaults[key]}


def quoted(value: Any) -> str:
    """The value of an option as a shell takes it."""
    text = str(value)
    return shlex.quote(text.replace(" ", "") if isinstance(value, list) else text)
