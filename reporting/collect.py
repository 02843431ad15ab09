"""What lies below a `localpath`: finished and unfinished runs, their pictures, and the files that cannot be read.

Reads JSON alone, without torch. A run's place says which tree it belongs to:

    [<branch>/][VQ/ | LDA/]A/B/C[/seed3]

where A.B.C is its experiment and a branch is a `localpath` below the one that is read.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from documents import first_line, load_json

Config = dict[str, Any]

RESULTS, PROGRESS, TRIALS, PICTURES = "results.json", "progress.json", "trials.json", "pictures"
NOT_RUNS = frozenset({"sacred", "report", "replaced", "tensorboard", PICTURES})
SUPERVISION = {"kmeans": "VQ", "LDA": "LDA"}  # the folders of jobs that make it
MODES = frozenset({"train", "evaluate", "probe", *SUPERVISION})
# Keys of an experiment that do not bear on its accuracy.
HARMLESS = frozenset({"test_batch_size", "published_weights", "published_top1", "config"})
NUMBERS = (
    "epochs", "top1", "top5", "best_top1", "best_epoch", "images_per_second", "eval_images_per_second", "seconds",
    "parameters", "parameters_without_kd_layers", "multiply_adds", "multiply_adds_without_kd_layers", "epoch", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what the JSON file beside it says of it."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Run:
    """What a job left in a directory.

    `facts` is its `results.json`, or where it has not finished its `progress.json`. `changed` are the keys with
    another value than the experiment's own, as (own, this run's); None where there is no such experiment any more.
    """

    place: Path  # below the root
    experiment: str
    branch: Path
    trial: int | None
    finished: bool
    facts: Config
    changed: dict[str, tuple[Any, Any]] | None
    pictures: tuple[Picture, ...] = ()

    @property
    def mode(self) -> str:
        return self.facts["mode"]

    @property
    def options(self) -> Config:
        return self.facts.get("options") or {}

    @property
    def history(self) -> list[Config]:
        return self.facts.get("history") or []

    @property
    def device(self) -> str:
        """What it ran on, and with a CPU which one."""
        device, cpu = self.facts.get("device") or "unknown device", self.environment.get("cpu")
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


def collect(root: Path, own_config: Callable[[str], Config | None]) -> Collection:
    """Read all results, records of runs that go on, and pictures below `root`.

    Args:
        own_config: the keys of an experiment that bear on its results, as they are before anything is overridden; None
            for a name that is no experiment.
    """
    found = Collection(root)
    for directory in _directories(root):
        place = directory.relative_to(root)
        read = {name: _read(directory / name, found) for name in (PROGRESS, RESULTS, TRIALS)}
        # A run that goes on beyond what it had finished is unfinished again.
        facts = read[PROGRESS] or read[RESULTS]
        if facts:
            pictures = tuple(_pictures(directory / PICTURES, found))
            found.runs.append(_run(place, facts, facts is read[RESULTS], own_config, pictures))
    return found


def _read(path: Path, found: Collection) -> Config | None:
    """A file of ours; None where there is none, or a damaged one, which goes on the list."""
    if not path.is_file():
        return None
    try:
        content = load_json(path)
        if path.name in (RESULTS, PROGRESS):
            check_facts(content)
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
    for key in ("method", "dataset", "device", "precision", "command", "finished", "updated", "state"):
        if not isinstance(facts.get(key) or "", str):
            raise ValueError(f"{key} is {facts[key]!r}, not a text")
    for key in ("options", "environment", "evaluations", "linear_probe"):
        if not isinstance(facts.get(key) or {}, dict):
            raise ValueError(f"{key} is {facts[key]!r}, not a dictionary")
    measured = [*(facts.get("evaluations") or {}).values(), *(facts.get("linear_probe") or {}).values()]
    history = facts.get("history") or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in [*history, *measured]):
        raise ValueError("history, evaluations or linear_probe hold no dictionaries of figures")
    for entry in (facts, *measured, *history):
        for key in NUMBERS:
            value = entry.get(key)
            if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
                raise ValueError(f"{key} is {value!r}, not a number")


def changed_options(options: Config, own: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that bear on a result and differ from the experiment's own: (own, this run's)."""
    keys = [key for key in own if key not in HARMLESS and key in options]
    return {key: (own[key], options[key]) for key in keys if options[key] != own[key]}


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
    trial = None
    if parts and parts[-1].startswith("seed") and parts[-1][4:].isdigit():
        trial = int(parts.pop()[4:])
    own_parts = experiment.split(".")
    if parts[-len(own_parts) :] == own_parts:
        del parts[-len(own_parts) :]
    if parts and parts[-1] == SUPERVISION.get(facts["mode"]):
        parts.pop()
    own = own_config(experiment)
    changed = None if own is None else changed_options(facts.get("options") or {}, own)
    return Run(place, experiment, Path(*parts), trial, finished, facts, changed, pictures)


def _pictures(folder: Path, found: Collection) -> Iterator[Picture]:
    for path in sorted(folder.glob("*.png")):
        told = _read(path.with_suffix(".json"), found) or {}
        yield Picture(path, str(told.get("title", path.stem)), str(told.get("caption", "")))
