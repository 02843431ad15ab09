"""The benchmark of the teacher's cache runs on little, and its loops read, write and run the teacher as they say."""

import pytest
import torch

from benchmarks import methods, teacher_cache
from distillation.objective import Teacher


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")


def test_runs_on_little(capsys):
    assert teacher_cache.main(["--quick", "--alternations", "6"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    rows = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("| ").split(" | ")) > 1}
    assert "torch" in first and {*teacher_cache.AGAINST, teacher_cache.RUNS} < set(rows)
    assert " to " in rows[teacher_cache.READS][2]
    assert lines[-1] == "240 epochs of CIFAR-100 are 2.4 GB (all logits), 1.0 GB (20 of 100 logits)"


def test_the_loops_are_what_they_are_called(tmp_path, monkeypatch):
    calls = []
    run = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: calls.append(0) or run(self, images))
    functions = teacher_cache.step_functions(tmp_path, methods.QUICK, torch.device("cpu"))
    for function in functions.values():  # the first step makes what is read
        function()
    found = {}
    for name, function in functions.items():
        calls.clear()
        function()
        found[name] = len(calls)
    assert list(found.values()) == [1, 1, 0, 0, 1, 1, 0]
