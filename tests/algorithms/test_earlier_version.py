"""What commit d8ec9c1 left behind (tests/data/d8ec9c1) is read: evaluated, exported, a teacher, reported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import main_classification
from algorithms import export, run_config
from algorithms.teaching import open_objective
from config.experiments import default_configs
from config.options import Options
from dataloaders import load_dataset
from engine.checkpoints import EARLIER_FORMAT, FORMAT, load_checkpoint
from reporting.report import write_report
from storage.tensor_files import load_tensors

LEFT = Path(__file__).parent.parent / "data" / "d8ec9c1"
TAUGHT = {"teacher": "resnet8", "teacher_experiment": "digits.RN8", "supervision": "digits.RN8", "num_words": 8}
DECISIONS = {"subclasses_per_class": 2, "lda_components": 9}
OPTIONS = {
    "digits.RN8": {},
    "digits.RN14_RN8.QuEST": TAUGHT,
    "digits.RN14_RN8.letKD-1": TAUGHT,
    "digits.RN14_RN8.letKD-2": TAUGHT | DECISIONS,
}
THERE = ["digits.RN8", "digits.RN14_RN8.QuEST", "digits.RN14_RN8.letKD-2"]


@pytest.fixture
def left(tmp_path) -> Path:
    shutil.copytree(LEFT, tmp_path, dirs_exist_ok=True)
    return tmp_path


def configure(name: str, localpath: Path, **updates: Any) -> dict[str, Any]:
    given = {"localpath": str(localpath), "image_size": 8, "cuda": False, "epochs": 1, "milestones": []}
    return main_classification.default_config(name) | given | OPTIONS[name] | updates


def results_of(name: str, localpath: Path) -> dict[str, Any]:
    return json.loads((localpath / Path(*name.split(".")) / "results.json").read_text())


@pytest.mark.parametrize("name", THERE)
def test_it_is_evaluated_as_it_was_measured(name, left):
    top1 = results_of(name, left)["top1"]
    run_config(configure(name, left, evaluate=True))
    results = results_of(name, left)
    assert results["mode"] == "train" and results["evaluations"]["last"]["top1"] == pytest.approx(top1)
    assert "changed" not in results["evaluations"]["last"]


@pytest.mark.parametrize("name", THERE)
def test_its_losses_are_those_of_today(name, left):
    content = earlier_checkpoint(left, name)
    objective = open_objective(Options.of(configure(name, left)), load_dataset("digits", image_size=8))
    assert set(content["losses"]) == set(objective.losses.state_dict())
    assert (content["losses"] != {}) == (name == "digits.RN14_RN8.QuEST")


def earlier_checkpoint(localpath: Path, name: str) -> dict[str, Any]:
    path = localpath / Path(*name.split(".")) / "last.pth"
    assert load_tensors(path)["format"] == EARLIER_FORMAT
    return load_checkpoint(path)


def test_it_is_exported(left, monkeypatch):
    monkeypatch.setattr(export, "TIMED_SECONDS", 0)
    run_config(configure("digits.RN14_RN8.letKD-2", left, export="pt2"))
    exported = results_of("digits.RN14_RN8.letKD-2", left)["exports"]
    assert len(exported) == 1


def test_it_teaches_with_its_words_and_decisions(left):
    name = "digits.RN14_RN8.letKD-1"
    run_config(configure(name, left))
    results, earlier = results_of(name, left), results_of("digits.RN14_RN8.letKD-2", left)
    assert results["teacher_fingerprint"] == earlier["teacher_fingerprint"]
    assert load_tensors(left / "digits" / "RN14_RN8" / "letKD-1" / "last.pth")["format"] == FORMAT


@pytest.mark.parametrize("name", THERE)
def test_an_unfinished_run_of_it_is_refused_in_one_line(name, left):
    with pytest.raises(ValueError, match=r"^\S+last.pth is of a run of an earlier version \(letkd-checkpoint-1\), .*$"):
        run_config(configure(name, left, epochs=2, checkpoint=-1))
    assert results_of(name, left)["epochs"] == 1


@pytest.mark.parametrize("name", THERE)
def test_a_finished_run_of_it_stays_as_it_is(name, left):
    before = results_of(name, left)
    run_config(configure(name, left, checkpoint=-1))
    assert results_of(name, left) == before


def test_it_is_reported(left):
    write_report(left, default_configs()[0], unreadable={}, command="report", refresh=None)
    page = (left / "report" / "index.html").read_text()
    for name in THERE:
        assert f"{results_of(name, left)['top1']:.2f}" in page
