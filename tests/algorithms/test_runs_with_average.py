"""Runs that keep an average of the student's weights, as teacher or beside it: records, going on, and jobs on it."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_tools import STEPS, PowerFailure, differences, fail, outcome, read_curves, results_of, stop_at

import main_classification
from algorithms import export, run_config
from algorithms.predict import Prediction
from algorithms.trials import summarize
from config.experiments import default_config
from config.options import Options
from dataloaders import load_dataset
from engine.average import Average
from engine.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("few_digits")

SMALL = {"image_size": 8, "cuda": False, "milestones": [1], "disp_step": 2, "epochs": 2}
KD, ALONE = "digits.RN8.KD", "digits.RN8"
STOP = STEPS + 3  # a step within the second epoch


def train(name: str, localpath: Path, **updates: Any) -> Path:
    """Train; returns the run's directory. What a method needs of a teacher the average of the student is."""
    config = default_config(name) | SMALL | {"localpath": str(localpath)} | updates
    config |= {"teacher": "ema"} if name == KD else {}
    run_config(config)
    return Path(localpath, *name.split("."))


@pytest.fixture(scope="module")
def whole(few_digits, tmp_path_factory) -> Path:
    """A run that the average of its student has taught."""
    return train(KD, tmp_path_factory.mktemp("whole"), epochs=3)


def test_the_average_has_records_beside_those_of_the_student(whole):
    results, curves = results_of(whole), read_curves(whole)
    courses = {name: [done[name]["top1"] for done in results["history"]] for name in ("eval", "average")}
    assert courses["average"] != courses["eval"]
    assert [value for _, value in curves["average/top1"]] == pytest.approx(courses["average"])
    assert results["average_top1"] == courses["average"][-1] and results["top1"] == courses["eval"][-1]
    assert results["best_average_top1"] == max(courses["average"])
    assert results["best_average_epoch"] == 1 + courses["average"].index(max(courses["average"]))
    assert results["average_top5"] == results["history"][-1]["average"]["top5"]
    assert results["teacher_fingerprint"] is None
    assert results["objective"]["weights"]["kd"] > 0 and results["history"][0]["train"]["kd"] > 0


def test_evaluation_takes_it_and_keeps_it_apart(whole):
    config = default_config(KD) | SMALL | {"localpath": str(whole.parents[2]), "evaluate": True}
    for average in (False, True):
        run_config(config | {"average": average})
    results = results_of(whole)
    last, average = results["evaluations"]["last"], results["evaluations"]["last_average"]
    assert (last["top1"], average["top1"]) == (results["top1"], results["average_top1"])
    assert average["average"] is True and "average" not in last and "changed" not in average
    assert results["mode"] == "train"


def test_the_probe_takes_it(whole):
    """What it measures of the average in a file that is called so it measures of the run's."""
    root = whole.parents[2]
    for average in (False, True):
        run_config(default_config(KD) | SMALL | {"localpath": str(root), "probe": True, "average": average})
    found = results_of(whole)["linear_probe"]
    config = default_config(ALONE) | SMALL | {"localpath": str(root), "name": "mine.probed", "probe": True}
    (measured,) = run_config(config | {"weights": f"{whole / 'last.pth'}#average"})["linear_probe"].values()
    assert found["last_average"]["map"] == measured["map"] and found["last_average"]["average"] is True
    assert "average" not in found["last"]


def test_predictions_are_those_of_the_average(whole, tmp_path):
    """Which at its ema_decay is far from the student."""
    pixels = load_dataset("digits", splits=["eval"], image_size=8).eval.images[:8]
    for number, image in enumerate(pixels.numpy()):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    root, images = str(whole.parents[2]), {"images": str(tmp_path), "num_workers": 0}

    def predicted(config: dict[str, Any]) -> list[float]:
        found = Prediction(Options.of(config | SMALL | images | {"localpath": root})).run()["images"]
        return [guess["probability"] for image in found for guess in image["predictions"]]

    own, average = (predicted(default_config(KD) | {"average": average}) for average in (False, True))
    entry = {"name": "mine.predicted", "weights": f"{whole / 'last.pth'}#average"}
    assert average == predicted(default_config(ALONE) | entry) != own


@pytest.mark.slow
def test_export_takes_it(whole, monkeypatch):
    monkeypatch.setattr(export, "TIMED_SECONDS", 0)
    run_config(default_config(KD) | SMALL | {"localpath": str(whole.parents[2]), "export": "pt2", "average": True})
    (path,) = whole.glob("export/*.pt2")
    assert path.name == f"{KD}-last_average.pt2"
    extra, state = {"metadata.json": ""}, load_checkpoint(whole / "last.pth")["average"]
    weights = dict(torch.export.load(path, extra_files=extra).named_parameters())
    head = next(tensor for name, tensor in weights.items() if name.endswith("fc.weight"))
    assert torch.equal(head, state["fc.weight"]) and json.loads(extra["metadata.json"])["provenance"]["average"] is True


@pytest.mark.parametrize("is_told", [False, True], ids=["killed", "stopped"])
def test_a_run_that_was_stopped_in_an_epoch_ends_with_the_same_average(is_told, whole, tmp_path, monkeypatch):
    how = partial(signal.raise_signal, signal.SIGINT) if is_told else fail
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, PowerFailure)):
        stop_at(patch, STOP, how)
        train(KD, tmp_path, epochs=3)
    assert (tmp_path / "digits/RN8/KD/stopped.pth").is_file() == is_told
    directory = train(KD, tmp_path, epochs=3, checkpoint=-1)
    assert differences(outcome(whole), outcome(directory)) == []
    assert "average" in outcome(directory)["last.pth"]


def test_an_average_changes_nothing_of_a_student_that_it_does_not_teach(tmp_path):
    plain, kept = train(ALONE, tmp_path / "plain"), train(ALONE, tmp_path / "kept", average=True)
    one, other = load_checkpoint(plain / "last.pth"), load_checkpoint(kept / "last.pth")
    assert "average" not in one and differences(one["model"], other["model"]) == []
    assert differences(one["optimizer"], other["optimizer"]) == []
    assert differences(other["model"], other["average"]) != []
    assert "average_top1" not in results_of(plain) and results_of(kept)["average_top1"] >= 0


def test_its_update_is_that_of_every_step(tmp_path, monkeypatch):
    steps, update = [], Average.update

    def counted(average: Average, step: int) -> None:
        steps.append(step)
        update(average, step)

    monkeypatch.setattr(Average, "update", counted)
    train(ALONE, tmp_path, average=True)
    assert steps == [*range(1, 2 * STEPS + 1)]


def test_without_decay_it_is_the_student(tmp_path):
    directory = train(ALONE, tmp_path, average=True, ema_decay=0.0)
    last, results = load_checkpoint(directory / "last.pth"), results_of(directory)
    assert differences(last["model"], last["average"]) == []
    assert results["average_top1"] == results["top1"] and results["best_average_epoch"] == results["best_epoch"]


def test_it_is_float32_where_a_step_computes_in_bfloat16(tmp_path):
    directory = train(KD, tmp_path, epochs=1, precision="bf16")
    state = load_checkpoint(directory / "last.pth")["average"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def test_held_out_images_choose_its_epoch_by_the_student(tmp_path):
    directory = train(KD, tmp_path, val_split=40)
    results, best = results_of(directory), load_checkpoint(directory / "best.pth")
    assert results["best_average_epoch"] == results["best_epoch"] == best["epoch"]
    assert results["best_average_top1"] == results["average_top1"]
    options = {"localpath": str(tmp_path), "evaluate": True, "average": True, "best": True}
    run_config(default_config(KD) | SMALL | {"val_split": 40} | options)
    assert results_of(directory)["evaluations"]["best_average"]["top1"] == results["average_top1"]


def test_a_run_keeps_its_average_where_the_command_that_goes_on_does_not_ask_for_it(tmp_path, monkeypatch):
    whole = train(ALONE, tmp_path / "whole", average=True)
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, STOP, fail)
        train(ALONE, tmp_path, average=True)
    directory = train(ALONE, tmp_path, checkpoint=-1)
    assert differences(outcome(whole), outcome(directory)) == []


def test_an_average_cannot_begin_in_the_middle(tmp_path):
    directory = train(ALONE, tmp_path)
    before = {name: (directory / name).read_bytes() for name in ("last.pth", "best.pth", "results.json")}
    with pytest.raises(ValueError, match=r"last\.pth has no average of the student.* begin again with checkpoint=0"):
        train(ALONE, tmp_path, average=True, checkpoint=-1, epochs=3)
    assert {name: (directory / name).read_bytes() for name in before} == before


def test_an_average_is_an_entry_of_its_file(tmp_path):
    directory = train(ALONE, tmp_path, average=True)
    path = directory / "last.pth"
    config = default_config(ALONE) | SMALL | {"localpath": str(tmp_path), "name": "mine.other", "evaluate": True}
    measured = run_config(config | {"weights": f"{path}#average"})
    assert measured["top1"] == results_of(directory)["average_top1"] and measured["weights"] == f"{path}#average"
    with pytest.raises(ValueError, match=r"chosen by its entry: weights=.*last\.pth#average$"):
        run_config(config | {"weights": str(path), "average": True})


def test_a_run_without_an_average_says_so(tmp_path, capsys):
    train(ALONE, tmp_path, epochs=1)
    words = ["config=digits.RN8", "image_size=8", "cuda=False", "evaluate=True", "average=True"]
    assert main_classification.main(["main.py", "with", *words, f"localpath={tmp_path}"]) == 1
    assert "last.pth has no average of the weights: train with average=True" in capsys.readouterr().err


def test_trials_have_the_mean_of_what_all_have(tmp_path):
    for seed, average in ((0, True), (1, False)):
        train(ALONE, tmp_path, seeds=[seed], average=average, epochs=1)
    mean = summarize(tmp_path / "digits" / "RN8", [0, 1])["summaries"]["train"]["mean"]
    assert set(mean) == {"top1", "best_top1", "top5", "seconds"}
    mean = summarize(tmp_path / "digits" / "RN8", [0])["summaries"]["train"]["seeds"]["0"]
    assert {"average_top1", "best_average_top1"} <= set(mean)


# --- without a teacher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["LS", "TfKD"])
def test_a_teacher_free_method_of_a_network_alone_is_that_of_a_pair(method, supervision, tmp_path):
    """The teacher of the pair is read by nobody, so the students are the same."""
    alone = train(f"digits.RN8.{method}", tmp_path, epochs=1)
    pair = train(f"digits.RN14_RN8.{method}", tmp_path, epochs=1)
    one, other = (load_checkpoint(directory / "last.pth") for directory in (alone, pair))
    assert differences(one["model"], other["model"]) == []
    assert results_of(alone)["objective"]["weights"] == {"ce": 0.9, method.lower(): 0.1}
