"""The whole chain on two-digit numbers: teacher, supervision, then every method with three seeds, and what came out.

    make demo            or            python demo.py [localpath=DIR] [any other option, for every command]

Each line that starts with `$` is a command that can be typed as it stands. After Ctrl-C the same command goes on: what
has been trained is not trained again. docs/demo.md has the protocol, and what can be seen.
"""

import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import main_classification
from engine.progress import within
from engine.records import RESULTS
from results.places import output_directory
from storage.documents import load_json

ROOT = "experiments"
TEACHER, STUDENT, PAIR = "numbers.RN14", "numbers.RN8", "numbers.RN14_RN8"
METHODS = ("KD", "QuEST", "letKD-1", "letKD-2")
OWN = ("letKD-1", "letKD-2")  # what the closing sentence is about
NUM_SEEDS = 3
LEVEL = 0.05  # of the test behind that sentence


class Step(NamedTuple):
    """A command of the chain, and what it is for.

    Trainings do what is left of them. The others are quick and done each time: so what supervises is always of the
    teacher that is there.
    """

    title: str
    words: tuple[str, ...]
    command: str | None = None


class Row(NamedTuple):
    """A line of the table: a network, how it was trained, and its top-1 in percent with each seed."""

    network: str
    method: str
    top1: list[float]
    parameters: int


def chain() -> list[Step]:
    """All steps, in their order."""
    teacher, student = f"config={TEACHER}", f"config={STUDENT}"
    trials = f"trials={NUM_SEEDS}"
    return [
        Step("train the teacher", (teacher, "checkpoint=-1")),
        Step("make its visual words", (teacher, "kmeans=128")),
        Step("make its sub-class decisions", (teacher, "LDA=5")),
        Step("train the student alone", (student, trials)),
        *(Step(f"train it with {name}", (f"config={PAIR}.{name}", trials)) for name in METHODS),
        Step("draw what it has learnt", (f"config={PAIR}.{METHODS[-1]}", "seeds=[0]"), command="picture_templates"),
        Step("write the report", (), command="report"),
    ]


def run(step: Step, options: list[str]) -> int:
    """One command of the entry, in this process: libraries are loaded once. Returns the exit status."""
    if step.command == "report":  # which reads no option of a training
        options = [word for word in options if word.startswith("localpath=")]
    words = [*step.words, *options]
    argv = ["main_classification.py", *filter(None, [step.command]), *["with"] * bool(words), *words]
    print(f"$ python {shlex.join(argv)}", flush=True)
    sys.argv = argv  # what the run records as its command
    return main_classification.main(argv)


def collect(root: Path) -> list[Row]:
    """The lines of the table, the teacher first."""
    taught = load_json(output_directory(root, TEACHER, "train") / RESULTS)
    rows = [Row(taught["options"]["network"], "alone", [taught["top1"]], taught["parameters"])]
    for method in ("alone", *METHODS):
        folder = output_directory(root, STUDENT if method == "alone" else f"{PAIR}.{method}", "train")
        seeds = [load_json(folder / f"seed{seed}" / RESULTS) for seed in range(NUM_SEEDS)]
        own = seeds[0]["options"]
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
    from scipy.stats import ttest_ind  # comes with scikit-learn

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
    """Carry out the chain and say what came out. Returns the exit status."""
    start = time.perf_counter()
    place = [word for word in options if word.startswith("localpath=")]
    root = Path(place[-1].removeprefix("localpath=") if place else ROOT)
    steps = chain()
    for number, step in enumerate(steps, start=1):
        print(f"\nstep {number} of {len(steps)}: {step.title}", flush=True)
        with within("step", number, len(steps)):
            status = run(step, options)
        if status:
            command = shlex.join(["python", "demo.py", *options])
            print(f"step {number} of {len(steps)} is not finished; the whole goes on with: {command}", file=sys.stderr)
            return status
    rows = collect(root)
    picture = output_directory(root, f"{PAIR}.{METHODS[-1]}", "train") / "seed0" / "pictures" / "templates.png"
    print(f"\nTwo-digit numbers, top-1 of the last epoch; this command took {time.perf_counter() - start:.0f} s\n")
    print(f"{table(rows)}\n\n{sentence(rows)}\n")
    print(f"All runs:  {(root / 'report' / 'index.html').resolve().as_uri()}")
    print(f"A picture: {picture.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
