"""One command gives one result: in every process, and however often it is looked at.

Digits are read by no workers: that their number changes nothing is asked in tests/algorithms/test_determinism.py.
"""

import shutil
from pathlib import Path

import pytest
from fault_tools import PAIR, RUN, differences, outcome, start

pytestmark = pytest.mark.slow  # whole processes; within one process tests/algorithms/test_training.py asks the same


def run_alone(place: Path, supervision: Path, *words: str) -> Path:
    """The letKD-2 run as a process of its own; returns its directory."""
    shutil.copytree(supervision, place)
    process = start(*PAIR, "epochs=2", "milestones=[1]", *words, localpath=place)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return place / RUN


@pytest.fixture(scope="module")
def reference(supervision_of_all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_alone(tmp_path_factory.mktemp("reference") / "run", supervision_of_all_digits)


def test_one_seed_repeats_bit_for_bit(reference, supervision_of_all_digits, tmp_path):
    again = run_alone(tmp_path / "again", supervision_of_all_digits)
    assert differences(outcome(again), outcome(reference)) == []


def test_how_often_it_is_looked_at_changes_no_result(reference, supervision_of_all_digits, tmp_path):
    """The curves get more points, and the statistics are means over more looks; nothing else changes."""
    often = run_alone(tmp_path / "often", supervision_of_all_digits, "disp_step=1")
    found, expected = outcome(often), outcome(reference)
    assert sum(map(len, found["curves"].values())) > sum(map(len, expected["curves"].values()))
    assert {"model", "optimizer", "random"} < set(found["last.pth"])
    for name in ("last.pth", "best.pth"):
        assert differences(found[name], expected[name]) == []
    for epoch in (*found["results"]["history"], *expected["results"]["history"]):
        del epoch["statistics"]
    assert differences(found["results"], expected["results"]) == []


def test_seeds_differ(reference, supervision_of_all_digits, tmp_path):
    other = outcome(run_alone(tmp_path / "other", supervision_of_all_digits, "seed=1"))
    changed = differences(other["last.pth"]["model"], outcome(reference)["last.pth"]["model"])
    assert any("layer1" in name for name in changed) and any("fc" in name for name in changed)
