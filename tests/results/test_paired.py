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


def test_two_seeds_by_hand():
    """d = 1, 2: mean 1.5, s = 1 / sqrt(2), t(1, 97.5 %) = tan(0.475 pi) = 12.706."""
    found = paired({0: 11.0, 5: 12.0}, {5: 10.0, 0: 10.0})
    assert found.interval == pytest.approx((1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2), abs=1e-4)


def test_seeds_that_one_of_them_lacks_are_left_out():
    assert paired({0: 5.0, 1: 6.0, 2: 9.0}, {1: 4.0, 2: 6.0, 7: 0.0}).mean == 2.5
    assert paired({0: 5.0}, {1: 4.0}) is None


@pytest.mark.parametrize(
    ("differences", "is_noise"),
    [([0.4, 0.5, 0.6], False), ([-0.4, -0.5, -0.6], False), ([0.1, 0.5, -0.2], True), ([0, 0, 0], True), ([0.5], None)],
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
        {"members": [MEMBER | {"runs": [{"seed": "a", "state": "failed"}]}]},
        {"members": [MEMBER | {"runs": [{"seed": 0, "state": "odd"}]}]},
        {"search": []}, {"search": {"val_split": 5, "candidates": [{}]}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_none_of_ours_is_refused(changed):
    with pytest.raises(ValueError, match=r"^it names no study|^its entry 'search'"):
        check_study(study(**changed))
