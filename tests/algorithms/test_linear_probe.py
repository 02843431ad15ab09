"""The linear probe: what it measures, where it writes, and what it does without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits
from torch import nn

import main_classification
from algorithms import make_algorithm
from algorithms.probe import LinearProbe
from architectures import Input, create_model
from config.options import Options
from dataloaders import Dataset, load_dataset, make_eval_loader
from dataloaders.facts import data_facts
from distillation.build import build_student
from engine.checkpoints import BEST, LAST, save_checkpoint

TRAINED = {"mode": "train", "top1": 12.5, "evaluations": {"last": {"top1": 12.5}}}


@pytest.fixture(autouse=True)
def one_thread():
    """As in conftest.py for torch: threads of scikit-learn's that wait for a busy core take forty times as long."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", image_size=8)


@pytest.fixture
def trained(tmp_path, dataset):
    """Leaves an untrained network as if its training had finished; returns the configuration and the network."""

    def trained(name: str, **updates: Any) -> tuple[dict[str, Any], nn.Module]:
        small = {"num_words": 16, "subclasses_per_class": 2} if "letKD" in name else {}
        config = (
            main_classification.default_config(name) | small | {"localpath": str(tmp_path), "cuda": False} | updates
        )
        torch.manual_seed(0)
        model = build_student(Options.of(config), num_classes=10, image_size=8).eval()
        content = {"model": model.state_dict(), "epoch": 1, "epochs": 1, "data": data_facts(dataset)}
        directory = Path(tmp_path, *name.split("."))
        save_checkpoint(directory / LAST, content)
        save_checkpoint(directory / BEST, content)
        (directory / "results.json").write_text(json.dumps(TRAINED))
        return config, model

    return trained


def results(config: dict[str, Any]) -> dict[str, Any]:
    return json.loads(Path(config["localpath"], *config["config"].split("."), "results.json").read_text())


def accuracy(features, dataset: Dataset) -> float:
    """Of scikit-learn's LDA on pooled `features` of images."""
    sides, network_input = {}, Input(dataset.mean, dataset.std)
    for split in ("train", "eval"):
        batches = list(make_eval_loader(dataset, split, batch_size=128, device="cpu"))
        with torch.no_grad():
            rows = [features(network_input(batch.images)).mean(dim=(2, 3)) for batch in batches]
        sides[split] = torch.cat(rows).numpy(), torch.cat([batch.labels for batch in batches]).numpy()
    predicted = LinearDiscriminantAnalysis().fit(*sides["train"]).predict(sides["eval"][0])
    return 100 * np.mean(predicted == sides["eval"][1])


def test_both_sides_of_the_layer_are_probed(trained, dataset):
    config, model = trained("digits.RN14_RN8.letKD-2")
    probed = LinearProbe(Options.of(config)).run()["linear_probe"]["last"]
    alone = create_model("resnet8", num_classes=10).eval()
    alone.load_state_dict(model.backbone.state_dict())
    layer = model.layers["intermediate"]
    # The last stage of resnet8 is one block: its penultimate map, without KD layers, is the layer's input.
    expected = {
        "layer input": accuracy(alone.forward_features, dataset),
        "layer output": accuracy(lambda images: layer(alone.forward_features(images))[0], dataset),
    }
    assert {name: probed[name] for name in expected} == pytest.approx(expected, abs=0.25)
    assert expected["layer input"] != expected["layer output"]
    assert min(expected.values()) > 30, "ten classes: chance is 10"
    assert "map" not in probed


@pytest.mark.parametrize("name", ["digits.RN8", "digits.RN14_RN8.letKD-1", "digits.RN14_RN8.QuEST"])
def test_without_a_layer_there_is_one_map(name, trained, dataset):
    config, model = trained(name)
    probed = LinearProbe(Options.of(config)).run()["linear_probe"]["last"]
    alone = create_model("resnet8", num_classes=10).eval()
    alone.load_state_dict(getattr(model, "backbone", model).state_dict())
    assert probed["map"] == pytest.approx(accuracy(alone.forward_features, dataset), abs=0.25)
    assert {"layer input", "layer output"}.isdisjoint(probed)


def test_a_layer_that_adds_nothing_changes_nothing(trained):
    config, _ = trained("digits.RN14_RN8.letKD-2", alpha_intermediate=0.0)
    probed = LinearProbe(Options.of(config)).run()["linear_probe"]["last"]
    assert probed["layer input"] == probed["layer output"]


def test_the_trainings_results_are_kept(trained):
    config, _ = trained("digits.RN14_RN8.letKD-2")
    LinearProbe(Options.of(config)).run()
    LinearProbe(Options.of(config | {"best": True})).run()
    found = results(config)
    assert {key: found[key] for key in TRAINED} == TRAINED
    assert set(found["linear_probe"]) == {"last", "best"}
    assert {key: found["linear_probe"]["best"][key] for key in ("epoch", "split")} == {"epoch": 1, "split": "eval"}


def test_a_network_that_was_not_trained_is_an_error(trained):
    config, _ = trained("digits.RN14_RN8.letKD-2")
    with pytest.raises(FileNotFoundError, match=r"digits\.RN14_RN8\.letKD-1 has not been trained"):
        LinearProbe(Options.of(config | {"config": "digits.RN14_RN8.letKD-1"})).run()


def test_the_entry_probes(trained):
    config, _ = trained("digits.RN14_RN8.letKD-2")
    algorithm = make_algorithm(config | {"probe": True})
    assert isinstance(algorithm, LinearProbe)
    with pytest.raises(ValueError, match="evaluate and probe are different jobs"):
        make_algorithm(config | {"probe": True, "evaluate": True})
