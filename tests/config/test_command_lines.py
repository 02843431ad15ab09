"""Command lines that are printed set what they say, whatever the values are."""

import shlex

import pytest
from sacred.arg_parser import get_config_updates

import main_classification
from config.command_lines import command_line, options_for
from config.experiments import default_config, defaults_for, own_options

PAIR = "digits.RN14_RN8.letKD-2"
VALUES = [
    5, -1, 0.05, 1e-05, True, None, "a", "a b", "5", "None", "True", "[1, 2]", "it's", ' "', "", "$HOME", "~", "*",
    "é", "a=b", [], [1, 2], [0.1, 0.2], ["a b", "c"], ["5"], [None],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_as_it_was(value):
    python, program, with_, *words = shlex.split(command_line({"data_dir": value}))
    assert (python, program, with_) == ("python", "main_classification.py", "with")
    assert get_config_updates(words)[0] == {"data_dir": value}


UPDATES = [
    {},
    {"name": "mine.x", "student": "resnet20", "epochs": 3, "milestones": []},
    {"name": "mine.x", "teacher": "timm/test_vit", "teacher_weights": "a b.pth"},
    {"name": "mine.x", "teacher": "resnet8", "teacher_experiment": "digits.RN8", "supervision": "digits.RN14"},
    {"teacher_experiment": "mine.net", "mean": [0.1, 0.2, 0.3]},
    {"localpath": "my runs", "evaluate": True, "best": True, "seeds": [3], "cuda": False},
]


@pytest.mark.parametrize("updates", UPDATES, ids=str)
def test_a_run_is_the_same_by_its_command(updates):
    """What other options follow from a teacher or a student, as sacred is told, is no word of its own."""
    defaults = default_config(PAIR)
    config = defaults_for(defaults, updates) | updates
    assert own_options(config) == updates
    told = options_for("evaluate", config)
    assert told == {"config": PAIR} | updates
    fixed = {key: value for key, value in told.items() if key != "config"}
    assert defaults_for(defaults, fixed) | fixed == config
    refused = {"evaluate", "best"}
    assert options_for("train", config) == {"config": PAIR} | {k: v for k, v in updates.items() if k not in refused}


def test_a_trial_is_told_by_its_folder_alone():
    config = default_config(PAIR) | {"seeds": [3], "seed": 3}
    assert options_for("train", config) == {"config": PAIR, "seeds": [3]}


def test_the_report_is_told_what_it_reads():
    config = default_config(PAIR) | {"localpath": "elsewhere", "epochs": 3, "cuda": False}
    assert options_for("report", config) == {"config": PAIR, "localpath": "elsewhere"}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["with", "config=A.B", "print_config"], "print_config with config=A.B"),
        (["-l", "INFO", "with", "data_dir=a b", "report"], "report -l INFO with 'data_dir=a b'"),
        (["print_config", "with", "report", "seed=1"], "report with seed=1"),
    ],
)
def test_a_command_behind_with_is_shown_before_it(words, meant):
    with pytest.raises(ValueError, match="stands before `with`") as caught:
        main_classification.check_words(["main.py", *words])
    assert str(caught.value).endswith(f": python main.py {meant}")
    main_classification.check_words(["main.py", *shlex.split(meant)])
