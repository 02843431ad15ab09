"""The benchmark of recipes runs on little, and its steps have the options that it names."""

from types import SimpleNamespace

import torch

from benchmarks import methods, recipes


def test_runs_on_little(monkeypatch, capsys):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    assert recipes.main(["--quick", "--alternations", "6"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    rows = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("| ").split(" | ")) > 1}
    assert "torch" in first and {*recipes.RECIPES, "together"} < set(rows)
    assert " to " in rows["together"][2] and lines[-1].endswith(f"the limit of {recipes.LIMIT} of a plain step")


def test_what_is_together_has_every_option(monkeypatch):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    made = []
    make = recipes.make_optimizer
    monkeypatch.setattr(recipes, "make_optimizer", lambda *given: made.append(given[1]) or make(*given))
    recipes.step_functions(methods.QUICK, torch.device("cpu"))
    plain, *single, together = made
    assert (plain.schedule, plain.clip_gradients, plain.decay_norms_and_biases) == ("step", None, True)
    assert (together.schedule, together.clip_gradients, together.decay_norms_and_biases) == ("cosine", 1.0, False)
    assert (plain.mixup, plain.cutmix, together.mixup, together.cutmix) == (0.0, 0.0, 0.2, 1.0)
    # The average, and what is done to images one by one, are no options of a protocol.
    assert len(single) == len(recipes.RECIPES) - 1 and single.count(plain) == 4


def test_what_is_done_to_images_and_averages_is_done_in_a_step(monkeypatch):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    seen, averaged = [], []
    monkeypatch.setattr(recipes.TrainStep, "__call__", lambda self, batch: seen.append(batch.images))
    monkeypatch.setattr(recipes.Average, "update", lambda self, step: averaged.append(step))
    monkeypatch.setattr(recipes, "Meter", lambda device: SimpleNamespace(add=lambda result, labels: None))
    steps = recipes.step_functions(methods.QUICK, torch.device("cpu"))
    for name, changes, averages in (
        ("plain", False, 0), ("a cosine", False, 0), ("the average", False, 1), ("colour jitter", True, 0),
        ("RandAugment", True, 0), ("together", True, 1),
    ):  # fmt: skip
        before = len(averaged)
        steps[name]()
        given = methods.random_batch(methods.QUICK, torch.device("cpu")).images
        assert torch.equal(seen[-1], given) != changes and len(averaged) - before == averages, name


def test_the_steps_of_a_cosine_are_behind_its_warm_up(monkeypatch):
    monkeypatch.setattr(methods, "PAIR", "digits.RN14_RN8")
    rates = []
    monkeypatch.setattr(recipes, "set_learning_rate", lambda optimizer, rate: rates.append(rate))
    step = recipes.step_functions(methods.QUICK, torch.device("cpu"))["a cosine"]
    for _ in range(3):
        step()
    assert rates[0] > rates[1] > rates[2] > 0
