"""A study that is stopped or killed goes on by the same command, to the runs of one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_tools import ROOT, differences, outcome

from storage.documents import load_json

pytestmark = pytest.mark.slow
# Methods without a teacher: what is made before the runs is not what is broken here.
WORDS = ("pairs=digits.RN14_RN8", "methods=alone,LS", "seeds=[0,1]", "name=broken")
SHORT = ("epochs=8", "milestones=[6]", "image_size=8", "cuda=False", "num_workers=0")
RUNS = [Path("digits", method, f"seed{seed}") for method in ("RN8", "RN14_RN8/LS") for seed in (0, 1)]
SECONDS = 300


def start(place: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "main_classification.py", "study", "with", *WORDS, *SHORT, *words, f"localpath={place}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=SECONDS)
    return process.returncode, printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study that nobody has stopped."""
    place = tmp_path_factory.mktemp("whole")
    assert ended(start(place))[0] == 0
    return place


def epochs_done(place: Path) -> Iterator[int]:
    """Of the runs that go on."""
    for run in RUNS:
        path = place / run / "progress.json"
        if path.is_file() and not (path.parent / "results.json").is_file():
            yield load_json(path)["epoch"]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("jobs", "number", "status"),
    [(1, signal.SIGINT, 130), (1, signal.SIGKILL, -9), (2, signal.SIGINT, 130), (2, signal.SIGTERM, 143)],
    ids=str,
)
def test_the_same_command_goes_on_and_ends_as_the_unbroken_study(jobs, number, status, whole, tmp_path):
    process = start(tmp_path, f"jobs={jobs}")
    wait_until(lambda: sum(epoch > 0 for epoch in epochs_done(tmp_path)) == jobs)
    process.send_signal(number)
    found, printed = ended(process)
    assert found == status, printed
    if number != signal.SIGKILL:
        assert printed.splitlines()[-1].startswith("stopped; go on with: python main_classification.py study with ")
        assert load_json(tmp_path / "studies/broken/study.json")["state"] == "stopped"
        states = [load_json(path)["state"] for path in tmp_path.rglob("progress.json")]
        assert states.count("stopped") == jobs, states
    found, printed = ended(start(tmp_path, f"jobs={jobs}"))
    assert found == 0, printed
    for run in RUNS:
        assert differences(outcome(tmp_path / run), outcome(whole / run)) == [], run
    assert "Methods compared" in printed and load_json(tmp_path / "studies/broken/study.json")["state"] == "finished"


def test_a_process_that_is_killed_fails_its_run_alone(tmp_path):
    process = start(tmp_path, "jobs=2")
    wait_until(lambda: any(epoch > 0 for epoch in epochs_done(tmp_path)))
    records = [tmp_path / run / "progress.json" for run in RUNS if (tmp_path / run / "progress.json").is_file()]
    os.kill(load_json(records[0])["process"], signal.SIGKILL)
    status, printed = ended(process)
    assert status == 1 and printed.splitlines()[-1].startswith("error: one run has failed: digits.R")
    told = load_json(tmp_path / "studies/broken/study.json")["members"]
    runs = [run for member in told for run in member["runs"]]
    assert sorted(run["state"] for run in runs) == ["done"] * 3 + ["failed"]
    assert next(run["error"] for run in runs if "error" in run).startswith("ended by SIGKILL; ")
    assert ended(start(tmp_path, "jobs=2"))[0] == 0
