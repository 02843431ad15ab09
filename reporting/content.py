"""What the report says, as plain data: `templates/` has the page and the Markdown file that show it."""

import base64
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from reporting import text
from reporting.charts import NUM_STYLES, Chart, Series, accuracy_strips, learning_curves, other_style, style_of
from reporting.studies import study_tables
from reporting.tables import (
    LETKD,
    METHOD_FIGURES,
    PUBLISHED,
    Cell,
    Group,
    Report,
    Row,
    Section,
    group_runs,
    marks_of,
    measured_runs,
    scope_of,
    shown,
)
from results.collect import SUPERVISION, Config, Run
from results.settings import MEASUREMENTS, SEEDS, UNTRAINED

JOBS = {
    "train": "training", "evaluate": "evaluation", "probe": "linear probe", "layers": "KD layers",
    "export": "export",
    "kmeans": "codebook (k-means)", "LDA": "decision scores (LDA)", "class_means": "class means",
}  # fmt: skip
KINDS = {"kmeans": "codebook", "LDA": "decision scores", "class_means": "class means"}
NONE = "-"


@dataclass(frozen=True)
class Entry:
    """One thing that stands in a cell.

    `notes` are further lines below `text`, `mark` says which settings are not the defaults. `anchor` is the part of the
    page that the text leads to, `command` what it unfolds, under a `key` that no other entry of its section has.
    """

    text: str
    notes: Sequence[str] = ()
    mark: str = ""
    anchor: str = ""
    command: str = ""
    key: str = ""
    is_code: bool = False
    is_changed: bool = False


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its heading. `kind` is how the page lays it out; a folded one opens with a click."""

    title: str
    columns: Sequence[str]
    rows: list[list[list[Entry]]]
    note: str = ""
    kind: str = ""
    is_folded: bool = False


@dataclass(frozen=True)
class Part:
    """A data set."""

    title: str
    anchor: str
    num_pairs: str
    tables: list[Table]
    charts: list[Chart]


@dataclass(frozen=True)
class Settings:
    """What has to be known to do runs again that differ in nothing but their seed."""

    places: list[Path]
    facts: dict[str, str]
    command: str
    tables: list[Table]


@dataclass(frozen=True)
class Experiment:
    """All runs of an experiment."""

    anchor: str
    name: str
    about: str
    headline: str
    runs: Table | None
    measurements: Table | None
    charts: list[Chart]
    charts_at: Part | None  # which data set shows its learning curves, where it does not itself
    pictures: list[tuple[str, str, str]]  # PNG in base64, title, caption
    settings: list[Settings]


@dataclass(frozen=True)
class Content:
    """All of it."""

    root: Path
    facts: list[str]
    how_to_read: dict[str, str]
    damaged: list[tuple[Path, str]]
    parts: list[Part]
    unmeasured: list[Part]
    experiments: list[Experiment]
    commands: dict[str, list[str]] = field(default_factory=dict)  # by what they do


def content_of(report: Report) -> Content:
    """What is to be shown of a report."""
    runs, damaged = report.collection.runs, report.collection.damaged
    num_experiments = len({run.experiment for run in report.trained})
    facts = [text.plural(len(report.trained), "run"), text.plural(num_experiments, "experiment")]
    unfinished = sum(not run.finished for run in runs)
    facts += [f"{unfinished} unfinished"] if unfinished else []
    facts += [text.plural(len(damaged), "damaged file")] if damaged else []
    parts = {section.scope: _part(section) for section in report.sections}
    experiments: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        experiments[_run_anchor(run)].append(run)
    measured = [section for section in report.sections if section.has_runs]
    return Content(
        root=report.collection.root,
        facts=facts,
        how_to_read=_how_to_read(),
        damaged=sorted((found.place, found.error) for found in damaged),
        parts=[*(parts[section.scope] for section in measured), *map(study_part, report.collection.studies)],
        unmeasured=[parts[section.scope] for section in report.sections if not section.has_runs],
        experiments=[_experiment(anchor, found, parts[scope_of(found[0])]) for anchor, found in experiments.items()],
        commands=_commands(measured),
    )


def _how_to_read() -> dict[str, str]:
    return {
        "96.55 ± 0.21": "top-1 accuracy in percent after the last epoch: mean and sample standard deviation over seeds",
        "best": "top-1 of the best epoch, chosen on the evaluation images (with val_split on held-out training images)",
        "published": "what a paper states: whose figure, copied where it has it from elsewhere, of how many runs and "
        "which epoch; then by how many percentage points ours is above it, at the best epoch where it is of the best "
        "one, and else after the last",
        "larger student": "layers stay in the student at inference, which the plain network does not have",
        text.MARK: "settings other than the defaults, those of config/: such runs are not averaged with runs of the "
        "defaults, and compared with published ablations alone",
        NONE: "no such experiment in config/",
        "not run, stopped": "open it for the command that runs or resumes the experiment",
    }


def _commands(sections: list[Section]) -> dict[str, list[str]]:
    """For the empty and unfinished cells of the data sets that have results."""
    cells = [cell for section in sections for row in section.rows for cell in row.cells.values()]
    missing = [cell.command for cell in cells if cell.command and cell.lacks_runs]
    missing += [variant.command for section in sections for variant in section.variants if not variant.groups]
    unfinished = [command for cell in cells for command in cell.continuations.values()]
    found = {"Resume unfinished runs": unfinished, "Run what is missing": missing}
    return {title: list(dict.fromkeys(commands)) for title, commands in found.items() if commands}


# --- a data set ------------------------------------------------------------------------------------------------------


def _part(section: Section) -> Part:
    anchor = _anchor(section.scope.anchor)
    charts = [accuracy_strips(section), *(_row_curves(section, row, anchor) for row in section.rows)]
    tables = [_accuracies(section), _variants(section), _other_methods(section), _costs(section), _supervision(section)]
    return Part(
        section.scope.title,
        anchor,
        text.plural(len(section.rows), "pair"),
        [table for table in tables if table],
        [chart for chart in charts if chart],
    )


def _accuracies(section: Section) -> Table:
    rows = [
        _row(row.label, *(_cell(f"{row.key} {name}", row.cells.get(name)) for name in section.columns))
        for row in section.rows
    ]
    note = " ".join(f"{source}: {said}." for source in section.sources if (said := _said(source)))
    note = f"Published by {note}" if note else ""
    return Table("Accuracy", ["Pair", *map(text.column_title, section.columns)], rows, note, kind="accuracy")


def _said(source: str) -> str:
    """What is behind the name of a source."""
    return PUBLISHED["source"] if source == LETKD else METHOD_FIGURES["sources"][source]


def _cell(key: str, cell: Cell | None) -> list[Entry]:
    if cell is None or cell.experiment is None:
        return [Entry(NONE)]
    by_default = [_measured(cell, group) for group in cell.groups if group.is_default]
    published = [text.compared(cell.published, None)] if cell.published and not by_default else []
    missing = [Entry("not run", published, command=cell.command or "", key=key)] if cell.lacks_runs else []
    unfinished = [
        Entry(
            f"… {text.unfinished(run)}",
            [] if missing else published,
            text.marked(marks_of(run)),
            command=cell.continuations.get(run.place, ""),
            key=f"{key} {run.place}",
        )
        for run in cell.unfinished
    ]
    others = [_measured(cell, group) for group in cell.groups if not group.is_default]
    return [*by_default, *missing, *unfinished, *others]


def _measured(cell: Cell, group: Group) -> Entry:
    notes = [text.num_runs(group), *([text.NO_CLASSIFIER] if group.is_untrained else [])]
    published = cell.published_for(group)
    if published and published.top5 is not None:
        notes.append(f"top-5 {text.percent(group.statistic('top5'))}")
    notes += _some(text.best(group), text.average(group), text.larger(group))
    if published:
        notes.append(text.compared(published, cell.difference(group)))
    return Entry(text.percent(group.statistic("top1")), notes, text.marked(group.marks), _run_anchor(group.runs[0]))


def _variants(section: Section) -> Table | None:
    """Experiments with options for which the paper has a figure: what was measured, or the command."""
    rows = []
    for variant in section.variants:
        measured = [
            Entry(
                f"{text.percent(group.statistic('top1'))} ({text.num_runs(group)}, "
                f"{text.difference(group.statistic('top1').mean - variant.published.top1)})",
                anchor=_run_anchor(group.runs[0]),
            )
            for group in variant.groups
        ]
        missing = [Entry("not run", command=variant.command, key=f"variant {variant.title}")]
        title = Entry(variant.title, is_code=True)
        rows.append(_row(title, text.published(variant.published), measured or missing))
    columns = ("Experiment", "Published", "Measured")
    return Table("Published ablations and controls", columns, rows, kind="texts", is_folded=True) if rows else None


def _other_methods(section: Section) -> Table | None:
    names = section.other_methods
    pairs = [(row.label, PUBLISHED["pairs"].get(row.prefix, {})) for row in section.rows]
    rows = [
        _row(label, *(f"{pair[name]['top1']:.2f}" if name in pair else NONE for name in names))
        for label, pair in pairs
        if pair
    ]
    note = f"Top-1 accuracy in percent as printed in {PUBLISHED['source']}."
    larger = METHOD_FIGURES["larger_students"]
    columns = ["Pair", *(f"{name} (larger student)" if name in larger else name for name in names)]
    return Table("Other published methods", columns, rows, note, is_folded=True) if names else None


def _row_curves(section: Section, row: Row, anchor: str) -> Chart | None:
    """Every group and unfinished run of a pair; those with other settings look unlike the method's own."""
    series = []
    others = count()
    for position, column in enumerate(section.columns):
        cell, title = row.cells.get(column, Cell(None)), text.column_title(column)
        for group in cell.groups:
            look = other_style(next(others)) if group.marks else style_of(column, position)
            name = title + (f", {text.num_runs(group)}" if len(group.runs) > 1 else "")
            marks = text.marked(group.marks)
            series.append(Series(f"{name} {marks}".strip(), f"{column} {marks}".strip(), look, list(group.runs)))
        for run in cell.unfinished:
            name = f"{title}, {text.unfinished(run)} {text.marked(marks_of(run))}".strip()
            series.append(Series(name, f"{column} {run.place}", other_style(next(others)), [run]))
    return learning_curves(row.label, row.key, series, salt=f"{anchor} {row.key}")


def _costs(section: Section) -> Table | None:
    """What networks and trainings cost."""
    rows = [
        _row(
            Entry(group.experiment, [f"on {device}"], text.marked(group.marks), _run_anchor(group.runs[0])),
            *_cost(group),
        )
        for device, groups in section.by_device().items()
        for group in groups
    ]
    columns = (
        "Experiment", "Parameters", "without KD layers", "MACs", "without KD layers", "Epochs", "Precision",
        "Training img/s", "Training time", "Evaluation img/s",
    )  # fmt: skip
    note = "Means over the runs on one device. MACs are multiply-accumulate operations for one image."
    return Table("Cost", columns, rows, note) if rows else None


def _cost(group: Group) -> list[str]:
    def mean(key: str) -> float | None:
        found = group.statistic(key)
        return found.mean if found else None

    cells = []
    for key, form in (("parameters", text.count), ("multiply_adds", text.million)):
        whole, bare = mean(key), mean(f"{key}_without_kd_layers")
        cells += [form(whole) + text.ratio(whole, bare), form(bare)]
    cells += [text.count(mean("epochs")), group.runs[0].facts.get("precision") or NONE]
    if not group.is_trained:
        return [*cells, NONE, NONE, text.count(mean("images_per_second"))]
    speed, seconds, evaluation = map(mean, ("images_per_second", "seconds", "eval_images_per_second"))
    return [*cells, text.count(speed), text.duration(seconds), text.count(evaluation)]


def _supervision(section: Section) -> Table | None:
    """What was made from teachers."""
    rows = []
    for run in section.supervision:
        facts = run.facts
        if run.mode == "kmeans":
            made = f"codebook of {text.value(facts.get('words'))} visual words"
            quality = f"perplexity {text.value(facts.get('perplexity'))}"
        elif run.mode == "class_means":
            made = "class means"
            quality = f"mean cosine of two classes {text.value(facts.get('cosine'))}"
        else:
            components = text.value(facts.get("components"))
            made = f"decision scores at {facts.get('tap')}, {components} LDA components"
            quality = f"{text.value(facts.get('decided_for_own_class'))} % of decisions for the true class"
        patches, seconds = text.count(facts.get("patches")), text.duration(facts.get("seconds"))
        teacher = Entry(run.experiment, anchor=_run_anchor(run))
        rows.append(_row(teacher, made, quality, patches, seconds, run.device))
    columns = ("Teacher", "Supervision", "Quality", "Patches", "Time", "Device")
    return Table("Supervision", columns, rows, kind="texts") if rows else None


# --- a study ---------------------------------------------------------------------------------------------------------


def study_part(study: Config) -> Part:
    """What a study has found."""
    tables = [
        Table(found.title, found.columns, [_row(*cells) for cells in found.rows], " ".join(found.notes), kind="texts")
        for found in study_tables(study)
    ]
    return Part(f"Study {study['name']}", _anchor(f"study-{study['name']}"), "", tables, [])


# --- an experiment ---------------------------------------------------------------------------------------------------


def _experiment(anchor: str, runs: list[Run], part: Part) -> Experiment:
    first = runs[0]
    trained = [run for run in runs if run.mode not in SUPERVISION]
    groups = group_runs(measured_runs(trained))
    headline = _headline(groups[0]) if groups else ""
    mark = f"{text.MARK} " if groups and groups[0].marks else ""
    branch = f" in {first.branch}" if first.branch != Path() else ""
    kinds = sorted({KINDS[run.mode] for run in runs if run not in trained})
    own_charts = any(len(group.runs + group.repeated) > 1 for group in groups)
    return Experiment(
        anchor=anchor,
        name=first.experiment + branch,
        about=", ".join([*([text.plural(len(trained), "run")] if trained else []), *kinds]),
        headline=mark + headline,
        runs=_runs(trained, groups),
        measurements=_measurements(trained),
        charts=_some(_every_run(anchor, trained)) if own_charts else [],
        charts_at=part if not own_charts and any(run.courses for run in trained) else None,
        pictures=[
            (base64.b64encode(found.path.read_bytes()).decode(), found.title, found.caption)
            for run in runs
            for found in run.pictures
        ],
        settings=_settings(runs),
    )


def _headline(group: Group) -> str:
    """The last epoch, and the best one of a training."""
    last, best = text.percent(group.statistic("top1")), group.statistic("best_top1")
    told = f"{last} % (best {text.percent(best)} %)" if group.is_trained and best else f"{last} %"
    return f"{told}, {text.NO_CLASSIFIER}" if group.is_untrained else told


def _runs(runs: list[Run], groups: list[Group]) -> Table | None:
    repeated = {run.place for group in groups for run in group.repeated}
    rows = []
    for run in runs:
        facts = run.facts
        status = text.state(run)
        status += "; not counted: its seed is among the trials" if run.place in repeated else ""
        status += "; nothing has trained its classifier" if facts.get("classifier") == UNTRAINED else ""
        best, notes = NONE, ([], [])  # of the average of the weights, below the student's figures
        if run.mode == "train" and facts.get("best_top1") is not None:
            best = f"{facts['best_top1']:.2f} ({facts.get('best_epoch')})"
        if facts.get("average_top1") is not None and facts.get("best_average_top1") is not None:
            notes[0].append(f"average {facts['average_top1']:.2f}")
            notes[1].append(f"average {facts['best_average_top1']:.2f} ({facts.get('best_average_epoch')})")
        last, top5 = _number(facts.get("top1")), _number(facts.get("top5")) if run.has_top5 else None
        macro_f1 = [] if facts.get("macro_f1") is None else [f"macro-F1 {facts['macro_f1']:.2f}"]
        cells = [
            text.value(facts.get("seed")), Entry(text.value(last), macro_f1 + notes[0]), Entry(best, notes[1]),
            text.value(top5),
            text.duration(facts.get("seconds")), text.count(facts.get("images_per_second")), run.device,
            text.settings(run), status, text.moment(run), text.commit(run),
        ]  # fmt: skip
        rows.append(_row(Entry(str(run.place), is_code=True), *cells))
    columns = (
        "Directory", "Seed", "Last epoch", "Best (epoch)", "Top-5", "Time", "Images/s", "Device", "Settings", "State",
        "Written (UTC)", "Commit",
    )  # fmt: skip
    return Table("Runs", columns, rows, kind="runs") if rows else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _measurements(runs: list[Run]) -> Table | None:
    """What evaluations, linear probes, figures of KD layers and exports measured."""
    rows = [
        _row(JOBS[job].capitalize(), name, Entry(str(run.place), is_code=True), text.measured(measured))
        for job, part in MEASUREMENTS.items()
        for run in runs
        for name, measured in (run.facts.get(part) or {}).items()
    ]
    columns = ("Job", "Weights", "Directory", "Results")
    return (
        Table("Evaluations, linear probes, KD layers and exports", columns, rows, kind="texts results")
        if rows
        else None
    )


def _every_run(anchor: str, runs: list[Run]) -> Chart | None:
    """One line a run: the chart of the pair shows means of several."""
    has_trials = any(run.trial is not None for run in runs)
    names = [f"seed {run.facts.get('seed')}{' (no trial)' * (has_trials and run.trial is None)}" for run in runs]
    series = [
        Series(name, str(run.place), i % NUM_STYLES, [run])
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    return learning_curves("Single runs", "runs", series, salt=anchor)


def _settings(runs: list[Run]) -> list[Settings]:
    """Trainings first; once for runs that differ in nothing but their seed."""
    found: dict[str, Settings] = {}
    for run in sorted(runs, key=lambda run: run.mode in SUPERVISION):
        settings = _settings_of(run)
        known = found.setdefault(repr(settings), settings)
        known.places.append(run.place)
    return list(found.values())


def _settings_of(run: Run) -> Settings:
    environment = run.environment
    versions = [f"{name} {version}" for name, version in (environment.get("versions") or {}).items()]
    machine = [str(environment[key]) for key in ("cpu", "machine") if environment.get(key)]
    machine += [f"{environment['cpus']} CPUs"] if environment.get("cpus") else []
    facts = {
        "Job": JOBS[run.mode],
        "Commit": text.commit(run),
        "Device": run.facts.get("device"),
        "Machine": ", ".join(machine),
        "Versions": ", ".join([f"Python {environment.get('python', '?')}", *versions]),
    }
    changed = [
        _row(Entry(key, is_code=True), Entry(shown(new), is_changed=True), shown(own))
        for key, (own, new) in run.changed.items()
    ]
    options = [
        _row(Entry(key, is_code=True), Entry(shown(value), is_changed=key in run.changed))
        for key, value in run.options.items()
        if key not in SEEDS
    ]
    tables = [
        Table("changed settings", ("Changed setting", "This run", "Default"), changed, kind="texts"),
        Table("settings", ("Setting", "This run"), options, kind="texts options"),
    ]
    return Settings(
        places=[],
        facts={name: fact for name, fact in facts.items() if fact},
        command=f"python {run.facts['command']}" if run.facts.get("command") else "",
        tables=[table for table in tables if table.rows],
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _row(*cells: Any) -> list[list[Entry]]:
    return [
        cell if isinstance(cell, list) else [cell if isinstance(cell, Entry) else Entry(str(cell))] for cell in cells
    ]


def _some(*found: Any) -> list[Any]:
    return [value for value in found if value]


def _run_anchor(run: Run) -> str:
    return _anchor("-".join(["experiment", *run.branch.parts, run.experiment]))


def _anchor(name: str) -> str:
    """A name that can stand in an address."""
    return re.sub(r"[^\w.-]+", "-", name)
