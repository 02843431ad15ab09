"""The report as Markdown: the same tables, without curves, pictures and lists of options."""

from collections.abc import Iterable

from reporting import words
from reporting.charts import column_title
from reporting.tables import PUBLISHED, Cell, Group, Report, Section, marks_of
from results.collect import SUPERVISION


def render(report: Report, *, made: str) -> str:
    """The Markdown file.

    Args:
        made: when, in words.
    """
    parts = [f"# Experiments in {_safe(report.collection.root)}", f"Written {made}. {_how_to_read()}", _damaged(report)]
    for section in report.sections:
        if section.has_runs:
            parts += [f"## {_safe(section.scope.title)}", _accuracies(section), _variants(section), *_costs(section)]
            parts.append(_supervision(section))
    parts += [_exports(report), _runs(report), _missing(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_to_read() -> str:
    return (
        "Top-1 in percent after the last epoch, mean ± sample standard deviation over seeds; then the best epoch, and "
        f"what was published with the difference ({PUBLISHED['source']}). {words.MARK} marks other settings than the "
        "experiment's own in config/, which are never averaged with those nor compared."
    )


def _damaged(report: Report) -> str | None:
    if not report.collection.damaged:
        return None
    lines = [f"- `{_safe(damaged.place)}`: {_safe(damaged.error)}" for damaged in report.collection.damaged]
    return "\n".join(["**Files that cannot be read**", "", *lines])


def _accuracies(section: Section) -> str:
    rows = [[_safe(row.label), *(_cell(row.cells.get(column)) for column in section.columns)] for row in section.rows]
    return _table(["Pair", *(_safe(column_title(column)) for column in section.columns)], rows)


def _cell(cell: Cell | None) -> str:
    if cell is None or cell.experiment is None:
        return "-"
    lines = [_group(cell, group) for group in cell.groups]
    lines += [f"… {words.unfinished(run)}" for run in cell.unfinished]
    if cell.lacks_runs:
        published = f" (published {words.published(cell.published)})" if cell.published else ""
        lines.insert(0, f"not run{published}")
    return "<br>".join(map(_safe, lines))


def _group(cell: Cell, group: Group) -> str:
    top1 = group.statistic("top1")
    parts = [words.runs(top1.count) if group.is_trained else "evaluated weights"]
    if top5 := words.top5(cell, group):
        parts.append(f"top-5 {top5}")
    if best := words.best(group):
        parts.append(f"best {best}")
    if published := cell.published_for(group):
        parts.append(f"published {words.published(published)}, {words.difference(cell.difference(group))}")
    mark = f"{words.marked(group.marks)}: " if group.marks else ""
    return f"{mark}{words.percent(top1)} ({'; '.join(parts)})"


def _variants(section: Section) -> str | None:
    rows = [
        [
            f"`{_safe(variant.title)}`",
            words.published(variant.published),
            "<br>".join(_safe(words.variant(variant, group)) for group in variant.groups) or "not run",
        ]
        for variant in section.variants
    ]
    return _table(words.VARIANT_TITLES, rows) if rows else None


def _costs(section: Section) -> list[str]:
    parts = []
    for device, groups in section.by_device().items():
        rows = [_cost_row(group) for group in groups]
        parts += [f"Cost, measured on {_safe(device)}:", _table(words.COST_TITLES, rows)]
    return parts


def _cost_row(group: Group) -> list[str]:
    marks = f" {words.marked(group.marks)}" if group.marks else ""
    return [_safe(group.experiment + marks), *words.costs(group)]


def _supervision(section: Section) -> str | None:
    rows = [[*map(_safe, (run.experiment, *words.supervision(run)))] for run in section.supervision]
    return _table(words.SUPERVISION_TITLES, rows) if rows else None


def _exports(report: Report) -> str | None:
    rows = [
        [_safe(run.experiment), _safe(name), _safe(words.measured(figures))]
        for run in report.collection.runs
        for name, figures in (run.facts.get("exports") or {}).items()
    ]
    return f"## Exported networks\n\n{_table(['Experiment', 'File', 'Figures'], rows)}" if rows else None


def _runs(report: Report) -> str | None:
    rows = []
    for run in report.collection.runs:
        if run.mode in SUPERVISION:
            continue
        facts = run.facts
        last, best = (words.value(facts.get(key)) for key in ("top1", "best_top1"))
        marks = words.marked(marks_of(run)) if marks_of(run) else "own settings"
        cells = [f"`{run.place}`", facts.get("seed"), last, best, marks, words.state(run), words.commit(run)]
        rows.append([_safe(cell) for cell in cells])
    titles = ["Directory", "Seed", "Last epoch", "Best", "Settings", "State", "Commit"]
    return f"## Runs\n\n{_table(titles, rows)}" if rows else None


def _missing(report: Report) -> str | None:
    """The commands for the empty and unfinished cells of the data sets that something was measured of."""
    sections = [section for section in report.sections if section.has_runs]
    cells = [cell for section in sections for row in section.rows for cell in row.cells.values()]
    fill = [cell.command for cell in cells if cell.command and cell.lacks_runs]
    fill += [variant.command for section in sections for variant in section.variants if not variant.groups]
    go_on = [command for cell in cells for command in cell.continuations.values()]
    others = [section.scope.title for section in report.sections if not section.has_runs]
    parts = []
    for title, told, commands in (
        ("Not finished", "These commands go on with runs that were broken off:", go_on),
        ("Not run", "These commands fill the empty cells:", fill),
    ):
        if commands:
            lines = "\n".join(f"    {command}" for command in dict.fromkeys(commands))
            parts.append(f"## {title}\n\n{told}\n\n{lines}")
    if others:
        parts.append(f"Nothing has been measured of {', '.join(others)}; index.html has their commands.")
    return "\n\n".join(parts) or None


def _table(titles: Iterable[str], rows: list[list[str]]) -> str:
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _safe(text: object) -> str:
    """Text that is neither markup nor ends a cell."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
