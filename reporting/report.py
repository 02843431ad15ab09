"""Reads everything below a `localpath` and writes `report/index.html` and `report/report.md` there."""

import datetime
import functools
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reporting.content import content_of, study_part
from reporting.studies import aligned, study_tables
from reporting.tables import Report, build
from results.collect import Config, Damaged, collect
from storage.documents import write_atomically

FOLDER = "report"
# Markdown's own signs; underscores and brackets only where they would be such.
SPECIAL = re.compile(r"[&<|`*~\\]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(")
TEMPLATES = {"index.html": "page.html.j2", "report.md": "report.md.j2"}
STUDY_TEMPLATE, STUDY_TABLES = "study.md.j2", "tables.md"


def write_report(
    root: Path,
    experiments: dict[str, Config],
    *,
    command: str,
    composed: Callable[[str], Config | None] = lambda name: None,
    unreadable: Mapping[str, str] = MappingProxyType({}),
    refresh: int | None = None,
) -> Report:
    """Write both files.

    Args:
        root: the `localpath` of the runs.
        experiments: all experiments of config/ and their options before anything is overridden, by name.
        composed: the same of a sum of methods that has no module in config/, asked for those that have been run; None
            for what is no experiment.
        command: the command line that this is, for the page.
        unreadable: files of config/ that cannot be loaded, and why.
        refresh: the page loads itself again every so many seconds.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}; localpath= names the one with the outputs of runs")
    experiments = dict(experiments)

    def own(name: str) -> Config | None:
        if name not in experiments and (config := composed(name)) is not None:
            experiments[name] = config
        return experiments.get(name)

    found = collect(root, own)
    for name in {str(run.options["config"]) for run in found.runs if run.has_own_name}:
        own(name)  # whose settings those of a name of its own may be
    found.damaged += [Damaged(Path(file), error) for file, error in unreadable.items()]
    report = build(found, experiments)
    content = content_of(report)
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    for name, template in TEMPLATES.items():
        shown = {"content": content, "made": made, "command": command, "refresh": refresh}
        _write(root / FOLDER / name, template, shown)
    return report


def write_study(directory: Path, study: Config) -> str:
    """Write what a study has found as Markdown beside its `study.json`; returns it as a terminal shows it.

    Args:
        study: what that holds.
    """
    _write(directory / STUDY_TABLES, STUDY_TEMPLATE, {"part": study_part(study), "study": study})
    return "\n\n".join(map(aligned, study_tables(study)))


def _write(path: Path, template: str, shown: dict[str, Any]) -> None:
    rendered = _environment(template).get_template(template).render(shown)
    # Some names of files are in no encoding, and JSON can hold what none can.
    data = rendered.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(data))


@functools.cache
def _environment(template: str) -> Environment:
    """Where templates escape all that they show, as HTML or as Markdown."""
    environment = Environment(
        loader=PackageLoader("reporting"),
        autoescape=True,
        finalize=escape_markdown if template.endswith(".md.j2") else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "block": code_block}
    return environment


def escape_markdown(value: Any) -> Markup:
    """Text that is neither markup nor ends a cell or a line; what is markup already stays."""
    if isinstance(value, Markup):
        return value
    escaped = SPECIAL.sub(lambda found: f"&#{ord(found[0])};", str(value))
    return Markup(re.sub(r"[\x00-\x1f\x7f]", " ", escaped))


def code(value: Any) -> Markup:
    """Markdown in the font of code."""
    escaped = escape_markdown(value)
    return Markup(f"`{escaped}`" if escaped == str(value) else f"<code>{escaped}</code>")


def code_block(lines: list[str]) -> Markup:
    """Lines that Markdown shows as they stand: indented ones."""
    return Markup("\n".join(textwrap.indent(line, "    ", predicate=lambda part: True) for line in lines))
