"""What makes something that a job lacks: the experiment, the options that it must be told, and the command line."""

from algorithms.base import Config
from config.command_lines import command_line
from config.experiments import canonical_name, default_config, with_networks
from config.former_names import renamed
from config.options import OFFLINE, OPTIONS
from results.places import Requirement, recorded_options

TORCHVISION_ADDRESS = "https://download.pytorch.org/models"
OF_ANOTHER_JOB = ("job", "measured", "nothing")  # what such options bear on does not make a run that run


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
    experiment, options = handed_on(requirement, config)
    return command_line({"config": experiment} | options)


def is_torchvision(requirement: Requirement) -> bool:
    """Whether it is a file of torchvision's, which is not downloaded here."""
    return requirement.published is not None and requirement.published.parent.name == "torchvision"


def handed_on(requirement: Requirement, config: Config) -> tuple[str, Config]:
    """The experiment that prepares, and what it must be told because its own defaults differ.

    Raises:
        ValueError: it does not exist, or is a pair.
    """
    experiment, own = experiment_of(requirement.experiment, config["localpath"])
    defaults = default_config(experiment)
    if "network" not in defaults and requirement.experiment != config["config"]:
        raise ValueError(
            f"{requirement.experiment} is a pair: teacher_experiment and supervision name a network alone, "
            "like the teacher of that pair"
        )
    job = next((key for key in OFFLINE if requirement.options.get(key)), "train")
    own = {key: value for key, value in own.items() if key not in OPTIONS or job in OPTIONS[key].jobs}
    inherited = {key: config[key] for key, said in OPTIONS.items() if said.inherited}
    # What is made of a run is made for this one; what trains it again is that run.
    wanted = (inherited | own if job == "train" else own | inherited) | requirement.options
    defaults = with_networks(defaults, wanted)
    return experiment, {key: value for key, value in wanted.items() if value != defaults[key]}


def experiment_of(name: str, localpath: str) -> tuple[str, Config]:
    """The experiment of config/ behind a name, and the options that make it the run of that name: none for its own.

    Raises:
        ValueError: there is no such experiment, and no run of this name.
    """
    try:
        return canonical_name(name), {}
    except ValueError as error:
        options = recorded_options(localpath, name)
        if options is None:
            raise ValueError(f"{error}; nor has a run with name={name} been trained below {localpath}") from error
    return options["config"], words_of_run(options)


def words_of_run(recorded: Config) -> Config:
    """Of the options that a run has recorded, those that make it this run, by today's names."""
    known = default_config(recorded["config"])
    told = renamed(recorded) | ({"seed": 0} if recorded.get("seeds") else {})  # of a trial, which has both
    return {
        key: value
        for key, value in told.items()
        if key in known and (key == "name" or key not in OPTIONS or OPTIONS[key].bears not in OF_ANOTHER_JOB)
    }
