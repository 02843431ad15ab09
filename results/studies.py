"""What a study has found: the figures of its runs, and methods compared seed by seed. Without torch.

A study leaves `study.json` in <localpath>/studies/<name>:

    name, command, state      "running", "stopped" or "finished"; of a process that was killed it stays "running"
    pairs, methods, seeds, against, options     what was asked for
    members     a pair, a method, and its runs: seed, state ("done", "failed" or "not run"; in a queue "queued" or
                "running"), top1, error (in a queue that of the last try), fingerprints of what has taught it, and
                num_images, average_top1 of one that keeps an average of its weights, classifier of one that nothing has
                trained
    search      where there is one: its options, how many training images were held out, and the candidates

The difference of two methods is the mean of the differences of runs with the same seed, which begin with the same
weights and see the same images in the same order. With n seeds, differences d and their sample deviation s,

    interval = mean(d) +- t(n - 1, 97.5 %) * s / sqrt(n)

holds the true difference in 95 of 100 studies, if differences are normally distributed. Where it contains 0 a gain is
within the noise of seeds. Two differences tell too little of their deviation, and equal ones, as accuracies of few
images can be, tell nothing of it: then there is no interval.
"""

import math
import statistics
from typing import Any, NamedTuple

from results.settings import UNTRAINED, num_images

Config = dict[str, Any]

STUDIES, STUDY = "studies", "study.json"
CONFIDENCE = 0.95
FEWEST_SEEDS = 3  # of an interval
EQUAL = 1e-9  # percentage points: differences that are as near are equal but for rounding
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
QUEUED, RUNNING = "queued", "running"  # of a job in a cluster's queue
# What a run says of what has taught it, and what several of these are called.
TAUGHT_BY = {
    "teacher_fingerprint": "teachers", "codebook_fingerprint": "codebooks", "decisions_fingerprint": "decision scores",
    "means_fingerprint": "class means",
}  # fmt: skip


class Paired(NamedTuple):
    """A mean difference in percentage points, and its interval.

    Attributes:
        interval: None with fewer seeds than `FEWEST_SEEDS`, and where the differences are equal.
        count: of seeds that both have.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int

    @property
    def is_noise(self) -> bool | None:
        """Whether 0 is in the interval; None where there is none."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def paired(top1: dict[int, float], against: dict[int, float]) -> Paired | None:
    """The difference of two methods by the seeds that both have; None where there are none."""
    differences = [top1[seed] - against[seed] for seed in top1 if seed in against]
    if not differences:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    if count < FEWEST_SEEDS or max(differences) - min(differences) < EQUAL:
        return Paired(mean, None, count)
    from scipy.stats import t  # comes with scikit-learn

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Paired(mean, (mean - half, mean + half), count)


def top1_of(member: Config, figure: str = "top1") -> dict[int, float]:
    """Top-1 of the runs that are done and have it, by seed.

    Args:
        figure: "top1", or "average_top1" of the average of the weights.
    """
    found = {run["seed"]: run.get(figure) for run in member["runs"] if run["state"] == DONE}
    return {seed: top1 for seed, top1 in found.items() if top1 is not None}


def is_untrained(member: Config) -> bool:
    """Whether nothing has trained the classifier of a run, so that its accuracy says nothing."""
    return any(run.get("classifier") == UNTRAINED for run in member["runs"])


def check_study(content: Config) -> None:
    """Refuse what no study of ours has written.

    Raises:
        ValueError: names the entry.
    """
    texts = all(isinstance(content.get(key), str) for key in ("name", "command", "state", "updated", "against"))
    members, seeds = content.get("members"), content.get("seeds")
    texts = texts and isinstance(seeds, list) and isinstance(content.get("options", {}), dict)
    if not texts or not isinstance(members, list) or not all(map(_is_member, members)):
        raise ValueError("it names no study with members and runs")
    search = content.get("search")
    if search is not None and not (
        isinstance(search, dict)
        and isinstance(search.get("val_split"), int)
        and isinstance(search.get("candidates"), list)
        and all(_is_member(candidate) for candidate in search["candidates"])
    ):
        raise ValueError("its entry 'search' holds no candidates")


def _is_member(member: Any) -> bool:
    if not isinstance(member, dict) or not isinstance(member.get("runs"), list):
        return False
    is_named = all(isinstance(member.get(key), str) for key in ("pair", "method"))
    return is_named and isinstance(member.get("values"), dict) and all(map(_is_run, member["runs"]))


def _is_run(run: Any) -> bool:
    if not isinstance(run, dict) or not isinstance(run.get("seed"), int):
        return False
    if not all(map(_is_number, num_images(run).values())):
        return False
    if run.get("state") == DONE:
        return _is_number(run.get("top1")) and (run.get("average_top1") is None or _is_number(run["average_top1"]))
    return run.get("state") in (FAILED, NOT_RUN, QUEUED, RUNNING)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
