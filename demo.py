"""The whole chain on the embedded digits: teacher, supervision, then every method, and a table of what came out.

    make demo            or            python demo.py [localpath=DIR] [any other option, for every command]

Each line that starts with `$` is a command that can be typed as it stands.
"""

import json
import sys
import time
from pathlib import Path

import main_classification

TEACHER, STUDENT = "digits.RN14", "digits.RN8"
PAIR = "digits.RN14_RN8"
METHODS = ("QuEST", "letKD-1", "letKD-2")
ROOT = "experiments"
COMMANDS = [
    f"config={TEACHER}",
    f"config={TEACHER} kmeans=128",
    f"config={TEACHER} LDA=5",
    f"config={STUDENT}",
    *(f"config={PAIR}.{method}" for method in METHODS),
]
EVALUATIONS = [
    f"config={name} evaluate=True" for name in (TEACHER, STUDENT, *(f"{PAIR}.{method}" for method in METHODS))
]


def run(words: str, options: list[str]) -> None:
    """One command of the entry, in this process."""
    argv = ["main_classification.py", "with", *words.split(), *options]
    print(f"\n$ python {' '.join(argv)}", flush=True)
    sys.argv = argv  # what the run records as its command
    status = main_classification.main(argv)
    if status:
        sys.exit(status)


def table(root: Path) -> str:
    """Markdown table of the results below `root`."""
    rows = [("network", "method", "top-1", "parameters", "without KD layers", "train img/s", "seconds")]
    for name in (TEACHER, STUDENT, *(f"{PAIR}.{method}" for method in METHODS)):
        results = json.loads(root.joinpath(*name.split("."), "results.json").read_text(encoding="utf-8"))
        measured = results["evaluations"]["last"]
        rows.append(
            (
                results["options"].get("student") or results["options"]["network"],
                "alone" if results["method"] == "classification" else results["method"],
                f"{measured['top1']:.2f}",
                f"{results['parameters']:,}",
                f"{results['parameters_without_kd_layers']:,}",
                f"{results['images_per_second']:.0f}",
                f"{results['seconds']:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def main(options: list[str]) -> None:
    start = time.perf_counter()
    for words in COMMANDS + EVALUATIONS:
        run(words, options)
    root = next((word.removeprefix("localpath=") for word in options if word.startswith("localpath=")), ROOT)
    print(f"\nDigits, top-1 of the last epoch in percent; everything in {time.perf_counter() - start:.0f} s\n")
    print(table(Path(root)))
    print(f"\nEach run's results.json, log, curves and weights are below {root}/digits.")


if __name__ == "__main__":
    main(sys.argv[1:])
