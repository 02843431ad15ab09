"""Trainings with augmentation beyond crop and flip: stopped, recorded, compared, and refused."""

import signal

import pytest
import torch
from training_tools import STEPS, configure, differences, outcome, results_of, stop_at, train

from algorithms import run_config
from config.options import Augmentation
from config.schema import options_of
from engine.records import set_up_console
from results.settings import changed_settings

pytestmark = pytest.mark.usefixtures("few_digits")

EVERYTHING = {
    "crop": "resized",
    "crop_scale": [0.5, 1.0],
    "auto_augment": "randaugment",
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "random_erasing": 0.5,
}
SHORT = {"epochs": 2, "disp_step": 2}


def test_a_run_that_was_stopped_within_an_epoch_goes_on_as_if_it_had_not_been(folder, monkeypatch):
    whole = outcome(train("classification", folder, **SHORT, **EVERYTHING))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, STEPS + 2, lambda: signal.raise_signal(signal.SIGINT))
        train("classification", folder, **SHORT, **EVERYTHING)
    torch.manual_seed(123)
    assert differences(whole, outcome(train("classification", folder, checkpoint=-1, **SHORT, **EVERYTHING))) == []


def test_each_option_makes_another_training_and_is_recorded(tmp_path):
    plain = outcome(train("classification", tmp_path, epochs=1))
    for key in ("crop", "auto_augment", "color_jitter", "random_erasing"):
        directory = train("classification", tmp_path, epochs=1, **{key: EVERYTHING[key]})
        assert differences(plain, outcome(directory)) != [], key
        recorded = results_of(directory)["options"]
        assert recorded[key] == EVERYTHING[key]
        assert set(options_of(Augmentation)) <= set(recorded)


def test_another_augmentation_goes_on_with_a_note(folder, capsys):
    set_up_console()
    train("classification", folder, epochs=2, milestones=[], checkpoint=-1, random_erasing=0.5)
    assert "note: changed since that epoch: random_erasing, epochs, milestones\n" in capsys.readouterr().out


def test_a_training_of_a_version_without_it_had_none():
    now = configure("classification", "unused")
    earlier = {key: value for key, value in now.items() if key not in options_of(Augmentation)}
    assert changed_settings(earlier, now) == {}
    assert changed_settings(earlier, now | {"crop": "resized"}) == {"crop": (None, "resized")}


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ({"auto_augment": "autoaugment"}, "auto_augment='autoaugment' must be randaugment or trivialaugment"),
        ({"crop": "center"}, "crop='center' must be padded or resized"),
        ({"crop_scale": [0.0, 1.0]}, "crop_scale=[0.0, 1.0] must be a list of two numbers above 0 and up to 1"),
        ({"crop_ratio": [1.0]}, "crop_ratio=[1.0] must be a list of two numbers above 0"),
        ({"color_jitter": [0.4] * 3}, "color_jitter=[0.4, 0.4, 0.4] must be a list of four numbers from 0"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.6]}, "color_jitter=[0.1, 0.1, 0.1, 0.6] turns hues by more than half"),
        ({"random_erasing": 1.5}, "random_erasing=1.5 must be at most 1"),
        ({"randaugment_magnitude": 31}, "randaugment_magnitude=31 must be at most 30"),
        ({"randaugment_ops": 3}, "randaugment_ops is for auto_augment=randaugment"),
        ({"crop_scale": [0.5, 1.0]}, "crop_scale is for crop=resized, and the images of digits are padded"),
        ({"crop": "resized", "padding_mode": "zeros"}, "padding_mode=zeros is for crop=padded, and crop=resized pads"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(updates, reason, tmp_path):
    with pytest.raises(ValueError) as caught:
        run_config(configure("classification", tmp_path, **updates))
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
