"""Options that another one would read are said where it is not there."""

import pytest

import main_classification
from algorithms.unread import unread_options
from config.options import Options


@pytest.mark.parametrize("name, options, said", [
    ("digits.RN8", {}, []),
    ("digits.RN8", {"mixup": 0.2, "mix_probability": 0.5, "mix_off_epoch": 3}, []),
    ("digits.RN8", {"mixup": 0.2, "mix_switch": 0.2},
     ["mix_switch=0.2 changes nothing without mixup= and cutmix= together"]),
    ("digits.RN8", {"mixup": 0.2, "cutmix": 1.0, "mix_switch": 0.2}, []),
    ("digits.RN8", {"mix_off_epoch": 3}, ["mix_off_epoch=3 changes nothing without mixup= or cutmix="]),
    ("digits.RN8", {"ema_decay": 0.9}, ["ema_decay=0.9 changes nothing without average=True or teacher=ema"]),
    ("digits.RN8", {"ema_decay": 0.9, "average": True}, []),
    ("digits.RN8.KD", {"ema_decay": 0.9, "teacher": "ema"}, []),
    ("digits.RN8", {"final_learning_rate": 0.01, "schedule": "linear"}, []),
    ("digits.RN8", {"final_learning_rate": 0.01},
     ["final_learning_rate=0.01 changes nothing without schedule=cosine or schedule=linear"]),
])  # fmt: skip
def test_what_nothing_reads(name, options, said):
    assert list(unread_options(Options.of(main_classification.default_config(name) | options))) == said
