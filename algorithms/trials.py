"""One experiment with several seeds: `trials=5` (0 to 4) or `seeds=[3,4]`, each in a directory of its own.

    <localpath>/A/B/C/seed3/         what a run with seed=3 leaves in A/B/C
    <localpath>/A/B/C/trials.json    figures, means and sample standard deviations of the trials with the same settings

Only the experiment is repeated: its teacher and supervision are shared, and made with seed 0. A trial that is finished
is left alone and one that was broken off goes on, so the same command does what is left after any stop. A trial that
stands there with other settings is refused, where they bear on its result (`results/settings.py`), and so are trials
that other weights of the teacher, other words or other decisions have taught, or that have started from other weights,
or had other numbers of images, as far as their results say it.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from algorithms.base import Results
from algorithms.starting import read_start
from algorithms.teaching import FINGERPRINTS, supervision_fingerprints
from config.options import Job, Options
from engine.checkpoints import LAST, NEWEST, find_state
from engine.progress import within
from engine.records import RESULTS, complete_results, log, read_results, results_to_itself
from engine.weights import load_own
from results.places import output_directory, run_directory
from results.settings import (
    MEASUREMENTS,
    SPLITS,
    TOP_K,
    UNTRAINED,
    changed_settings,
    num_images,
    other_numbers,
    seed_of,
)
from storage.tensor_files import save_json

TRIALS = "trials.json"
TRAINING_FIGURES = ("top1", "best_top1", "top5", "seconds")
AVERAGE_FIGURES = ("average_top1", "best_average_top1")  # of runs that keep an average of their weights
STARTED_FROM = "init_fingerprint"
# What a run records of the numbers that made it, and what that is.
MADE_BY = FINGERPRINTS | {STARTED_FROM: "the weights that it started from"}

NO_CLASSIFIER = "note: nothing has trained the classifiers, so their accuracy says nothing"

Figures = dict[str, float]


def wanted_seeds(job: Job) -> list[int]:
    """The seeds that the options ask for; none where the run is no set of trials."""
    return list(job.seeds) or list(range(job.trials))


def run_trials(options: Options, run: Callable[[Options], Results]) -> Results:
    """Do the job of every trial that is not finished, then print and save means and standard deviations.

    Args:
        options: checked, of a run whose teacher and supervision are there.
        run: does the job of one trial.

    Returns:
        What `trials.json` holds.

    Raises:
        ValueError: a trial failed, or stands there with other settings; names its seed. The others stay as they are.
    """
    job = options.job
    seeds = wanted_seeds(job)
    check_alike(options, seeds)
    if _job(job) == "train":
        _say_caches(options, seeds)
    for number, seed in enumerate(seeds, start=1):
        log.info("trial %d of %d: seed %d", number, len(seeds), seed)
        trial = _trial(options, seed)
        with _names_seed(seed), within("trial", number, len(seeds)):
            if _job(job) != "train":
                _check_trained(_directory(trial), _job(job))
                run(trial)
            elif _is_left_to_do(_directory(trial)):
                run(trial.changed(checkpoint=NEWEST))
    content = summarize(output_directory(options.run.localpath, job.run_name, "train"), seeds)
    for name, summary in content["summaries"].items():
        if name.startswith(_job(job)):
            log.info("%s, %s\n%s", job.run_name, name, format_summary(summary, num_classes=content["num_classes"]))
    return content


def _say_caches(options: Options, seeds: list[int]) -> None:
    is_cached = options.pair is not None and options.pair.teacher_cache is not None
    if is_cached and len(seeds) > 1 and options.run.view_seed is None:
        log.info(
            "note: the %d seeds have images in other orders and crops, so each keeps for itself what the teacher says; "
            "view_seed=0 lets the seeds share one cache",
            len(seeds),
        )


def _trial(options: Options, seed: int) -> Options:
    return options.changed(seed=seed, seeds=[seed], trials=0)


def _directory(trial: Options) -> Path:
    """Where its training is."""
    return run_directory(trial.run.localpath, trial.job, "train")


def check_alike(options: Options, seeds: list[int], *, is_prepared: bool = True) -> None:
    """Refuse trials that began with other settings than these, or that something else has taught, before any trains.

    Args:
        is_prepared: whether what teaches is there, and is to be compared with what has taught.

    Raises:
        ValueError: names the first such trial, and what differs.
    """
    trains = _job(options.job) == "train"
    taught: dict[str, tuple[str, str]] = {}  # by kind: the first fingerprint, and whose it is
    images: dict[str, tuple[int, str]] = {}  # by split: the first number, and whose it is
    is_left = False
    for seed in seeds:
        trial = _trial(options, seed)
        directory = _directory(trial)
        with _names_seed(seed):
            facts, earlier, is_done = _record(directory)
        is_left |= not is_done
        changed = changed_settings(earlier, trial.flat) if trains and facts else {}
        if changed:
            listed = ", ".join(f"{key}={before!r} (now {now!r})" for key, (before, now) in changed.items())
            remedy = "move it away, or choose another localpath"
            raise ValueError(f"seed {seed}: {directory} was trained with {listed}; {remedy}")
        _compare_teaching(taught, facts, str(directory))
        _compare_numbers(images, facts, str(directory))
    if is_prepared and trains and is_left and taught:
        there = supervision_fingerprints(options)
        if STARTED_FROM in taught and (weights := read_start(options)):
            there[STARTED_FROM] = weights.fingerprint
        _compare_teaching(taught, there, "what is there for the trials that are left")


def _compare_teaching(taught: dict[str, tuple[str, str]], facts: Results, whose: str) -> None:
    """Compare fingerprints of what made a run with the first of their kind; what a file does not say is left out."""
    for key, name in MADE_BY.items():
        value = facts.get(key)
        first, owner = taught.setdefault(key, (value, whose)) if value else (value, whose)
        if value != first:
            did, several = ("started from", "starts") if key == STARTED_FROM else ("was taught by", "teachings")
            raise ValueError(
                f"{name}: {owner} {did} {first[:12]}..., and {whose} has {value[:12]}...: their mean would be of two "
                f"{several}; move {owner} away, or choose another localpath"
            )


def _compare_numbers(known: dict[str, tuple[int, str]], facts: Results, whose: str) -> None:
    """Compare how many images a run had with the first that says it: a part of a data set is another one."""
    for split, number in num_images(facts).items():
        first, owner = known.setdefault(split, (number, whose))
        if number != first:
            raise ValueError(
                f"{owner} had {first} {SPLITS[split]}, and {whose} has {number}: their mean would be of two data sets; "
                "move the one away, or choose another localpath"
            )


def refuse_other_images(directory: Path, options: Options, numbers: dict[str, int]) -> None:
    """Refuse a trial, before it trains, whose figures another one's of the same settings beside it cannot be put to.

    Args:
        directory: of the trial.
        numbers: of its images, by split.

    Raises:
        ValueError: names both, and their numbers.
    """
    for path in sorted(directory.parent.iterdir()):
        if seed_of(path.name) in (None, seed_of(directory.name)):
            continue
        results = finished_training(path)
        if results and not changed_settings(results["options"], options.flat):
            known = {split: (number, str(path)) for split, number in num_images(results).items()}
            _compare_numbers(known, {"num_images": numbers}, "this trial")


@contextmanager
def _names_seed(seed: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise ValueError(f"seed {seed}: {error}") from error


def _record(directory: Path) -> tuple[Results, dict[str, Any], bool]:
    """What results or state of a trial say ({} before it begins), the options of its training, whether it has ended.

    Raises:
        ValueError: its weights are of another run.
    """
    if results := finished_training(directory):
        if (last := directory / LAST).is_file():
            load_own(last)
        return results, results["options"], True
    if state := find_state(directory, NEWEST):
        checkpoint = load_own(state)
        return checkpoint, checkpoint["config"], False
    return {}, {}, False


def summarize(directory: Path, seeds: list[int]) -> Results:
    """Write and return `trials.json`, over all finished trials with the settings of those in `seeds`.

    Args:
        directory: of the experiment.

    Raises:
        ValueError: the trials in `seeds` have different settings.
    """
    with results_to_itself(directory):  # else of two trials that end together one may be lost
        content = _summarized(directory, seeds)
        save_json(directory / TRIALS, content)
    return content


def _summarized(directory: Path, seeds: list[int]) -> Results:
    folders = {seed: path for path in directory.iterdir() if (seed := seed_of(path.name)) is not None}
    trials = {seed: results for seed, path in sorted(folders.items()) if (results := finished_training(path))}
    reference = trials[seeds[0]]
    alike = {}
    for seed, results in trials.items():
        changed = [*changed_settings(results["options"], reference["options"]), *_other_teaching(results, reference)]
        changed += [f"number of {name}" for name in other_numbers(num_images(reference), num_images(results))]
        if not changed:
            alike[seed] = results
        elif seed in seeds:
            raise ValueError(f"seeds {seeds[0]} and {seed} were trained with different {', '.join(changed)}")
        else:
            log.info("note: the trial of seed %d is left out: not the same are %s", seed, ", ".join(changed))
    figures = {seed: dict(_figures(results, reference)) for seed, results in alike.items()}
    names = dict.fromkeys(name for found in figures.values() for name in found)
    content = {key: reference[key] for key in ("config", "method", "dataset", "epochs", "precision", "options")}
    content |= {"mode": "trials", "seeds": list(alike), "num_classes": reference.get("num_classes")}
    content["summaries"] = {
        name: _summary({seed: found[name] for seed, found in figures.items() if name in found}) for name in names
    }
    for name in {name for results in alike.values() for name in _of_untrained(results)}:
        content["summaries"][name]["classifier"] = UNTRAINED
    return complete_results(content)


def format_summary(summary: Results, *, num_classes: int | None = None) -> str:
    """A summary as lines of aligned columns: a seed each, then mean and standard deviation.

    Top-5 of five classes or fewer is left out: it is 100 % of anything. None: their number is not known.
    """
    lines: dict[str, Figures] = {**summary["seeds"], "mean": summary["mean"], "std": summary["std"] or {}}
    columns = [key for key in summary["mean"] if key != "top5" or num_classes is None or num_classes > TOP_K]
    rows = [["seed", *columns]]
    rows += [[name, *(f"{line[key]:.2f}" if key in line else "-" for key in columns)] for name, line in lines.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    untrained = [NO_CLASSIFIER] if summary.get("classifier") == UNTRAINED else []
    return "\n".join(table + untrained)


def _job(job: Job) -> str:
    """What it is called, as in MEASUREMENTS."""
    return next((name for name in MEASUREMENTS if getattr(job, name)), "train")


def finished_training(directory: Path) -> Results | None:
    """The results of a finished training.

    Raises:
        ValueError: they are of another seed than the directory, or lack a figure of a training.
    """
    path = directory / RESULTS
    results = read_results(directory)
    if results.get("mode") != "train":
        return None
    lacking = [key for key in TRAINING_FIGURES if not isinstance(results.get(key), (int, float))]
    if lacking or not isinstance(results.get("options"), dict):
        raise ValueError(f"{path} is damaged: it has no {(lacking or ['options'])[0]}")
    if results.get("seed") not in (None, seed_of(directory.name)):  # what it does not say is not compared
        raise ValueError(
            f"{path} is not of this trial: it has the results of seed {results.get('seed')}; move it away, and "
            f"{directory / LAST} too if that came with it"
        )
    return results


def _other_teaching(results: Results, reference: Results) -> list[str]:
    """What has made one of two runs and not the other, as far as both say it."""
    return [
        name
        for key, name in MADE_BY.items()
        if results.get(key) and reference.get(key) and results[key] != reference[key]
    ]


def _check_trained(directory: Path, job: str) -> None:
    if finished_training(directory) is None:
        raise FileNotFoundError(
            f"its training in {directory} is not finished; finish it first: the same command without {job}="
        )


def _is_left_to_do(directory: Path) -> bool:
    """Whether a training has not ended yet."""
    is_done = finished_training(directory) is not None
    if is_done:
        log.info("finished already: %s", directory)
    return not is_done


def _figures(results: Results, reference: Results) -> Iterator[tuple[str, Figures]]:
    """What is averaged of one trial, by the job and the name of the checkpoint.

    Without what was measured on other numbers of images than in the trial `reference`, which is said.
    """
    yield "train", {key: results[key] for key in (*TRAINING_FIGURES, *AVERAGE_FIGURES) if key in results}
    for job, part in MEASUREMENTS.items():
        measurements: dict[str, dict[str, Any]] = results.get(part, {})
        for name, measured in measurements.items():
            standing = reference.get(part, {}).get(name, measured)
            if other := other_numbers(num_images(standing), num_images(measured)):
                listed = ", ".join(f"{now} {what} and not {then}" for what, (then, now) in other.items())
                log.info("note: %s %s of seed %s is left out: of %s", job, name, results.get("seed"), listed)
                continue
            yield f"{job} {name}", {key: value for key, value in measured.items() if isinstance(value, float)}


def _of_untrained(results: Results) -> Iterator[str]:
    """Of the names of `_figures` those of a classifier that nothing has trained."""
    if results.get("classifier") == UNTRAINED:
        yield "train"
    for job, part in MEASUREMENTS.items():
        for name, measured in results.get(part, {}).items():
            if measured.get("classifier") == UNTRAINED:
                yield f"{job} {name}"


def _summary(figures: dict[int, Figures]) -> Results:
    """Figures by seed; of those that all have the mean, and the sample standard deviation where there are several."""
    keys = [key for key in next(iter(figures.values())) if all(key in found for found in figures.values())]
    columns = {key: [found[key] for found in figures.values()] for key in keys}
    return {
        "seeds": {str(seed): found for seed, found in figures.items()},
        "mean": {key: statistics.fmean(values) for key, values in columns.items()},
        "std": {key: statistics.stdev(values) for key, values in columns.items()} if len(figures) > 1 else None,
    }
