"""The benchmark of several processes runs on little, and the bytes of a step are those of its parameters."""

import subprocess
import sys

import pytest
import torch

from benchmarks import distributed, methods
from engine.records import ROOT


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Forks have torch loaded already, and hold what is patched here."""
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    monkeypatch.setattr(distributed, "START", "fork")


ON_LITTLE = """
import sys
import torch
from benchmarks import distributed, methods
torch.set_num_threads(1)  # a fork cannot use the threads of its parent
methods.PAIR, distributed.START = "digits.RN14_RN8", "fork"
sys.exit(distributed.main(["--quick", "--alternations", "6", "--device", "cpu"]))
"""


@pytest.mark.slow
def test_runs_on_little():
    """In a process of its own: a fork of one that has run other tests can hang in their threads."""
    words = [sys.executable, "-c", ON_LITTLE]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    rows = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("| ").split(" | ")) > 1}
    assert "torch" in first and " to " in rows[distributed.WRAPPED][2] and " to " in rows["2 x 1"][3]
    sent, expected, ring = rows[distributed.METHOD]
    assert sent == expected == ring and int(sent.replace(",", "")) > 0
    assert "they are equal" in lines and lines[-1] == "efficiency on several GPUs: not measured"


def test_losses_that_differ_are_an_error(monkeypatch):
    made = distributed.make_step

    def other(*args, is_parallel: bool):
        step = made(*args, is_parallel=is_parallel)
        if is_parallel:
            with torch.no_grad():
                for parameter in step.objective.parameters():
                    parameter.mul_(1.1)
        return step

    monkeypatch.setattr(distributed, "make_step", other)
    with pytest.raises(RuntimeError, match=r"^the first losses differ: "):
        distributed.measure_one("KD", methods.QUICK, 6, torch.device("cpu"))


@pytest.mark.parametrize("number", ["1", "3"])
def test_a_batch_that_cannot_be_shared_is_refused(number, capsys):
    with pytest.raises(SystemExit):
        distributed.main(["--quick", "--processes", number, "--device", "cpu"])
    assert "must be 2 or more, and divide a batch of 4" in capsys.readouterr().err
