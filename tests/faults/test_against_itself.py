"""`benchmarks.against` with its processes: a tree equals its own commit, and one that trains otherwise does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fault_tools import ROOT

from benchmarks import against as benchmark

pytestmark = pytest.mark.faults


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The last commit, to change something in it."""
    command = ["git", "clone", "--quiet", "--local", ROOT, tmp_path / "clone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this is no clone of the repository: {done.stderr.strip()}")
    return tmp_path / "clone"


def compare(clone: Path, *options: str) -> tuple[int, dict[str, list[str]]]:
    """Exit status, and the rows of the table by their first cell."""
    command = [sys.executable, "-m", "benchmarks.against", "HEAD", "--quick", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=clone, capture_output=True, text=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1
    assert done.returncode != 2, done.stderr
    return done.returncode, {name: rest for name, *rest in cells}


def test_bits_of_an_equal_tree_are_equal_and_of_another_are_not(clone):
    status, rows = compare(clone, "--only", "bits")
    compared = [name for name in rows if name.startswith(("teacher", "codebook", "decisions", "digits"))]
    assert len(compared) == 3 + 3 * 2
    assert {rows[name][2] for name in compared} == {"equal"}
    assert len({rows[name][0] for name in compared}) == len(compared)
    assert status == 0

    recipes = clone / "config" / "recipes.py"
    changed, count = re.subn(r'"temperature": 1\.0', '"temperature": 0.99', recipes.read_text())
    assert count == 1
    recipes.write_text(changed)
    status, changed_rows = compare(clone, "--only", "bits")
    for name in compared:
        older, verdict = changed_rows[name][1:3]
        assert older == rows[name][1]
        assert verdict.startswith("different" if "letKD" in name else "equal"), name
    assert status == 1


def test_the_table_has_a_row_for_everything_that_is_timed(clone):
    status, rows = compare(clone, "--only", "speed", "--alternations", "1")
    assert status == 0
    trainings = {f"{method} {precision}" for method in ("letKD-1", "letKD-2") for precision in ("fp32", "bf16")}
    expected = {f"{name}: {what}" for name in trainings for what in ("step, ms", "start to first step, s", "peak MiB")}
    expected |= {f"{job}, {what}" for job in ("kmeans=64", "LDA=5") for what in ("s", "peak MiB")}
    assert expected <= rows.keys()
    assert all(float(rows[name][0]) > 0 and float(rows[name][2]) > 0 for name in expected)


FAKE = """
import time
import torch

def main(argv):
    assert argv[:3] == ["main_classification.py", "with", "config=any"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    while True:
        print("what commands print is no answer")
        time.sleep(SECONDS)
        optimizer.step()
"""


def children() -> list[str]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [child for child in found if "marked_commands" in Path(f"/proc/{child}/cmdline").read_text()]


def test_steps_of_both_sides_are_timed_and_then_their_processes_end(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    sides = [benchmark.Side(name, tmp_path / name, place / name) for name in ("this", "older")]
    for side, seconds in zip(sides, ("0.1", "0.05"), strict=True):
        side.root.mkdir()
        side.root.joinpath("main_classification.py").write_text(FAKE.replace("SECONDS", seconds))
    size = benchmark.Size(turns=1, steps=5)
    found = benchmark.measure_training(sides, "config=any", size, place)
    assert 100 <= found["step, ms"]["this"] < 500  # sleep is never shorter; five steps would be at least 500
    assert 50 <= found["step, ms"]["older"] < 250
    for name, seconds in (("this", 0.1), ("older", 0.05)):
        assert found["start to first step, s"][name] > seconds
        assert 50 < found["peak MiB"][name] < 5000  # torch is in it
    assert not children()
