"""Numbers and facts as text."""

import datetime
from collections.abc import Callable
from typing import Any

from reporting.tables import STUDENT, TEACHER, Group, Published, Statistic, marks_of, shown
from results.collect import Config, Run
from results.settings import SPLITS, num_images

TIMES = "\N{MULTIPLICATION SIGN}"
MARK = "◇"  # before settings that are not the defaults
DEFAULTS = "defaults"
NUM_LEAST = 3  # classes that are named
NO_CLASSIFIER = "untrained classifier"  # beside an accuracy that says nothing


def marked(marks: list[str]) -> str:
    return f"{MARK} {', '.join(marks)}" if marks else ""


def column_title(column: str) -> str:
    return {TEACHER: "Teacher", STUDENT: "Student alone"}.get(column, column)


def number(value: float) -> str:
    """Four digits that matter, in as few letters as possible."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def percent(found: Statistic | None) -> str:
    """Mean and deviation of accuracies in percent."""
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + (f" ± {found.std:.2f}" if found.std is not None else "")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def num_runs(group: Group) -> str:
    return plural(group.statistic("top1").count, "run") if group.is_trained else "evaluation only"


def published(found: Published) -> str:
    return percent(Statistic(found.top1, found.std, 1)) + (f" / {found.top5:.2f}" if found.top5 is not None else "")


def compared(found: Published, difference_: float | None) -> str:
    """A published figure with its kind, and what was measured against it."""
    told = f"published {published(found)} ({kind(found)})"
    if difference_ is None:
        return told
    return f"{told}, {difference(difference_)}" + (" at the best epoch" if found.epoch == "best" else "")


def kind(found: Published) -> str:
    """Whose figure it is, of how many runs and of which epoch: `CRD, 5 runs, last epoch`."""
    copied = ["copied"] * found.copied
    runs = [plural(found.runs, "run")] * bool(found.runs)
    return ", ".join([found.source, *copied, *runs, f"{found.epoch} epoch" if found.epoch else "epoch not said"])


def larger(group: Group) -> str:
    """By how much a student is larger than the plain network; nothing where it is not."""
    whole, bare = (group.statistic(key) for key in ("parameters", "parameters_without_kd_layers"))
    if whole is None or bare is None or whole.mean <= bare.mean:
        return ""
    more = whole.mean - bare.mean
    return f"larger student: {more:,.0f} parameters more (+{100 * more / bare.mean:.1f} %)"


def difference(value: float) -> str:
    """Percentage points, with a sign that is wide enough to be seen."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def best(group: Group, of: str = "") -> str:
    """The best epoch of a training; with several seeds its mean.

    Args:
        of: "average_" for the average of the weights.
    """
    found = group.statistic(f"best_{of}top1")
    if not group.is_trained or found is None:
        return ""
    key = f"best_{of}epoch"
    epochs = sorted({run.facts[key] for run in group.runs if run.facts.get(key) is not None})
    if not epochs:
        return f"best {percent(found)}"
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return f"best {percent(found)} (epoch\N{NO-BREAK SPACE}{span})"


def average(group: Group) -> str:
    """The average of the weights after the last epoch and in its best; nothing where a run has none."""
    found = group.statistic("average_top1")
    return ", ".join(part for part in (f"average {percent(found)}", best(group, "average_")) if part) if found else ""


def state(run: Run) -> str:
    """What has become of a run."""
    done = {"evaluate": "evaluated", "probe": "probed", "layers": "measured", "export": "exported"}
    return done.get(run.mode, "finished") if run.finished else progress(run)


def progress(run: Run) -> str:
    """How far an unfinished run is."""
    facts = run.facts
    told = f"{facts.get('state', 'unfinished')}, epoch {facts.get('epoch', 0)} of {facts.get('epochs', '?')}"
    if facts.get("best_top1") is not None and (facts.get("epoch") or 0) > 0:
        told += f", best so far {facts['best_top1']:.2f}"
    return told


def unfinished(run: Run) -> str:
    """The same with its seed, where it is a trial."""
    return f"seed {run.trial}: {progress(run)}" if run.trial is not None else progress(run)


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def million(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f}\N{NO-BREAK SPACE}M"


def ratio(value: float | None, base: float | None) -> str:
    """How many times a network without KD layers; nothing where it has none."""
    return f" ({TIMES}{value / base:.2f})" if value and base and value != base else ""


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f}\N{NO-BREAK SPACE}s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))


def moment(run: Run) -> str:
    """When its file was written, to the minute, in the time zone it has."""
    return str(run.facts.get("finished") or run.facts.get("updated") or "-")[:16].replace("T", " ")


def commit(run: Run) -> str:
    found = run.environment.get("commit")
    if not isinstance(found, dict) or not found.get("id"):
        return "not recorded"
    return str(found["id"])[:12] + (", with uncommitted changes" if found.get("dirty") else "")


def settings(run: Run) -> str:
    own = [f"{key}={shown(now)}" for key, (_, now) in run.beside.items()]
    made_of = f"{run.options['config']} with {', '.join(own)}" if own else ""
    return "; ".join(part for part in (made_of, marked(marks_of(run))) if part) or DEFAULTS


def value(found: Any, form: str = ",.2f") -> str:
    """A figure of a measurement, or whatever stands in its place."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "-" if found is None else str(found)
    return f"{found:,}" if isinstance(found, int) else format(found, form)


def _least_accurate(accuracies: dict[str, float | None]) -> str:
    """The classes with the lowest accuracies."""
    known = sorted((accuracy, name) for name, accuracy in accuracies.items() if accuracy is not None)
    return f"least accurate {', '.join(f'{name} {value(accuracy)}' for accuracy, name in known[:NUM_LEAST]) or '-'}"


def measured(figures: Config) -> str:
    """The figures of one measurement; sizes and latencies of exported files have their units."""
    forms: dict[str, Callable[[Any], str]] = {
        "bytes": lambda size: f"{size / 1000:,.0f} kB",
        "milliseconds_batch_1": lambda time: f"{time:.2f} ms for 1 image",
        "milliseconds_batch_64": lambda time: f"{time:.2f} ms for 64",
        "largest_difference": lambda found: f"largest difference {value(found, '.1e')}",
        "changed": lambda changed: f"changed settings: {', '.join(changed)}",
        "macro_f1": lambda found: f"macro-F1 {value(found)}",
        "class_accuracies": _least_accurate,
        "num_images": lambda found: ", ".join(
            f"{number:,} {SPLITS[split]}" for split, number in num_images({"num_images": found}).items()
        ),
        "layers": lambda found: f"KD layers: {', '.join(found)}",
    }
    return ", ".join(
        forms[key](found) if key in forms and found is not None else f"{key.replace('_', ' ')} {value(found)}"
        for key, found in figures.items()
    )
