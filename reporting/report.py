"""Reads everything below a `localpath` and writes `report/index.html` and `report/report.md` there."""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from reporting import markdown, page
from reporting.tables import Report, build
from results.collect import Config, Damaged, collect
from storage.documents import write_atomically

FOLDER = "report"


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
    found.damaged += [Damaged(Path(file), error) for file, error in unreadable.items()]
    report = build(found, experiments)
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    texts = {
        "index.html": page.render(report, made=made, command=command, refresh=refresh),
        "report.md": markdown.render(report, made=made),
    }
    for name, text in texts.items():
        content = text.encode(errors="backslashreplace")  # names of files in no encoding, and what JSON can hold
        write_atomically(root / FOLDER / name, lambda file, content=content: file.write(content))
    return report
