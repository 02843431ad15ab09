"""Figures of every epoch: in results.json and the checkpoint, in TensorBoard, in progress.json while a run goes on."""

import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training_tools import STEPS, PowerFailure, differences, outcome, read_curves, read_events, stop_at, train

from dataloaders import load_dataset, make_train_loader
from distillation.objective import Step
from engine.checkpoints import load_checkpoint
from engine.meter import Meter
from storage.tensor_files import load_json

pytestmark = pytest.mark.usefixtures("few_digits")

OPTIONS = {"epochs": 3, "milestones": [1], "disp_step": 2}


@pytest.fixture(scope="module")
def directory(few_digits, supervision, tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    return train("letKD-2", folder, **OPTIONS)


def test_every_epoch_has_its_figures(directory):
    results = load_json(directory / "results.json")
    history = results["history"]
    assert [done["epoch"] for done in history] == [1, 2, 3]
    assert [done["learning_rate"] for done in history] == pytest.approx([0.05, 0.005, 0.005])
    for done in history:
        assert set(done["train"]) == {"loss", "ce", "words", "decisions", "top1"}
        assert set(done["eval"]) == {"loss", "top1", "top5"}
        assert done["seconds"] > STEPS * 64 / done["images_per_second"] > 0
    assert history[-1]["eval"]["top1"] == results["top1"]
    assert history[results["best_epoch"] - 1]["eval"]["top1"] == results["best_top1"]
    assert load_checkpoint(directory / "last.pth")["history"] == history
    assert sum(done["seconds"] for done in history) < results["seconds"]


def test_the_curves_are_the_history(directory):
    curves = read_curves(directory)
    history = load_json(directory / "results.json")["history"]
    steps = [done["epoch"] * STEPS for done in history]
    for group in ("train", "eval", "scales"):
        for name in history[0][group]:
            values = [done[group][name] for done in history]
            assert curves[f"{group}/{name}"] == list(zip(steps, map(pytest.approx, values), strict=True)), name
    for name in ("learning_rate", "images_per_second"):
        values = [done[name] for done in history]
        assert curves[f"train/{name}"] == list(zip(steps, map(pytest.approx, values), strict=True))


def test_statistics_are_means_over_the_steps_that_were_looked_at(directory):
    curves = read_curves(directory)
    for done in load_json(directory / "results.json")["history"]:
        assert set(done["statistics"]) >= {"perplexity", "word_accuracy"}
        first = (done["epoch"] - 1) * STEPS
        assert 0 <= done["statistics"]["dead_words"] < 16
        for name, mean in done["statistics"].items():
            if name == "dead_words":  # of the epoch, not of a step
                continue
            looked_at = {step: value for step, value in curves[f"batch/{name}"] if first < step <= first + STEPS}
            assert list(looked_at) == [first + 2, first + 4]
            assert mean == pytest.approx(np.mean(list(looked_at.values())))


def test_scales_are_those_of_the_layers(directory):
    model = load_checkpoint(directory / "last.pth")["model"]
    assert load_json(directory / "results.json")["history"][-1]["scales"] == {
        f"{place}_{kind}": model[f"layers.{place}.{name}"].item()
        for place in ("penultimate", "intermediate")
        for kind, name in (("templates", "scores.scale"), ("semantic", "scale"))
    }


@pytest.mark.parametrize(("method", "scales"), [("classification", set()), ("QuEST", {"predictor_templates"})])
def test_other_methods_have_what_there_is(method, scales, folder):
    done = load_json(train(method, folder, epochs=1, milestones=[]) / "results.json")["history"][0]
    assert set(done["scales"]) == scales
    assert ("perplexity" in done["statistics"]) == (method == "QuEST")


def test_augmented_images_are_shown_once_as_the_network_saw_them(directory):
    shown = [
        (event.step, value.image.encoded_image_string)
        for path in sorted((directory / "tensorboard").iterdir())
        for event in read_events(path)
        for value in event.summary.value
        if value.tag == "input/augmented"
    ]
    ((step, encoded),) = shown
    assert step == STEPS
    grid = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded))))
    tiles = grid.unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)  # (64, 3, 8, 8): 8 x 8 images of 8 x 8
    dataset = load_dataset("digits", image_size=8)
    loader = make_train_loader(dataset, batch_size=64, device="cpu", seed=0)
    loader.set_epoch(1)
    assert torch.equal(tiles, next(iter(loader)).images)


def test_progress_is_there_while_the_run_goes_on_and_gone_afterwards(folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, 2 * STEPS + 2)
        train("classification", folder, **OPTIONS)
    directory = folder / "digits" / "RN8"
    progress = load_json(directory / "progress.json")
    assert [done["epoch"] for done in progress["history"]] == [1, 2]
    expected = {"state": "running", "process": os.getpid(), "config": "digits.RN8", "mode": "train", "seed": 0}
    expected |= {"epoch": 2, "epochs": 3, "step": 0, "steps_per_epoch": STEPS, "deterministic": False}
    assert {key: progress[key] for key in expected} == expected
    assert progress["best_top1"] == max(done["eval"]["top1"] for done in progress["history"])
    train("classification", folder, checkpoint=-1, **OPTIONS)
    assert not (directory / "progress.json").exists()
    assert [done["epoch"] for done in load_json(directory / "results.json")["history"]] == [1, 2, 3]


def test_a_run_without_an_epoch_has_progress_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, 1)
        train("classification", tmp_path, **OPTIONS)
    progress = load_json(tmp_path / "digits/RN8/progress.json")
    assert (progress["epoch"], progress["best_top1"], progress["history"]) == (0, None, [])


def test_going_back_forgets_the_history_of_the_epochs_left_behind(folder):
    directory = train("classification", folder, keep_every=1, **OPTIONS)
    expected = outcome(directory)
    train("classification", folder, keep_every=1, checkpoint=1, **OPTIONS)
    assert differences(outcome(directory), expected) == []


def test_counts_are_added_up_over_the_epoch():
    meter = Meter(torch.device("cpu"))
    for counts in ([3, 0, 0, 1], [0, 0, 2, 5]):
        meter.add(Step(torch.tensor(1.0), torch.eye(2), {}, {}), torch.tensor([0, 1]))
        statistics: dict[str, Tensor] = {"perplexity/mean": torch.tensor(2.0), "words/count": torch.tensor(counts)}
        assert meter.look(statistics) == {"perplexity": 2.0}
        restored = Meter(torch.device("cpu"))
        restored.restore(meter.state())
        meter = restored
    assert meter.summary() == {"perplexity": 2.0, "dead_words": 1}


def test_a_statistic_says_how_it_is_summed_up():
    with pytest.raises(ValueError, match="'perplexity' must end in how it is summed up: /mean or /count"):
        Meter(torch.device("cpu")).look({"perplexity": torch.tensor(2.0)})
