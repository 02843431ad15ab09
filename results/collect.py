"""What lies below a `localpath`: finished and unfinished runs, their pictures, and the files that cannot be read.

Reads JSON alone, without torch. A run's place says which tree it belongs to:

    [<branch>/][VQ/ | LDA/ | class_means/]A/B/C[/seed3]

where A.B.C is its experiment, or the name of its own (`name=`), and a branch is a `localpath` below the one that is
read.
"""

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from results.places import folders_of
from results.settings import (
    FOLDER_DATASETS,
    MEASUREMENTS,
    NUM_IMAGES,
    TOP_K,
    changed_measurement,
    changed_settings,
    num_images,
    other_numbers,
    seed_of,
)
from results.studies import STUDIES, STUDY, check_study
from storage.documents import first_line, load_json

Config = dict[str, Any]

RESULTS, PROGRESS, TRIALS, PICTURES = "results.json", "progress.json", "trials.json", "pictures"
NOT_RUNS = frozenset({"sacred", "report", "replaced", "tensorboard", STUDIES, PICTURES})
SUPERVISION = {"kmeans": "VQ", "LDA": "LDA", "class_means": "class_means"}  # the folders of jobs that make it
MODES = frozenset({"train", "evaluate", "probe", "layers", "export", *SUPERVISION})
# What the report reads of a file, by what it must be where it is there.
TEXTS = (
    "method", "dataset", "device", "precision", "command", "finished", "updated", "state", "fingerprint",
    "teacher_fingerprint",
)  # fmt: skip
DICTIONARIES = ("options", "environment", *MEASUREMENTS.values())
NUMBERS = (
    "epochs", "top1", "top5", "best_top1", "best_epoch", "average_top1", "average_top5", "best_average_top1",
    "best_average_epoch", "macro_f1", "images_per_second", "eval_images_per_second", "seconds",
    "parameters", "parameters_without_kd_layers", "multiply_adds", "multiply_adds_without_kd_layers", "epoch", "seed",
    "patches", "bytes", "milliseconds_batch_1", "milliseconds_batch_64", "num_classes",
)  # fmt: skip
LARGEST = 1e13  # no figure of a run is further from zero
TEXT_OPTIONS = ("dataset", "method", "network", "student", "teacher_experiment", "trained_as")

TEACHERS_WEIGHTS, SHOWN_DIGITS = "weights of the teacher", 8  # of their fingerprints
NOT_RECORDED = "settings not recorded"
GONE = "no such experiment in config/"


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what the JSON file beside it says of it."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Run:
    """What a job left in a directory.

    `facts` is its `results.json`, or where it has not finished its `progress.json`. `changed` are the options with
    another value than the experiment's own, as (own, this run's). `apart` says why it cannot be compared with the
    experiment at all, where it cannot. Of a run with a name of its own, whose settings are its own, `beside` are those
    with another value than in the experiment of config/ that it was made of.
    """

    place: Path  # below the root
    experiment: str
    branch: Path
    trial: int | None
    finished: bool
    facts: Config
    changed: dict[str, tuple[Any, Any]]
    apart: str | None = None
    pictures: tuple[Picture, ...] = ()
    beside: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        return self.facts["mode"]

    @property
    def has_own_name(self) -> bool:
        """Whether it is called otherwise than its experiment in config/: its settings are its own."""
        return self.options.get("config", self.experiment) != self.experiment

    @property
    def options(self) -> Config:
        return self.facts.get("options") or {}

    @property
    def history(self) -> list[Config]:
        return self.facts.get("history") or []

    @functools.cached_property
    def courses(self) -> dict[str, dict[int, float]]:
        """Every quantity of the history, by epoch."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for entry in self.history:
            if entry.get("epoch") is not None:
                for name, value in finite_numbers(entry):
                    found[name][int(entry["epoch"])] = value
        if not self.has_top5:
            for group in ("eval", "average"):
                found.pop(f"{group} top5", None)
        return dict(found)

    @property
    def has_top5(self) -> bool:
        """Whether top-5 says something: among five classes or fewer it is 100 % of anything."""
        return (self.facts.get("num_classes") or TOP_K + 1) > TOP_K

    @property
    def device(self) -> str:
        """What it ran on, and with a CPU which one."""
        device, cpu = self.facts.get("device") or "unknown device", self.environment.get("cpu")
        device = "CPU, 1 thread" if device == "CPU, 1 threads" else device  # as it was once written
        return f"{device}, {cpu}" if cpu and device.startswith("CPU") else device

    @property
    def environment(self) -> Config:
        return self.facts.get("environment") or {}


@dataclass(frozen=True)
class Damaged:
    """A file that cannot be used, and why."""

    place: Path
    error: str


@dataclass
class Collection:
    """Everything below `root`, in the order of its places."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    studies: list[Config] = field(default_factory=list)  # what `study.json` of each holds


def collect(root: Path, own_config: Callable[[str], Config | None]) -> Collection:
    """Read all results, records of runs that go on, pictures and studies below `root`.

    Args:
        own_config: all options of an experiment as they are before anything is overridden; None for a name that is
            no experiment.
    """
    found = Collection(root)
    for directory in _directories(root):
        place = directory.relative_to(root)
        read = {name: _read(directory / name, found) for name in (PROGRESS, RESULTS, TRIALS)}
        goes_on = read[PROGRESS] and not _is_left_over(read[PROGRESS], read[RESULTS])
        if facts := read[PROGRESS] if goes_on else read[RESULTS]:
            pictures = tuple(_pictures(directory / PICTURES, found))
            found.runs.append(_run(place, facts, not goes_on, own_config, pictures))
    found.runs = _with_parts(_with_teachers(found.runs))
    files = sorted(root.glob(f"{STUDIES}/*/{STUDY}"))
    found.studies = [study for path in files if (study := _read(path, found))]
    return found


def _is_left_over(progress: Config, results: Config | None) -> bool:
    """Whether a run was killed when it had written its results and not yet removed the record of its progress.

    A run that goes on beyond its end, or back before it, has written its progress later.
    """
    if not results or results["mode"] != "train" or (results.get("epochs") or 0) < (progress.get("epochs") or 0):
        return False
    return (progress.get("updated") or "") <= (results.get("finished") or "")


def _read(path: Path, found: Collection) -> Config | None:
    """A file of ours; None where there is none, or a damaged one, which goes on the list."""
    if not path.is_file():
        return None
    try:
        content = load_json(path)
        if path.name in CHECKS:
            CHECKS[path.name](content)
    except (ValueError, OSError) as error:
        found.damaged.append(Damaged(path.relative_to(found.root), first_line(error).removeprefix(f"{path} is ")))
        return None
    return content


def check_facts(facts: Config) -> None:
    """Refuse what no run of ours has written.

    Raises:
        ValueError: names the entry and its value.
    """
    if not isinstance(facts.get("config"), str) or facts.get("mode") not in MODES:
        raise ValueError(f"it names no experiment and job: config={facts.get('config')!r}, mode={facts.get('mode')!r}")
    _check_kind(facts, TEXTS, str, "a text")
    _check_kind(facts, DICTIONARIES, dict, "a dictionary")
    _check_kind(facts, ("history",), list, "a list")
    _check_kind(facts.get("options") or {}, TEXT_OPTIONS, str, "a text")
    _check_kind(facts.get("environment") or {}, ("versions", "commit"), dict, "a dictionary")
    measured = [entry for part in MEASUREMENTS.values() for entry in (facts.get(part) or {}).values()]
    entries = [*measured, *(facts.get("history") or [])]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"history, {', '.join(MEASUREMENTS.values())} do not hold dictionaries of figures alone")
    for entry in (facts, *entries):
        for key in NUMBERS:
            value = entry.get(key)
            if value is not None and not _is_figure(value):
                raise ValueError(f"{key} is {value!r}, not a finite number")
        by_class, numbers = (entry.get(key) or {} for key in ("class_accuracies", "num_images"))
        if not isinstance(by_class, dict) or not all(each is None or _is_figure(each) for each in by_class.values()):
            raise ValueError("class_accuracies holds no accuracies by class")
        if not isinstance(numbers, dict) or not all(map(_is_figure, numbers.values())):
            raise ValueError("num_images holds no numbers of images by split")


CHECKS: dict[str, Callable[[Config], None]] = {RESULTS: check_facts, PROGRESS: check_facts, STUDY: check_study}


def _check_kind(facts: Config, keys: tuple[str, ...], kind: type, name: str) -> None:
    for key in keys:
        if not isinstance(facts.get(key) or kind(), kind):
            raise ValueError(f"{key} is {facts[key]!r}, not {name}")


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def finite_numbers(entry: Config) -> Iterator[tuple[str, float]]:
    """{"epoch": 1, "eval": {"top1": 9.0}} -> ("eval top1", 9.0): all of one epoch but its number."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from ((f"{key} {name}", float(part)) for name, part in value.items() if _is_figure(part))
        elif key != "epoch" and _is_figure(value):
            yield key, float(value)


def _directories(root: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_RUNS and not name.startswith("."))
        yield Path(place)


def _run(
    place: Path,
    facts: Config,
    finished: bool,
    own_config: Callable[[str], Config | None],
    pictures: tuple[Picture, ...],
) -> Run:
    experiment = facts["config"]
    parts = list(place.parts)
    trial = seed_of(place.name)
    if trial is not None:
        parts.pop()
    own_parts = list(folders_of(experiment))
    if parts[-len(own_parts) :] == own_parts:
        del parts[-len(own_parts) :]
    if parts and parts[-1] == SUPERVISION.get(facts["mode"]):
        parts.pop()
    options = facts.get("options") or {}
    # A run with a name of its own has no settings but its own.
    made_of = options.get("config", experiment)
    own = options if made_of != experiment else own_config(experiment)
    apart = GONE if own is None else None if options else NOT_RECORDED
    changed = {} if apart else changed_settings(own, options) | _taken(facts)
    beside = changed_settings(own_config(made_of) or {}, options) if made_of != experiment else {}
    return Run(place, experiment, Path(*parts), trial, finished, facts, changed, apart, pictures, beside)


def _with_teachers(runs: list[Run]) -> list[Run]:
    """Count it as another setting where a student was not taught by the weights that its teacher's training has now.

    A teacher that was trained again has left students of the earlier one behind.
    """
    trained = {
        (run.branch, run.experiment): run.facts["fingerprint"]
        for run in runs
        if run.finished and run.trial is None and run.facts.get("fingerprint")
    }

    def with_teacher(run: Run) -> Run:
        found = run.facts.get("teacher_fingerprint")
        own = trained.get((run.branch, run.options.get("teacher_experiment")))
        if not found or not own or found == own or run.options.get("teacher_weights") or run.apart:
            return run
        return replace(run, changed=run.changed | {TEACHERS_WEIGHTS: (own[:SHOWN_DIGITS], found[:SHOWN_DIGITS])})

    return [with_teacher(run) for run in runs]


def _with_parts(runs: list[Run]) -> list[Run]:
    """Count it as another setting where a run has not as many images as its data set: of a folder, as it was last."""
    usual: dict[tuple[str | None, ...], dict[str, int]] = {}
    for run in sorted(runs, key=lambda run: run.facts.get("finished") or run.facts.get("updated") or ""):
        usual.setdefault(_images(run), {}).update(NUM_IMAGES.get(_images(run)[0]) or num_images(run.facts))

    def with_part(run: Run) -> Run:
        differ = other_numbers(usual[_images(run)], num_images(run.facts))
        return replace(run, changed=run.changed | differ) if differ and not run.apart else run

    return [with_part(run) for run in runs]


def _images(run: Run) -> tuple[str | None, ...]:
    """The data set of a run, and the folders of images that its name does not tell."""
    dataset = run.facts.get("dataset")
    folders = (run.options.get("data_dir") if dataset in FOLDER_DATASETS else None, run.options.get("unlabelled"))
    return dataset, *(None if folder is None else os.path.normpath(str(folder)) for folder in folders)


def _taken(facts: Config) -> dict[str, tuple[Any, Any]]:
    """Where an evaluation is not of a whole training's last epoch on the usual images: (usual, taken)."""
    if facts["mode"] != "evaluate":
        return {}
    taken = changed_measurement(facts["options"])
    epoch, epochs = facts.get("epoch"), facts["options"].get("epochs")
    if not taken and None not in (epoch, epochs) and epoch != epochs:
        return {"epoch": (epochs, epoch)}
    return taken


def _pictures(folder: Path, found: Collection) -> Iterator[Picture]:
    for path in sorted(folder.glob("*.png")):
        told = _read(path.with_suffix(".json"), found) or {}
        if "changed" in told:  # of another network or other images than the run's
            continue
        yield Picture(path, str(told.get("title", path.stem)), str(told.get("caption", "")))
