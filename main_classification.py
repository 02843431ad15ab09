"""Train, evaluate, or make the supervision of an experiment.

    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2                train
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 evaluate=True  evaluate
    python main_classification.py with config=CIFAR100.resnetv1.RN56 kmeans=4096                 make a codebook
    python main_classification.py with config=CIFAR100.resnetv1.RN56 LDA=5                       make decision scores
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 probe=True     probe (table 4)
    python main_classification.py print_config with config=digits.RN14_RN8.letKD-2               show every option

config=A.B.C is the module config/A/B/C.py. Every key that print_config shows can be set on the command line.
"""

import copy
import difflib
import importlib
import logging
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)  # sacred 0.8.7 uses it

import colorama  # a dependency of sacred's
import sacred
from sacred.config import ConfigDict
from sacred.observers import FileStorageObserver
from sacred.utils import apply_backspaces_and_linefeeds

if TYPE_CHECKING:  # the packages that need torch are imported when there is work for them
    from algorithms import Algorithm, Requirement

Config = dict[str, Any]

# Options of the entry; the keys of the experiment stand beside them.
OPTIONS: Config = {
    "config": "digits.RN8",  # the experiment
    "evaluate": False,  # evaluate instead of training
    "best": False,  # evaluate: the best epoch instead of the last
    "testset": False,  # evaluate: the data set's third split
    "probe": False,  # how well a linear classifier does on the intermediate map
    "kmeans": 0,  # make a codebook of so many words
    "LDA": 0,  # make the decision scores at this stage
    "prepare": False,  # make the teacher and supervision that are missing, then go on
    "checkpoint": 0,  # 0: from scratch, -1: go on from the newest, n: from epoch n
    "keep_every": 0,  # also keep the checkpoint of every n-th epoch
    "seed": 0,
    "precision": "fp32",  # or tf32, bf16
    "cuda": True,
    "num_workers": 2,  # processes that read large images
    "disp_step": 50,  # steps between looks at the losses
    "localpath": "experiments",  # where outputs go
    "data_dir": None,  # where the images are, or are downloaded to
    "fname": None,  # kmeans, LDA: file name of the result instead of the standard one
    "ksubset": 0,  # kmeans: so many random patches instead of all
    "incremental": False,  # LDA: run the network twice instead of holding its patches
    "memmap": False,  # kmeans, LDA: hold the patches in a file instead of memory
    "memmap_dir": None,  # where that file is; None: the output directory
}
# Options that a run hands on to the jobs that prepare it.
HANDED_ON = ("localpath", "data_dir", "seed", "precision", "cuda", "num_workers", "memmap", "memmap_dir")
TORCHVISION_ADDRESS = "https://download.pytorch.org/models"
DATA_KEYS = ("dataset", "image_size", "mean", "std", "val_split")
USER_ERRORS = (ValueError, OSError, FloatingPointError, sacred.utils.SacredError)
JOB_OPTIONS = ("evaluate=", "probe=", "kmeans=", "LDA=")

sacred.SETTINGS.CAPTURE_MODE = "sys"  # file-descriptor capture times out when worker processes hold the descriptors
experiment = sacred.Experiment("letKD")
experiment.captured_out_filter = apply_backspaces_and_linefeeds
experiment.logger = logging.getLogger("letKD.sacred")
experiment.logger.setLevel(logging.CRITICAL)  # failures are reported by `main`, in one line


def load_experiment(name: str) -> Config:
    """The dictionary of the module config/A/B/C.py for the name A.B.C.

    Raises:
        ValueError: there is no such experiment; names the nearest.
    """
    module = f"config.{name}"
    if not isinstance(name, str) or not all(name.split(".")):
        raise ValueError(_unknown("config", str(name), list_experiments()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(_unknown("config", name, list_experiments())) from None
    if not isinstance(getattr(found, "config", None), dict):
        raise ValueError(_unknown("config", name, list_experiments()))
    return copy.deepcopy(found.config)


def list_experiments() -> list[str]:
    """Names of all experiments below config/."""
    root = Path(__file__).parent / "config"
    files = (path.relative_to(root) for path in root.glob("*/**/*.py"))
    return sorted(".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py")


def default_config(name: str) -> Config:
    """Options of the entry and keys of the experiment `name`, as they are before anything is overridden."""
    return OPTIONS | load_experiment(name) | {"config": name}


def check_updates(updates: Config, defaults: Config) -> None:
    """Refuse keys that do not exist and values of another type than those they replace.

    Raises:
        ValueError: names the key, and the nearest that exist.
    """
    for key, value in updates.items():
        if key not in defaults:
            raise ValueError(_unknown("option", key, sorted(defaults)))
        _check_type(key, value, defaults[key])


def _check_type(key: str, value: Any, default: Any) -> None:
    if default is None or value is None:
        return
    accepted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"{key}={value!r} must be of type {type(default).__name__}, like its default {default!r}")


def _unknown(kind: str, name: str, known: list[str]) -> str:
    lower = {choice.lower(): choice for choice in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known)}"


def _configuration(fixed: Config | None = None, preset: Config | None = None, fallback: Config | None = None) -> Any:
    """What sacred calls to learn the configuration: `fixed` is what the command line sets."""
    fixed = dict(fixed or {})
    defaults = default_config(fixed.get("config", OPTIONS["config"]))
    check_updates(fixed, defaults)
    return ConfigDict(defaults)(fixed, preset, fallback)


experiment.configurations.append(_configuration)


@experiment.config_hook
def _observe(config: Config, command_name: str, logger: logging.Logger) -> Config:
    """Every run is recorded below <localpath>/sacred, unless sacred was told otherwise."""
    experiment.observers = [FileStorageObserver(Path(config["localpath"]) / "sacred")]
    return {}


def make_algorithm(config: Config) -> "Algorithm":
    """The job that a configuration asks for.

    Raises:
        ValueError: it asks for several.
    """
    from algorithms import Evaluation, KMeansCodebook, LDAScores, LinearProbe, Training, find_method

    find_method(config["method"])
    if (config["method"] == "classification") != ("network" in config):
        raise ValueError(f"method={config['method']} does not fit {config['config']}; choose its experiment, config=")
    jobs = {"evaluate": Evaluation, "probe": LinearProbe, "kmeans": KMeansCodebook, "LDA": LDAScores}
    wanted = [option for option in jobs if config[option]]
    if len(wanted) > 1:
        raise ValueError(f"{' and '.join(wanted)} are different jobs; run one at a time")
    if wanted and wanted[0] in ("kmeans", "LDA") and config["method"] != "classification":
        raise ValueError(
            f"{wanted[0]} needs a network alone, and {config['config']} is a {config['method']} pair; "
            f"use config={config['supervision']}"
        )
    return (jobs[wanted[0]] if wanted else Training)(config)


def run_config(config: Config) -> Config:
    """Do what a complete configuration asks for, and before it what it needs where `prepare` is set."""
    from algorithms import OutdatedError, check_options

    check_options(config)
    algorithm = make_algorithm(config)
    for requirement in algorithm.missing_requirements():
        if not config["prepare"]:
            raise FileNotFoundError(f"{requirement.what}; make it: {command_for(requirement, config)}")
        _prepare(requirement, config)
    try:
        return algorithm.run()
    except OutdatedError as error:
        raise ValueError(f"{error}; make it again: {command_for(error.remedy, config)}") from error


def _prepare(requirement: "Requirement", config: Config) -> None:
    if requirement.published is None:
        run_config(default_config(requirement.experiment) | _handed_on(requirement, config))
        return
    import download_cifar100_teacher

    name = requirement.published.parent.name
    if name == "torchvision":
        raise FileNotFoundError(f"{requirement.what}; make it: {command_for(requirement, config)}")
    if download_cifar100_teacher.main([name]):
        raise FileNotFoundError(f"{requirement.what}, and the download failed")


def command_for(requirement: "Requirement", config: Config) -> str:
    """The command line that makes what is missing."""
    file = requirement.published
    if file is not None and file.parent.name == "torchvision":
        return f"curl --location --create-dirs --output {file} {TORCHVISION_ADDRESS}/{file.name}"
    if file is not None:
        return f"python download_cifar100_teacher.py {file.parent.name}"
    updates = _handed_on(requirement, config)
    words = " ".join(f"{key}={_quoted(value)}" for key, value in updates.items())
    return f"python main_classification.py with config={requirement.experiment} {words}".rstrip()


def _handed_on(requirement: "Requirement", config: Config) -> Config:
    """What the preparing job must be told because its own defaults differ."""
    defaults = default_config(requirement.experiment)
    wanted = {key: config[key] for key in (*HANDED_ON, *DATA_KEYS)} | requirement.options
    return {key: value for key, value in wanted.items() if value != defaults[key]}


def _quoted(value: Any) -> str:
    text = str(value)
    return shlex.quote(text.replace(" ", "") if isinstance(value, list) else text)


@experiment.main
def run(_config: Config) -> Config:
    """Train, or do what evaluate, probe, kmeans or LDA ask for."""
    from algorithms import set_up_console

    set_up_console()
    return run_config(_plain(_config))


def _plain(config: Any) -> Any:
    """sacred's read-only containers as ordinary ones."""
    if isinstance(config, dict):
        return {str(key): _plain(value) for key, value in config.items()}
    return [_plain(value) for value in config] if isinstance(config, (list, tuple)) else config


class Terminated(sacred.utils.SacredInterrupt):
    """The process was told to end, as batch systems do it before they kill."""

    STATUS = "TERMINATED"


def _terminate(signal_number: int, frame: object) -> None:
    raise Terminated


def main(argv: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 after a mistake of the user's, which is one line (`--debug` shows the traceback); 130
        after Ctrl-C and 143 after SIGTERM, which may come at any time: every file is whole or absent.
    """
    wants_traceback = bool({"-d", "--debug"} & set(argv))
    wants_help = bool({"-h", "--help", "help"} & set(argv))
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        # In debug mode sacred leaves exceptions to us; otherwise it prints tracebacks of its own.
        experiment.run_commandline(argv if wants_traceback or wants_help else [*argv, "--debug"])
    except USER_ERRORS as error:
        if wants_traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        print(f"stopped; go on with: python {continuation(argv)}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def continuation(argv: list[str]) -> str:
    """The command line that goes on where this one was stopped."""
    words = [word for word in argv if not word.startswith("checkpoint=")]
    trains = "with" in words and not any(word.startswith(JOB_OPTIONS) for word in words)
    return shlex.join(words + ["checkpoint=-1"] * trains)


if __name__ == "__main__":
    colorama.init()  # leaves sacred's colours out where the output is no terminal
    sys.exit(main(sys.argv))
