"""The benchmark of methods: plain forms are the losses, what is measured is what is said, and all of it runs."""

import json

import pytest
import torch
from objective_tools import IMAGE_SIZE, NUM_CLASSES, batch_of, objective_of_method
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measuring, methods
from distillation.expressions import list_methods
from distillation.losses import list_transforms
from docs import make_methods

CPU = torch.device("cpu")
EVERY = [*list_methods(), *(f"{transform}:KD" for transform in list_transforms())]


def sides_of(method):
    torch.manual_seed(0)
    objective = objective_of_method(method).train()
    objective.on_epoch(10, 240)  # within the warm-ups
    pixels = torch.randint(256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    return methods.loss_functions(objective, batch_of(pixels, torch.arange(8) % NUM_CLASSES))


@pytest.mark.parametrize("method", EVERY)
def test_the_plain_form_of_a_loss_has_its_terms_and_gradients(method):
    sides = sides_of(method)
    assert methods.difference(sides["letKD"](), sides["plain"]()) <= methods.TOLERANCE


class Counter(TorchDispatchMode):
    """Counts what torch computes, forward and backward; most of it takes as long as its start where rows are few."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("method", ["DIST", "SRRL"])
def test_guards_cost_few_operators_beside_the_plain_form(method):
    number = {}
    for side, function in sides_of(method).items():
        with Counter() as counter:
            function()
        number[side] = counter.number
    assert 0 < number["letKD"] <= methods.LIMIT * number["plain"]


def test_what_differs_is_an_error():
    terms, gradients = sides_of("KD")["plain"]()
    others = {"terms": ({"kd": 1.001 * terms["kd"]}, gradients), "gradients": (terms, (None,) * len(gradients))}
    for wrong in others.values():
        with pytest.raises(RuntimeError, match="differ from the plain form"):
            methods.difference(wrong, (terms, gradients))


def test_a_sum_has_plain_forms_where_all_of_it_has():
    assert sides_of("letKD-2+DKD") and sides_of("sdd:DKD") is None


def test_memory_is_the_most_that_is_there_at_once():
    def function():
        kept = torch.ones(2 * measuring.MIB, dtype=torch.uint8)
        for _ in range(3):
            kept.repeat(3)

    assert measuring.peak_memory(function, CPU) == pytest.approx(8, abs=0.01)


def test_turns_begin_with_either_and_repeat_what_is_short(monkeypatch):
    called, clock = [], iter(range(100))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    turns = measuring.take_turns({name: lambda name=name: called.append(name) for name in "ab"}, 2, CPU, at_least=3)
    assert "".join(called) == "ab" + "ab" + "aaabbb" + "bbbaaa"
    assert turns == [{"a": 1 / 3, "b": 1 / 3}] * 2


@pytest.mark.parametrize("part", methods.PARTS)
def test_runs_on_little(part, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    monkeypatch.setattr(make_methods, "COSTS", tmp_path / "methods.json")
    words = ["PKT", "sdd:DKD", "--quick", "--alternations", "6", "--only", part]
    words += ["--write", str(make_methods.COSTS)] if part == "steps" else []
    assert methods.main(words) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "torch" in first and "commit" in first and "4 images a step, 6 alternations, --quick" in first
    rows = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("| ").split(" | ")) > 1}
    if part == "steps":
        assert {"`PKT`", "`sdd:DKD`"} < set(rows)
        found = json.loads(make_methods.COSTS.read_text())
        assert found["measured"] == first and list(found["steps"]) == ["PKT", "sdd:DKD"]
        low, high = found["steps"]["PKT"]["interval"]
        assert low <= found["steps"]["PKT"]["ratio"] <= high
        assert make_methods.cost("PKT") == f"{rows['`PKT`'][1]} ({rows['`PKT`'][2]})"
        assert make_methods.cost("DKD") == "not measured"
        assert make_methods.timed().endswith(f"{first}.")
    elif part == "losses":
        assert rows["`sdd:DKD`"][0] == "no plain form is written down" and "to" in rows["`PKT`"][3]
        assert lines[-1].startswith("above 1.05 of the plain form: ")
    else:
        assert list(rows)[1:] == ["letKD, KD", "letKD, letKD-2", "plain, KD", "plain, CRD"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["PKTT"], "unknown method 'PKTT'; did you mean 'PKT'"),
        (
            ["PKT", "--only", "losses", "--write"],
            "--write writes what was measured of steps, which --only leaves out",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, error, capsys):
    assert methods.main([*words, "--quick"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and error in printed.err and printed.err.count("\n") == 1
