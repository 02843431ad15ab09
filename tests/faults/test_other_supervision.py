"""Supervision belongs to its teacher: each fact that is compared, changed alone, is refused with the remedy.

The facts are changed in the file. That another one in the run is refused as well, and other images of a folder, is
asked in tests/distillation/test_supervision.py.
"""

import shlex
from pathlib import Path

import pytest
from fault_tools import CODEBOOK, DECISIONS, PAIR
from supervision_tools import FACTS, change_fact, fact_of, read_map

import main_classification

OTHERS = {
    "teacher": "0" * 64, "tap": "layer1.0", "downscale": 2, "dataset": "CIFAR10", "val_split": 100, "image_size": 16,
    "mean": [0.5, 0.5, 0.5], "std": [0.3203, 0.3203, 0.3], "grid": (4, 4), "num_images": 100,
}  # fmt: skip
COMPARED = {CODEBOOK: OTHERS, DECISIONS: OTHERS | {"lda_components": 9}}
STATED = {"weights", "network", "seed", "patches", "precision", "max_patches", "versions"}  # and not compared
FIGURES = {CODEBOOK: {"inertia", "lda_components"}, DECISIONS: {"components", "rank"}}
pytestmark = pytest.mark.usefixtures("few_digits")
PYTHON_MAIN = "python main_classification.py with "


@pytest.mark.parametrize(
    ("name", "fact"),
    [(DECISIONS, "teacher"), (CODEBOOK, "num_images")]
    + [pytest.param(name, fact, marks=pytest.mark.slow) for name, facts in COMPARED.items() for fact in facts],
)
def test_another_fact_is_refused_with_the_command_that_makes_the_file_again(name, fact, folder, capsys):
    path = folder / name
    before = fact_of(path, fact)
    change_fact(path, fact, COMPARED[name][fact])
    run = ["main.py", "with", *PAIR, "epochs=1", "milestones=[]", f"localpath={folder}"]
    assert main_classification.main(run) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} was made with another {fact} ") and error.count("\n") == 1
    remedy = error.partition(PYTHON_MAIN)[2]
    assert main_classification.main(["main.py", "with", *shlex.split(remedy), "cuda=False"]) == 0
    assert fact_of(path, fact) == before
    assert main_classification.main(run) == 0


def test_a_record_states_what_the_file_was_made_from(folder: Path):
    for name in (CODEBOOK, DECISIONS):
        found = read_map(folder / name)
        assert set(found["record"]) == STATED | FIGURES[name] | COMPARED[name].keys() - FACTS.keys()
        assert set(FACTS.values()) <= set(found)
