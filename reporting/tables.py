"""Runs put together: the same settings with different seeds are averaged, other settings stand apart and are marked.

A table has a row for each pair of teacher and student and a column for each method. What the page and the Markdown file
show is decided here; they only say it.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from config.command_lines import command_line, typed
from config.experiments import ALONE, NETWORKS, defaults_for, trains_alone
from results.collect import NOT_RECORDED, SUPERVISION, Collection, Config, Run
from results.places import folders_of
from results.settings import FOLDER_DATASETS, UNTRAINED, bearing, changed_settings

TEACHER, STUDENT = "teacher", "student"
METHODS = ("QuEST", "letKD-1", "letKD-2")
PUBLISHED, METHOD_FIGURES = (
    json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("published.json", "published_methods.json")
)
LETKD, RUN_BY_LETKD = "letKD", ("letKD-1", "letKD-2")  # its paper, and what is not copied in there
# What may differ between a run with a name of its own and its experiment in config/, and a published figure still be of
# these very settings: that it is of these networks is looked up.
OF_A_NAMED_RUN = frozenset({*NETWORKS, "protocol", "teacher_experiment", "teacher_weights", "supervision"})
NEED_DATA_DIR = FOLDER_DATASETS | {"ImageNet"}
ANY_FOLDER = "FOLDER"  # what stands for theirs in a command, where it is not known
# Options that a command for what is left of a run has in another place, or does not need.
SAID_OTHERWISE = frozenset({"config", "localpath", "checkpoint", "seed", "seeds", "trials", "prepare", "watch"})
TITLES = {
    "CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100", "CIFAR100_10k": "CIFAR-100/10k",
    "TinyImageNet": "Tiny-ImageNet", "digits": "Digits", "numbers": "Two-digit numbers",
}  # fmt: skip
DEFAULT_LOCALPATH = "experiments"


class Statistic(NamedTuple):
    """Mean, and the sample standard deviation where there are several values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Statistic | None":
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


class Published(NamedTuple):
    """A figure of a paper, in percent.

    Attributes:
        trials: so many runs a command asks for, to compare with it.
        source: who states it, as the sources of `published_methods.json` are called.
        runs: the figure is a mean of so many; None where it is not said.
        epoch: "last" or "best"; None where it is not said.
        copied: whether the source has it from elsewhere.
    """

    top1: float
    std: float | None = None
    top5: float | None = None
    trials: int | None = None
    source: str = LETKD
    runs: int | None = None
    epoch: str | None = None
    copied: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs of one experiment with the same settings, a seed each.

    `repeated` are runs with a seed that is among `runs` already; they count for nothing.
    """

    runs: tuple[Run, ...]
    repeated: tuple[Run, ...] = ()

    @property
    def experiment(self) -> str:
        return self.runs[0].experiment

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        return self.runs[0].changed

    @property
    def is_default(self) -> bool:
        """Whether these are the settings of config/."""
        return not self.marks

    @property
    def is_trained(self) -> bool:
        return self.runs[0].mode == "train"

    @property
    def is_untrained(self) -> bool:
        """Whether nothing has trained the classifiers, so that their accuracy says nothing."""
        return any(run.facts.get("classifier") == UNTRAINED for run in self.runs)

    @property
    def marks(self) -> list[str]:
        return marks_of(self.runs[0])

    def statistic(self, key: str) -> Statistic | None:
        return Statistic.of(run.facts.get(key) for run in self.runs)


@dataclass(frozen=True)
class Cell:
    """One experiment in a table: what was measured, what was published, and what would measure it."""

    experiment: str | None
    groups: list[Group] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    published: Published | None = None
    command: str | None = None
    continuations: dict[Path, str] = field(default_factory=dict)  # commands, by the place of an unfinished run

    @property
    def has_runs(self) -> bool:
        return bool(self.groups or self.unfinished)

    @property
    def is_measured(self) -> bool:
        """Whether the experiment as it stands in config/ has been run."""
        return any(group.is_default for group in self.groups)

    @property
    def lacks_runs(self) -> bool:
        """Whether the experiment as it stands in config/ has neither been run nor begun."""
        return not self.is_measured and all(marks_of(run) for run in self.unfinished)

    def difference(self, group: Group) -> float | None:
        """Percent points above what was published for these very settings: of the best epoch where that is of the best
        one, else of the last.
        """
        published = self.published_for(group)
        measured = published and group.statistic("best_top1" if published.epoch == "best" else "top1")
        return measured.mean - published.top1 if measured else None

    def published_for(self, group: Group) -> Published | None:
        return self.published if group.is_default else published_variant(group)


@dataclass(frozen=True)
class Row:
    """A pair of teacher and student, or a network alone."""

    label: str
    prefix: str | None  # of the experiments of a pair
    cells: dict[str, Cell]

    @property
    def key(self) -> str:
        """Unlike the label it is the row's own."""
        return self.prefix or self.label

    @property
    def has_runs(self) -> bool:
        return any(cell.has_runs for cell in self.cells.values())

    @property
    def has_students(self) -> bool:
        """Whether a student was taught: one network may be the teacher of several pairs."""
        return any(cell.has_runs for column, cell in self.cells.items() if column not in (TEACHER, STUDENT))


@dataclass(frozen=True)
class Scope:
    """Runs that belong in one table: one tree of outputs, one data set."""

    branch: Path
    dataset: str
    data_dir: str | None  # where the data set's name does not tell

    @property
    def title(self) -> str:
        title = TITLES.get(self.dataset, self.dataset)
        title += f" {self.data_dir}" if self.data_dir else ""
        return title + (f", in {self.branch}" if self.branch != Path() else "")

    @property
    def anchor(self) -> str:
        return "-".join(["data", *self.branch.parts, self.dataset, *([self.data_dir] if self.data_dir else [])])


@dataclass(frozen=True)
class Variant:
    """An experiment with options of its own for which the paper has a figure, wherever below the root it was run."""

    experiment: str
    options: Config
    published: Published
    groups: list[Group]
    command: str

    @property
    def title(self) -> str:
        return " ".join([self.experiment, *words_of(self.options)])


@dataclass(frozen=True)
class Section:
    """All that is known of one data set."""

    scope: Scope
    columns: list[str]
    rows: list[Row]
    supervision: list[Run]
    variants: list[Variant]

    @property
    def groups(self) -> list[Group]:
        """All groups of its table, once: a teacher may stand in several rows."""
        return list(dict.fromkeys(group for row in self.rows for cell in row.cells.values() for group in cell.groups))

    def by_device(self) -> dict[str, list[Group]]:
        """The groups of each device: times and throughputs of different devices do not compare."""
        devices: dict[str, list[Group]] = {}
        for group in self.groups:
            for device in dict.fromkeys(run.device for run in group.runs):
                runs = tuple(run for run in group.runs if run.device == device)
                devices.setdefault(device, []).append(Group(runs))
        return devices

    @property
    def has_runs(self) -> bool:
        return any(row.has_runs for row in self.rows) or bool(self.supervision)

    @property
    def sources(self) -> list[str]:
        """Who states the published figures of the table."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        return list(dict.fromkeys(cell.published.source for cell in cells if cell.published))

    @property
    def other_methods(self) -> list[str]:
        """Methods that were published for these pairs and are no columns, in the paper's order."""
        known = {TEACHER, STUDENT, "trials", *METHODS}
        names = dict.fromkeys(name for row in self.rows for name in PUBLISHED["pairs"].get(row.prefix, {}))
        return [name for name in names if name not in known]


@dataclass(frozen=True)
class Report:
    """Everything that the report says."""

    collection: Collection
    sections: list[Section]

    @property
    def trained(self) -> list[Run]:
        """Runs of networks; jobs that make supervision are none."""
        return [run for run in self.collection.runs if run.mode not in SUPERVISION]

    def __str__(self) -> str:
        return f"{len(self.trained)} runs, {len(self.collection.damaged)} damaged files"


def build(collection: Collection, experiments: dict[str, Config]) -> Report:
    """Put the runs into tables.

    Args:
        experiments: the experiments of config/ and their own settings, by name.
    """
    scopes = dict.fromkeys(scope_of(run) for run in collection.runs)
    scopes |= dict.fromkeys(Scope(Path(), config["dataset"], None) for config in experiments.values())
    measured_folders = {scope.dataset for scope in scopes if scope.data_dir}
    sections = [
        _section(scope, collection, experiments)
        for scope in scopes
        if scope.data_dir or scope.dataset not in measured_folders
    ]
    return Report(collection, sorted(sections, key=lambda section: not section.has_runs))


def scope_of(run: Run) -> Scope:
    dataset = run.facts.get("dataset") or run.options.get("dataset") or "unknown data set"
    data_dir = os.path.normpath(str(run.options.get("data_dir") or "data")) if dataset in FOLDER_DATASETS else None
    return Scope(run.branch, dataset, data_dir)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Finished runs by experiment and settings: the experiment's own first, and trainings before evaluations."""
    settings: dict[str, dict[Any, list[Run]]] = {}
    for run in runs:
        key = [run.experiment, run.mode, run.apart, bearing(run.options) if run.apart else run.changed]
        if run.has_own_name:
            key.append(bearing(run.options))
        if run.apart == NOT_RECORDED or not run.options:
            key.append(str(run.place))  # may be anything, and so is like no other
        # Of two runs with the same seed, the one among others of its kind counts.
        seeds = settings.setdefault(json.dumps(key, sort_keys=True, default=str), {})
        seeds.setdefault(run.facts.get("seed"), []).insert(0 if run.trial is not None else len(seeds), run)
    groups = [
        Group(
            tuple(found[0] for _, found in sorted(seeds.items(), key=lambda item: str(item[0]))),
            tuple(run for found in seeds.values() for run in found[1:]),
        )
        for seeds in settings.values()
    ]
    return sorted(groups, key=lambda group: (not group.is_default, not group.is_trained, len(group.changed)))


def published_variant(group: Group) -> Published | None:
    """What was published for an experiment with other settings than its own."""
    options = {key: value for key, (_, value) in group.changed.items()}
    for variant in PUBLISHED["variants"]:
        if options and variant["experiment"] == group.experiment and variant["options"] == options:
            return Published(variant["top1"])
    return None


def published_value(prefix: str | None, column: str, networks: tuple[str, ...] = ()) -> Published | None:
    """What was published for a pair's own settings; the teachers of all runs are the same.

    Args:
        networks: data set, teacher and student, for figures of others than letKD's paper.
    """
    pair = PUBLISHED["pairs"].get(prefix, {})
    trials = pair.get("trials") if column != TEACHER else None
    facts = {"trials": trials, "runs": trials, "copied": column not in RUN_BY_LETKD}
    for variant in PUBLISHED["variants"]:
        if variant["experiment"] == f"{prefix}.{column}" and not variant["options"]:
            return Published(variant["top1"], trials=trials, runs=trials)
    own = Published(**pair[column], **facts) if column in pair else None
    if own and column in (TEACHER, STUDENT, *METHODS):
        return own
    if found := figure_of_method(column, *networks) if networks else None:
        return found._replace(trials=trials or (None if column == TEACHER else found.runs))
    return own


def figure_of_method(method: str, dataset: str, teacher: str, student: str) -> Published | None:
    """What its authors or others state of a method for a pair, in the first table that has it."""
    pair = next((key for key, names in METHOD_FIGURES["pairs"].items() if names == [teacher, student]), None)
    if dataset != METHOD_FIGURES["dataset"] or pair is None:
        return None
    for table in METHOD_FIGURES["tables"]:
        if (top1 := table["top1"].get(method, {}).get(pair)) is not None:
            std = table.get("std", {}).get(method, {}).get(pair)
            facts = {key: table[key] for key in ("source", "runs", "epoch", "copied") if key in table}
            return Published(top1, std, **facts)
    return None


def marks_of(run: Run) -> list[str]:
    """What keeps a run from being the experiment as it stands in config/."""
    if run.apart:
        return [run.apart]
    return [f"{key}={shown(value)} (default: {shown(own)})" for key, (own, value) in run.changed.items()]


def shown(value: Any) -> str:
    """A value in a table."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, (list, dict)) else str(value)


def words_of(options: Config) -> list[str]:
    return [f"{key}={typed(value)}" for key, value in options.items()]


def _section(scope: Scope, collection: Collection, experiments: dict[str, Config]) -> Section:
    runs = [run for run in collection.runs if scope_of(run) == scope]
    table = _Table(scope, collection.root, [run for run in runs if run.mode not in SUPERVISION], experiments)
    rows = list(table.rows())
    # Published variants have a table of their own, and a column when they have been run.
    extra = dict.fromkeys(
        name
        for row in rows
        for name, cell in row.cells.items()
        if cell.has_runs or cell.experiment not in {variant["experiment"] for variant in PUBLISHED["variants"]}
    )
    columns = [TEACHER, STUDENT, *METHODS, *(name for name in extra if name not in (TEACHER, STUDENT, *METHODS))]
    variants = list(table.variants(collection.runs)) if scope.branch == Path() else []
    return Section(scope, columns, rows, [run for run in runs if run.mode in SUPERVISION], variants)


def _networks(config: Config) -> tuple[str, ...]:
    """Data set, teacher and student, by which figures are looked up."""
    return tuple(str(config.get(key)) for key in ("dataset", "teacher", "student"))


def measured_runs(runs: Iterable[Run]) -> list[Run]:
    """Those that a mean can be taken of."""
    return [run for run in runs if run.finished and run.facts.get("top1") is not None and run.mode not in SUPERVISION]


class _Table:
    """The rows of one scope."""

    def __init__(self, scope: Scope, root: Path, runs: list[Run], experiments: dict[str, Config]):
        self.scope = scope
        self.localpath = root / scope.branch
        self.runs = runs
        self.groups = group_runs(measured_runs(runs))
        self.experiments = experiments
        # A run whose experiment has gone from config/ still says what it was.
        gone = {run.experiment: run.options for run in runs if run.options.get("method")}
        self.configs = gone | {
            name: config for name, config in experiments.items() if config["dataset"] == scope.dataset
        }
        self.prefixes = {
            _networks(config): name.rpartition(".")[0]
            for name, config in experiments.items()
            if config["method"] != ALONE
        }

    def rows(self) -> Iterator[Row]:
        pairs: dict[str, list[str]] = {}
        for name, config in self.configs.items():
            if config["method"] != ALONE:
                pairs.setdefault(name.rpartition(".")[0], []).append(name)
        rows = [self._pair(prefix, names) for prefix, names in pairs.items()]
        rows.sort(key=lambda row: (not row.has_students, row.prefix))
        if self.scope.branch != Path():
            rows = [row for row in rows if row.has_runs]
        yield from rows
        in_rows = {cell.experiment for row in rows for cell in row.cells.values()}
        for name in dict.fromkeys(run.experiment for run in self.runs):
            if name not in in_rows:
                yield Row(name.rpartition(".")[2], None, {STUDENT: self._cell(name, None)})

    def _pair(self, prefix: str, names: list[str]) -> Row:
        config = self.configs[names[0]]
        student = trains_alone(config.get("student"), self.configs, folder=prefix.rpartition(".")[0])
        cells = {
            TEACHER: self._cell(config.get("teacher_experiment"), self._published(names[0], TEACHER)),
            STUDENT: self._cell(student, self._published(names[0], STUDENT)),
        }
        for name in names:
            column = name.rpartition(".")[2]
            cells[column] = self._cell(name, self._published(name, column))
        label = prefix.rpartition(".")[2].replace("_", " → ")
        if config.get("protocol", "paper") != "paper":
            label += f", protocol={config['protocol']}"
        return Row(label, prefix, cells)

    def _published(self, name: str, column: str) -> Published | None:
        """What was published for a column of the row of `name`.

        For runs with a name of their own it is looked up by their networks and method, and compared with those alone
        that have all settings of an experiment.
        """
        config, prefix = self.configs[name], name.rpartition(".")[0]
        networks = _networks(config)
        if config.get("config", name) == name:
            return published_value(prefix, column, networks)
        known = self.prefixes.get(networks)
        if column in (TEACHER, STUDENT):
            return published_value(known, column, networks)
        if not self._is_whole(config):
            return None
        own = figure_of_method(config["method"], *networks) if config.get("protocol") == "published" else None
        return own or published_value(known, config["method"], networks)

    def _is_whole(self, options: Config) -> bool:
        """Whether a run with a name of its own has all settings of its experiment, by the one or the other protocol."""
        own = self.experiments.get(options["config"])
        try:
            usual = defaults_for(own, options) if own else {}
        except ValueError:  # of a protocol that is not known
            return False
        return bool(usual) and not set(changed_settings(usual, options)) - OF_A_NAMED_RUN

    def variants(self, runs: list[Run]) -> Iterator[Variant]:
        """What the paper says of experiments of this data set with other options, and the runs of it in any branch."""
        for variant in PUBLISHED["variants"]:
            name, options = variant["experiment"], variant["options"]
            if self.experiments.get(name, {}).get("dataset") != self.scope.dataset:
                continue
            wanted = {key: (self.experiments[name][key], value) for key, value in options.items()}
            alike = [run for run in measured_runs(runs) if run.experiment == name and run.changed == wanted]
            groups = group_runs(run for run in alike if not run.apart)
            pair, _, column = name.rpartition(".")
            published = published_value(pair, column)._replace(top1=variant["top1"], std=None)
            # Variants of an experiment would be written to the same directory.
            place = "variants/" + re.sub(r"[^\w.=-]+", "-", "-".join(words_of(options))) if options else ""
            command = self._command(name, published, options=options, place=place)
            yield Variant(name, options, published, groups, command)

    def _cell(self, experiment: str | None, published: Published | None) -> Cell:
        groups = [group for group in self.groups if group.experiment == experiment]
        unfinished = [run for run in self.runs if run.experiment == experiment and not run.finished]
        command = self._command(experiment, published) if experiment in self.experiments else None
        continuations = {run.place: told for run in unfinished if (told := self._continuation(run))}
        return Cell(experiment, groups, unfinished, published, command, continuations)

    def _command(
        self, experiment: str, published: Published | None, *, options: Config | None = None, place: str = ""
    ) -> str:
        wanted = {"config": experiment} | (options or {})
        if self.experiments[experiment]["method"] != ALONE:
            wanted["prepare"] = True
        if published and published.trials:
            wanted["trials"] = published.trials
        data_dir = self._data_dir()
        if data_dir is not None:
            wanted["data_dir"] = data_dir
        return command_line(wanted | self._localpath(place))

    def _continuation(self, run: Run) -> str | None:
        """What goes on with an unfinished run; None where it would only repeat what went wrong, or nothing is known."""
        experiment = run.options["config"] if run.has_own_name else run.experiment
        own = self.experiments.get(experiment)
        folders = [*folders_of(run.experiment), *[f"seed{run.trial}"] * (run.trial is not None)]
        was_moved = run.place != run.branch.joinpath(*folders)
        if own is None or run.apart or was_moved or run.facts.get("state") == "diverged":
            return None
        options = {
            key: value for key, value in run.options.items()
            if key in own and key not in SAID_OTHERWISE and value != own[key]
        }  # fmt: skip
        if run.trial is not None:
            begun = {"seeds": [run.trial]}
        else:
            begun = ({"seed": seed} if (seed := run.facts.get("seed")) else {}) | {"checkpoint": -1}
        return command_line({"config": experiment} | options | begun | self._localpath())

    def _data_dir(self) -> str | None:
        """Where the images of this data set were for the runs that are here."""
        known = [run.options["data_dir"] for run in self.runs if run.options.get("data_dir") is not None]
        return self.scope.data_dir or next(iter(known), ANY_FOLDER if self.scope.dataset in NEED_DATA_DIR else None)

    def _localpath(self, place: str = "") -> Config:
        localpath = self.localpath / place
        return {} if localpath == Path(DEFAULT_LOCALPATH) else {"localpath": str(localpath)}
