"""The report as one HTML file: style, script and pictures are inside it, nothing is loaded."""

import base64
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from reporting import words
from reporting.charts import NUM_STYLES, Series, accuracy_strips, column_title, learning_curves, other_style, style_of
from reporting.html import Html, join, tag
from reporting.tables import (
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
from results.collect import SUPERVISION, Picture, Run
from results.settings import SEEDS

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "page.css", HERE / "page.js"
TITLE = "Experiments"
JOBS = {
    "train": "training", "evaluate": "evaluation", "probe": "linear probe", "export": "export",
    "kmeans": "codebook (k-means)", "LDA": "decision scores (LDA)",
}  # fmt: skip


def render(report: Report, *, made: str, command: str, refresh: int | None = None) -> str:
    """The page.

    Args:
        made: when, in words.
        command: the command line that writes it.
        refresh: the page loads itself again every so many seconds.
    """
    measured = [section for section in report.sections if section.has_runs]
    others = [section for section in report.sections if not section.has_runs]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="refresh", content=refresh) if refresh else None,
        tag("title", f"{TITLE} in {report.collection.root}"),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    body = tag(
        "body",
        _header(report, measured, made),
        tag(
            "main",
            _damaged(report),
            [_section(section) for section in measured],
            _unmeasured(others),
            _experiments(report),
        ),
        tag("footer", tag("p", f"Written {made} by ", _command(command))),
        tag("script", Html(SCRIPT.read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


# --- the top ---------------------------------------------------------------------------------------------------------


def _header(report: Report, measured: list[Section], made: str) -> Html:
    runs = report.collection.runs
    trained = [run for run in runs if run.mode not in SUPERVISION]
    facts = [words.runs(len(trained)), words.plural(len({run.experiment for run in trained}), "experiment")]
    going_on = sum(not run.finished for run in runs)
    facts += [f"{going_on} unfinished"] if going_on else []
    facts += [words.plural(len(report.collection.damaged), "damaged file")] if report.collection.damaged else []
    links = [tag("a", section.scope.title, href=f"#{_anchor(section.scope.anchor)}") for section in measured]
    links += [tag("a", "All experiments", href="#experiments")] if runs else []
    return tag(
        "header",
        tag("h1", TITLE),
        tag("p", tag("code", report.collection.root), f" · {' · '.join(facts)} · {made}", class_="about"),
        tag("nav", links, aria_label="Contents"),
        None if runs else tag("p", "There is no result here yet. The commands below make some."),
        _how_to_read(),
    )


def _how_to_read() -> Html:
    terms = [
        ("96.55 ± 0.21", "top-1 in percent after the last epoch: mean and sample standard deviation over seeds"),
        ("best", "the best epoch, chosen on the evaluation images (or on held-out training images with val_split)"),
        ("published", f"the figure of {PUBLISHED['source']}; with a sign, how far above or below it the last epoch is"),
        (words.MARK, "other settings than the experiment's own in config/: never averaged with those, nor compared"),
        ("not run, go on", "open the command that fills the cell, or goes on with a run that was broken off"),
    ]  # fmt: skip
    meanings = tag("dl", [(tag("dt", term), tag("dd", meaning)) for term, meaning in terms])
    return _folded("help", "How to read the tables", meanings, class_="help")


def _damaged(report: Report) -> Html | None:
    if not report.collection.damaged:
        return None
    rows = [
        tag("li", tag("code", damaged.place), ": ", damaged.error)
        for damaged in sorted(report.collection.damaged, key=lambda damaged: damaged.place)
    ]
    return tag("section", tag("h2", "⚠ Files that cannot be read"), tag("ul", rows), class_="damaged", id="damaged")


# --- a data set ------------------------------------------------------------------------------------------------------


def _section(section: Section) -> Html:
    return tag(
        "section",
        tag("h2", section.scope.title),
        _table(section),
        tag("div", accuracy_strips(section), [_row_curves(section, row) for row in section.rows], class_="figures"),
        _variants(section),
        _other_methods(section),
        _costs(section),
        _supervision(section),
        id=_anchor(section.scope.anchor),
    )


def _unmeasured(sections: list[Section]) -> Html | None:
    if not sections:
        return None
    parts = [
        _folded(
            "data",
            f"{section.scope.title}: {words.plural(len(section.rows), 'pair')}",
            _table(section),
            _variants(section),
            _other_methods(section),
            id=_anchor(section.scope.anchor),
        )
        for section in sections
    ]
    return tag("section", tag("h2", "Nothing measured yet"), parts, id="unmeasured")


def _table(section: Section) -> Html:
    body = [
        tag(
            "tr",
            tag("th", row.label, scope="row"),
            [_cell(f"{row.key} {name}", column_title(name), row.cells.get(name)) for name in section.columns],
        )
        for row in section.rows
    ]
    return _scrolling(
        tag("table", _head(["Pair", *map(column_title, section.columns)]), tag("tbody", body), class_="accuracy"),
        section.scope.title,
    )


def _cell(key: str, title: str, cell: Cell | None) -> Html:
    if cell is None or cell.experiment is None:
        missing = tag("span", "-", title="no such experiment in config/")
        return tag("td", missing, data_column=title, class_="none")
    parts: list[Html] = [_group(cell, group) for group in cell.groups if group.is_protocol]
    if not parts and cell.published:
        parts.append(tag("p", "published ", words.published(cell.published), class_="published"))
    for run in cell.unfinished:
        parts.append(tag("p", "… ", words.unfinished(run), class_="unfinished"))
        parts.append(_fill(f"go on {run.place}", "go on", cell.continuations.get(run.place)))
    if cell.lacks_runs:
        parts.append(_fill(key, "not run", cell.command))
    parts += [_group(cell, group) for group in cell.groups if not group.is_protocol]
    return tag("td", parts, data_column=title)


def _fill(key: str, summary: str, command: str | None) -> Html | None:
    return _folded(key, summary, _command(command), class_="fill") if command else None


def _group(cell: Cell, group: Group) -> Html:
    top1 = group.statistic("top1")
    deviation = f" ± {top1.std:.2f}" if top1.std is not None else ""
    link = tag("a", tag("b", f"{top1.mean:.2f}"), deviation, href=f"#{_run_anchor(group.runs[0])}")
    how = words.runs(top1.count) if group.is_trained else "evaluated weights"
    lines = [tag("p", link, " ", tag("small", how), class_="value")]
    if top5 := words.top5(cell, group):
        lines.append(tag("p", "top-5 ", top5))
    if best := words.best(group):
        lines.append(tag("p", "best ", best))
    if published := cell.published_for(group):
        sign = words.difference(cell.difference(group))
        lines.append(tag("p", "published ", words.published(published), " ", tag("b", sign), class_="published"))
    if not group.marks:
        return join(lines)
    marks = tag("p", words.marked(group.marks), class_="marks")
    return tag("div", marks, lines, class_="variant")


def _variants(section: Section) -> Html | None:
    """Experiments with options for which the paper has a figure: what was measured, or the command."""
    if not section.variants:
        return None
    rows = []
    for variant in section.variants:
        here = [
            tag("p", tag("a", words.variant(variant, group), href=f"#{_run_anchor(group.runs[0])}"))
            for group in variant.groups
        ]
        here = here or [_fill(f"variant {variant.title}", "not run", variant.command)]
        cells = [tag("td", words.published(variant.published)), tag("td", here)]
        rows.append(tag("tr", tag("th", tag("code", variant.title), scope="row"), cells))
    table = tag("table", _head(words.VARIANT_TITLES), tag("tbody", rows), class_="words")
    return _folded("variants", "Published variants: ablations and controls", _scrolling(table, "published variants"))


def _other_methods(section: Section) -> Html | None:
    names = section.other_methods
    if not names:
        return None
    rows = []
    for row in section.rows:
        pair = PUBLISHED["pairs"].get(row.prefix, {})
        values = [pair[name]["top1"] if name in pair else None for name in names]
        if pair:
            cells = [tag("td", "-" if value is None else f"{value:.2f}") for value in values]
            rows.append(tag("tr", tag("th", row.label, scope="row"), cells))
    table = tag("table", _head(["Pair", *names]), tag("tbody", rows))
    source = tag(
        "p", f"Top-1 in percent as printed in {PUBLISHED['source']}. None of them was run here.", class_="note"
    )
    return _folded("other methods", "Other published methods", source, _scrolling(table, "other published methods"))


def _row_curves(section: Section, row: Row) -> Html | None:
    """Every group and unfinished run of a pair; those with other settings look unlike the method's own."""
    series = []
    others = count()
    for position, column in enumerate(section.columns):
        cell = row.cells.get(column, Cell(None))
        for group in cell.groups:
            name = column_title(column) + (f", {words.runs(len(group.runs))}" if len(group.runs) > 1 else "")
            if group.marks:
                marks = words.marked(group.marks)
                series.append(
                    Series(f"{name} {marks}", f"{column} {marks}", other_style(next(others)), list(group.runs))
                )
            else:
                series.append(Series(name, column, style_of(column, position), list(group.runs)))
        for run in cell.unfinished:
            name = f"{column_title(column)}, {words.unfinished(run)}"
            series.append(Series(name, f"{column} {run.place}", other_style(next(others)), [run]))
    return learning_curves(row.label, row.key, series)


def _costs(section: Section) -> Html | None:
    """What networks and trainings cost."""
    devices = section.by_device()
    if not devices:
        return None
    bodies = [
        tag(
            "tbody",
            tag("tr", tag("th", f"On {device}", colspan=len(words.COST_TITLES), scope="rowgroup", class_="device")),
            [_linked_row(group.runs[0], words.costs(group), group.marks) for group in groups],
        )
        for device, groups in devices.items()
    ]
    table = tag("table", _head(words.COST_TITLES), bodies)
    note = "Times and throughputs are means over the runs of one device; those of different devices do not compare."
    return join(tag("h3", "Cost"), _scrolling(table, "cost"), tag("p", note, class_="note"))


def _supervision(section: Section) -> Html | None:
    if not section.supervision:
        return None
    rows = [_linked_row(run, words.supervision(run), []) for run in section.supervision]
    table = tag("table", _head(words.SUPERVISION_TITLES), tag("tbody", rows), class_="words")
    return join(tag("h3", "Supervision"), _scrolling(table, "supervision"))


def _linked_row(run: Run, cells: list[str], marks: list[str]) -> Html:
    link = tag("a", run.experiment, href=f"#{_run_anchor(run)}")
    marked = tag("p", words.marked(marks), class_="marks") if marks else None
    return tag("tr", tag("th", link, marked, scope="row"), [tag("td", cell) for cell in cells])


# --- an experiment ---------------------------------------------------------------------------------------------------


def _experiments(report: Report) -> Html | None:
    experiments: dict[str, list[Run]] = defaultdict(list)
    for run in report.collection.runs:
        experiments[_run_anchor(run)].append(run)
    if not experiments:
        return None
    return tag(
        "section",
        tag("h2", "All experiments"),
        [_experiment(anchor, runs) for anchor, runs in experiments.items()],
        id="experiments",
    )


def _experiment(anchor: str, runs: list[Run]) -> Html:
    first = runs[0]
    trained = [run for run in runs if run.mode not in SUPERVISION]
    groups = group_runs(measured_runs(trained))
    headline = words.percent(groups[0].statistic("top1")) + " %" if groups else None
    marks = f"{words.MARK} " if groups and groups[0].marks else ""
    branch = f" in {first.branch}" if first.branch != Path() else ""
    kinds = sorted({"codebook" if run.mode == "kmeans" else "decision scores" for run in runs if run not in trained})
    about = ", ".join([*([words.runs(len(trained))] if trained else []), *kinds])
    return tag(
        "details",
        tag(
            "summary",
            tag("span", first.experiment, branch, class_="name"),
            tag("span", about, class_="about"),
            tag("span", marks, headline, class_="headline") if headline else None,
        ),
        _run_table(trained, groups),
        _measurements(trained),
        _experiment_curves(trained, groups),
        tag("div", [_picture(picture) for run in runs for picture in run.pictures], class_="pictures"),
        _settings(runs),
        id=anchor,
        class_="experiment",
    )


def _run_table(runs: list[Run], groups: list[Group]) -> Html | None:
    if not runs:
        return None
    repeated = {run.place for group in groups for run in group.repeated}
    rows = []
    for run in runs:
        facts = run.facts
        status = words.state(run)
        status += "; not counted: its seed is among the trials" if run.place in repeated else ""
        marks = marks_of(run)
        best = "-"
        if run.mode == "train" and facts.get("best_top1") is not None:
            best = f"{facts['best_top1']:.2f} ({facts.get('best_epoch')})"
        top5 = _float(facts.get("top5")) if run.has_top5 else None
        cells = [
            facts.get("seed"), words.value(_float(facts.get("top1"))), best, words.value(top5),
            words.duration(facts.get("seconds")), words.count(facts.get("images_per_second")), run.device,
            words.marked(marks) if marks else "own settings", status,
            tag("time", words.moment(run)), words.commit(run),
        ]  # fmt: skip
        rows.append(tag("tr", tag("th", tag("code", run.place), scope="row"), [tag("td", cell) for cell in cells]))
    titles = (
        "Directory", "Seed", "Last epoch", "Best (epoch)", "Top-5", "Time", "Img/s", "Device", "Settings", "State",
        "Written (UTC)", "Commit",
    )  # fmt: skip
    return _scrolling(tag("table", _head(titles), tag("tbody", rows), class_="runs"), "runs")


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _measurements(runs: list[Run]) -> Html | None:
    """What evaluations, linear probes and exports measured."""
    rows = []
    for kind, part in (("Evaluation", "evaluations"), ("Linear probe", "linear_probe"), ("Export", "exports")):
        for run in runs:
            for name, measured in (run.facts.get(part) or {}).items():
                cells = [tag("td", cell) for cell in (name, tag("code", run.place), words.measured(measured))]
                rows.append(tag("tr", tag("th", kind, scope="row"), cells))
    if not rows:
        return None
    head = _head(("Measured", "Weights", "Directory", "Figures"))
    table = tag("table", head, tag("tbody", rows), class_="words figures-of-weights")
    return _scrolling(table, "measurements")


def _experiment_curves(runs: list[Run], groups: list[Group]) -> Html | None:
    """One line a run where the figure of the pair shows means of several; else that figure has them already."""
    if all(len(group.runs + group.repeated) == 1 for group in groups):
        if not any(run.courses for run in runs):
            return None
        scope = scope_of(runs[0])
        return tag("p", "Learning curves: ", tag("a", scope.title, href=f"#{_anchor(scope.anchor)}"), class_="note")
    has_trials = any(run.trial is not None for run in runs)
    names = [f"seed {run.facts.get('seed')}{' (no trial)' * (has_trials and run.trial is None)}" for run in runs]
    series = [
        Series(name, str(run.place), i % NUM_STYLES, [run])
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    return tag("div", learning_curves("Every run", "runs", series), class_="figures")


def _picture(picture: Picture) -> Html:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = tag("img", src=f"data:image/png;base64,{data}", alt=picture.title, loading="lazy")
    return tag("figure", tag("div", image), tag("figcaption", tag("b", picture.title), " ", picture.caption))


def _settings(runs: list[Run]) -> list[Html]:
    """What has to be known to do a run again, trainings first; once for runs that differ in nothing but their seed."""
    places: dict[Html, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.mode in SUPERVISION):
        places[_settings_of(run)].append(run)
    return [
        _folded(
            f"settings {alike[0].place}",
            join(
                "Settings, versions and command of ",
                [(", " * bool(i), tag("code", run.place)) for i, run in enumerate(alike)],
            ),
            settings,
            class_="settings",
        )
        for settings, alike in places.items()
    ]


def _settings_of(run: Run) -> Html:
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in (environment.get("versions") or {}).items())
    machine = ", ".join(str(environment[key]) for key in ("cpu", "machine") if environment.get(key))
    cpus = f"{environment['cpus']} CPUs" if environment.get("cpus") else None
    facts = [
        ("Job", JOBS[run.mode]),
        ("Command", _command(f"python {run.facts['command']}") if run.facts.get("command") else None),
        ("Commit", words.commit(run)),
        ("Device", run.facts.get("device")),
        ("Machine", ", ".join(part for part in (machine, cpus) if part) or None),
        ("Versions", ", ".join(part for part in (f"Python {environment.get('python', '?')}", versions) if part)),
    ]
    changed = run.changed
    differing = [
        tag("tr", tag("th", tag("code", key), scope="row"), tag("td", tag("mark", shown(new))), tag("td", shown(own)))
        for key, (own, new) in changed.items()
    ]
    rows = [
        tag(
            "tr",
            tag("th", tag("code", key), scope="row"),
            tag("td", tag("mark", shown(value)) if key in changed else shown(value)),
        )
        for key, value in run.options.items()
        if key not in SEEDS
    ]
    head = _head(("Differs from config/", "This run", "Own setting"))
    return join(
        tag("dl", [(tag("dt", name), tag("dd", told)) for name, told in facts if told]),
        _scrolling(tag("table", head, tag("tbody", differing), class_="words"), "changed") if differing else None,
        tag("table", tag("tbody", rows), class_="words options") if rows else None,
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _folded(key: str, summary: Any, *content: Any, **attributes: Any) -> Html:
    """Something that opens with a click; `key` is its own within what has an id, so that a reloaded page knows it."""
    return tag("details", tag("summary", summary), *content, data_key=key, **attributes)


def _command(text: str) -> Html:
    """A command line; a click selects all of it."""
    return tag("code", text, class_="command", tabindex=0)


def _head(titles: Iterable[str]) -> Html:
    return tag("thead", tag("tr", [tag("th", title, scope="col") for title in titles]))


def _scrolling(table: Html, name: str) -> Html:
    """A table in a box of its own, which scrolls where the screen is too narrow."""
    return tag("div", table, class_="scrolling", role="region", tabindex=0, aria_label=f"table: {name}")


def _run_anchor(run: Run) -> str:
    return _anchor("-".join(["experiment", *run.branch.parts, run.experiment]))


def _anchor(text: str) -> str:
    """A name that can stand in an address."""
    return re.sub(r"[^\w.-]+", "-", text)
