"""`class_means=True`: what the file holds, who finds it, and who is refused."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import main_classification
from algorithms import class_means, make_algorithm, run_config
from algorithms.teaching import missing_supervision, open_objective
from architectures import Input, create_model, outline
from config.options import Options
from dataloaders import Dataset, load_dataset
from storage.state_dicts import fingerprint
from storage.tensor_files import load_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("few_digits")

MEANS = "class_means/digits/RN14/class_means.pth"
SMALL = {"image_size": 8, "cuda": False}
METHOD = "digits.RN14_RN8.KDPP"


def configure(localpath: Path, name: str = METHOD, **updates: Any) -> dict[str, Any]:
    return main_classification.default_config(name) | SMALL | {"localpath": str(localpath)} | updates


def digits() -> Dataset:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_digits) -> Path:
    """A teacher of one epoch, and its class means."""
    folder = tmp_path_factory.mktemp("made")
    run_config(configure(folder, "digits.RN14", epochs=1))
    run_config(configure(folder, "digits.RN14", class_means=True))
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_means_of_what_enters_the_classifier(made):
    dataset, path = digits(), made / MEANS
    network = create_model("resnet14", num_classes=10).eval()
    state = torch.load(made / "digits" / "RN14" / "last.pth", weights_only=True)["model"]
    network.load_state_dict(state)
    with torch.no_grad():
        images = Input(dataset.mean, dataset.std)(dataset.train.images.permute(0, 3, 1, 2))
        pooled = network.forward_features(images).mean((2, 3)).double()
    labels = dataset.train.labels
    content = load_tensors(path)
    expected = torch.stack([pooled[labels == label].mean(dim=0) for label in range(10)])
    torch.testing.assert_close(content["means"], expected.float())
    facts = {"teacher": fingerprint(state), "dataset": "digits", "image_size": 8, "val_split": 0}
    assert {key: content["record"][key] for key in facts} == facts

    results = json.loads((path.parent / "results.json").read_text())
    assert (results["mode"], results["file"], results["images"]) == ("class_means", str(path), 256)
    directions = expected / expected.norm(dim=1, keepdim=True)
    cosines = (directions @ directions.T)[~torch.eye(10, dtype=torch.bool)]
    assert results["cosine"] == pytest.approx(cosines.mean().item())


def test_a_run_makes_what_it_lacks_and_records_it(folder, capsys):
    shutil.rmtree(folder / "class_means")
    words = [f"config={METHOD}", "image_size=8", "cuda=False", "epochs=1", "milestones=[]", f"localpath={folder}"]
    words.append("allow_poor_teacher=True")
    assert main_classification.main(["main.py", "with", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no class means of digits.RN14; make it: python main_classification.py with ")
    assert error.rstrip().endswith("class_means=True") and "\n" not in error.rstrip()
    assert main_classification.main(["main.py", "with", *words, "prepare=True"]) == 0
    assert "class means of digits.RN14; time not known" in capsys.readouterr().out
    results = json.loads((folder / "digits/RN14_RN8/KDPP/results.json").read_text())
    assert results["means_fingerprint"] == fingerprint({"means": load_tensors(folder / MEANS)["means"]})
    assert results["objective"]["weights"] == {"ce": 1.0, "kdpp.kd": 1.0, "kdpp.nd": 2.0}


@pytest.mark.parametrize(("fact", "value"), [("teacher", "0" * 64), ("num_images", 100)])
def test_another_fact_is_refused_with_the_command_that_makes_the_file_again(fact, value, folder):
    content = load_tensors(folder / MEANS)
    assert fact in content["record"]
    save_tensors(folder / MEANS, content | {"record": content["record"] | {fact: value}})
    config = configure(folder, epochs=1, milestones=[])
    with pytest.raises(ValueError, match=f"was made with another {fact}") as caught:
        run_config(config)
    assert str(folder / MEANS) in str(caught.value)
    command = shlex.split(re.search(r"make it again: python main_classification.py (with .*)", str(caught.value))[1])
    assert command[-1] == "class_means=True"
    assert main_classification.main(["main.py", *command]) == 0
    open_objective(Options.of(config), digits())


def test_images_that_were_prepared_otherwise_are_refused(folder):
    with pytest.raises(ValueError, match=r"was made with another mean .*'mean="):
        run_config(configure(folder, epochs=1, milestones=[], mean=[0.5] * 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "letkd-supervision-2"}, "holds no class means"),
        ({"record": None}, "it has no record of what made it"),
        ({"means": None}, "it holds no tensor 'means'"),
        ({"means": torch.ones(10, 3)}, r"holds class means \(10, 3\); resnet14 has \(10, 64\)"),
        ({"means": torch.full((10, 64), torch.nan)}, "values that are not finite"),
    ],
    ids=["format", "record", "nothing", "shape", "nan"],
)
def test_what_is_no_file_of_class_means_is_refused(change, message, folder):
    save_tensors(folder / MEANS, load_tensors(folder / MEANS) | change)
    with pytest.raises(ValueError, match=message) as caught:
        open_objective(Options.of(configure(folder)), digits())
    assert str(folder / MEANS) in str(caught.value)


def test_a_sum_finds_the_same_file(folder):
    for name in ("DKD+KDPP", "letKD-2+KDPP"):
        config = configure(folder, f"digits.RN14_RN8.{name}")
        needs = missing_supervision(Options.of(config))
        wanted = [set(need.options) & {"class_means", "kmeans", "LDA"} for need in needs]
        assert {"class_means"} not in wanted
    (folder / MEANS).unlink()
    assert [need.options["class_means"] for need in missing_supervision(Options.of(configure(folder)))] == [True]


def test_a_teacher_without_an_experiment_has_them_by_its_weights(made, tmp_path, capsys):
    """The command on the pair, which the error prints, makes them of the teacher."""
    weights = tmp_path / "teacher.pth"
    torch.save(create_model("resnet20", num_classes=10).state_dict(), weights)
    words = [f"config={METHOD}", "name=mine.pair.KDPP", "teacher=resnet20", f"teacher_weights={weights}"]
    words += ["image_size=8", "cuda=False", "epochs=1", "milestones=[]", f"localpath={tmp_path}"]
    words.append("allow_poor_teacher=True")
    assert main_classification.main(["main.py", "with", *words]) == 1
    command = re.search(r"make it: python main_classification.py (with .*)", capsys.readouterr().err)[1]
    assert main_classification.main(["main.py", *shlex.split(command)]) == 0
    (made_here,) = (tmp_path / "class_means" / "weights" / "digits").iterdir()
    assert re.fullmatch("[0-9a-f]{16}", made_here.name)
    assert main_classification.main(["main.py", "with", *words]) == 0


def test_a_network_without_a_pooled_vector_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(class_means, "outline", lambda *given: replace(outline(*given), head=None))
    config = configure(tmp_path, "digits.RN14", class_means=True)
    with pytest.raises(ValueError, match="no pooled vector"):
        make_algorithm(config).check_images(lambda known: digits())


def test_the_job_reads_no_option_of_patches(tmp_path):
    for option, value in (("fname", "a.pth"), ("max_patches", 9)):
        with pytest.raises(ValueError, match=f"{option}=.* concerns kmeans and LDA only"):
            run_config(configure(tmp_path, "digits.RN14", class_means=True, **{option: value}))
