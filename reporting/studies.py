"""What a study has found, as tables of text: its methods compared, and what a search has chosen by."""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from reporting import text
from results.collect import Config
from results.settings import SPLITS, num_images
from results.studies import CONFIDENCE, DONE, FEWEST_SEEDS, TAUGHT_BY, Paired, is_untrained, paired, top1_of

NONE = "-"
NOISE = "within the noise of seeds"
AVERAGE = "average_top1"


class StudyTable(NamedTuple):
    """The first cell of a row is its heading."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def study_tables(study: Config) -> list[StudyTable]:
    """What `study.json` says."""
    return [_comparison(study), *([_search(study)] if study.get("search") else [])]


def aligned(table: StudyTable) -> str:
    """For a terminal; the last column, which may be long, as it is."""
    rows = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths[:-1]] + ["-" * len(table.columns[-1])])
    lines = ("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows)
    return "\n".join([table.title, "", *lines, "", *table.notes])


def _comparison(study: Config) -> StudyTable:
    against = study["against"]
    interval = f"{CONFIDENCE:.0%} interval"
    columns = ["method", "pair", "top-1 %", "deviation", "seeds", f"minus {against}", interval, "", "not done"]
    found = [_compared(member, study) for member in study["members"]]
    averages = [_compared(member, study, AVERAGE) for member in study["members"] if top1_of(member, AVERAGE)]
    epoch = "of the epoch that is best on held-out images" if _holds_out(study) else "after the last epoch"
    notes = [f"Top-1 in percent {epoch}: means and sample deviations over seeds."]
    if averages:
        notes.append(
            f"Rows of an average are of the average of the weights, beside those of the student itself; what is "
            f"subtracted from them is the average of {against}."
        )
    if compared := [difference for difference, _ in found + averages if difference is not None]:
        notes.append(" ".join(_of_differences([difference for difference in compared if difference.interval])))
    if untrained := dict.fromkeys(_method(member) for member in study["members"] if is_untrained(member)):
        notes.append(
            f"Nothing has trained the classifier of {', '.join(untrained)}: its top-1 says nothing, and nothing is "
            "compared with it. probe=True measures the features of its runs."
        )
    return StudyTable("Methods compared", columns, [row for _, row in found + averages], [*notes, *_others(study)])


def _of_differences(with_interval: list[Paired]) -> Iterator[str]:
    yield "Differences are of runs with the same seed."
    if with_interval:
        yield (
            f"{text.plural(len(with_interval), 'interval')} at {CONFIDENCE:.0%}, of Student's t, each by itself. Where "
            f"0 is in it, a gain is {NOISE}."
        )
    yield "Without an interval a difference says nothing of other seeds."


def _compared(member: Config, study: Config, figure: str = "top1") -> tuple[Paired | None, list[str]]:
    """The difference of a method from that which the others are compared with, and its row."""
    against, top1 = study["against"], top1_of(member, figure)
    base = next((one for one in study["members"] if (one["pair"], one["method"]) == (member["pair"], against)), None)
    is_compared = base is not None and member["method"] != against
    untrained = is_untrained(member) or (is_compared and is_untrained(base))
    found = paired(top1, top1_of(base, figure)) if is_compared and not untrained else None
    difference = [NONE, NONE, text.NO_CLASSIFIER if untrained else ""]
    if found is not None:
        difference = [text.difference(found.mean), _interval(found.interval), _verdict(found, len(top1))]
    is_average = figure == AVERAGE
    called = _method(member) + (", average of the weights" if is_average else "")
    lacking = "" if is_average else "; ".join(_lacking(member))
    return found, [called, member["pair"], *_mean(top1), *difference, lacking]


def _holds_out(study: Config) -> bool:
    """Whether the runs that are compared leave out `val_split` training images, which choose their epoch."""
    return bool(study.get("options", {}).get("val_split"))


def _search(study: Config) -> StudyTable:
    """Where the values of options come from."""
    search = study["search"]
    columns = ["method", "pair", "held-out top-1 %", "deviation", "seeds", "", "not done"]
    rows = [
        [
            _method(one),
            one["pair"],
            *_mean(top1_of(one)),
            "taken" if one.get("is_chosen") else "",
            "; ".join(_lacking(one)),
        ]
        for one in search["candidates"]
    ]
    return StudyTable(
        "Search",
        columns,
        rows,
        [
            f"Accuracy on {search['val_split']} training images after the last epoch, in runs that left them out; the "
            "highest mean over seeds is taken. No image of the evaluation has chosen anything, and the runs that are "
            "compared have trained on all training images."
        ],
    )


def _method(member: Config) -> str:
    return " ".join([member["method"], *(f"{key}={value}" for key, value in member["values"].items())])


def _mean(top1: dict[int, float]) -> list[str]:
    """Mean, deviation and number of runs."""
    if not top1:
        return [NONE, NONE, "0"]
    deviation = f"{statistics.stdev(top1.values()):.2f}" if len(top1) > 1 else NONE
    return [f"{statistics.fmean(top1.values()):.2f}", deviation, str(len(top1))]


def _interval(found: tuple[float, float] | None) -> str:
    return NONE if found is None else f"{text.difference(found[0])} to {text.difference(found[1])}"


def _verdict(found: Paired, num_runs: int) -> str:
    """What the interval says; and of how many runs it is, where that is not all."""
    said = NOISE if found.is_noise else "above" if found.mean > 0 else "below"
    if found.is_noise is None:
        seeds = "one seed" if found.count == 1 else f"{found.count} seeds"
        said = f"no interval: {seeds if found.count < FEWEST_SEEDS else 'all differences are equal'}"
    return said + (f", {found.count} of {num_runs} seeds" if found.count < num_runs else "")


def _lacking(member: Config) -> Iterator[str]:
    """The runs that are not there, with what they failed by."""
    for run in member["runs"]:
        if run["state"] != DONE:
            yield f"seed {run['seed']} {run['state']}" + (f": {run['error']}" if run.get("error") else "")


def _others(study: Config) -> Iterator[str]:
    """Pairs whose students have not been taught by the same weights, words, decisions or class means, or did not have
    the same numbers of images.
    """
    numbers: dict[tuple[str, str], set[int]] = {}
    for member in study["members"]:
        for run in member["runs"]:
            for split, number in num_images(run).items():
                numbers.setdefault((member["pair"], split), set()).add(number)
    for (pair, split), found in numbers.items():
        if len(found) > 1:
            listed = " and ".join(f"{number:,}" for number in sorted(found))
            yield f"{pair}: its runs had {listed} {SPLITS[split]}, so methods are not all that differs."
    fingerprints: dict[tuple[str, str], set[str]] = {}
    for member in study["members"]:
        for key, several in TAUGHT_BY.items():
            found = {run[key] for run in member["runs"] if run.get(key)}
            fingerprints.setdefault((member["pair"], several), set()).update(found)
    for (pair, several), found in fingerprints.items():
        if len(found) > 1:
            yield f"{pair}: {len(found)} different {several} have taught its runs, so methods are not all that differs."
