"""What every option may be, checked before any work starts."""

import os
import re
from pathlib import Path
from typing import Any

from algorithms.trials import TRIALS
from config.command_lines import command_line, options_for
from config.options import OFFLINE, OPTIONS, PATCHES, Protocol
from config.schema import filled, like
from dataloaders.mixing import check_pairs
from distillation.expressions import described
from distillation.supervision_files import codebook_path
from engine.checkpoints import BEST, LAST, PREVIOUS, REPLACED, STOPPED
from engine.optimization import TIMM
from engine.records import CURVES, LOCK, LOG, PROGRESS, RESULTS, RESULTS_LOCK
from engine.schedule import TO_FINAL_RATE
from results.places import output_directory
from results.settings import seed_of

# What the program writes in an experiment's directory beside the file that `fname` names, without case.
OWN_NAMES = frozenset(
    {RESULTS, RESULTS_LOCK, PROGRESS, LOG, LOCK, CURVES, TRIALS, REPLACED, "export", "pictures", "report", "sacred"}
    | {LAST, PREVIOUS, BEST, STOPPED}
)
OWN_ENDINGS = (".part", ".json", ".npy", ".sha256")  # of temporary files, documents, the authors' arrays, checksums
# Where a run looks for so many words or sub-classes: ours, and the authors'.
STANDARD_NAMES = re.compile(r"codebook_(.*_)?k\d+\.pth|vector_quantizer_.*|decisions_.*_s\d+_l\d+\.pth", re.DOTALL)
LONGEST_NAME = 255  # bytes, of the file systems in use
SMALLEST_BATCH = OPTIONS["batch_size"].at_least


def check_options(config: dict[str, Any]) -> None:
    """Refuse values that cannot work.

    Raises:
        ValueError: names the first such option, its value, and what it may be.
    """
    for key, value in config.items():
        (OPTIONS.get(key) or described(key) or like(key, value)).check(value)
    if config["LDA"] == "" or (isinstance(config["LDA"], int) and config["LDA"] < 0):
        raise ValueError(f"LDA={config['LDA']!r} must be the index of a stage from 0, a place, or a module path")
    if config["watch"]:
        told = command_line({"watch": True} | options_for("report", config), command="report")
        raise ValueError(f"watch=True is for the report: {told}")
    _check_trials(config)
    _check_contradictions(config)
    if config.get("intermediate") and "subclasses_per_class" not in config:
        raise ValueError(f"intermediate=True needs a letKD-2 experiment, and {config['config']} is {config['method']}")
    _check_places(config)


def _check_places(config: dict[str, Any]) -> None:
    """Names and folders that could not be written, or where the program itself writes, before any work starts."""
    for key, value in config.items():
        if isinstance(value, str) and not _is_path(value):
            raise ValueError(f"{key}={value!r} cannot be a text or a path: it holds what no file system takes")
    for key in ("localpath", "memmap_dir", "teacher_cache_dir"):
        folder = Path(config.get(key) or ".")
        there = next(place for place in (folder, *folder.parents, Path()) if place.exists())
        if not there.is_dir():
            raise ValueError(f"{key}={config[key]!r} must be a folder, and {there} is a file")
    if config["fname"] is not None:
        _check_file_name(config, config["fname"])


def _is_path(text: str) -> bool:
    """Whether a file system takes it: it has no NUL and can be encoded, and no part of it is too long."""
    try:
        return "\0" not in text and all(len(os.fsencode(part)) <= LONGEST_NAME for part in text.split("/"))
    except UnicodeEncodeError:
        return False


def _check_file_name(config: dict[str, Any], name: str) -> None:
    """What a codebook or decision scores may be called: nothing that the program writes or removes beside them.

    Names are compared without case, as some file systems do.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"fname={name!r} must be a file name; localpath says where the folder is")
    lower = name.casefold()
    if lower in OWN_NAMES or lower.startswith(".") or lower.endswith(OWN_ENDINGS) or seed_of(lower) is not None:
        raise ValueError(f"fname={name!r} is a name that the program itself uses; choose another, like words.pth")
    if STANDARD_NAMES.fullmatch(lower) and name != codebook_path(Path(), config["kmeans"]).name:
        raise ValueError(
            f"fname={name!r} is a standard name, which other jobs and runs take for what it says; leave it out, or "
            "choose another, like words.pth"
        )
    if len(os.fsencode(name)) > LONGEST_NAME - len(f"..{os.getpid()}.part"):  # of the file that is renamed to it
        raise ValueError(f"fname={name!r} is too long for a file name")
    job = next((job for job in PATCHES if config[job]), None)
    run_name = config["name"] or config["config"]
    if job and (path := output_directory(config["localpath"], run_name, job) / name).is_dir():
        raise ValueError(f"fname={name!r} is a folder, {path}; choose another name")


def _check_contradictions(config: dict[str, Any]) -> None:
    """Options of which one would be followed and the other not."""
    if config["best"] and config["checkpoint"]:
        raise ValueError(f"best=True and checkpoint={config['checkpoint']} are two epochs; leave out one of them")
    if config["export_file"] is not None:
        for key in ("best", "average", "checkpoint", "weights", "seeds"):
            if config.get(key):
                raise ValueError(f"export_file={config['export_file']} is the network; leave out {key}={config[key]}")
    if config["cuda_graph"] and not config["cuda"]:
        raise ValueError("cuda_graph=True needs a GPU; leave out cuda=False")
    _check_optimization(filled(Protocol, config), cuda_graph=config["cuda_graph"])


def _check_optimization(protocol: Protocol, *, cuda_graph: bool) -> None:
    part, rest = divmod(protocol.batch_size, protocol.accumulate)
    if protocol.accumulate > 1 and (rest or part < SMALLEST_BATCH):
        raise ValueError(
            f"accumulate={protocol.accumulate} must divide batch_size={protocol.batch_size} into parts of at least "
            f"{SMALLEST_BATCH} images"
        )
    check_pairs(protocol)
    if protocol.warmup and protocol.warmup_steps:
        raise ValueError(
            f"warmup={protocol.warmup:g} and warmup_steps={protocol.warmup_steps} are both how long the learning rate "
            "rises; leave out one of them"
        )
    rate, final = protocol.learning_rate, protocol.final_learning_rate
    if protocol.schedule in TO_FINAL_RATE and final > rate:
        raise ValueError(
            f"final_learning_rate={final:g} must be at most learning_rate={rate:g}, from which "
            f"schedule={protocol.schedule} falls"
        )
    if protocol.optimizer == "sgd" and protocol.nesterov and not protocol.momentum:
        raise ValueError("nesterov=True needs a momentum above 0")
    if cuda_graph and protocol.optimizer.startswith(TIMM):
        raise ValueError(
            f"cuda_graph=True records steps of sgd and adamw alone; leave it out with optimizer={protocol.optimizer}"
        )


def _check_trials(config: dict[str, Any]) -> None:
    trials, seeds = config["trials"], config["seeds"]
    if not trials and not seeds:
        return
    check_seeds(trials, seeds)
    option = f"trials={trials}" if trials else f"seeds={seeds}"
    if config["seed"]:
        raise ValueError(f"{option} chooses the seeds; leave out seed={config['seed']}")
    for job in OFFLINE:
        if config[job]:
            raise ValueError(f"{job} is shared by all trials; leave out {option}")
    if config["checkpoint"] > 0 and not any(config[job] for job in ("evaluate", "export", "probe", "layers")):
        raise ValueError(
            f"{option} goes on where each trial was broken off; leave out checkpoint={config['checkpoint']}"
        )


def check_seeds(trials: int, seeds: list[int]) -> None:
    """Refuse seeds that are said twice: by both options, or one of them in a list.

    Raises:
        ValueError: says which.
    """
    if trials and seeds:
        raise ValueError(f"trials={trials} means seeds={list(range(trials))}; leave out one of trials and seeds")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r} must be a list of {OPTIONS['seeds'].elements}")
