"""What makes something that a job lacks: the experiment, the options that it must be told, and the command line."""

from config.command_lines import command_line, options_for
from config.experiments import canonical_name, default_config, defaults_for, load_experiment
from config.former_names import renamed
from config.options import OFFLINE, OPTIONS, Config, Options
from results.places import Requirement, recorded_options

TORCHVISION_ADDRESS = "https://download.pytorch.org/models"
OF_ANOTHER_JOB = ("job", "measured", "nothing")  # what such options bear on does not make a run that run


def training_command(options: Options) -> str:
    """The command line that trains a run from scratch."""
    return command_line(options_for("train", {**options.flat, "checkpoint": 0}))


def command_for(requirement: Requirement, options: Options) -> str:
    """The command line that makes what is missing.

    Args:
        options: of the job that needs it.

    Raises:
        ValueError: as `handed_on`.
    """
    file = requirement.published
    if file is not None and is_torchvision(requirement):
        return f"curl --location --create-dirs --output {file} {TORCHVISION_ADDRESS}/{file.name}"
    if file is not None:
        return f"python download_cifar100_teacher.py {file.parent.name}"
    experiment, told = handed_on(requirement, options)
    return command_line({"config": experiment} | told)


def is_torchvision(requirement: Requirement) -> bool:
    """Whether it is a file of torchvision's, which is not downloaded here."""
    return requirement.published is not None and requirement.published.parent.name == "torchvision"


def handed_on(requirement: Requirement, options: Options) -> tuple[str, Config]:
    """The experiment that prepares, and what it must be told because its own defaults differ.

    Raises:
        ValueError: it does not exist, or is a pair.
    """
    experiment, own = experiment_of(requirement.experiment, options.run.localpath)
    defaults = default_config(experiment)
    if requirement.experiment != options.job.config:
        _check_alone(requirement.experiment, defaults)
    job = next((key for key in OFFLINE if requirement.options.get(key)), "train")
    own = {key: value for key, value in own.items() if key not in OPTIONS or job in OPTIONS[key].jobs}
    inherited = {key: options.flat[key] for key, said in OPTIONS.items() if said.inherited}
    # What is made of a run is made for this one; what trains it again is that run.
    wanted = (inherited | own if job == "train" else own | inherited) | requirement.options
    defaults = defaults_for(defaults, wanted)
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


def network_alone(name: str, localpath: str, network: str) -> tuple[str, Config]:
    """The experiment of config/ behind what trains a pair's teacher or its supervision is of, and that run's options.

    Args:
        network: the teacher.

    Raises:
        ValueError: it is no network alone, or another one than the teacher; or as `experiment_of`.
    """
    experiment, words = experiment_of(name, localpath)
    own = load_experiment(experiment) | words
    _check_alone(name, own)
    if own["network"] != network:
        raise ValueError(
            f"{name} trains {own['network']}, and the teacher is {network}: give its own experiment, "
            "teacher_experiment=, or its weights, teacher_weights="
        )
    return experiment, own


def _check_alone(experiment: str, own: Config) -> None:
    if "network" not in own:
        raise ValueError(
            f"{experiment} is a pair: teacher_experiment and supervision name a network alone, "
            "like the teacher of that pair"
        )


def words_of_run(recorded: Config) -> Config:
    """Of the options that a run has recorded, those that make it this run, by today's names."""
    known = default_config(recorded["config"])
    told = renamed(recorded) | ({"seed": 0} if recorded.get("seeds") else {})  # of a trial, which has both
    return {
        key: value
        for key, value in told.items()
        if key in known and (key == "name" or key not in OPTIONS or OPTIONS[key].bears not in OF_ANOTHER_JOB)
    }
