"""The jobs on a trained network in several processes: the files and figures of one, which the first process writes."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from digits_tools import fewer_digits
from PIL import Image
from rank_tools import ended, on_ranks, started
from training_tools import configure, train

import algorithms.run
from algorithms import Algorithm, Prediction, run_config
from algorithms.jobs import make_algorithm
from config.options import Options
from dataloaders import load_dataset
from engine.records import RESULTS
from letkd.processes import Member, member, wait_for_all
from storage.tensor_files import load_tensors

TEACHER = "digits/RN8"
SAMPLED = {"max_patches": 150, "memmap": True}  # of 1024 patches
CODEBOOK = "VQ/digits/RN8/codebook_K16.pth"
DECISIONS = "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth"
OF_WORDS = ("words", "patches", "objectives", "perplexity")
OF_DECISIONS = ("tap", "patches", "components", "rank", "decided_for_own_class")
JOBS = {
    "words": ({"kmeans": 16}, CODEBOOK, OF_WORDS),
    "words of some patches": ({"kmeans": 16} | SAMPLED, CODEBOOK, OF_WORDS),
    "decisions": ({"LDA": 5, "subclasses_per_class": 2}, DECISIONS, OF_DECISIONS),
    "decisions of some patches": ({"LDA": 5, "subclasses_per_class": 2} | SAMPLED, DECISIONS, OF_DECISIONS),
    "class means": ({"class_means": True}, "class_means/digits/RN8/class_means.pth", ("images", "cosine")),
}
BATCHES = {"test_batch_size": 40}  # 256 and 128 images: 7 and 4 of them
SETTINGS = [
    "teacher_experiment=digits.RN8", "supervision=digits.RN8", "allow_poor_teacher=True", "image_size=8", "cuda=False",
    "epochs=1", "milestones=[]",
]  # fmt: skip
MEASURED = ("top1", "top5", "loss")


def do_all(localpath: Path) -> dict[str, Any]:
    """All jobs, what they leave, and what is predicted."""
    found: dict[str, Any] = {}
    with fewer_digits():
        for name, (options, file, figures) in JOBS.items():
            train("classification", localpath, **options, **BATCHES)
            wait_for_all()  # the first has written it
            path = localpath / file
            results = json.loads((path.parent / RESULTS).read_text())
            found[name] = {"content": load_tensors(path), "figures": {figure: results[figure] for figure in figures}}
            wait_for_all()  # all have read it
        train("classification", localpath, evaluate=True, **BATCHES)
        wait_for_all()
        measured = json.loads((localpath / TEACHER / RESULTS).read_text())["evaluations"]
        found["evaluate"] = {name: {key: of[key] for key in MEASURED} for name, of in measured.items()}
        options = configure("classification", localpath, **BATCHES) | {
            "images": str(localpath / "images"), "top": 3, "format": "json", "export_file": None
        }  # fmt: skip
        found["predict"] = Prediction(Options.of(options)).run()
    return found


def on_a_rank(rank: int, localpath: Path) -> dict[str, Any]:
    assert member().rank == rank
    return do_all(localpath)


def with_images(folder: Path, supervision: Path) -> Path:
    """A trained network, and image files of which one cannot be read."""
    shutil.copytree(supervision / TEACHER, folder / TEACHER)
    dataset = load_dataset("digits", image_size=8)
    for number, (pixels, label) in enumerate(zip(dataset.eval.images[:7], dataset.eval.labels[:7], strict=True)):
        path = folder / "images" / dataset.classes[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    path.write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, supervision) -> dict[str, Any]:
    return do_all(with_images(tmp_path_factory.mktemp("alone"), supervision))


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def ranks(request, tmp_path_factory, supervision) -> list[dict[str, Any]]:
    folder = with_images(tmp_path_factory.mktemp("together"), supervision)
    return on_ranks(request.param, on_a_rank, tmp_path_factory.mktemp("ranks"), folder)


@pytest.mark.parametrize("name", JOBS)
def test_ranks_leave_the_file_and_the_figures_of_one_process(ranks, alone, name):
    for rank in ranks:
        assert_alike(rank[name], alone[name])


def assert_alike(found: Any, expected: Any) -> None:
    """Numbers nearly, and all but paths exactly equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"weights", "image"}:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, (torch.Tensor, float)):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


def test_ranks_measure_and_predict_what_one_process_does(ranks, alone):
    for rank in ranks:
        assert_alike(rank["evaluate"], alone["evaluate"])
        assert rank["predict"]["network"].endswith("last.pth") and len(rank["predict"]["unreadable"]) == 1
        for key in ("images", "top1"):
            assert_alike(rank["predict"][key], alone["predict"][key])
        names = [[Path(image["image"]).name for image in found["predict"]["images"]] for found in (rank, alone)]
        assert names[0] == names[1] and len(names[0]) == 6


@pytest.mark.usefixtures("few_digits")
def test_a_command_in_two_processes_makes_what_a_student_learns_from_once(folder, capfd):
    """Words and decisions that are missing, and then the training with them."""
    argv = [
        "main_classification.py",
        "with",
        "config=digits.RN14_RN8.letKD-2",
        "teacher=resnet8",
        "name=mine.pair",
        *SETTINGS,
    ]
    argv += ["num_words=20", "subclasses_per_class=3", "prepare=True", f"localpath={folder}"]
    assert ended(started(2, argv)) == [0, 0]
    said = capfd.readouterr()
    assert said.err == ""
    made = {"VQ/digits/RN8": "20 words of 1024 patches", "LDA/digits/RN8": "30 sub-classes in "}
    for directory, line in made.items():
        assert said.out.count(line) == (folder / directory / "log.txt").read_text().count(line) == 1
    assert [path.name for path in (folder / "VQ/digits/RN8").glob("*K20*")] == ["codebook_K20.pth"]
    assert json.loads((folder / "mine/pair" / RESULTS).read_text())["epochs"] == 1


UNSHARED = {
    "the batch": ({}, "batch_size=64 cannot be shared equally by 3 processes; choose a multiple of 3"),
    "its parts": (
        {"batch_size": 48, "accumulate": 6},
        "batch_size=48 in accumulate=6 parts cannot be shared equally by 3 processes",
    ),
    "images": ({"batch_size": 3}, "batch_size=3 leaves less than two images for each of 3 processes"),
    "a recorded step": ({"cuda_graph": True, "cuda": True}, "cuda_graph=True is for one process, and these are 3"),
    "the teacher's batch": (
        {"batch_size": 48},
        "preparing digits.RN8: batch_size=64 cannot be shared equally by 3 processes; choose a multiple of 3; to make "
        "it with options of its own: python main_classification.py with config=digits.RN8 ",
    ),
}


@pytest.mark.parametrize(("options", "message"), UNSHARED.values(), ids=UNSHARED)
def test_what_processes_cannot_share_is_refused_before_anything_is_prepared(options, message, tmp_path, monkeypatch):
    for module in ("run", "train"):
        monkeypatch.setattr(f"algorithms.{module}.member", lambda: Member(0, 3))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run_config(configure("letKD-2", tmp_path, prepare=True, **options))
    assert list(tmp_path.rglob("*")) == []


def plan(rank: int, made: Path) -> int:
    """How many steps a rank does that looks late for what the first makes soon."""

    def steps_before(algorithm: Algorithm) -> list[Path]:
        time.sleep(0.3 * rank)
        return [] if made.exists() else [made]

    with (
        patch.object(algorithms.run, "steps_before", steps_before),
        patch.object(algorithms.run, "Preparation", lambda steps, *_: Mock(carry_out=lambda make: steps[0].touch())),
    ):
        return algorithms.run.provide(make_algorithm(configure("classification", made.parent, prepare=True)))


def test_all_have_planned_before_the_first_makes_something(tmp_path):
    assert on_ranks(2, plan, tmp_path, tmp_path / "made.pth") == [1, 1]


def test_fewer_batches_than_processes_are_refused(monkeypatch, supervision, few_digits):
    monkeypatch.setattr("algorithms.features.member", lambda: type(member())(0, 4))
    with pytest.raises(ValueError, match="256 training images in batches of 100 are too few for 4 processes"):
        run_config(configure("classification", supervision, kmeans=16))
