"""One experiment with several seeds: `trials=5` (0 to 4) or `seeds=[3,4]`, each in a directory of its own.

    <localpath>/A/B/C/seed3/         what a run with seed=3 leaves in A/B/C
    <localpath>/A/B/C/trials.json    figures, means and sample standard deviations of the trials with the same settings

Only the experiment is repeated: its teacher and supervision are shared, and made with seed 0. A trial that is finished
is left alone and one that was broken off goes on, so the same command does what is left after any stop. A trial that
stands there with other settings is refused, where they bear on its result (`settings.py`).
"""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from algorithms.base import Config, Results, output_directory, run_directory
from algorithms.checkpoints import NEWEST, find_state, load_checkpoint
from algorithms.files import load_json, save_json
from algorithms.records import RESULTS, complete_results, log
from settings import MEASUREMENTS, changed_settings, seed_of

TRIALS = "trials.json"
TRAINING_FIGURES = ("top1", "best_top1", "top5", "seconds")

Figures = dict[str, float]


def wanted_seeds(config: Config) -> list[int]:
    """The seeds that the options ask for; none where the run is no set of trials."""
    return list(config["seeds"]) or list(range(config["trials"]))


def run_trials(config: Config, run: Callable[[Config], Results]) -> Results:
    """Do the job of every trial that is not finished, then print and save means and standard deviations.

    Args:
        config: a checked configuration whose teacher and supervision are there.
        run: does the job of one configuration.

    Returns:
        What `trials.json` holds.

    Raises:
        ValueError: a trial failed, or stands there with other settings; names its seed. The others stay as they are.
    """
    seeds = wanted_seeds(config)
    for number, seed in enumerate(seeds, start=1):
        log.info("trial %d of %d: seed %d", number, len(seeds), seed)
        trial = config | {"seed": seed, "seeds": [seed], "trials": 0}
        try:
            if _job(config) != "train":
                _check_trained(trial)
                run(trial)
            elif _is_left_to_do(trial):
                run(trial | {"checkpoint": NEWEST})
        except (ValueError, OSError, FloatingPointError) as error:
            raise ValueError(f"seed {seed}: {error}") from error
    content = summarize(config, seeds)
    for name, summary in content["summaries"].items():
        if name.startswith(_job(config)):
            log.info("%s, %s\n%s", config["config"], name, format_summary(summary))
    return content


def summarize(config: Config, seeds: list[int]) -> Results:
    """Write and return `trials.json`, over all finished trials with the settings of those in `seeds`.

    Raises:
        ValueError: the trials in `seeds` have different settings.
    """
    directory = output_directory(config["localpath"], config["config"], "train")
    folders = {seed: path for path in directory.iterdir() if (seed := seed_of(path.name)) is not None}
    trials = {seed: results for seed, path in sorted(folders.items()) if (results := _trained(path))}
    reference = trials[seeds[0]]
    alike = {}
    for seed, results in trials.items():
        changed = changed_settings(results["options"], reference["options"])
        if not changed:
            alike[seed] = results
        elif seed in seeds:
            raise ValueError(f"seeds {seeds[0]} and {seed} were trained with different {', '.join(changed)}")
    figures = {seed: dict(_figures(results)) for seed, results in alike.items()}
    names = dict.fromkeys(name for found in figures.values() for name in found)
    content = {key: reference[key] for key in ("config", "method", "dataset", "epochs", "precision", "options")}
    content |= {"mode": "trials", "seeds": list(alike)}
    content["summaries"] = {
        name: _summary({seed: found[name] for seed, found in figures.items() if name in found}) for name in names
    }
    content = complete_results(content)
    save_json(directory / TRIALS, content)
    return content


def format_summary(summary: Results) -> str:
    """A summary as lines of aligned columns: a seed each, then mean and standard deviation."""
    lines: dict[str, Figures] = {**summary["seeds"], "mean": summary["mean"], "std": summary["std"] or {}}
    columns = list(summary["mean"])
    rows = [["seed", *columns]]
    rows += [[name, *(f"{line[key]:.2f}" if key in line else "-" for key in columns)] for name, line in lines.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _job(config: Config) -> str:
    return next((job for job in MEASUREMENTS if config[job]), "train")


def _trained(directory: Path) -> Results | None:
    """The results of a finished training."""
    results = load_json(directory / RESULTS) if (directory / RESULTS).is_file() else {}
    return results if results.get("mode") == "train" else None


def _check_trained(trial: Config) -> None:
    directory = run_directory(trial, "train")
    if _trained(directory) is None:
        raise FileNotFoundError(
            f"its training in {directory} is not finished; finish it first: the same command without {_job(trial)}="
        )


def _is_left_to_do(trial: Config) -> bool:
    """Whether its training has not ended yet.

    Raises:
        ValueError: it began with other settings.
    """
    directory = run_directory(trial, "train")
    results = _trained(directory)
    if results:
        earlier = results["options"]
    elif state := find_state(directory, NEWEST):
        earlier = load_checkpoint(state)["config"]
    else:
        return True
    if changed := changed_settings(earlier, trial):
        listed = ", ".join(f"{key}={before!r} (now {now!r})" for key, (before, now) in changed.items())
        raise ValueError(f"{directory} was trained with {listed}; move it away, or choose another localpath")
    if results:
        log.info("finished already: %s", directory)
    return results is None


def _figures(results: Results) -> Iterator[tuple[str, Figures]]:
    """What is averaged of one trial, by the job and the name of the checkpoint."""
    yield "train", {key: results[key] for key in TRAINING_FIGURES}
    for job, part in MEASUREMENTS.items():
        measurements: dict[str, dict[str, Any]] = results.get(part, {})
        for name, measured in measurements.items():
            yield f"{job} {name}", {key: value for key, value in measured.items() if isinstance(value, float)}


def _summary(figures: dict[int, Figures]) -> Results:
    """Figures by seed, their mean, and the sample standard deviation where there are several."""
    keys = next(iter(figures.values()))
    columns = {key: [found[key] for found in figures.values()] for key in keys}
    return {
        "seeds": {str(seed): found for seed, found in figures.items()},
        "mean": {key: statistics.fmean(values) for key, values in columns.items()},
        "std": {key: statistics.stdev(values) for key, values in columns.items()} if len(figures) > 1 else None,
    }
