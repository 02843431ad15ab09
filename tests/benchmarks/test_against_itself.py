"""`benchmarks.against` with its processes: a tree equals its own commit, and one that trains otherwise does not."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import against as benchmark

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The last commit, to change something in it."""
    command = ["git", "clone", "--quiet", "--local", benchmark.ROOT, tmp_path / "clone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this is no clone of the repository: {done.stderr.strip()}")
    return tmp_path / "clone"


def start(clone: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.against", "HEAD", "--quick", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> list[str]:
    """The processes that a process has started to run commands."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if "marked_commands" in Path(f"/proc/{child}/cmdline").read_text()]


def num_worktrees(clone: Path) -> int:
    command = ["git", "worktree", "list"]
    return len(subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout.splitlines())


def compare(clone: Path, *options: str) -> tuple[int, dict[str, list[str]]]:
    """Exit status, and the rows of the table by their first cell."""
    with start(clone, *options) as process:
        printed, errors = process.communicate()
    assert process.returncode != 2, errors
    assert num_worktrees(clone) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    return process.returncode, {name: rest for name, *rest in cells}


def test_bits_of_an_equal_tree_are_equal_and_of_another_are_not(clone):
    status, rows = compare(clone, "--only", "bits")
    compared = [name for name in rows if name.startswith(("teacher", "codebook", "decisions", "digits"))]
    assert len(compared) == 3 + 3 * 2
    assert {rows[name][2] for name in compared} == {"equal"}
    assert len({rows[name][0] for name in compared}) == len(compared)
    assert status == 0

    options = clone / "config" / "options.py"
    changed, count = re.subn(r"(temperature: float = option\(\s*)1\.0", r"\g<1>0.99", options.read_text())
    assert count == 1
    options.write_text(changed)
    status, changed_rows = compare(clone, "--only", "bits")
    for name in compared:
        older, verdict = changed_rows[name][1:3]
        assert older == rows[name][1]
        assert verdict.startswith("different" if "letKD" in name else "equal"), name
    assert status == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_comparison_that_is_stopped(clone, tmp_path, monkeypatch, number):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with start(clone, "--only", "bits") as process:
        assert "this" in process.stderr.readline()
        assert num_worktrees(clone) == 2
        assert len(children(process.pid)) == 1
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors.splitlines()[-1]) == (130, "", "stopped")
    assert num_worktrees(clone) == 1
    assert list(temporary.iterdir()) == []


def test_the_table_has_a_row_for_everything_that_is_timed(clone):
    status, rows = compare(clone, "--only", "speed", "--alternations", "1")
    assert status == 0
    trainings = {f"{method} {precision}" for method in ("letKD-1", "letKD-2") for precision in ("fp32", "bf16")}
    expected = {f"{name}: {what}" for name in trainings for what in ("step, ms", "peak MiB")}
    expected |= {f"{job}, {what}" for job in ("kmeans=64", "LDA=5") for what in ("s", "peak MiB")}
    expected |= {"all trainings: start to first step, s"}
    assert expected == rows.keys() - {"what", "---"}
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


def test_steps_of_both_sides_are_timed_and_then_their_processes_end(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    sides = [benchmark.Side(name, tmp_path / name, place / name) for name in ("this", "older")]
    for side, seconds in zip(sides, ("0.4", "0.2"), strict=True):
        side.root.mkdir()
        side.root.joinpath("main_classification.py").write_text(FAKE.replace("SECONDS", seconds))
    size = benchmark.Size(turns=3)
    found = benchmark.measure_training(sides, "config=any", size, place)
    assert [len(found[name]) for name in ("step, ms", "peak MiB", "start to first step, s")] == [3, 3, 1]
    for pair in found["step, ms"]:
        assert 400 <= pair["this"] < 800  # sleep is never shorter, and two steps would be at least 800
        assert 200 <= pair["older"] < 400
    for name, seconds in (("this", 0.4), ("older", 0.2)):
        assert found["start to first step, s"][0][name] > seconds
        assert all(50 < pair[name] < 5000 for pair in found["peak MiB"])  # torch is in it
    assert not children(os.getpid())
