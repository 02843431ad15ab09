"""Numbers and facts in words, the same on the page and in the Markdown file."""

import datetime
from collections.abc import Callable
from typing import Any

from reporting.tables import Cell, Group, Published, Statistic, Variant, marks_of
from results.collect import Config, Run

TIMES = "\N{MULTIPLICATION SIGN}"
MARK = "◇"  # before whatever does not follow the experiment as it stands in config/


def marked(marks: list[str]) -> str:
    return f"{MARK} {', '.join(marks)}"


def percent(found: Statistic | None) -> str:
    """Mean and deviation of accuracies in percent."""
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + (f" ± {found.std:.2f}" if found.std is not None else "")


def runs(count: int) -> str:
    return plural(count, "run")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def published(found: Published) -> str:
    text = percent(Statistic(found.top1, found.std, 1))
    return text + (f" / {found.top5:.2f}" if found.top5 is not None else "")


def difference(value: float) -> str:
    """Percent points, with a sign that is wide enough to be seen."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def best(group: Group) -> str | None:
    """The best epoch of a training; with several seeds its mean."""
    found = group.statistic("best_top1")
    if not group.is_trained or found is None:
        return None
    epochs = sorted({run.facts["best_epoch"] for run in group.runs if run.facts.get("best_epoch") is not None})
    if not epochs:
        return percent(found)
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return f"{percent(found)} (epoch\N{NO-BREAK SPACE}{span})"


def state(run: Run) -> str:
    """What has become of a run."""
    done = {"evaluate": "evaluated", "probe": "probed", "export": "exported"}
    return done.get(run.mode, "finished") if run.finished else progress(run)


def progress(run: Run) -> str:
    """How far a run is that has not ended."""
    facts = run.facts
    told = f"{facts.get('state', 'unfinished')}, epoch {facts.get('epoch', 0)} of {facts.get('epochs', '?')}"
    if facts.get("best_top1") is not None and (facts.get("epoch") or 0) > 0:
        told += f", best so far {facts['best_top1']:.2f}"
    return told


def unfinished(run: Run) -> str:
    """The same with its settings, where these are not the experiment's own, and its seed, where it is a trial."""
    told = progress(run)
    if marks := marks_of(run):
        told += f" {marked(marks)}"
    return f"seed {run.trial}: {told}" if run.trial is not None else told


def top5(cell: Cell, group: Group) -> str | None:
    """Top-5 accuracy, where the paper has one to compare it with."""
    published_for = cell.published_for(group)
    if published_for is None or published_for.top5 is None:
        return None
    return percent(group.statistic("top5"))


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def million(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f} M"


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


def value(found: Any, form: str = ",.2f") -> str:
    """A figure of a measurement, or whatever stands in its place."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "-" if found is None else str(found)
    return f"{found:,}" if isinstance(found, int) else format(found, form)


def measured(figures: Config) -> str:
    """The figures of one measurement; sizes and latencies of exported files have their units."""
    forms: dict[str, Callable[[Any], str]] = {
        "bytes": lambda size: f"{size / 1000:,.0f} kB",
        "milliseconds_batch_1": lambda time: f"{time:.2f} ms for 1 image",
        "milliseconds_batch_64": lambda time: f"{time:.2f} ms for 64",
        "largest_difference": lambda found: f"off by {value(found, '.1e')} at most",
        "changed": lambda changed: f"otherwise than trained: {', '.join(changed)}",
    }
    return ", ".join(
        forms[key](found) if key in forms and found is not None else f"{key.replace('_', ' ')} {value(found)}"
        for key, found in figures.items()
    )


COST_TITLES = (
    "Experiment", "Parameters", "without KD layers", "Multiply-adds", "without KD layers", "Epochs", "Precision",
    "Training img/s", "Training time", "Evaluation img/s",
)  # fmt: skip


def costs(group: Group) -> list[str]:
    """What a group costs, below the titles behind the first of COST_TITLES."""

    def mean(key: str) -> float | None:
        found = group.statistic(key)
        return found.mean if found else None

    cells = []
    for key, form in (("parameters", count), ("multiply_adds", million)):
        whole, bare = mean(key), mean(f"{key}_without_kd_layers")
        cells += [form(whole) + ratio(whole, bare), form(bare)]
    cells += [count(mean("epochs")), group.runs[0].facts.get("precision") or "-"]
    if not group.is_trained:
        return [*cells, "-", "-", count(mean("images_per_second"))]
    speed, seconds, evaluation = map(mean, ("images_per_second", "seconds", "eval_images_per_second"))
    return [*cells, count(speed), duration(seconds), count(evaluation)]


VARIANT_TITLES = ("Published variant", "Published", "Here")


def variant(found: Variant, group: Group) -> str:
    """What runs of a published variant have reached, and how far that is from the paper."""
    top1 = group.statistic("top1")
    how = runs(top1.count) if group.is_trained else "evaluated weights"
    return f"{percent(top1)} ({how}, {difference(top1.mean - found.published.top1)})"


SUPERVISION_TITLES = ("Teacher", "Made", "Figure", "Patches", "Time", "Device")


def supervision(run: Run) -> list[str]:
    """A codebook or decision scores, below the titles behind the first of SUPERVISION_TITLES."""
    facts = run.facts
    if run.mode == "kmeans":
        made = f"{value(facts.get('words'))} words"
        figure = f"perplexity {value(facts.get('perplexity'))}"
    else:
        made = f"decision scores at {facts.get('tap')}, {value(facts.get('components'))} LDA components"
        figure = f"{value(facts.get('decided_for_own_class'))} % decided for their own class"
    return [made, figure, count(facts.get("patches")), duration(facts.get("seconds")), run.device]
