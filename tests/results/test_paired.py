"""Methods compared seed by seed: the interval of paired differences, and what no study of ours has written."""

import statistics

import pytest
from scipy import stats

from results.studies import Paired, check_study, paired


def test_the_interval_is_that_of_a_paired_t_test():
    one, other = {0: 71.2, 1: 72.9, 2: 70.4, 3: 73.3}, {0: 70.1, 1: 72.2, 2: 70.0, 3: 71.5}
    found = paired(one, other)
    expected = stats.ttest_rel(list(one.values()), list(other.values())).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high)) and found.count == 4
    assert found.mean == pytest.approx(statistics.fmean(one.values()) - statistics.fmean(other.values()))


def test_three_seeds_by_hand():
    """d = 1, 2, 3: mean 2, s = 1, t(2, 97.5 %) = 4.30265."""
    found = paired({0: 11.0, 5: 12.0, 9: 13.0}, {5: 10.0, 0: 10.0, 9: 10.0})
    assert found.interval == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("differences", [[1.0], [1.0, 2.0], [0.0] * 3, [1.5] * 5])
def test_of_few_seeds_or_equal_differences_there_is_no_interval(differences):
    """A deviation of 0 would make an interval without width, outside of which everything is."""
    found = paired(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0))
    assert (found.interval, found.is_noise) == (None, None) and found.mean == statistics.fmean(differences)


def test_differences_that_are_equal_but_for_rounding_are_equal():
    against = {0: 89.1, 1: 1.3, 2: 71.7}
    one = {seed: top1 + 0.2 for seed, top1 in against.items()}
    assert len({one[seed] - against[seed] for seed in one}) > 1, "these are not what this is about"
    assert paired(one, against).interval is None


def test_seeds_that_one_of_them_lacks_are_left_out():
    assert paired({0: 5.0, 1: 6.0, 2: 9.0}, {1: 4.0, 2: 6.0, 7: 0.0}).mean == 2.5
    assert paired({0: 5.0}, {1: 4.0}) is None


@pytest.mark.parametrize(
    ("differences", "is_noise"),
    [([0.4, 0.5, 0.6], False), ([-0.4, -0.5, -0.6], False), ([0.1, 0.5, -0.2], True), ([0.5], None)],
)
def test_what_is_noise_of_seeds(differences, is_noise):
    found = paired(dict(enumerate(differences)), dict.fromkeys(range(3), 0.0))
    assert found.is_noise is is_noise


def test_a_bound_at_zero_is_noise():
    assert Paired(0.5, (0.0, 1.0), 3).is_noise


def study(**changed) -> dict:
    run = {"seed": 0, "state": "done", "top1": 91.5}
    member = {"pair": "A.B", "method": "KD", "values": {}, "runs": [run, {"seed": 1, "state": "not run"}]}
    texts = dict.fromkeys(("name", "command", "state", "updated"), "text")
    whole = texts | {"against": "KD", "seeds": [0, 1], "members": [member], "search": None}
    return whole | changed


def test_what_a_study_writes_is_one():
    check_study(study())
    check_study(study(search={"val_split": 5, "candidates": study()["members"]}))


MEMBER = study()["members"][0]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 5}, {"against": None}, {"seeds": 3}, {"members": None}, {"members": ["KD"]},
        {"options": ["KD"]},
        {"members": [MEMBER | {"pair": 1}]}, {"members": [MEMBER | {"values": None}]},
        {"members": [MEMBER | {"runs": [{"seed": 0, "state": "done", "top1": float("nan")}]}]},
        {"members": [MEMBER | {"runs": [{"seed": 0, "state": "done"}]}]},
        {"members": [MEMBER | {"runs": [MEMBER["runs"][0] | {"average_top1": "high"}]}]},
        {"members": [MEMBER | {"runs": [{"seed": "a", "state": "failed"}]}]},
        {"members": [MEMBER | {"runs": [{"seed": 0, "state": "odd"}]}]},
        {"search": []}, {"search": {"val_split": 5, "candidates": [{}]}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_none_of_ours_is_refused(changed):
    with pytest.raises(ValueError, match=r"^it names no study|^its entry 'search'"):
        check_study(study(**changed))
