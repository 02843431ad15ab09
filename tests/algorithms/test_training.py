"""The training loop: it repeats, continues, keeps its records, and trains what it should."""

import json
import math
import shutil
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_tools import batch_of
from torch import nn
from training_tools import (
    METHODS,
    STEPS,
    THREE_EPOCHS,
    PowerFailure,
    accuracies,
    configure,
    differences,
    outcome,
    read_curves,
    results_of,
    state,
    stop_at,
    train,
)

from algorithms import train as training
from algorithms.base import HOLD_OUT_SEED
from algorithms.teaching import open_objective
from algorithms.train import Meter, Training
from architectures import Input, create_model
from config.options import Options, Protocol
from dataloaders import Batch, hold_out, load_dataset, make_eval_loader
from distillation.objective import Objective, Step
from engine.accuracy import evaluate
from engine.checkpoints import load_checkpoint, save_checkpoint
from engine.optimization import make_optimizer
from engine.records import save_progress, set_up_console
from engine.step import descend
from storage.state_dicts import fingerprint
from storage.tensor_files import load_tensors

pytestmark = pytest.mark.usefixtures("few_digits")

# --- the same run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_repeats_bit_for_bit(method, folder, supervision, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    shutil.copytree(supervision, again, dirs_exist_ok=True)
    first, second = (train(method, place, epochs=1, seed=5) for place in (folder, again))
    assert differences(state(first / "last.pth"), state(second / "last.pth")) == []
    assert accuracies(first) == accuracies(second)


def test_two_seeds_differ_in_initial_weights_and_in_order(folder, monkeypatch):
    seen = defaultdict(list)

    def watch(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        seen["weights"].append(optimizer.param_groups[0]["params"][0].detach().clone())
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.step.descend", watch)
    for seed in (0, 1):
        job = Training(Options.of(configure("classification", folder, epochs=1, seed=seed)))
        with pytest.raises(KeyboardInterrupt):
            job.run()
        job.train_loader.set_epoch(1)
        seen["labels"].append(next(iter(job.train_loader)).labels)
    assert not torch.equal(*seen["weights"]) and not torch.equal(*seen["labels"])


def test_how_often_losses_are_looked_at_does_not_change_the_run(folder):
    often = train("letKD-2", folder, epochs=1, disp_step=1)
    expected, curves = state(often / "last.pth"), read_curves(often)
    seldom = train("letKD-2", folder, epochs=1, disp_step=1000)
    assert differences(expected, state(seldom / "last.pth")) == []
    assert [step for step, _ in curves["batch/perplexity"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in read_curves(seldom)["batch/perplexity"]] == [STEPS]


def test_results_say_whose_weights_taught(folder):
    teacher = results_of(folder / "digits" / "RN8")
    student = train("letKD-1", folder, epochs=1)
    results = results_of(student)
    assert teacher["teacher_fingerprint"] is None
    assert results["teacher_fingerprint"] == teacher["fingerprint"] != results["fingerprint"]
    assert results["fingerprint"] == fingerprint(load_tensors(student / "last.pth")["model"])


@pytest.mark.parametrize("taught_by", ["another", None], ids=["another teacher", "not recorded"])
def test_going_on_under_another_teacher_is_noted(taught_by, folder, capsys):
    """And the run does not pass for one that the present teacher has taught."""
    set_up_console()
    directory = train("letKD-1", folder, epochs=1)
    checkpoint = load_checkpoint(directory / "last.pth")
    del checkpoint["teacher_fingerprint"]
    save_checkpoint(directory / "last.pth", checkpoint | ({"teacher_fingerprint": taught_by} if taught_by else {}))
    capsys.readouterr()
    train("letKD-1", folder, epochs=2, checkpoint=-1)
    noted = "epochs, the teacher's weights" if taught_by else "epochs"
    assert f"note: changed since that epoch: {noted}\n" in capsys.readouterr().out
    assert results_of(directory)["teacher_fingerprint"] == taught_by
    assert load_checkpoint(directory / "last.pth")["teacher_fingerprint"] == taught_by


# --- a run that was stopped ------------------------------------------------------------------------------------------


STOPS = {"in epoch 2": STEPS + 3, "after epoch 2": 2 * STEPS + 1}
LONG = pytest.param("QuEST", "after epoch 2", marks=pytest.mark.slow)  # as letKD-2, and as QuEST in epoch 2


@pytest.mark.parametrize(
    ("method", "stop"), [*(("letKD-2", stop) for stop in STOPS), ("QuEST", "in epoch 2"), LONG], ids=str
)
def test_a_stopped_run_continues_as_if_it_had_not_been(method, stop, whole, folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, STOPS[stop])
        train(method, folder, **THREE_EPOCHS)
    torch.manual_seed(123)  # the stopped process took its random state with it
    directory = train(method, folder, checkpoint=-1, **THREE_EPOCHS)
    assert differences(whole[method], outcome(directory)) == []


def test_a_session_within_the_same_second_keeps_the_curves(folder, monkeypatch):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1_700_000_000.0)
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, STEPS + 2)
        train("classification", folder, epochs=2, checkpoint=0)
    directory = train("classification", folder, epochs=2, checkpoint=-1)
    assert [step for step, _ in read_curves(directory)["eval/top1"]] == [STEPS, 2 * STEPS]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".pth", ".json")}


@pytest.mark.parametrize("options", [{}, {"learning_rate": 9.0}], ids=["same options", "others"])
def test_continuing_a_finished_run_changes_nothing(options, folder, capsys):
    set_up_console()
    directory = train("classification", folder, epochs=1, evaluate=True)
    before = files_of(directory)
    train("classification", folder, epochs=1, checkpoint=-1, **options)
    assert files_of(directory) == before
    out = capsys.readouterr().out
    assert f"nothing is left to train: 1 epochs are done, {directory / 'results.json'} stays" in out
    assert ("changed since that epoch: learning_rate" in out) == bool(options)


def test_a_run_that_was_killed_when_it_had_its_results_is_finished(folder):
    directory = folder / "digits" / "RN8"
    before = files_of(directory)
    save_progress(directory, {"state": "running"})
    train("classification", folder, epochs=1, checkpoint=-1)
    assert files_of(directory) == before


def test_results_do_not_claim_what_no_epoch_was_trained_with(folder):
    """The last epoch was saved, and the run killed before it had its results."""
    directory = folder / "digits" / "RN8"
    expected = accuracies(directory)
    (directory / "results.json").unlink()
    refused = r"no epoch is left to train with momentum=0.5: .*last.pth is epoch 1, trained with momentum=0.9; leave it"
    with pytest.raises(ValueError, match=refused):
        train("classification", folder, epochs=1, checkpoint=-1, momentum=0.5)
    train("classification", folder, epochs=1, checkpoint=-1)
    assert accuracies(directory) == expected


def test_damaged_results_of_a_continued_run_are_moved_away(folder):
    directory = folder / "digits" / "RN8"
    expected = accuracies(directory)
    (directory / "results.json").write_text("{")
    train("classification", folder, epochs=1, checkpoint=-1)
    assert accuracies(directory) == expected
    assert (directory / "results.damaged").read_text() == "{"


def test_a_continued_run_trains_with_the_options_it_is_given(folder):
    """Momentum and weight decay too, which a saved optimizer would bring along."""
    changed = {"momentum": 0.5, "nesterov": False, "weight_decay": 0.0}
    directory = train("classification", folder, epochs=2, milestones=[1], checkpoint=-1, **changed)
    group = load_tensors(directory / "last.pth")["optimizer"]["param_groups"][0]
    assert {key: group[key] for key in changed} == changed
    options = results_of(directory)["options"]
    assert {key: options[key] for key in changed} == changed


def test_measurements_stay_as_long_as_what_they_were_made_on(folder, scripted):
    """Of the last epoch as long as it is the last, of the best as long as it is the best, of epoch n always."""
    scripted(20.0, 60.0, 40.0)
    options = {"milestones": [], "keep_every": 1}
    directory = train("classification", folder, epochs=3, **options)
    for taken in ({}, {"best": True}, {"checkpoint": 1}, {"checkpoint": 3}):
        train("classification", folder, evaluate=True, **taken)

    def evaluated() -> dict[str, int]:
        evaluations = results_of(directory)["evaluations"]
        return {name: measured["epoch"] for name, measured in evaluations.items()}

    assert evaluated() == {"last": 3, "best": 2, "epoch_1": 1, "epoch_3": 3}
    scripted(50.0)
    train("classification", folder, epochs=4, checkpoint=-1, **options)
    assert evaluated() == {"best": 2, "epoch_1": 1, "epoch_3": 3}
    scripted(70.0)
    train("classification", folder, epochs=3, checkpoint=2, **options)  # another third epoch, and the best
    assert evaluated() == {"epoch_1": 1}


def test_more_epochs_continue_a_finished_run(folder):
    directory = train("classification", folder, epochs=2, checkpoint=-1, milestones=[1])
    continued = state(directory / "last.pth")
    train("classification", folder, epochs=2, milestones=[1])
    assert differences(continued, state(directory / "last.pth")) == []


def test_the_newest_of_nothing_is_a_start_from_scratch(folder):
    fresh = train("letKD-1", folder, epochs=1, checkpoint=-1)
    expected = state(fresh / "last.pth")
    train("letKD-1", folder, epochs=1)
    assert differences(expected, state(fresh / "last.pth")) == []


def test_a_run_goes_on_from_any_epoch_that_was_kept(folder):
    directory = train("classification", folder, epochs=4, keep_every=2)
    files = {"best.pth", "last.pth", "previous.pth", "epoch_2.pth", "epoch_4.pth"}
    assert {path.name for path in directory.glob("*.pth")} == files
    assert load_tensors(directory / "epoch_2.pth")["epoch"] == 2
    expected = state(directory / "last.pth")
    train("classification", folder, epochs=4, checkpoint=2)
    assert differences(expected, state(directory / "last.pth")) == []


def test_going_back_leaves_no_later_epoch_behind(folder, monkeypatch):
    directory = train("classification", folder, epochs=4, keep_every=2)
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, 1)
        train("classification", folder, epochs=4, checkpoint=2)
    epochs = {path.name: load_tensors(path)["epoch"] for path in directory.glob("*.pth")}
    best = load_tensors(directory / "last.pth")["best"]["epoch"]
    assert epochs == {"last.pth": 2, "best.pth": best, "epoch_2.pth": 2} and best in (1, 2)


def test_an_epoch_that_was_not_kept_is_refused_with_those_that_were(folder):
    directory = train("classification", folder, epochs=4, keep_every=2)
    last = (directory / "last.pth").read_bytes()
    present = {load_tensors(path)["epoch"] for path in directory.glob("*.pth")}
    missing = next(epoch for epoch in (1, 3) if epoch not in present)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint of epoch {missing} in .*: .*2 .*4") as caught:
        train("classification", folder, epochs=4, checkpoint=missing)
    assert "\n" not in str(caught.value)
    assert (directory / "last.pth").read_bytes() == last


@pytest.fixture
def scripted(monkeypatch):
    """Lets the evaluations of a run report accuracies that a test chooses, one an epoch."""

    def script(*accuracies: float) -> None:
        reported = iter(accuracies)

        def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
            return measured(*arguments, **options) | {"top1": next(reported)}

        monkeypatch.setattr(training, "evaluate", evaluate)

    measured = training.evaluate
    return script


def test_the_best_file_is_the_best_epoch(folder, scripted):
    scripted(20.0, 60.0, 60.0, 40.0)
    directory = train("classification", folder, epochs=4, keep_every=1)
    found = accuracies(directory)
    assert (found["top1"], found["best_top1"], found["best_epoch"]) == (40.0, 60.0, 2)
    assert differences(state(directory / "best.pth"), state(directory / "epoch_2.pth")) == []


def test_going_back_forgets_the_best_of_the_epochs_left_behind(folder, scripted):
    scripted(50.0, 60.0, 70.0)
    directory = train("classification", folder, epochs=3, keep_every=1)
    scripted(40.0)
    train("classification", folder, epochs=2, checkpoint=1, learning_rate=0.01)
    found = accuracies(directory)
    assert (found["best_top1"], found["best_epoch"]) == (50.0, 1)
    assert differences(state(directory / "best.pth"), state(directory / "epoch_1.pth")) == []


def test_the_best_epoch_is_saved_though_the_run_was_killed_before(folder, scripted, monkeypatch):
    """Between the last epoch, which is the best, and the file of the best."""

    def save(path: Path, content: dict[str, Any]) -> None:
        if path.name == "best.pth" and content["epoch"] == 3:
            raise PowerFailure
        save_checkpoint(path, content)

    scripted(50.0, 40.0, 60.0)
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        patch.setattr(training, "save_checkpoint", save)
        train("classification", folder, epochs=4, milestones=[])
    directory = folder / "digits" / "RN8"
    assert load_tensors(directory / "best.pth")["epoch"] == 1
    with pytest.raises(ValueError, match=r"best.pth holds epoch 1, and the best of .*last.pth is 3: .*checkpoint=-1\Z"):
        train("classification", folder, evaluate=True, best=True)
    scripted(10.0)
    train("classification", folder, epochs=4, milestones=[], checkpoint=-1)
    assert load_tensors(directory / "best.pth")["epoch"] == accuracies(directory)["best_epoch"] == 3


def test_what_is_called_the_best_has_its_weights(folder, scripted, caplog, monkeypatch):
    """The last epoch was the best and is damaged: the best one before it was overwritten by it."""
    monkeypatch.setattr(training.log, "propagate", True)
    scripted(50.0, 40.0, 60.0)
    directory = train("classification", folder, epochs=3, milestones=[])
    (directory / "last.pth").write_bytes(b"PK torn")
    scripted(30.0)
    train("classification", folder, epochs=3, milestones=[], checkpoint=-1, learning_rate=0.01)
    assert "no file has the best epoch, 1, any more" in caplog.text
    found = accuracies(directory)
    assert (found["best_top1"], found["best_epoch"]) == (40.0, 2)
    assert load_tensors(directory / "best.pth")["epoch"] == 2
    train("classification", folder, evaluate=True, best=True)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_optimizer_uses_the_schedule(folder):
    directory = train("classification", folder, epochs=3, milestones=[1, 2], learning_rate=0.1)
    rates = [value for _, value in read_curves(directory)["train/learning_rate"]]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    group = load_tensors(directory / "last.pth")["optimizer"]["param_groups"][0]
    expected = {"lr": pytest.approx(0.001), "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert {key: group[key] for key in expected} == expected


def test_the_meter_is_the_plain_mean():
    generator = torch.Generator().manual_seed(0)
    meter, correct, totals = Meter(torch.device("cpu")), 0, defaultdict(float)
    for size in (64, 64, 32):
        logits, labels = torch.randn(size, 10, generator=generator), torch.randint(10, (size,), generator=generator)
        terms = {name: torch.rand((), generator=generator) for name in ("ce", "words")}
        meter.add(Step(sum(terms.values()), logits, terms, {}), labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
        totals["loss"] += sum(terms.values()).item()
        for name, value in terms.items():
            totals[name] += value.item()
    expected = {name: total / 3 for name, total in totals.items()} | {"top1": 100 * correct / 160}
    assert meter.means() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("disp_step", "first"),
    [(1, "words.predictor.0.templates became nan in epoch 2"), (1000, "words became nan in step 3 of epoch 2")],
    ids=["looked at every step", "looked at at the end"],
)
def test_what_is_not_finite_first_stops_the_run_and_the_last_good_epoch_is_kept(disp_step, first, folder, monkeypatch):
    def spoil() -> None:  # two steps later all losses are nan, and all weights
        job.objective.losses["words"].predictor[0].templates.data[0, 0] = math.nan

    job = Training(Options.of(configure("QuEST", folder, epochs=3, milestones=[1], disp_step=disp_step)))
    stop_at(monkeypatch, STEPS + 2, spoil)
    with pytest.raises(FloatingPointError, match=rf"\A{first}; the last good state is epoch 1 \(try a lower .*\)\Z"):
        job.run()
    content = load_tensors(job.directory / "last.pth")
    assert content["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in content["model"].values())
    assert {path.name for path in job.directory.iterdir()} == {
        ".lock", "best.pth", "last.pth", "log.txt", "progress.json", "tensorboard",
    }  # fmt: skip
    assert json.loads((job.directory / "progress.json").read_text())["state"] == "diverged"


@pytest.mark.parametrize(
    ("name", "value"), [("backbone.bn1.running_var", math.inf), ("layers.penultimate.scale", math.nan)]
)
def test_a_weight_that_is_not_finite_is_named_though_the_losses_are(name, value, folder, monkeypatch):
    def break_it(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        descend(optimizer, loss)
        job.model.state_dict()[name].flatten()[0] = value  # in the last step of an epoch, behind its loss

    job = Training(Options.of(configure("letKD-2", folder, epochs=1, milestones=[], batch_size=256)))
    monkeypatch.setattr("engine.step.descend", break_it)
    with pytest.raises(FloatingPointError, match=rf"\A{name} became {value} in epoch 1; no epoch was good "):
        job.run()
    assert not (job.directory / "last.pth").exists()


def test_an_evaluation_that_is_not_finite_stops_the_run(folder, monkeypatch):
    measured = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *given, **named: measured(*given, **named) | {"loss": math.nan})
    with pytest.raises(FloatingPointError, match="the loss of the evaluation became nan in epoch 1"):
        train("classification", folder, epochs=1, milestones=[])


# --- what trains -----------------------------------------------------------------------------------------------------


def frozen(objective: Objective) -> dict[str, torch.Tensor]:
    """Everything that belongs to the teacher: itself, and what was made from it."""
    if objective.teacher is None:
        return {}
    saved = objective.state_dict()
    made = {name: tensor for name, tensor in objective.losses.named_buffers() if f"losses.{name}" not in saved}
    return made | {f"teacher.{name}": value for name, value in objective.teacher.network.module.state_dict().items()}


@pytest.fixture
def build(supervision, few_digits):
    def build(name: str, **updates: Any) -> Objective:
        torch.manual_seed(0)
        config = configure(name, supervision, **updates)
        return open_objective(Options.of(config), load_dataset("digits", image_size=8))

    return build


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return batch_of(pixels, torch.arange(8))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(name, build, batch):
    objective = build(name).train()
    trainable = {key for key, value in objective.named_parameters() if value.requires_grad}
    deployed = {f"student.{key}" for key, _ in objective.student.named_parameters()}
    assert trainable == deployed | {f"losses.{key}" for key, _ in objective.losses.named_parameters()}
    objective(batch).loss.backward()
    reached = {key for key, value in objective.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached == trainable
    assert not any(value.requires_grad for value in frozen(objective).values())


@pytest.mark.parametrize("name", METHODS)
def test_a_step_changes_what_trains_and_nothing_frozen(name, build, batch):
    objective = build(name).train()
    before = {key: value.clone() for key, value in (objective.state_dict() | frozen(objective)).items()}
    optimizer = make_optimizer(objective, Protocol())
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in objective.parameters() if parameter.requires_grad}
    descend(optimizer, objective(batch).loss)
    assert [key for key, value in frozen(objective).items() if not torch.equal(value, before[key])] == []
    trainable = {key: value for key, value in objective.named_parameters() if value.requires_grad}
    assert [key for key, value in trainable.items() if torch.equal(value, before[key])] == []


@pytest.mark.parametrize("name", METHODS[1:])
def test_the_teacher_stays_in_eval_mode(name, build):
    objective = build(name).train()
    assert objective.student.training
    assert frozen(objective), "what distils holds its teacher"
    assert not any(module.training for module in objective.teacher.network.module.modules())


@pytest.mark.parametrize("name", METHODS)
def test_checkpoints_hold_what_is_deployed_and_what_trains_beside_it(name, folder, few_digits):
    directory = train(name, folder, epochs=1)
    content = load_tensors(directory / "last.pth")
    objective = open_objective(Options.of(configure(name, folder)), load_dataset("digits", image_size=8))
    assert list(content["model"]) == list(objective.student.state_dict())
    assert list(content["losses"]) == list(objective.losses.state_dict())
    assert (list(content["losses"]) != []) == (name == "QuEST")
    assert content["epoch"] == content["epochs"] == 1
    assert content["config"]["config"] == configure(name, folder)["config"]
    assert content["data"]["image_size"] == 8 and len(content["data"]["classes"]) == 10


@pytest.mark.parametrize(
    ("name", "coefficient", "term"),
    [
        ("letKD-2", "cls_loss_coef", "ce"),
        ("letKD-2", "quest_loss_coef", "words"),
        ("letKD-2", "sub_loss_coef", "decisions"),
        ("letKD-1", "quest_loss_coef", "words"),
        ("QuEST", "quest_loss_coef", "words"),
    ],
)
def test_the_loss_is_the_weighted_sum_of_its_terms(name, coefficient, term, build, batch):
    step = build(name, **{coefficient: 3.0}).train()(batch)
    expected = sum(value.item() for value in step.terms.values()) + 2 * step.terms[term].item()
    assert math.isclose(step.loss.item(), expected, rel_tol=1e-5)


def test_held_out_images_choose_the_epoch_and_the_test_is_reported_once(few_digits, tmp_path):
    directory = train("classification", tmp_path, epochs=3, milestones=[2], val_split=40)
    results = results_of(directory)
    best = load_checkpoint(directory / "best.pth")
    dataset = hold_out(load_dataset("digits", image_size=8), 40, seed=HOLD_OUT_SEED)
    network = create_model("resnet8", num_classes=10)
    network.load_state_dict(best["model"])
    model = nn.Sequential(Input(dataset.mean, dataset.std), network)
    measured = {
        split: evaluate(model, make_eval_loader(dataset, split, batch_size=50, device="cpu"), autocast=nullcontext())
        for split in ("eval", "test")
    }
    assert len(dataset.split("eval")) == 40 and len(dataset.split("test")) == 128
    assert results["val_top1"] == best["best"]["top1"] == measured["eval"]["top1"]
    assert results["top1"] == results["best_top1"] == measured["test"]["top1"]
    assert results["best_epoch"] == best["epoch"]


def test_a_new_run_sets_the_earlier_one_aside(few_digits, tmp_path, monkeypatch):
    directory = train("classification", tmp_path, epochs=2, milestones=[1])
    curves = read_curves(directory)
    earlier = {name: (directory / name).read_bytes() for name in ("last.pth", "best.pth", "results.json")}
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, 2)
        train("classification", tmp_path, epochs=2, milestones=[1], seed=1)
    assert {name: (directory / "replaced" / "1" / name).read_bytes() for name in earlier} == earlier
    assert read_curves(directory / "replaced" / "1") == curves
    # What is continued is the run that was stopped, and not the one before it.
    train("classification", tmp_path, epochs=2, milestones=[1], seed=1, checkpoint=-1)
    train("classification", tmp_path / "alone", epochs=2, milestones=[1], seed=1)
    assert differences(state(directory / "last.pth"), state(tmp_path / "alone/digits/RN8/last.pth")) == []
