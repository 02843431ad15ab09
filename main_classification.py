"""Train, evaluate, or make the supervision of an experiment.

    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2                train
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 evaluate=True  evaluate
    python main_classification.py with config=CIFAR100.resnetv1.RN56 kmeans=4096                 make a codebook
    python main_classification.py with config=CIFAR100.resnetv1.RN56 LDA=5                       make decision scores
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 probe=True     probe (table 4)
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 trials=5       seeds 0 to 4
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 export=onnx   take the student away
    python main_classification.py predict with config=digits.RN14_RN8.letKD-2 images=FOLDER      classes of image files
    python main_classification.py pictures with config=digits.RN14_RN8.letKD-2                   pictures of a student
    python main_classification.py report --watch                                                 a page of all results
    python main_classification.py print_config with config=digits.RN14_RN8.letKD-2               show every option

config=A.B.C is the module config/A/B/C.py; a pair with any sum of methods needs none, like
config=CIFAR100.resnetv1.RN56_RN20.letKD-2+DKD. Every key that print_config shows can be set on the command line.
"""

import ast
import copy
import difflib
import errno
import itertools
import json
import logging
import os
import reprlib
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

TOO_MANY_FILES = os.strerror(errno.EMFILE)  # whoever says it: Python, the linker, torch
MORE_FILES = "too many open files; raise the limit (ulimit -n 1024), or try a smaller num_workers"
WANTS_TRACEBACK = {"-d", "--debug"}


def _end_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `main` does not see: Ctrl-C or too few descriptors while modules are imported, Ctrl-C again as it ends."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(130)
    if TOO_MANY_FILES in str(error) and not WANTS_TRACEBACK & set(sys.argv):
        os.write(2, f"error: {MORE_FILES}\n".encode())
        return
    sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    sys.excepthook = _end_process

warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)  # sacred 0.8.7 uses it

import colorama  # a dependency of sacred's, and so is docopt
import sacred
from docopt import docopt
from sacred.config import ConfigDict
from sacred.observers import FileStorageObserver
from sacred.utils import apply_backspaces_and_linefeeds, set_by_dotted_path

from config.experiments import (
    NoExperimentError,
    canonical_name,
    check_name,
    config_file,
    list_experiments,
    load_experiment,
    unknown,
    with_networks,
)
from config.option_files import OPTION_VALUES, OPTIONS_FILES, is_option_value, load_options
from config.recipes import PUBLISHED_NAMES
from storage.documents import first_line

if TYPE_CHECKING:  # what is large or optional is imported when there is work for it
    from sacred.observers import MongoObserver

    from algorithms import Algorithm, Requirement, Step

Config = dict[str, Any]

# Options of the entry; the keys of the experiment stand beside them. Behind each is what it means, and before a colon
# the jobs that read it where not all do: `docs/make_options.py` makes the page of all options of these comments.
OPTIONS: Config = {
    "config": "digits.RN8",  # the experiment A.B.C: what the module config/A/B/C.py holds
    "name": None,  # the run's own name A.B.C, and so its directory, in place of its experiment's
    "evaluate": False,  # evaluate: measure a trained network instead of training
    "best": False,  # evaluate, export, probe, predict, pictures: the best epoch instead of the last
    "testset": False,  # evaluate, probe, pictures: the data set's third split
    "export": None,  # export: write a trained network to a file, onnx or pt2
    "probe": False,  # probe: measure a linear classifier on the intermediate map
    "kmeans": 0,  # kmeans: make the codebook of a network alone or of a pair's teacher, of so many words
    "LDA": 0,  # LDA: make the decision scores of one, at the first block of this stage, or at this place or module path
    "prepare": False,  # train, kmeans, LDA, pictures: first make the teacher and supervision that are missing
    "checkpoint": 0,  # train, evaluate, export, probe, predict, pictures: 0 from scratch, -1 go on, else this epoch
    "keep_every": 0,  # train: also keep the checkpoint of every n-th epoch
    "seed": 0,  # of everything random; the same one on the same machine repeats a CPU run bit for bit
    "trials": 0,  # train, evaluate, export, probe: so many runs, with seeds 0, 1, ...
    "seeds": [],  # train, evaluate, export, probe, predict, pictures: the runs with these seeds
    "precision": "fp32",  # all but export: fp32, tf32 or bf16
    "deterministic": False,  # all but export: repeat results bit for bit on a GPU too
    "cuda": True,  # all but export: use the GPU where there is one
    "cuda_graph": False,  # train: record the step as a CUDA graph and replay it
    "num_workers": 2,  # processes that decode images
    "disp_step": 50,  # train: steps between looks at the losses
    "localpath": "experiments",  # where outputs go
    "mongo": None,  # train, evaluate, export, probe, kmeans, LDA: also record it in host:port/database or mongodb://...
    "data_dir": None,  # where the images are, or are downloaded to; None: data
    "fname": None,  # kmeans, LDA: file name of the result instead of the standard one
    "max_patches": 0,  # kmeans, LDA: of more patches than this, so many random ones are held; 0: all
    "incremental": False,  # LDA: run the network twice instead of holding its patches
    "memmap": False,  # kmeans, LDA: hold the patches in a file instead of in memory
    "memmap_dir": None,  # kmeans, LDA: where that file is; None: the output directory
    "images": None,  # predict: image files, a folder, a pattern, or a list of them
    "export_file": None,  # predict: with this exported .onnx file instead of an experiment
    "top": 5,  # predict: so many classes an image
    "format": "table",  # predict: table or json
    "watch": False,  # report: write the page again every few seconds
}
# Options that have two names, each with the other.
_NAMES = PUBLISHED_NAMES | {"max_patches": "ksubset"}
OTHER_NAMES = _NAMES | {name: key for key, name in _NAMES.items()}
# Options that a run hands on to the jobs that prepare it.
HANDED_ON = (
    "localpath", "data_dir", "seed", "precision", "deterministic", "cuda", "num_workers", "memmap", "memmap_dir",
)  # fmt: skip
WORKER_DIED = "DataLoader worker (pid"  # what torch says when the system has killed a process that decodes images
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # what torch says: on a GPU, on the CPU
TORCHVISION_ADDRESS = "https://download.pytorch.org/models"
DATA_KEYS = ("dataset", "image_size", "mean", "std", "val_split")
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError, sacred.utils.SacredError)
MONGO_TIMEOUT_MS = 5000  # to find the server
# Options that say what shall be done, and the jobs that do it; others refuse them. How something is done, `cuda` and
# `keep_every` for instance, may be said to any job, so that a command can be repeated with another job in it.
READ_BY = {
    "evaluate": ("evaluate",),
    "best": ("evaluate", "export", "probe", "predict", "pictures"),
    "testset": ("evaluate", "probe", "pictures"),
    "export": ("export",),
    "probe": ("probe",),
    "kmeans": ("kmeans",),
    "LDA": ("LDA",),
    "checkpoint": ("train", "evaluate", "export", "probe", "predict", "pictures"),
    "trials": ("train", "evaluate", "export", "probe"),
    "seeds": ("train", "evaluate", "export", "probe", "predict", "pictures"),
    "fname": ("kmeans", "LDA"),
    "max_patches": ("kmeans", "LDA"),
    "incremental": ("LDA",),
    "images": ("predict",),
    "export_file": ("predict",),
    "top": ("predict",),
    "format": ("predict",),
}
REPORT_READS = ("config", "localpath", "watch")  # `config` is always set
WATCH_SECONDS = 5  # between two reports
CAPTURE_MODES = ("no", "sys", "fd")
OBSERVER_PACKAGES = ("pymongo", "sqlalchemy", "tinydb")  # of sacred's -m, -s and -t


class _Experiment(sacred.Experiment):
    """sacred's experiment, to which options are data: sacred itself restores objects from them, which can run code."""

    def run_commandline(self, argv: list[str]) -> sacred.run.Run | None:
        _, _, usage = self.get_usage()
        words = docopt(usage, argv[1:], default_help=False)["UPDATE"]
        for word in words:
            _check_literal(word)
        _check_groups([word.partition("=")[0].strip() for word in words])
        return super().run_commandline(argv)

    def run(self, command_name: str, config_updates: Config, named_configs: list[str], **rest: Any) -> sacred.run.Run:
        """Options from files, which sacred calls named configurations: of two the later is followed, words go first."""
        updates: Config = {}
        for path in named_configs:
            updates |= flat(load_options(Path(path)))
        updates |= flat(config_updates)
        if "config" in updates:
            updates["config"] = canonical_name(updates["config"])
        updates = check_updates(updates, default_config(updates.get("config", OPTIONS["config"])))
        return super().run(command_name, nested(updates), **rest)


def _check_literal(word: str) -> None:
    """Refuse what sacred would read as another object than an option's value.

    Raises:
        ValueError: names the option.
    """
    key, _, text = word.partition("=")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # sacred takes it for a text, or is never asked
        return
    if not is_option_value(value):
        raise ValueError(f"{key.strip()}={reprlib.repr(value)} {OPTION_VALUES}")


def _check_groups(keys: list[str]) -> None:
    """Refuse an option that is also the first part of another one: sacred would put one into the other.

    Raises:
        ValueError: names both.
    """
    for key in keys:
        for end in range(1, key.count(".") + 1):
            if (group := key.rsplit(".", end)[0]) in keys:
                raise ValueError(f"{group} and {key} cannot be options both; leave out one of them")


sacred.SETTINGS.CAPTURE_MODE = "sys"  # file-descriptor capture times out when worker processes hold the descriptors
# GitPython, which sacred asks at once, fails where there is no git, and hangs or fails with it.
experiment = _Experiment("letKD", save_git_info=False)
experiment.captured_out_filter = apply_backspaces_and_linefeeds
experiment.logger = logging.getLogger("letKD.sacred")
experiment.logger.setLevel(logging.CRITICAL)  # failures are reported by `main`, in one line


def default_configs() -> tuple[dict[str, Config], dict[str, str]]:
    """The options of all experiments by name, and the files below config/ that are no use, with the error."""
    configs, unreadable = {}, {}
    for name in list_experiments():
        try:
            config = default_config(name)
        except NoExperimentError:
            continue
        except Exception as error:  # a module of the user's own can fail in any way
            unreadable[config_file(name)] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if isinstance(config.get("method"), str) and isinstance(config.get("dataset"), str):
            configs[name] = config
        else:
            unreadable[config_file(name)] = "its config names no method and dataset; config/recipes.py makes whole ones"
    return configs, unreadable


def default_config(name: str) -> Config:
    """Options of the entry and keys of the experiment `name`, as they are before anything is overridden."""
    return OPTIONS | load_experiment(name) | {"config": canonical_name(name)}


def composed_config(name: str) -> Config | None:
    """The options of a sum of methods, which has no module; None where there is no such experiment, or no longer."""
    try:
        return default_config(name)
    except Exception:  # as there
        return None


def check_updates(updates: Config, defaults: Config) -> Config:
    """The options that are set, by the names that they have in `defaults`.

    Refuses keys that do not exist and values of another type than those they replace. Options of losses may be nested,
    as sacred has them, {"dkd": {"nckd": 8.0}}, and be called by any of their names, ce.weight or cls_loss_coef.

    Raises:
        ValueError: names the key, and the nearest that exist.
    """
    found: Config = {}
    for given, value in flat(updates).items():
        key = next((key for key in (given, OTHER_NAMES.get(given)) if key in defaults), None)
        if key is None:
            raise ValueError(_unknown_option(given, defaults))
        if key in found:
            raise ValueError(f"{key} and {OTHER_NAMES[key]} are one option; leave out one of them")
        _check_type(given, value, defaults[key])
        found[key] = value
    return found


def _check_type(key: str, value: Any, default: Any) -> None:
    if isinstance(value, dict):
        raise ValueError(f"{key}={value!r} must not be a dictionary")
    if default is None or (value is None and key not in OPTIONS):  # `check_options` knows more
        return
    accepted = (int, float) if isinstance(default, float) else type(default)
    if key == "LDA" and isinstance(value, str) and value:  # a place
        return
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"{key}={value!r} must be of type {type(default).__name__}, like its default {default!r}")


def _unknown_option(key: str, defaults: Config) -> str:
    prefix, dot, _ = key.partition(".")
    if not dot or not prefix:
        return unknown("option", key, sorted(defaults))
    if prefix in defaults:
        return f"{prefix} is an option of its own, and {key} is none"
    from distillation.expressions import losses_of

    losses = losses_of(defaults)
    if prefix not in losses:
        return f"unknown option {key!r}: {defaults['config']} has no loss {prefix}; its losses: {', '.join(losses)}"
    names = {*defaults, *(OTHER_NAMES[own] for own in defaults if own in OTHER_NAMES)}
    known = sorted(name for name in names if name.startswith(f"{prefix}."))
    return unknown("option", key, known) if known else f"unknown option {key!r}: the loss {prefix} has no options here"


def flat(options: Config) -> Config:
    """Options of losses by their dotted names: {"dkd": {"nckd": 8.0}} is {"dkd.nckd": 8.0}."""
    found: Config = {}
    for key, value in options.items():
        is_group = isinstance(value, dict) and value
        found |= {f"{key}.{name}": part for name, part in flat(value).items()} if is_group else {key: value}
    return found


def nested(options: Config) -> Config:
    """The reverse of `flat`, which is how sacred has them."""
    found: Config = {}
    for key, value in options.items():
        set_by_dotted_path(found, key, value)
    return found


def _configuration(fixed: Config | None = None, preset: Config | None = None, fallback: Config | None = None) -> Any:
    """What sacred calls to learn the configuration: `fixed` is what the command line sets, by its names here."""
    fixed = dict(fixed or {})
    defaults = default_config(fixed.get("config", OPTIONS["config"]))
    updates = check_updates(fixed, defaults)
    return ConfigDict(nested(with_networks(defaults, updates)))(nested(updates), preset, fallback)


experiment.configurations.append(_configuration)


@experiment.config_hook
def _observe(config: Config, command_name: str, logger: logging.Logger) -> Config:
    """Every run is recorded below <localpath>/sacred, unless sacred was told otherwise, and where `mongo` says.

    One whose options cannot work leaves nothing.
    """
    experiment.observers = [FileStorageObserver(Path(config["localpath"]) / "sacred")]
    if config["mongo"] is not None and command_name == run.__name__:
        experiment.observers.append(mongo_observer(config["mongo"]))
    if command_name == run.__name__:
        check_run(_plain(config))
    return {}


@experiment.option_hook
def _check_flags(options: Config) -> None:
    """sacred's own: --capture, which it does not check, and --enforce_clean, for which it needs GitPython."""
    if options.get("--capture") not in (None, *CAPTURE_MODES):
        raise ValueError(f"--capture={options['--capture']} must be {', '.join(CAPTURE_MODES)}")
    if options.get("--enforce_clean"):
        from engine.records import code_version

        version = code_version()
        if version is None or version["dirty"]:
            state = "its commit is not known" if version is None else "it has changes that are not committed"
            raise ValueError(f"--enforce_clean: the code is not clean: {state}")
        options["--enforce_clean"] = False


def mongo_observer(address: str) -> "MongoObserver":
    """Records a run in a MongoDB, as sacred does it; environment variables in the address are replaced.

    Args:
        address: host:port/database or mongodb://... with a database. It is recorded as it stands, and so would be a
            password in it: write $VARIABLE.

    Raises:
        ValueError: pymongo is not installed, or this is no such address.
        ConnectionError: the server does not answer.
    """
    try:
        import pymongo
    except ModuleNotFoundError as error:
        raise ValueError(f"mongo={address!r} needs pymongo; install it: python -m pip install pymongo") from error
    from sacred.observers import MongoObserver

    url = os.path.expandvars(str(address))
    url = url if "://" in url else f"mongodb://{url}"
    try:
        client = pymongo.MongoClient(url, serverSelectionTimeoutMS=MONGO_TIMEOUT_MS)
        database = client.get_default_database().name
        client.admin.command("ping")
    except (pymongo.errors.InvalidURI, pymongo.errors.ConfigurationError, ValueError) as error:
        example = "host:port/database, like localhost:27017/sacred"
        raise ValueError(f"mongo={address!r} must be {example} ({first_line(error)})") from error
    except pymongo.errors.PyMongoError as error:
        reason, _, _ = first_line(error).partition(" (configured timeouts")  # what follows is long
        raise ConnectionError(f"mongo={address!r} does not answer: {reason}") from error
    return MongoObserver(client=client, db_name=database)


def find_job(config: Config) -> "type[Algorithm]":
    """The job that a configuration asks for.

    Raises:
        ValueError: it asks for several, or an option is not for it.
    """
    from algorithms import Evaluation, Export, KMeansCodebook, LDAScores, LinearProbe, Training

    _check_method(config)
    jobs = {"evaluate": Evaluation, "export": Export, "probe": LinearProbe, "kmeans": KMeansCodebook, "LDA": LDAScores}
    wanted = [option for option in jobs if config[option]]
    if len(wanted) > 1:
        raise ValueError(f"{' and '.join(wanted)} are different jobs; run one at a time")
    check_command(wanted[0] if wanted else "train", config)
    return jobs[wanted[0]] if wanted else Training


def make_algorithm(config: Config) -> "Algorithm":
    """The job that a configuration asks for; `kmeans` and `LDA` of a pair are those of its teacher.

    Raises:
        FileNotFoundError: the weights of the teacher that a pair names are not there.
        ValueError: as `find_job`.
    """
    from algorithms import of_the_teacher

    job = find_job(config)
    is_of_teacher = (config["kmeans"] or config["LDA"]) and config["method"] != "classification"
    return job(of_the_teacher(config, OPTIONS) if is_of_teacher else config)


def check_run(config: Config) -> None:
    """Refuse options that cannot work, alone or with others.

    Raises:
        ValueError: names the first.
    """
    from algorithms import check_options

    check_options(config)
    check_name(config)
    find_job(config)


def check_command(job: str, config: Config) -> None:
    """Refuse options that a job would not read though they say what shall be done.

    Args:
        job: "train", or an option or command that asks for another, as in READ_BY; "report" reads REPORT_READS alone.

    Raises:
        ValueError: names the first such option and the jobs that read it.
    """
    for option, default in default_config(config["config"]).items():
        readers = READ_BY.get(option, (job,))
        if config[option] == default or (option in REPORT_READS if job == "report" else job in readers):
            continue
        if job == "report":
            raise ValueError(f"{option}={config[option]} is not for the report, which reads localpath and watch alone")
        if readers == ("predict",):
            raise ValueError(f"{option} is for predict: python main_classification.py predict with {option}=...")
        raise ValueError(f"{option}={config[option]} concerns {' and '.join(readers)} only; leave it out")
    if job in ("predict", "pictures") and len(config["seeds"]) > 1:
        raise ValueError(f"seeds={config['seeds']} are several networks, and {job} takes one; choose its seed")


def _check_method(config: Config) -> None:
    """Refuse `method=` with another method than the experiment's; letKD-1 and letKD-2 differ in other options alone."""
    own = load_experiment(config["config"])["method"]
    if config["method"] == own:
        return
    from distillation.expressions import canonical

    one, other = (canonical(method).replace("letKD-1", "letKD-2") for method in (config["method"], own))
    if one != other:
        raise ValueError(f"method={config['method']} does not fit {config['config']}; choose its experiment, config=")


def run_config(config: Config) -> Config:
    """Do what a complete configuration asks for, and before it what it needs where `prepare` is set."""
    from algorithms import check_options, run_trials, wanted_seeds
    from engine.stopping import lost_stops_again

    check_options(config)
    with lost_stops_again():
        algorithm = make_algorithm(config)
        _provide(algorithm)
        if wanted_seeds(config):
            return run_trials(config, lambda trial: _run_job(make_algorithm(trial)))
        return _run_job(algorithm)


def _run_job(algorithm: "Algorithm") -> Config:
    from algorithms import OutdatedError

    try:
        return algorithm.run()
    except OutdatedError as error:
        raise ValueError(f"{error}; make it again: {command_for(error.remedy, algorithm.config)}") from error
    except (MemoryError, RuntimeError) as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY) and not isinstance(error, MemoryError):
            raise
        remedy = "a smaller batch_size, test_batch_size or image_size, or memmap=True for kmeans and LDA"
        raise MemoryError(f"memory does not suffice ({first_line(error)}); try {remedy}") from error


def _provide(algorithm: "Algorithm") -> None:
    """Make what a job needs and cannot find where `prepare` is set, or say how to make it."""
    from algorithms import Preparation

    config = algorithm.config
    if not config["prepare"]:
        for requirement in algorithm.missing_requirements():
            raise FileNotFoundError(f"{requirement.what}; make it: {command_for(requirement, config)}")
    elif steps := _steps_before(algorithm):
        defaults = default_config(config["config"])
        given = {key: value for key, value in config.items() if value != defaults[key]}
        preparation = Preparation(steps, algorithm, given)
        preparation.announce()
        preparation.carry_out(_make)


def _steps_before(algorithm: "Algorithm") -> "list[Step]":
    """What a job needs and cannot find, and what that needs, in the order in which it has to be made."""
    steps: dict[tuple[str, str], Step] = {}
    for requirement in algorithm.missing_requirements():
        step = _step(requirement, algorithm.config)
        needed = [] if step.job is None else _steps_before(step.job)
        for each in (*needed, step):
            steps.setdefault(each.product, each)
    return list(steps.values())


def _step(requirement: "Requirement", config: Config) -> "Step":
    from algorithms import Step, check_options

    command = command_for(requirement, config)
    if requirement.published is not None:
        if requirement.published.parent.name == "torchvision":
            raise FileNotFoundError(f"{requirement.what}; make it: {command}")
        return Step(requirement, None, command)
    updates = _handed_on(requirement, config)
    own = with_networks(default_config(requirement.experiment), updates) | updates
    try:
        check_options(own)
        job = make_algorithm(own)
    except ValueError as error:
        raise ValueError(f"preparing {requirement.experiment}: {error}") from error
    job.given_as = requirement.given_as
    return Step(requirement, job, command)


def _make(step: "Step") -> None:
    if step.job is not None:
        _run_job(copy.copy(step.job))  # what it opens goes with the copy
        return
    import download_cifar100_teacher

    if download_cifar100_teacher.main([step.requirement.published.parent.name]):
        raise FileNotFoundError(f"{step.requirement.what}, and the download failed")


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
    if "network" not in defaults and requirement.experiment != config["config"]:
        raise ValueError(
            f"{requirement.experiment} is a pair: teacher_experiment and supervision name a network alone, "
            "like the teacher of that pair"
        )
    wanted = {key: config[key] for key in (*HANDED_ON, *DATA_KEYS)} | requirement.options
    defaults = with_networks(defaults, wanted)
    return {key: value for key, value in wanted.items() if value != defaults[key]}


def _quoted(value: Any) -> str:
    text = str(value)
    return shlex.quote(text.replace(" ", "") if isinstance(value, list) else text)


@experiment.main
def run(_config: Config) -> Config:
    """Train, or do what evaluate, probe, kmeans or LDA ask for."""
    from algorithms import set_up_console

    set_up_console()
    config = _plain(_config)
    try:
        return run_config(config)
    except KeyboardInterrupt as stop:
        # What has a state may also be a teacher that was prepared, or a trial: the same command does the rest of those.
        stop.goes_on = getattr(stop, "unfinished", None) == config
        raise


@experiment.command(unobserved=True)
def predict(_config: Config) -> None:
    """Print the classes of images=FILE, FOLDER or PATTERN; top=5, format=json, export_file=FILE.onnx."""
    from algorithms import Prediction, check_options, prediction_table
    from dataloaders.image_files import shown
    from engine.stopping import lost_stops_again

    config = _plain(_config)
    check_options(config)
    check_name(config)
    check_command("predict", config)
    _check_method(config)
    with lost_stops_again():
        result = Prediction(config).run()
    print(json.dumps(result, indent=2) if config["format"] == "json" else prediction_table(result))
    if failed := [failure["image"] for failure in result["unreadable"]]:
        count = len(failed) + len(result["images"])
        raise ValueError(f"{len(failed)} of {count} images cannot be read, the first is {shown(failed[0])}")


def draw_picture(name: str, config: Config) -> Config:
    """Draw one picture of a trained experiment.

    Raises:
        ValueError: the experiment lacks what the picture shows; names the nearest that have it.
    """
    from algorithms import check_options, set_up_console
    from engine.stopping import lost_stops_again
    from reporting.pictures import PICTURES

    set_up_console()
    check_options(config)
    check_name(config)
    check_command("pictures", config)
    _check_method(config)
    if lacking := PICTURES[name].lacks(config):
        others = [other for other, own in default_configs()[0].items() if not PICTURES[name].lacks(own)]
        near = difflib.get_close_matches(config["config"], others, n=3, cutoff=0)
        raise ValueError(f"picture_{name}: {config['config']} has no {lacking}; try config={' or '.join(near)}")
    defaults = default_config(config["config"])
    words = [f"{key}={_quoted(value)}" for key, value in config.items() if key == "config" or value != defaults[key]]
    picture = PICTURES[name](config, f"python main_classification.py picture_{name} with {' '.join(words)}")
    with lost_stops_again():
        _provide(picture)
        return _run_job(picture)


@experiment.command(unobserved=True)
def picture_subclasses(_config: Config) -> Config:
    """Draw images with their patches coloured by the teacher's sub-class, and decision rows as histograms."""
    return draw_picture("subclasses", _plain(_config))


@experiment.command(unobserved=True)
def picture_tsne(_config: Config) -> Config:
    """Draw t-SNE of the features before and behind every KD layer, and of its semantic vectors."""
    return draw_picture("tsne", _plain(_config))


@experiment.command(unobserved=True)
def picture_usage(_config: Config) -> Config:
    """Draw the use of the teacher's words over training, and by the trained student and its teacher."""
    return draw_picture("usage", _plain(_config))


@experiment.command(unobserved=True)
def picture_confusion(_config: Config) -> Config:
    """Draw the confusion matrix."""
    return draw_picture("confusion", _plain(_config))


@experiment.command(unobserved=True)
def picture_templates(_config: Config) -> Config:
    """Draw heat maps of the most used templates over images."""
    return draw_picture("templates", _plain(_config))


@experiment.command(unobserved=True)
def pictures(_config: Config) -> None:
    """Draw all pictures that an experiment has the parts for, and say of the others why not."""
    from reporting.pictures import PICTURES

    config, failures = _plain(_config), []
    for name, picture in PICTURES.items():
        if lacking := picture.lacks(config):
            print(f"no picture_{name}: {config['config']} has no {lacking}")
            continue
        try:
            draw_picture(name, config)
        except USER_ERRORS as error:
            failures.append(f"picture_{name}: {first_line(error)}")
    if failures:
        raise ValueError("; ".join(failures))


@experiment.command(unobserved=True)
def print_outline(_config: Config) -> None:
    """Print the places of the networks where maps can be taken, with channels and grids."""
    from algorithms import check_options
    from distillation.places import table

    config = _plain(_config)
    check_options(config)
    print(table(config))


@experiment.command(unobserved=True)
def report(_config: Config) -> None:
    """Write a page and a Markdown file of all results below localpath; --watch does it again every few seconds."""
    from reporting.report import write_report

    check_command("report", _plain(_config))
    root = Path(_config["localpath"])
    configs, unreadable = default_configs()

    def write(refresh: int | None) -> None:
        command = shlex.join(["python", *sys.argv])
        written = write_report(
            root, configs, composed=composed_config, unreadable=unreadable, command=command, refresh=refresh
        )
        print(f"{written}: {root / 'report' / 'index.html'}", flush=True)

    try:
        while _config["watch"]:
            write(WATCH_SECONDS)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        print("stopped; the page is written once more, and no longer loads itself again", flush=True)
    write(None)


def spelt_out(argv: list[str]) -> list[str]:
    """`report --watch`, which sacred would take for a flag of its own, as `report with watch=True`."""
    if "--watch" not in argv or "report" not in argv:
        return argv
    words = [word for word in argv if word != "--watch"]
    return [*words, *["with"] * ("with" not in words), "watch=True"]


def check_words(argv: list[str]) -> None:
    """Refuse what is no option, or stands where options do not: sacred would look for a command or a file of that name.

    Raises:
        ValueError: names the word, and what was meant where that is clear.
    """
    program, *words = argv
    start = words.index("with") if "with" in words else len(words)
    for number, (before, word) in enumerate(itertools.pairwise(["", *words])):
        if word.startswith("-") or before.startswith("-"):  # an option of sacred's own, or its value
            continue
        if number < start and "=" in word:
            given = [word for word in words if word != "with"]
            commands, options = ([w for w in given if ("=" in w) == is_option] for is_option in (False, True))
            raise ValueError(
                f"options stand behind `with`: python {shlex.join([program, *commands, 'with', *options])}"
            )
        if number > start and word in experiment.commands:
            raise ValueError(f"the command {word} stands before `with`: python {program} {word} with ...")
        is_file = Path(word).suffix.lower() in OPTIONS_FILES or Path(word).is_file()  # of options
        if number > start and "=" not in word and not is_file:
            raise ValueError(f"{word!r} is no option key=value; one with blanks needs quotation marks around it")


def _plain(config: Config) -> Config:
    """sacred's read-only and nested containers as one ordinary dictionary."""
    lists = (list, tuple)
    return {key: list(value) if isinstance(value, lists) else value for key, value in flat(config).items()}


class Terminated(KeyboardInterrupt):
    """The process was told to end, as batch systems do it before they kill."""

    STATUS = "TERMINATED"  # what sacred records


def _terminate(signal_number: int, frame: object) -> None:
    raise Terminated


def main(argv: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 after a mistake of the user's, which is one line (`--debug` shows the traceback); 130
        after Ctrl-C and 143 after SIGTERM, which may come at any time: every file is whole or absent. Training finishes
        its step first and saves its state; a second Ctrl-C ends it at once.
    """
    wants_traceback = bool(WANTS_TRACEBACK & set(argv))
    wants_help = bool({"-h", "--help", "help"} & set(argv))
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, _terminate)
    argv = spelt_out(argv)
    try:
        check_words(argv)
        # In debug mode sacred leaves exceptions to us; otherwise it prints tracebacks of its own.
        experiment.run_commandline(argv if wants_traceback or wants_help else [*argv, "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        if wants_traceback:
            raise
        return 1  # whoever read has seen enough
    except Exception as error:
        if wants_traceback or not (message := _in_one_line(error)):
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        command = continuation(argv, has_state=getattr(stop, "goes_on", False))
        print(f"stopped; go on with: python {command}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _in_one_line(error: Exception) -> str | None:
    """What is said of an error that is no fault of the program's; None for one that is."""
    if TOO_MANY_FILES in str(error):
        return MORE_FILES
    if isinstance(error, USER_ERRORS):
        return "; ".join(str(error).splitlines()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name in OBSERVER_PACKAGES:
        return f"this observer needs {error.name}; install it: python -m pip install {error.name}"
    if isinstance(error, RuntimeError) and str(error).startswith(WORKER_DIED):
        return f"{first_line(error)} Where memory was short: try a smaller num_workers"
    return None


def run_process() -> None:
    """Run the command line of this process, and end it: what comes then, a signal or a closed pipe, changes nothing."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; a file that is opened later must not take its place
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for a terminal that knows ASCII alone, and names in no encoding
    colorama.init()  # leaves sacred's colours out where the output is no terminal
    try:
        sys.exit(main(sys.argv))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # Python flushes once more


def continuation(argv: list[str], *, has_state: bool) -> str:
    """The command line that goes on where this one was stopped: from the state that its run has left, or else anew."""
    if not has_state:
        return shlex.join(argv)
    words = [word for word in argv if not word.startswith("checkpoint=")]
    return shlex.join([*words, *["with"] * ("with" not in words), "checkpoint=-1"])


if __name__ == "__main__":
    run_process()
