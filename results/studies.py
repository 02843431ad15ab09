"""What a study has found: the figures of its runs, and methods compared seed by seed. Without torch.

A study leaves `study.json` in <localpath>/studies/<name>:

    name, command, state      "running", "stopped" or "finished"; of a process that was killed it stays "running"
    pairs, methods, seeds, against, options     what was asked for
    members     a pair, a method, and its runs: seed, state ("done", "failed" or "not run"), top1, error
    search      where there is one: its options, how many training images were held out, and the candidates

The difference of two methods is the mean of the differences of runs with the same seed, which begin with the same
weights and see the same images in the same order. With n seeds, differences d and their sample deviation s,

    interval = mean(d) +- t(n - 1, 97.5 %) * s / sqrt(n)

holds the true difference in 95 of 100 studies, if differences are normally distributed. Where it contains 0 a gain is
within the noise of seeds.
"""

import math
import statistics
from typing import Any, NamedTuple

Config = dict[str, Any]

STUDIES, STUDY = "studies", "study.json"
CONFIDENCE = 0.95
DONE, FAILED, NOT_RUN = "done", "failed", "not run"


class Paired(NamedTuple):
    """A mean difference in percentage points, and its interval; None with a single seed, which says nothing of noise.

    Attributes:
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
    if count == 1:
        return Paired(mean, None, count)
    from scipy.stats import t  # comes with scikit-learn

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Paired(mean, (mean - half, mean + half), count)


def top1_of(member: Config) -> dict[int, float]:
    """Top-1 of the runs that are done, by seed."""
    return {run["seed"]: run["top1"] for run in member["runs"] if run["state"] == DONE}


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
    if run.get("state") == DONE:
        return isinstance(run.get("top1"), (int, float)) and math.isfinite(run["top1"])
    return run.get("state") in (FAILED, NOT_RUN)
