"""A training starts from weights of anywhere; teachers and probes may be of other classes than the images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_tools import batch_of
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from training_tools import FAST, configure

import main_classification
from algorithms import run_config
from algorithms.starting import start_of
from algorithms.teaching import open_objective
from algorithms.train import Training
from architectures import create_model
from architectures.classifier import classifier_of
from config.options import Options
from dataloaders import Dataset, load_dataset
from distillation.build import numbered_otherwise
from engine.checkpoints import load_checkpoint
from storage.state_dicts import Weights, fingerprint

pytestmark = pytest.mark.usefixtures("few_digits")


def network_of(name: str = "resnet8", num_classes: int = 10, seed: int = 9) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, num_classes=num_classes)


def begun(config: dict[str, Any]) -> nn.Module:
    """The student of a training that is about to take its first step."""
    job = Training(Options.of(config))
    torch.manual_seed(config["seed"])
    job._build(None)
    return job.model


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in first if name in second and torch.equal(first[name], second[name])}


@pytest.mark.parametrize("option", ["init", "weights"])
def test_a_network_alone_starts_from_weights(option, tmp_path, logged):
    own = network_of().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in own.items()}}, tmp_path / "start.pth")
    config = configure("classification", tmp_path, **{option: str(tmp_path / "start.pth")})
    assert fingerprint(begun(config).state_dict()) == fingerprint(own)
    assert f"resnet8 from {tmp_path / 'start.pth'}" in logged.text and "note: the classifier" not in logged.text


@pytest.mark.parametrize("num_classes", [7, 0], ids=["of other classes", "without a classifier"])
def test_a_classifier_of_other_classes_is_drawn(num_classes, tmp_path, logged):
    state = network_of(num_classes=num_classes or 7).state_dict()
    state = {name: tensor for name, tensor in state.items() if num_classes or not name.startswith("fc.")}
    save_file(state, tmp_path / "start.safetensors")
    config = configure("classification", tmp_path)
    drawn = begun(config).state_dict()
    found = begun(config | {"init": str(tmp_path / "start.safetensors")}).state_dict()
    assert same(found, state) == {name for name in found if name not in classifier_of("resnet8")}
    assert set(classifier_of("resnet8")) <= same(found, drawn)
    told = "note: the classifier (fc.weight, fc.bias) is new, of the 10 classes of digits"
    assert told in logged.text and str(tmp_path / "start.safetensors") in logged.text


def test_a_checkpoint_of_other_classes_of_the_same_number_has_its_classifier_drawn(folder, logged):
    path = folder / "digits/RN8/last.pth"
    state = load_checkpoint(path)["model"]
    config = configure("classification", folder) | {"name": "mine.again", "init": str(path)}
    assert fingerprint(begun(config).state_dict()) == fingerprint(state)
    images = folder / "images"
    write_images(images, classes=[f"class {number}" for number in range(10)])
    other = main_classification.default_config("ImageFolder.RN8") | FAST | {"batch_size": 4, "num_workers": 0}
    found = begun(other | {"data_dir": str(images), "localpath": str(folder), "init": str(path)}).state_dict()
    assert set(found) - same(found, state) == {"fc.weight", "fc.bias"}
    assert "is new, of the 10 classes of ImageFolder" in logged.text


def test_a_student_takes_a_backbone_and_keeps_its_layers_or_takes_all(folder):
    own = network_of().state_dict()
    torch.save(own, folder / "start.pth")
    config = configure("letKD-1", folder) | {"student": "resnet8"}
    drawn = begun(config).state_dict()
    found = begun(config | {"student_weights": str(folder / "start.pth")}).state_dict()
    layers = {name for name in found if name.startswith("layers.")}
    assert layers and layers <= same(found, drawn)
    assert all(torch.equal(found[f"backbone.{name}"], tensor) for name, tensor in own.items())
    run_config(config | {"epochs": 1, "milestones": [], "name": "mine.first"})
    path = folder / "mine/first/last.pth"
    whole = begun(config | {"init": str(path), "name": "mine.second"}).state_dict()
    assert fingerprint(whole) == fingerprint(load_checkpoint(path)["model"])


@pytest.mark.parametrize("option", [{"teacher": "ema"}, {"average": True}], ids=["as the teacher", "beside it"])
def test_the_average_of_a_student_begins_with_the_weights_that_the_student_starts_from(option, tmp_path):
    own = network_of().state_dict()
    torch.save(own, tmp_path / "start.pth")
    config = main_classification.default_config("digits.RN8.KD" if "teacher" in option else "digits.RN8") | FAST
    job = Training(Options.of(config | option | {"init": str(tmp_path / "start.pth"), "localpath": str(tmp_path)}))
    job._build(None)
    assert fingerprint(job.model.state_dict()) == fingerprint(job.average.module.state_dict()) == fingerprint(own)
    assert ("teacher" in option) == (job.objective.teacher is not None)


def test_weights_of_another_network_are_refused_before_anything_is_done(tmp_path):
    torch.save(network_of("resnet14").state_dict(), tmp_path / "start.pth")
    config = configure("classification", tmp_path, init=str(tmp_path / "start.pth"))
    with pytest.raises(ValueError, match=r"start.pth does not hold resnet8 with 10 classes: unexpected: layer1\.1"):
        run_config(config)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.pth"):
        run_config(config | {"init": "nowhere.pth"})
    with pytest.raises(ValueError, match=r"init=a\.pth and weights=b\.pth are two; leave out one"):
        start_of(Options.of(config | {"init": "a.pth", "weights": "b.pth"}))
    assert start_of(Options.of(config | {"init": "a.pth", "weights": "a.pth"})) == "a.pth"
    assert {path.name for path in tmp_path.rglob("*")} == {"start.pth"}


def test_a_run_that_goes_on_does_not_start_again(tmp_path):
    torch.save(network_of().state_dict(), tmp_path / "start.pth")
    config = configure("classification", tmp_path, init=str(tmp_path / "start.pth"), milestones=[])
    run_config(config | {"epochs": 2})
    whole = load_checkpoint(tmp_path / "digits/RN8/last.pth")["model"]
    run_config(config | {"epochs": 1})
    (tmp_path / "start.pth").unlink()
    run_config(config | {"epochs": 2, "checkpoint": -1})
    found = load_checkpoint(tmp_path / "digits/RN8/last.pth")
    assert fingerprint(found["model"]) == fingerprint(whole)
    results = json.loads((tmp_path / "digits/RN8/results.json").read_text())
    assert results["init_fingerprint"] == found["init_fingerprint"] == fingerprint(network_of().state_dict())


# --- teachers of other classes ---------------------------------------------------------------------------------------


def pair(method: str, weights: Path, **updates: Any) -> dict[str, Any]:
    own = main_classification.default_config(f"digits.RN14_RN8.{method}")
    given = {"teacher": "resnet14", "teacher_experiment": None, "supervision": None, "teacher_weights": str(weights)}
    return own | FAST | {key: value for key, value in given.items() if key in own} | updates


@pytest.fixture(params=[7, 0], ids=["of other classes", "without a classifier"])
def teacher(request, tmp_path) -> Path:
    state = network_of("resnet14", num_classes=request.param or 7).state_dict()
    state = {name: tensor for name, tensor in state.items() if request.param or not name.startswith("fc.")}
    torch.save(state, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.mark.parametrize("method", ["FitNet", "AT", "SP", "RKD", "ReviewKD", "OFD"])
def test_a_teacher_of_other_classes_teaches_by_its_maps(method, teacher, logged):
    objective = open_objective(Options.of(pair(method, teacher)), load_dataset("digits", image_size=8)).train()
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    step = objective(batch_of(images, torch.arange(8)))
    step.loss.backward()
    assert step.logits.shape == (8, 10) and step.loss.isfinite()
    assert "the classes of the teacher are others: it teaches by its maps alone" in logged.text


@pytest.mark.parametrize("method", ["KD", "DKD", "SRRL", "CAT-KD", "sdd:KD", "KD+AT"])
def test_what_reads_its_logits_is_refused_by_name(method, teacher):
    with pytest.raises(ValueError, match="classes") as caught:
        open_objective(Options.of(pair(method, teacher)), load_dataset("digits", image_size=8))
    name = method.partition("+")[0].rpartition(":")[2].lower()
    assert name in str(caught.value).lower() and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["letKD-2+SRRL", "letKD-1+CAT-KD", "letKD-2+sdd:KD", "KDPP"])
def test_such_a_method_is_refused_before_words_are_made(method, teacher):
    """And class means, which take a pass over all images like these."""
    config = pair(method, teacher, prepare=True, allow_poor_teacher=True, localpath=str(teacher.parent))
    before = sorted(teacher.parent.rglob("*"))
    with pytest.raises(ValueError, match="classes") as caught:
        run_config(config | {"name": "mine.pair"})
    assert "\n" not in str(caught.value) and sorted(teacher.parent.rglob("*")) == before


@pytest.mark.parametrize("method", ["letKD-2+SRRL", "CAT-KD+KD", "KDPP"])
def test_as_many_other_classes_are_refused_before_that_too(method, folder):
    write_images(folder / "images", classes=[f"class {number}" for number in range(10)])
    config = main_classification.default_config(f"ImageFolder.RN20_RN8.{method}") | FAST
    config |= {"teacher": "resnet8", "teacher_experiment": None, "batch_size": 4, "num_workers": 0, "prepare": True}
    config |= {"localpath": str(folder), "data_dir": str(folder / "images"), "name": "mine.pair", "supervision": None}
    config |= {"num_words": 16}
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"class 0 is .class 0., expected .*last\.pth, was trained on"):
        run_config(config | {"teacher_weights": str(folder / "digits/RN8/last.pth")})
    assert sorted(folder.rglob("*")) == before


def test_words_and_decisions_of_such_a_teacher_are_made_and_learnt(teacher, logged):
    config = pair("letKD-2", teacher, num_words=16, subclasses_per_class=2, epochs=1, milestones=[], prepare=True)
    drawn = {"allow_poor_teacher": True, "localpath": str(teacher.parent), "name": "mine.pair"}
    results = run_config(config | drawn)
    assert results["num_classes"] == 10 and {"words", "decisions"} <= set(results["objective"]["weights"])
    assert "teacher    resnet14: " not in logged.text, "its accuracy is nothing to go by"


def test_a_teacher_of_as_many_other_classes_is_one_of_other_classes(folder, logged):
    write_images(folder / "images", classes=[f"class {number}" for number in range(10)])
    config = main_classification.default_config("ImageFolder.RN20_RN8.FitNet") | FAST
    config |= {"teacher": "resnet8", "teacher_experiment": None, "batch_size": 4, "num_workers": 0}
    given = {"localpath": str(folder)}
    given |= {"teacher_weights": str(folder / "digits/RN8/last.pth"), "data_dir": str(folder / "images")}
    job = Training(Options.of(config | given))
    job._build(None)
    assert job._check_teacher() is None, "its accuracy is nothing to go by"
    assert "the classes of the teacher are others: it teaches by its maps alone" in logged.text
    with pytest.raises(ValueError, match=r"class 0 is .class 0., expected .*last\.pth, was trained on"):
        Training(Options.of(config | given | {"method": "KD"}))._build(None)


@pytest.fixture
def labelled(tmp_path) -> Callable[[list[str]], Path]:
    """Leaves a teacher as a folder of Hugging Face that calls its classes so."""
    folder = tmp_path / "weights"

    def leave(names: list[str]) -> Path:
        folder.mkdir(exist_ok=True)
        save_file(network_of("resnet14").state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
        return folder

    return leave


@pytest.mark.parametrize("method", ["KD", "FitNet+KD"])
def test_a_folder_that_numbers_the_classes_otherwise_is_refused_by_the_first_of_them(method, labelled):
    """By the numbers every image of a 2 would be taught as a 3."""
    teacher = labelled(["0", "1", "3", "2", *"456789"])
    message = r"weights has '2' as class 3, which is class 2 of digits: kd reads the logits of the teacher; choose"
    with pytest.raises(ValueError, match=message) as caught:
        open_objective(Options.of(pair(method, teacher)), load_dataset("digits", image_size=8))
    assert "\n" not in str(caught.value)


def test_its_maps_teach_all_the_same(labelled, logged):
    teacher = labelled(["0", "1", "3", "2", *"456789"])
    objective = open_objective(Options.of(pair("FitNet", teacher)), load_dataset("digits", image_size=8))
    assert not objective.teacher.knows_classes and "it teaches by its maps alone" in logged.text


@pytest.mark.parametrize("names", ["0123456789", ["zero", "one", "two", "three", "four", *"56789"]], ids=str)
def test_a_folder_with_these_numbers_or_other_names_teaches_all(names, labelled):
    objective = open_objective(Options.of(pair("KD", labelled(list(names)))), load_dataset("digits", image_size=8))
    assert objective.teacher.knows_classes


def test_names_of_classes_are_the_same_without_case_and_signs():
    half = (0.5, 0.5, 0.5)
    dataset = Dataset("two", ("aquarium_fish", "crane", "crane", "bee"), 8, half, half, padding=0, flip=False)

    def numbered(*classes: str) -> tuple[int, int] | None:
        return numbered_otherwise(Weights({}, Path("a"), trained_with={"classes": list(classes)}), dataset)

    assert numbered("bee", "Crane", "crane", "Aquarium-fish") == (3, 0)
    assert numbered("aquarium fish", "x", "crane", "BEE") is None
    assert numbered("crane", "x", "y", "bee") is None, "two are called so, and it is one of them"
    assert numbered() is None


def test_what_reads_its_logits_is_refused_before_words_are_made(teacher):
    config = pair("letKD-1+KD", teacher, num_words=16, prepare=True) | {"localpath": str(teacher.parent)}
    with pytest.raises(ValueError, match="classes"):
        run_config(config | {"name": "mine.pair"})
    assert [path.name for path in teacher.parent.iterdir()] == ["teacher.pth"]


def test_a_network_of_other_classes_is_probed(teacher):
    config = main_classification.default_config("digits.RN14") | FAST
    given = {"weights": str(teacher), "probe": True, "name": "mine.probe", "localpath": str(teacher.parent)}
    assert 0 < run_config(config | given)["linear_probe"]["teacher"]["map"] <= 100


# --- measuring files of others on a folder ---------------------------------------------------------------------------


def write_images(folder: Path, *, classes: list[str], splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for image in range(2):
                colour = (40 * number + image, 255 - 40 * number, 90)
                Image.new("RGB", (8, 8), colour).save(folder / split / name / f"{image}.png")


def measure(tmp_path: Path, weights: Path, network: str = "timm/test_resnet", **options: Any) -> dict[str, Any]:
    config = main_classification.default_config("ImageFolder.RN8") | {"cuda": False, "num_workers": 0}
    config |= {"network": network, "published_weights": None, "name": "mine.net", "localpath": str(tmp_path / "out")}
    given = {"weights": str(weights), "data_dir": str(tmp_path / "images"), "evaluate": True}
    return run_config(config | given | options)


@pytest.mark.parametrize("splits", [("train", "val"), ("val",)], ids=["with training images", "without"])
def test_a_file_is_measured_on_a_folder_and_nothing_else_need_be_said(splits, tmp_path, logged):
    write_images(tmp_path / "images", classes=["ant", "bee", "cat"], splits=splits)
    network = network_of("timm/test_resnet", num_classes=3)
    torch.save({"state_dict": nn.DataParallel(network).state_dict()}, tmp_path / "net.pth")
    results = measure(tmp_path, tmp_path / "net.pth")
    assert results["num_classes"] == 3 and results["weights"] == str(tmp_path / "net.pth")
    assert "image_size 160, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)" in logged.text


def test_what_a_folder_of_weights_tells_goes_before_what_is_published_of_its_network(tmp_path, logged):
    write_images(tmp_path / "images", classes=["ant", "bee", "cat"], splits=("val",))
    network = network_of("timm/test_resnet", num_classes=3)
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(network.state_dict(), weights / "model.safetensors")
    told = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": "test_resnet", "pretrained_cfg": told, "label_names": ["cat", "bee", "ant"]}
    (weights / "config.json").write_text(json.dumps(config))
    in_order = measure(tmp_path, weights)
    assert "image_size 32, mean (0.1, 0.2, 0.3), std (0.4, 0.5, 0.6)" in logged.text
    # The folder's names in another order are other numbers of the same classes.
    renumbered = dict(network.state_dict())
    for name in classifier_of("timm/test_resnet"):
        renumbered[name] = renumbered[name].flip(0)
    save_file(renumbered, weights / "model.safetensors")
    (weights / "config.json").write_text(json.dumps(config | {"label_names": ["ant", "bee", "cat"]}))
    again = measure(tmp_path, weights)
    assert again["loss"] == pytest.approx(in_order["loss"], rel=1e-5)
    assert "calls its classes" not in logged.text
    (weights / "config.json").write_text(json.dumps(config | {"label_names": ["x", "y", "z"]}))
    measure(tmp_path, weights)
    assert "calls its classes x, ...; those of the folder are taken in alphabetical order" in logged.text


def test_what_nobody_tells_is_measured_on_the_training_images(tmp_path, logged):
    write_images(tmp_path / "images", classes=["ant", "bee", "cat"])
    torch.save(network_of(num_classes=3).state_dict(), tmp_path / "net.pth")
    results = measure(tmp_path, tmp_path / "net.pth", network="resnet8")
    assert results["num_classes"] == 3 and "was trained: " not in logged.text


def test_other_classes_than_those_of_the_folder_are_refused(tmp_path):
    write_images(tmp_path / "images", classes=["ant", "bee"])
    torch.save(network_of(num_classes=3).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"with 2 classes: other shapes: fc.weight \(3, 64\) instead of \(2, 64\)"):
        measure(tmp_path, tmp_path / "net.pth", network="resnet8")
