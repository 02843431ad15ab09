"""Trainings with other optimizers, schedules, frozen parameters, parts of batches and noise in the network."""

import signal
from typing import Any

import pytest
import torch
from training_tools import STEPS, PowerFailure, configure, differences, fail, outcome, results_of, state, stop_at, train

from algorithms.train import Training
from config.options import Options
from dataloaders import load_dataset
from engine.records import set_up_console
from storage.tensor_files import load_tensors

pytestmark = pytest.mark.usefixtures("few_digits")

RECIPES: dict[str, dict[str, Any]] = {
    "all": {
        "optimizer": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.5, "clip_gradients": 1.0,
        "decay_norms_and_biases": False, "learning_rates": ["backbone.layer1=0.5"], "freeze": ["backbone.conv1"],
        "drop_path": 0.3,
    },
    "timm": {"optimizer": "timm/lamb", "learning_rate": 2e-3, "schedule": "linear", "warmup_steps": 2},
}  # fmt: skip
SHORT = {"epochs": 2, "disp_step": 2}


# --- a run that was stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(recipe, folder, monkeypatch):
    """From the epoch before, and by a signal within an epoch: with the rates, the counts and the noise of its steps."""
    options = SHORT | RECIPES[recipe]
    whole = outcome(train("letKD-2", folder, **options))
    for how, error in ((fail, PowerFailure), (interrupt, KeyboardInterrupt)):
        with monkeypatch.context() as patch, pytest.raises(error):
            stop_at(patch, STEPS + 2, how)
            train("letKD-2", folder, **options)
        torch.manual_seed(123)
        assert differences(whole, outcome(train("letKD-2", folder, checkpoint=-1, **options))) == []


def interrupt() -> None:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizer": "adamw"}, "optimizer='sgd', and what its optimizer remembers does not serve optimizer='adamw'"),
        ({"freeze": ["conv1"]}, r"freeze=\[\], .* freeze=\['conv1'\]"),
        ({"learning_rates": ["conv1=2"]}, r"learning_rates=\[\], "),
        ({"decay_norms_and_biases": False}, "decay_norms_and_biases=True, "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_another_optimizer_does_not_go_on(changed, said, folder):
    before = (folder / "digits" / "RN8" / "last.pth").read_bytes()
    with pytest.raises(ValueError, match=rf"last.pth was trained with {said}.*; leave it out, or start from scratch"):
        train("classification", folder, epochs=2, checkpoint=-1, **changed)
    assert (folder / "digits" / "RN8" / "last.pth").read_bytes() == before


def test_another_schedule_goes_on_with_a_note_as_other_milestones_do(folder, capsys):
    set_up_console()
    train("classification", folder, epochs=2, milestones=[], checkpoint=-1, schedule="cosine")
    assert "note: changed since that epoch: epochs, schedule, milestones\n" in capsys.readouterr().out


@pytest.mark.parametrize(("before", "now"), [(0.0, 5e-4), (5e-4, 0.0)], ids=["some", "none"])
def test_another_weight_decay_goes_on_where_norms_have_none(before, now, folder, capsys):
    options = {"decay_norms_and_biases": False, "milestones": []}
    train("classification", folder, epochs=1, weight_decay=before, **options)
    set_up_console()
    directory = train("classification", folder, epochs=2, weight_decay=now, checkpoint=-1, **options)
    assert "note: changed since that epoch: epochs, weight_decay\n" in capsys.readouterr().out
    groups = load_tensors(directory / "last.pth")["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, now]


def test_a_finished_run_does_not_claim_another_schedule(folder):
    (folder / "digits" / "RN8" / "results.json").unlink()
    with pytest.raises(ValueError, match="no epoch is left to train with schedule='cosine'"):
        train("classification", folder, epochs=1, checkpoint=-1, schedule="cosine")


# --- what they do ----------------------------------------------------------------------------------------------------


def test_the_rate_of_an_epoch_is_that_of_its_last_step(folder):
    directory = train("classification", folder, epochs=2, schedule="linear", warmup=1.0, learning_rate=0.1)
    assert [done["learning_rate"] for done in results_of(directory)["history"]] == pytest.approx([0.1, 0.025])
    group = load_tensors(directory / "last.pth")["optimizer"]["param_groups"][0]
    assert group["lr"] == pytest.approx(0.025)


def test_what_is_frozen_is_as_it_was_drawn(folder):
    """Weights and statistics, in a run that is evaluated after every epoch."""
    frozen = {"freeze": ["conv1", "bn1", "layer1"]}
    job = Training(Options.of(configure("classification", folder, **SHORT, **frozen)))
    job.run()
    torch.manual_seed(0)
    drawn = Training(Options.of(configure("classification", folder)))
    drawn._build(None)
    before, after = drawn.model.state_dict(), load_tensors(job.directory / "last.pth")["model"]
    same = {name.split(".")[0] for name in before if torch.equal(before[name], after[name])}
    assert same == {"conv1", "bn1", "layer1"}
    assert len(load_tensors(job.directory / "last.pth")["optimizer"]["state"]) == sum(
        not name.startswith(("conv1.", "bn1.", "layer1.")) for name, _ in job.model.named_parameters()
    )


def test_a_pattern_that_names_nothing_leaves_an_earlier_run_alone(folder):
    before = (folder / "digits" / "RN8" / "last.pth").read_bytes()
    with pytest.raises(ValueError, match="freeze: nothing here is called 'backbone'; there are conv1, bn1, layer1"):
        train("classification", folder, freeze=["backbone"])
    assert (folder / "digits" / "RN8" / "last.pth").read_bytes() == before


def test_parts_of_a_batch_are_mentioned_where_a_loss_compares_images(folder, capsys):
    set_up_console()
    config = configure("letKD-1", folder, epochs=1, accumulate=4) | {"config": "digits.RN14_RN8.letKD-1+PKT"}
    config |= {"method": "letKD-1+PKT", "pkt.weight": 30000.0}
    job = Training(Options.of(config))
    job.run()
    assert "note: pkt compares images with each other, and sees 16 of them at a time\n" in capsys.readouterr().out


def test_accumulation_keeps_what_is_counted(folder):
    """Steps of a run, and images of its figures."""
    results = results_of(train("letKD-1", folder, epochs=1, accumulate=2))
    (done,) = results["history"]
    assert 0 < done["train"]["top1"] < 100 and set(done["train"]) == {"loss", "top1", "ce", "words"}
    saved = state(folder / "digits" / "RN14_RN8" / "letKD-1" / "last.pth")
    assert saved["model"]["backbone.bn1.num_batches_tracked"] == 2 * STEPS


def test_dropped_paths_and_units_follow_from_the_seed_and_are_gone_in_evaluation(folder):
    options = {"epochs": 1, "drop_path": 0.5, "dropout": 0.5}
    first, plain = (state(train("classification", folder, **each) / "last.pth") for each in (options, {"epochs": 1}))
    assert differences(first["model"], plain["model"]) != []
    directory = train("classification", folder, **options)
    assert differences(first, state(directory / "last.pth")) == []
    train("classification", folder, evaluate=True)
    results = results_of(directory)
    assert results["evaluations"]["last"]["top1"] == results["top1"] and "changed" not in results["evaluations"]["last"]


def test_a_network_that_takes_no_drop_path_says_so_before_anything_is_made(folder):
    job = Training(Options.of(configure("classification", folder, network="vgg8", drop_path=0.1)))
    with pytest.raises(ValueError, match=r"^vgg8 does not take drop_path=0.1 \(.*'drop_path'\); leave it out$"):
        next(job.missing_requirements(), None)


def test_an_optimizer_that_does_not_exist_is_refused_before_anything_is_made(folder):
    job = Training(Options.of(configure("classification", folder, optimizer="adamm")))
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamm'; did you mean 'adamw'\?"):
        next(job.missing_requirements(), None)


def test_a_warm_up_as_long_as_the_run_is_refused_before_anything_is_made(folder):
    job = Training(Options.of(configure("classification", folder, epochs=2, warmup_steps=8)))
    for look in (lambda: job.check_images(lambda data: load_dataset("digits", image_size=8)), job.run):
        with pytest.raises(ValueError, match="warmup_steps=8 leaves nothing of a training of 8 steps, 2 epochs of 4"):
            look()


@pytest.mark.parametrize(
    "options",
    [
        {"freeze": ["backbone.conv1", "layers.penultimate.scale"]},
        {"learning_rates": ["*conv1=0.1", "layers=2"]},
        {"learning_rates": ["losses.fitnet.regressor.0=2"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_patterns_are_looked_for_before_the_teacher_is_there(options, tmp_path):
    """In the student with its KD layers and in the losses, of random numbers, which are none of the run's."""
    job = Training(Options.of(configure("letKD-2+FitNet", tmp_path, **options)))
    before = torch.random.get_rng_state()
    job.check_images(lambda data: load_dataset("digits", image_size=8))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_patterns_nothing_is_built_to_look_for_them(folder, monkeypatch):
    monkeypatch.setattr("algorithms.train.drawn_objective", None)
    Training(Options.of(configure("letKD-2", folder))).check_images(lambda data: load_dataset("digits", image_size=8))


# --- figures by class ------------------------------------------------------------------------------------------------


def test_results_say_the_accuracy_of_every_class(folder):
    directory = train("classification", folder, epochs=1)
    train("classification", folder, evaluate=True)
    results = results_of(directory)
    labels = load_dataset("digits", image_size=8).eval.labels
    shares = [(labels == number).sum().item() / len(labels) for number in range(10)]
    by_class = results["class_accuracies"]
    assert list(by_class) == [str(digit) for digit in range(10)]
    summed = sum(share * accuracy for share, accuracy in zip(shares, by_class.values(), strict=True))
    assert summed == pytest.approx(results["top1"]) and 0 < results["macro_f1"] <= 100
    measured = results["evaluations"]["last"]
    assert (measured["macro_f1"], measured["class_accuracies"]) == (results["macro_f1"], by_class)


def test_an_evaluation_names_the_classes_that_are_recognised_least(folder, capsys):
    set_up_console()
    train("classification", folder, evaluate=True)
    measured = results_of(folder / "digits" / "RN8")["evaluations"]["last"]
    lowest = sorted((accuracy, name) for name, accuracy in measured["class_accuracies"].items())[:3]
    listed = ", ".join(f"{name} {accuracy:.2f}%" for accuracy, name in lowest)
    assert f"macro-F1 {measured['macro_f1']:.2f}%, least accurate: {listed}\n" in capsys.readouterr().out
