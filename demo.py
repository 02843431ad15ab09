"""The whole chain on two-digit numbers: teacher, supervision, then every method with three seeds, and what came out.

    make demo            or            python demo.py [localpath=DIR] [any other option, for every command]

What stands behind a `$` is a command that can be typed as it stands. The steps are done in a process for each core, of
one thread each. After Ctrl-C the same command goes on: what has been trained is not trained again. docs/demo.md has the
protocol, and what can be seen.
"""

import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from scipy.stats import ttest_ind  # comes with scikit-learn, which loads it in every process unless it is there

import main_classification
from algorithms.chain import Step, StepError, carry_out
from algorithms.trials import check_alike
from config.options import Options
from engine.records import RESULTS, set_up_console
from results.places import output_directory
from storage.documents import load_json

ROOT = "experiments"
TEACHER, STUDENT, PAIR = "numbers.RN14", "numbers.RN8", "numbers.RN14_RN8"
METHODS = ("KD", "QuEST", "letKD-1", "letKD-2")
OWN = ("letKD-1", "letKD-2")  # what the closing sentence is about
NUM_SEEDS = 3
MOST_PROCESSES = 4
# Seconds of processor time that a step takes, as measured (experiments/README.md): for the order and the time left.
COSTS = {
    "teacher": 24.7, "words": 1.4, "decisions": 1.7, "alone": 9.3, "KD": 13.0, "QuEST": 13.9, "letKD-1": 13.6,
    "letKD-2": 21.0, "picture": 4.9, "report": 0.3,
}  # fmt: skip
LEVEL = 0.05  # of the test behind that sentence


class Row(NamedTuple):
    """A line of the table: a network, how it was trained, and its top-1 in percent with each seed."""

    network: str
    method: str
    top1: list[float]
    parameters: int


def chain(options: list[str]) -> list[Step]:
    """All steps, in their order.

    Trainings do what is left of them. The others are quick and done each time: so what supervises is always of the
    teacher that is there.
    """

    def command(*words: str, name: str | None = None) -> Callable[[], int]:
        return partial(run, name, [*words, *options])

    teacher, student, last = f"config={TEACHER}", f"config={STUDENT}", f"config={PAIR}.{METHODS[-1]}"
    supervision = {"KD": ("teacher",)}  # what a method needs, where it is not all
    steps = [Step("teacher", command(teacher, "checkpoint=-1"), cost=COSTS["teacher"])]
    steps += [
        Step(f"alone seed {seed}", command(student, f"seeds=[{seed}]"), cost=COSTS["alone"])
        for seed in range(NUM_SEEDS)
    ]
    steps += [
        Step("words", command(teacher, "kmeans=128"), ("teacher",), COSTS["words"]),
        Step("decisions", command(teacher, "LDA=5"), ("teacher",), COSTS["decisions"]),
    ]
    steps += [
        Step(
            f"{method} seed {seed}",
            command(f"config={PAIR}.{method}", f"seeds=[{seed}]"),
            supervision.get(method, ("words", "decisions")),
            COSTS[method],
        )
        for method in sorted(METHODS, key=COSTS.__getitem__, reverse=True)  # so that processes end at about one time
        for seed in range(NUM_SEEDS)
    ]
    picture = command(last, "seeds=[0]", name="picture_templates")
    steps.append(Step("picture", picture, (f"{METHODS[-1]} seed 0",), COSTS["picture"]))
    report = partial(run, "report", [word for word in options if word.startswith("localpath=")])  # no training's option
    steps.append(Step("report", report, tuple(step.title for step in steps), COSTS["report"]))
    return steps


def num_processes() -> int:
    """As many as torch would take threads, one for each core."""
    return min(torch.get_num_threads(), MOST_PROCESSES)


def run(name: str | None, words: list[str]) -> int:
    """One command of the entry, in this process. Returns the exit status."""
    argv = ["main_classification.py", *filter(None, [name]), *["with"] * bool(words), *words]
    print(f"$ python {shlex.join(argv)}", flush=True)
    sys.argv = argv  # what the run records as its command
    return main_classification.main(argv)


def collect(root: Path) -> list[Row]:
    """The lines of the table, the teacher first.

    Raises:
        ValueError: the seeds of a method have other settings, or another teacher or other words have taught them.
    """
    taught = load_json(output_directory(root, TEACHER, "train") / RESULTS)
    rows = [Row(taught["options"]["network"], "alone", [taught["top1"]], taught["parameters"])]
    for method in ("alone", *METHODS):
        folder = output_directory(root, STUDENT if method == "alone" else f"{PAIR}.{method}", "train")
        seeds = [load_json(folder / f"seed{seed}" / RESULTS) for seed in range(NUM_SEEDS)]
        own = seeds[0]["options"]
        check_alike(Options.of(own), list(range(NUM_SEEDS)), is_prepared=False)
        network = own.get("student") or own["network"]
        rows.append(Row(network, method, [one["top1"] for one in seeds], seeds[0]["parameters"]))
    return rows


def table(rows: list[Row]) -> str:
    """Means and sample standard deviations, in aligned columns."""
    lines = [("network", "method", "top-1 %", "deviation", "seeds", "parameters")]
    for row in rows:
        deviation = f"{statistics.stdev(row.top1):.2f}" if len(row.top1) > 1 else "-"
        mean = f"{statistics.fmean(row.top1):.2f}"
        lines.append((row.network, row.method, mean, deviation, str(len(row.top1)), f"{row.parameters:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def sentence(rows: list[Row]) -> str:
    """Which of the other methods letKD is above, below, or not told apart from (Welch's t-test, both sides)."""
    top1 = {row.method: row.top1 for row in rows[1:]}
    found = []
    for own in (method for method in top1 if method in OWN):
        verdicts: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        for other in (method for method in top1 if method not in OWN):
            difference = statistics.fmean(top1[own]) - statistics.fmean(top1[other])
            is_clear = ttest_ind(top1[own], top1[other], equal_var=False).pvalue < LEVEL
            verdict = "not told apart from" if not is_clear else "above" if difference > 0 else "below"
            verdicts[verdict].append(f"{'the student alone' if other == 'alone' else other} ({difference:+.2f})")
        said = [f"{verdict} {listed(others)}" for verdict, others in verdicts.items() if others]
        found.append(f"{own} is {', '.join(said)}")
    return f"With {NUM_SEEDS} seeds each, by Welch's t-test at {LEVEL:.0%}: {'; '.join(found)}."


def listed(names: list[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def main(options: list[str]) -> int:
    """Carry out the chain and say what came out, or what it is where that is asked. Returns the exit status."""
    if main_classification.HELP.intersection(options):
        print(__doc__.strip())
        return 0
    start = time.perf_counter()
    set_up_console()
    goes_on = f"the whole goes on with: {shlex.join(['python', 'demo.py', *options])}"
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        carry_out(chain(options), num_processes())
    except StepError as error:
        print(f"{error}; {goes_on}", file=sys.stderr)
        return error.status if error.status > 0 else 1
    except KeyboardInterrupt as stop:
        print(f"stopped; {goes_on}", file=sys.stderr)
        return 143 if isinstance(stop, main_classification.Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    place = [word for word in options if word.startswith("localpath=")]
    root = Path(place[-1].removeprefix("localpath=") if place else ROOT)
    try:
        rows = collect(root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    picture = output_directory(root, f"{PAIR}.{METHODS[-1]}", "train") / "seed0" / "pictures" / "templates.png"
    print(f"\nTwo-digit numbers, top-1 of the last epoch; this command took {time.perf_counter() - start:.0f} s\n")
    print(f"{table(rows)}\n\n{sentence(rows)}\n")
    print(f"All runs:  {(root / 'report' / 'index.html').resolve().as_uri()}")
    print(f"A picture: {picture.resolve().as_uri()}")
    return 0


def terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM, as the entry takes it."""
    raise main_classification.Terminated


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
