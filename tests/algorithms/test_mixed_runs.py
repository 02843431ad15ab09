"""Trainings with mixed images: they repeat and go on exactly, say what they did, and refuse what cannot be."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from device_tools import Replaying
from digits_tools import fewer_digits
from objective_tools import objective_of_method
from rank_tools import on_ranks
from training_tools import STEPS, PowerFailure, configure, differences, fail, outcome, results_of, stop_at, train

import main_classification
from algorithms import Study, check_options
from algorithms.train import Training
from config.options import Options, Protocol
from dataloaders import load_dataset, make_train_loader
from dataloaders.mixing import with_mixing
from distillation.objective import Step
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.records import log, set_up_console
from engine.step import WARM_UP_STEPS, TrainStep
from letkd.processes import Member
from results.settings import changed_settings

pytestmark = pytest.mark.usefixtures("few_digits")

BOTH = {"mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.8}
SHORT = {"epochs": 2, "milestones": [1], "disp_step": 2}


# --- the same run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["classification", "letKD-1"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(method, folder, monkeypatch):
    """From the epoch before, and by a signal within an epoch."""
    options = SHORT | BOTH
    whole = outcome(train(method, folder, **options))
    for how, error in ((fail, PowerFailure), (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt)):
        with monkeypatch.context() as patch, pytest.raises(error):
            stop_at(patch, STEPS + 2, how)
            train(method, folder, **options)
        torch.manual_seed(123)
        assert differences(whole, outcome(train(method, folder, checkpoint=-1, **options))) == []


def test_options_that_mix_nothing_change_no_bit_and_a_note_says_so(folder, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO")
    plain = outcome(train("letKD-2", folder, **SHORT))
    assert "changes nothing" not in caplog.text
    unused = {"mix_switch": 0.1, "mix_probability": 0.3, "mix_off_epoch": 1}
    assert differences(plain, outcome(train("letKD-2", folder, **SHORT, **unused))) == []
    assert "note: mix_probability=0.3 changes nothing without mixup= or cutmix=" in caplog.text


def test_mixing_changes_the_run_and_neither_its_order_nor_what_is_drawn(folder):
    """With no batch mixed both labels are there all the same, and all is as without but for rounding."""
    plain, none, some = (
        results_of(train("classification", folder, **SHORT, **options))["history"]
        for options in ({}, {"mixup": 0.4, "mix_probability": 0.0}, {"mixup": 0.4})
    )
    for done, same, other in zip(plain, none, some, strict=True):
        assert same["train"] == pytest.approx(done["train"], rel=1e-3, abs=1)
        assert other["train"]["loss"] != pytest.approx(done["train"]["loss"], rel=1e-3)


def test_after_the_last_epoch_of_mixing_images_are_whole(folder):
    job = Training(Options.of(configure("classification", folder, **SHORT, **BOTH, mix_off_epoch=1)))
    job.run()
    shares = []
    for epoch in (1, 2):
        job.train_loader.set_epoch(epoch)
        shares.append(torch.cat([batch.share for batch in job.train_loader]))
    assert (shares[0] < 1).any() and (shares[1] == 1).all()


def test_an_average_and_parts_of_batches_take_mixed_images(folder):
    results = results_of(train("KD", folder, epochs=1, milestones=[], **BOTH, average=True, accumulate=4))
    (done,) = results["history"]
    assert results["average_top1"] > 0 and 0 < done["train"]["top1"] < 100 and done["train"]["kd"] > 0


@pytest.mark.parametrize("method", ["KD", "DKD", "KDPP"])
def test_a_recorded_step_trains_as_a_plain_one(method):
    """Labels and shares of each batch reach the step that was recorded with others'."""
    loader = make_train_loader(load_dataset("digits", image_size=8), batch_size=16, device="cpu", seed=0)
    batches = list(with_mixing(loader, Protocol(**BOTH), seed=0))[: WARM_UP_STEPS + 4]
    trained = []
    for kind in (TrainStep, Replaying):
        torch.manual_seed(0)
        objective = objective_of_method(method).train()
        objective.on_epoch(2, 240)
        step = kind(objective, make_optimizer(objective, Protocol()), lambda: torch.autocast("cpu", enabled=False))
        for batch in batches:
            step(batch)
        trained.append(objective.student.state_dict())
    assert step.num_recorded == 1
    assert differences(*trained) == []


def steps_of_a_rank(rank: int, localpath: Path) -> dict[str, Any]:
    with fewer_digits():
        options = {"sync_bn": True, "name": "two.ranks"} | SHORT | BOTH
        train("classification", localpath, **options)
    return {}


@pytest.mark.slow
def test_two_processes_train_on_the_mixtures_of_one(folder, tmp_path_factory):
    on_ranks(2, steps_of_a_rank, tmp_path_factory.mktemp("ranks"), folder)
    train("classification", folder, **SHORT, **BOTH, sync_bn=True)
    many, one = (results_of(folder / name)["history"] for name in ("two/ranks", "digits/RN8"))
    for done, same in zip(many, one, strict=True):
        assert done["train"] == pytest.approx(same["train"], rel=1e-3, abs=1)


# --- figures and records ---------------------------------------------------------------------------------------------


def test_hits_count_by_the_shares_of_labels():
    """Guesses 0, 1, 2, 3: 0.75 of an image whose own label is right, 0.25 of one whose other is, one of both, none."""
    logits = torch.eye(4)
    meter = Meter(torch.device("cpu"))
    labels, others = torch.tensor([0, 3, 2, 0]), torch.tensor([1, 1, 2, 0])
    meter.add(Step(torch.tensor(1.0), logits, {}, {}), labels, others, torch.full((4,), 0.75))
    assert meter.means()["top1"] == pytest.approx(100 * (0.75 + 0.25 + 1) / 4)
    meter.add(Step(torch.tensor(1.0), logits, {}, {}), torch.arange(4))
    assert meter.means()["top1"] == pytest.approx(100 * (2 + 4) / 8)


def test_results_record_what_mixed(folder):
    directory = train("classification", folder, **SHORT, **BOTH)
    options = results_of(directory)["options"]
    assert {key: options[key] for key in BOTH} == BOTH
    assert list((directory / "tensorboard").iterdir()), "with a picture of mixed images, which are floats"
    older = {key: value for key, value in options.items() if not key.startswith("mix") and key != "cutmix"}
    changed = changed_settings(older, options)
    assert changed == {"mixup": (0.0, 0.4), "cutmix": (0.0, 1.0), "mix_probability": (1.0, 0.8)}
    assert changed_settings(older, older | {"mixup": 0.0}) == {}


def test_going_on_with_another_mixing_is_mentioned(folder, capsys):
    train("classification", folder, epochs=1, milestones=[], mixup=0.2)
    set_up_console()
    train("classification", folder, epochs=2, milestones=[], checkpoint=-1, cutmix=1.0)
    assert "note: changed since that epoch: epochs, mixup, cutmix\n" in capsys.readouterr().out


def test_trials_with_another_mixing_are_refused(folder):
    train("classification", folder, epochs=1, milestones=[], seeds=[0], mixup=0.2)
    with pytest.raises(ValueError, match=r"seed 0: .* was trained with mixup=0.2 \(now 1.0\)"):
        train("classification", folder, epochs=1, milestones=[], seeds=[0, 1], mixup=1.0)


def test_a_study_searches_for_the_share_of_a_mixture(tmp_path):
    given = {"pairs": ["digits.RN14_RN8"], "methods": ["KD"], "localpath": str(tmp_path), "val_split": 64}
    study = Study(main_classification.STUDY_OPTIONS | given | {"search": ["mixup=[0.2,1.0]"]})
    (candidates,) = study.candidates.values()
    assert [one.values for one in candidates] == [{"mixup": 0.2}, {"mixup": 1.0}]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_letkd_2_is_refused_in_one_line_before_anything_is_made(tmp_path, capfd):
    words = ["config=digits.RN14_RN8.letKD-2", "prepare=True", "mixup=0.2", "cuda=False", f"localpath={tmp_path}"]
    assert main_classification.main(["main_classification.py", "with", *words]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: letKD-2 cannot learn from mixed images: decisions needs one class an image")
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}], ids=str)
def test_an_odd_batch_is_refused(mixing, folder):
    check_options(configure("classification", folder, batch_size=63))
    with pytest.raises(ValueError, match="images are mixed in pairs, and batch_size=63 leaves one over; choose a mult"):
        check_options(configure("classification", folder, batch_size=63, **mixing))


def test_parts_of_processes_have_pairs(folder, monkeypatch):
    monkeypatch.setattr("algorithms.train.member", lambda: Member(0, 2))
    for options in ({"batch_size": 64, "mixup": 0.2}, {"batch_size": 6}):
        Training(Options.of(configure("classification", folder, **options))).check_processes()
    job = Training(Options.of(configure("classification", folder, batch_size=6, mixup=0.2)))
    with pytest.raises(ValueError, match="batch_size=6 leaves one over in each of 2 processes; choose a multiple of 4"):
        job.check_processes()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("mixup", -0.1, "mixup=-0.1 must be at least 0"),
        ("cutmix", -1.0, "cutmix=-1.0 must be at least 0"),
        ("mix_switch", 1.5, "mix_switch=1.5 must be at most 1"),
        ("mix_probability", 2.0, "mix_probability=2.0 must be at most 1"),
        ("mix_off_epoch", -1, "mix_off_epoch=-1 must be at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, said, folder):
    with pytest.raises(ValueError, match=said):
        check_options(configure("classification", folder, **{key: value}))
