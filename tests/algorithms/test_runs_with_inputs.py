"""Runs whose networks see the images at sizes of their own, from the codebook to predictions of files."""

import copy
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from supervision_tools import read_map
from training_tools import differences, outcome

import main_classification
from algorithms import export, run_config
from algorithms.jobs import make_algorithm
from algorithms.run import steps_before
from algorithms.teaching import largest_size, open_objective
from config.options import Options
from dataloaders import load_dataset, make_eval_loader
from distillation.build import build_student
from engine.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("few_digits")

FAST = {"cuda": False, "num_workers": 0, "epochs": 1, "milestones": []}
SMALL = {"num_words": 16, "subclasses_per_class": 2, "allow_poor_teacher": True}
PAIR = {"teacher": "resnet8", "student": "resnet8", "teacher_experiment": "digits.RN8", "supervision": "digits.RN8"}
METHOD, NAME = "digits.RN14_RN8.letKD-2", "mine.sizes"
DIRECTORY = Path("mine", "sizes")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def configure(localpath: Path, name: str = METHOD, **updates: Any) -> dict[str, Any]:
    config = main_classification.default_config(name) | FAST | {"localpath": str(localpath)}
    own = {} if name == "digits.RN8" else SMALL | PAIR | {"name": NAME}
    return config | {key: value for key, value in own.items() if key in config} | updates


def read(folder: Path, directory: Path = DIRECTORY) -> dict[str, Any]:
    return json.loads((folder / directory / "results.json").read_text())


def main(*words: str) -> int:
    return main_classification.main(["main.py", *words])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, few_digits) -> Path:
    """A network that was trained on images of 16 x 16."""
    folder = tmp_path_factory.mktemp("teacher")
    run_config(configure(folder, "digits.RN8", image_size=16))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher) -> Path:
    """A pair of letKD-2: both see the same crops of 16 x 16, the student at 8 x 8 and otherwise normalised."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(teacher, folder, dirs_exist_ok=True)
    words = [f"config={METHOD}", f"name={NAME}", *(f"{key}={value}" for key, value in (FAST | SMALL | PAIR).items())]
    words += ["image_size=16", "student_size=8", f"student_mean={MEAN}", f"student_std={STD}", "prepare=True"]
    words += ["student_interpolation=bicubic", f"localpath={folder}"]
    assert main("with", *(word.replace(" ", "") for word in words)) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


STUDENT = {"crop_size": 16, "image_size": 8, "mean": MEAN, "std": STD, "interpolation": "bicubic"}


def test_a_run_records_what_its_networks_have_seen(trained):
    dataset = load_dataset("digits", image_size=16)
    sees = {"image_size": 16, "mean": list(dataset.mean), "std": list(dataset.std)}
    results, checkpoint = read(trained), load_checkpoint(trained / DIRECTORY / "last.pth")
    assert results["inputs"] == checkpoint["inputs"] == {"student": STUDENT, "teacher": sees}
    own = {key: value for key, value in STUDENT.items() if key != "crop_size"}
    assert checkpoint["data"]["image_size"] == 16 and checkpoint["data"]["input"] == own
    places = results["objective"]["places"]
    assert places["words"] == {
        "student": {"penultimate": {"path": "layer3", "channels": 64, "grid": [2, 2]}},
        "teacher": {"penultimate": {"path": "layer3", "channels": 64, "grid": [4, 4]}},
    }


def test_what_the_student_costs_is_counted_at_its_size(trained):
    assert read(trained, Path("digits", "RN8"))["multiply_adds"] > 3 * read(trained)["multiply_adds_without_kd_layers"]


def by_hand(folder: Path) -> float:
    """Accuracy of the student with everything in front of it written out."""
    dataset = load_dataset("digits", image_size=16)
    model = build_student(Options.of(configure(folder)), 10, 8)
    model.load_state_dict(load_checkpoint(folder / DIRECTORY / "last.pth")["model"])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    right = 0
    for batch in make_eval_loader(dataset, batch_size=100, device="cpu"):
        images = F.interpolate(batch.images.float(), (8, 8), mode="bicubic", antialias=True).clamp(0, 255)
        with torch.inference_mode():
            right += (model.eval()((images / 255 - mean) / std).argmax(dim=1) == batch.labels).sum().item()
    return 100 * right / len(dataset.eval)


def test_evaluation_export_and_prediction_see_what_training_saw(folder, monkeypatch, capsys):
    """None of them is told about sizes: the checkpoint says it."""
    monkeypatch.setattr(export, "TIMED_SECONDS", 0)
    top1 = read(folder)["top1"]
    assert by_hand(folder) == pytest.approx(top1)
    found = run_config(configure(folder, evaluate=True))["evaluations"]["last"]
    assert found["top1"] == top1 and "changed" not in found

    dataset = load_dataset("digits", image_size=16)
    for number, (pixels, label) in enumerate(zip(dataset.eval.images, dataset.eval.labels, strict=True)):
        path = folder / "images" / dataset.classes[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    words = [f"images={folder / 'images'}", "num_workers=0", "format=json", "cuda=False"]
    pair = [f"config={METHOD}", f"name={NAME}", f"localpath={folder}"]
    pair += [f"{key}={value}" for key, value in (PAIR | SMALL).items()]
    capsys.readouterr()
    assert main("predict", "with", *pair, *words) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["top1"] == pytest.approx(top1)

    run_config(configure(folder, export="onnx"))
    path = next((folder / DIRECTORY / "export").glob("*.onnx"))
    metadata = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert metadata["input"]["shape"] == ["batch", 3, 16, 16] and metadata["preprocessing"]["center_crop"] == 16
    sees = {"mean": MEAN, "std": STD, "image_size": 8, "interpolation": "bicubic, antialiased"}
    assert metadata["inside"] == sees and metadata["largest_difference"] < export.TOLERANCE
    capsys.readouterr()
    assert main("predict", "with", f"export_file={path}", *words) == 0
    exported = json.loads(capsys.readouterr().out)
    for one, other in zip(predicted["images"], exported["images"], strict=True):
        assert one["predictions"][0]["probability"] == pytest.approx(other["predictions"][0]["probability"], abs=1e-4)


def test_another_size_is_another_measurement(folder):
    found = run_config(configure(folder, evaluate=True, student_size=16))["evaluations"]
    (measured,) = found.values()
    assert measured["changed"] == {"student_size": [8, 16]}
    found = run_config(configure(folder, evaluate=True, student_input="data"))["evaluations"]
    assert {"student_size", "student_mean", "student_std"} <= set(list(found.values())[-1]["changed"])


def test_a_probe_sees_what_training_saw(folder):
    told = run_config(configure(folder, probe=True, student_size=8, student_mean=MEAN, student_std=STD))
    found = run_config(configure(folder, probe=True))
    assert found["linear_probe"] == told["linear_probe"] and "changed" not in found["linear_probe"]["last"]


def test_going_on_with_another_size_is_mentioned(folder, logged):
    same = {"image_size": 16, "student_mean": MEAN, "student_std": STD, "student_interpolation": "bicubic"}
    run_config(configure(folder, epochs=2, checkpoint=-1, student_size=8, **same))
    assert re.findall("changed since that epoch: (.*)", logged.text)[-1] == "epochs"
    run_config(configure(folder, epochs=3, checkpoint=-1, student_size=8, **same | {"student_mean": STD}))
    changed = re.findall("changed since that epoch: (.*)", logged.text)[-1].split(", ")
    assert sorted(changed) == ["epochs", "student_mean", "what the student sees"]


def words_of(localpath: Path, **options: Any) -> list[str]:
    """A command line of letKD-1 for the pair."""
    own = {"config": "digits.RN14_RN8.letKD-1", "name": NAME, "localpath": localpath} | FAST | PAIR
    own |= {key: SMALL[key] for key in ("num_words", "allow_poor_teacher")}
    return ["with", *(f"{key}={value}".replace(" ", "") for key, value in (own | options).items())]


def remedy(error: str) -> list[str]:
    return shlex.split(error.partition("python main_classification.py ")[2])


def codebook_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "VQ/digits/RN8").glob("codebook*.pth")
    return read_map(path)


def test_supervision_is_of_what_the_teacher_sees(teacher, tmp_path, capsys):
    """Images of 8 x 8, which the teacher sees at another size: the command that is printed makes the codebook so."""
    shutil.copytree(teacher, tmp_path, dirs_exist_ok=True)
    own = {"image_size": 8, "teacher_size": 12, "teacher_mean": MEAN, "teacher_interpolation": "bicubic"}
    words = words_of(tmp_path, student_size=12, **own)
    assert main(*words) == 1
    command = remedy(capsys.readouterr().err)
    told = ["kmeans=16", "image_size=8", "network_size=12", "network_mean=[0.4,0.5,0.6]"]
    assert {*told, "network_interpolation=bicubic"} <= set(command)
    assert main(*command, "cuda=False") == 0
    found = codebook_of(tmp_path)
    facts = {"crop_size": 8, "interpolation": "bicubic", "mean": MEAN}
    assert found["image_shape"] == (3, 12, 12) and {key: found["record"][key] for key in facts} == facts
    assert main(*words) == 0
    assert read(tmp_path)["inputs"]["teacher"] == facts | {"image_size": 12, "std": found["record"]["std"]}

    others = {
        r"image_size (12, this run has 20)": {"teacher_size": 20, "student_size": 20},
        r"mean ([0.4, 0.5, 0.6], this run has [0.5, 0.5, 0.6])": {"teacher_mean": [0.5, 0.5, 0.6]},
        r"interpolation (bicubic, this run has nearest)": {"teacher_interpolation": "nearest"},
        r"crop_size (8, this run has 12)": {"image_size": 12},
    }
    for message, changed in others.items():
        assert main(*words_of(tmp_path, **{"student_size": 12} | own | changed)) == 1
        error = capsys.readouterr().err
        assert f" was made with another {message}; make it again: " in error and error.count("\n") == 1
        assert main(*remedy(error), "cuda=False") == 0
        assert main(*words_of(tmp_path, **{"student_size": 12} | own | changed)) == 0
        assert main(*command, "cuda=False") == 0


def test_a_teacher_sees_what_its_checkpoint_says(tmp_path, logged, capsys):
    """It was trained on images of 8 x 8, and the run has the data set's own size, 16 x 16."""
    run_config(configure(tmp_path, "digits.RN8", image_size=8, mean=MEAN))
    assert main(*words_of(tmp_path)) == 1
    assert capsys.readouterr().err == (
        "error: the penultimate map of resnet8 (2 x 2) is no whole multiple of that of resnet8 (4 x 4); it sees images "
        "of 8 x 8 and the student of 16 x 16: choose teacher_size= or student_size=\n"
    )
    assert main(*words_of(tmp_path, student_size=8, prepare=True)) == 0
    assert "teacher    sees images of 8 x 8 (bilinear from 16 x 16), mean 0.4, 0.5, 0.6, std 0.3203" in logged.text
    found = codebook_of(tmp_path)
    assert found["image_shape"] == (3, 8, 8)
    assert found["record"]["crop_size"] == 16 and found["record"]["mean"] == MEAN


def test_a_teacher_is_trained_as_it_shall_see(tmp_path):
    words = words_of(tmp_path, image_size=8, teacher_size=16, teacher_mean=MEAN, student_size=16, prepare=True)
    assert main(*words) == 0
    known = load_checkpoint(tmp_path / "digits/RN8/last.pth")["data"]
    assert known["image_size"] == 8 and known["input"] == {"image_size": 16, "mean": MEAN}
    assert codebook_of(tmp_path)["image_shape"] == (3, 16, 16)


def test_jobs_on_the_teacher_of_a_pair_see_what_it_sees(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path, dirs_exist_ok=True)
    words = words_of(tmp_path, image_size=8, teacher_size=12, student_size=12)
    assert main(*words, "kmeans=16") == 0
    assert codebook_of(tmp_path)["image_shape"] == (3, 12, 12)
    assert main(*words) == 0


def test_options_that_say_what_is_so_anyway_change_nothing(teacher, tmp_path):
    """Bit for bit: one input serves both networks."""
    dataset = load_dataset("digits", image_size=16)
    outcomes = []
    for number in range(2):
        folder = tmp_path / str(number)
        shutil.copytree(teacher, folder)
        config = main_classification.default_config("digits.RN14_RN8.KD") | FAST | PAIR | {"name": NAME}
        config = {key: value for key, value in config.items() if key != "supervision"}
        config |= {"localpath": str(folder), "image_size": 16, "allow_poor_teacher": True}
        if number:
            config |= {"teacher_size": 16, "student_size": 16, "student_input": "data", "teacher_input": "own"}
            config |= {"student_mean": list(dataset.mean), "teacher_interpolation": "bicubic"}
        objective = open_objective(Options.of(config), dataset)
        assert objective.shares_input
        run_config(config)
        outcomes.append(outcome(folder / DIRECTORY))
    assert differences(*outcomes) == []


def test_a_teacher_that_is_yet_to_be_trained_will_have_seen_the_images_of_the_run(tmp_path):
    """So `teacher_input=own` is known before it is there; and what is prepared of it is found when it is."""
    config = configure(tmp_path, "digits.RN14_RN8.QuEST", teacher_input="own", image_size=8)
    run = make_algorithm(config)
    steps = steps_before(run)
    assert [step.job.mode for step in steps] == ["train", "kmeans"]
    for job in (*(step.job for step in steps), run):
        copy.copy(job).check_images(job.open_training_data)
    for job in (step.job for step in steps):
        type(job)(job.options.changed(epochs=1, milestones=[])).run()
    found = run_config(config)
    assert found["inputs"]["teacher"]["image_size"] == 8 and found["options"]["teacher_input"] == "own"
    assert read(tmp_path, Path("digits", "RN8"))["options"]["network_input"] is None


@pytest.mark.parametrize("options, expected", [
    ({"teacher_input": "own", "student_input": "own"}, (224, "timm/mobilenetv3_small_050")),
    ({}, (224, "timm/mobilenetv3_small_050")),
    ({"teacher_size": 300}, (300, "timm/resnet10t")),
    ({"student_size": 96}, (176, "timm/resnet10t")),
    ({"teacher": "resnet20", "student": "resnet8"}, None),
    ({"teacher": "resnet20", "student": "resnet8", "student_size": 64}, (64, "resnet8")),
    ({"teacher": "resnet8", "student": "resnet8", "teacher_size": 96, "student_size": 64}, (96, "resnet8")),
])  # fmt: skip
def test_the_size_that_images_of_no_common_size_want_is_the_largest_of_a_network(options, expected, tmp_path):
    networks = {"teacher": "timm/resnet10t", "student": "timm/mobilenetv3_small_050"}
    assert largest_size(Options.of(configure(tmp_path, **networks | options))) == expected


@pytest.mark.parametrize("job", [{"kmeans": 16}, {"class_means": True}])
def test_a_network_alone_that_is_yet_to_be_trained_will_have_seen_the_images_of_the_run_too(tmp_path, job):
    config = configure(tmp_path, "digits.RN8", network_input="own", image_size=8) | job
    run = make_algorithm(config)
    steps = steps_before(run)
    assert [step.job.mode for step in steps] == ["train"]
    for made in (steps[0].job, run):
        copy.copy(made).check_images(made.open_training_data)
    type(steps[0].job)(steps[0].job.options.changed(epochs=1, milestones=[])).run()
    run.run()
    assert run.seen.image_size == 8 and steps_before(make_algorithm(config)) == []


def test_the_average_of_the_student_sees_what_it_sees(tmp_path):
    config = main_classification.default_config("digits.RN8.KD") | FAST | {"teacher": "ema", "image_size": 16}
    config |= {"localpath": str(tmp_path), "student_size": 8, "average": True}
    run_config(config)
    inputs = read(tmp_path, Path("digits", "RN8", "KD"))["inputs"]
    assert inputs["teacher"] == inputs["student"] and inputs["student"]["image_size"] == 8
    with pytest.raises(
        ValueError, match="the average of the student sees what the student sees; leave out teacher_size=8"
    ):
        run_config(config | {"teacher_size": 8})


def test_a_network_alone_has_a_size_of_its_own(tmp_path):
    run_config(configure(tmp_path, "digits.RN8", image_size=16, network_size=8))
    results = read(tmp_path, Path("digits", "RN8"))
    assert results["inputs"]["network"]["image_size"] == 8 and results["inputs"]["network"]["crop_size"] == 16
    found = run_config(configure(tmp_path, "digits.RN8", evaluate=True))
    assert found["evaluations"]["last"]["top1"] == results["top1"]
    run_config(configure(tmp_path, "digits.RN8", class_means=True))
    assert main(*words_of(tmp_path, image_size=16, student_size=8, prepare=True)) == 0
    found = codebook_of(tmp_path)
    assert found["image_shape"] == (3, 8, 8) and found["record"]["crop_size"] == 16


def test_images_that_are_read_in_every_epoch_are_cropped_once_and_resized(tmp_path, capsys):
    """Files of 120 x 130, crops of 100 x 100, and a network that sees 16 x 16: evaluation and prediction agree."""
    generator = torch.Generator().manual_seed(0)
    for number in range(24):
        colour = torch.rand(3, 5, 5, generator=generator) + (number % 2) * torch.tensor([0.5, 0, -0.5]).view(3, 1, 1)
        pixels = F.interpolate(colour.clamp(0, 1)[None], (120, 130), mode="bicubic")[0].clamp(0, 1)
        folder = tmp_path / "pictures" / ("train" if number < 16 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = (255 * pixels).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"{number}.png")
    words = ["config=ImageFolder.RN20", "name=mine.alone", "network=resnet8", f"localpath={tmp_path}", "cuda=False"]
    words += ["num_workers=0"]
    own = [f"data_dir={tmp_path / 'pictures'}", "image_size=100", "network_size=16", "batch_size=8", "epochs=1"]
    assert main("with", *words, *own, "milestones=[]") == 0
    results = read(tmp_path, Path("mine", "alone"))
    assert results["inputs"]["network"]["crop_size"] == 100 and results["inputs"]["network"]["image_size"] == 16
    capsys.readouterr()
    assert main("predict", "with", *words, f"images={tmp_path / 'pictures' / 'val'}", "format=json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] == results["top1"]
