"""The jobs on a trained network in several processes: the files and figures of one, which the first process writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_tools import fewer_digits
from PIL import Image
from rank_tools import on_ranks
from training_tools import configure, train

from algorithms import Prediction, run_config
from config.options import Options
from dataloaders import load_dataset
from engine.records import RESULTS
from letkd.processes import member
from storage.tensor_files import load_tensors

TEACHER = "digits/RN8"
JOBS = {
    "kmeans": ({"kmeans": 16}, "VQ/digits/RN8/codebook_K16.pth"),
    "LDA": ({"LDA": 5, "subclasses_per_class": 2}, "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth"),
    "class_means": ({"class_means": True}, "class_means/digits/RN8/class_means.pth"),
}
SAMPLED = {"max_patches": 150, "memmap": True}  # of 1024 patches
BATCHES = {"test_batch_size": 40}  # 256 and 128 images: 7 and 4 of them
FIGURES = {
    "kmeans": ("words", "patches", "objectives", "perplexity"),
    "LDA": ("tap", "patches", "components", "rank", "decided_for_own_class"),
    "class_means": ("images", "cosine"),
}
MEASURED = ("top1", "top5", "loss")


def do_all(localpath: Path) -> dict[str, Any]:
    """All jobs, what they leave, and what is predicted."""
    found: dict[str, Any] = {}
    with fewer_digits():
        for sample in ({}, SAMPLED):
            for name, (options, file) in JOBS.items():
                train("classification", localpath, **options, **BATCHES, **(sample if name != "class_means" else {}))
                path = localpath / file
                figures = json.loads((path.parent / RESULTS).read_text())
                figures = {figure: figures[figure] for figure in FIGURES[name]}
                found[f"{name} {sample}"] = {"content": load_tensors(path), "figures": figures}
        train("classification", localpath, evaluate=True, **BATCHES)
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


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory, supervision) -> list[dict[str, Any]]:
    folder = with_images(tmp_path_factory.mktemp("together"), supervision)
    return on_ranks(request.param, on_a_rank, tmp_path_factory.mktemp("ranks"), folder)


@pytest.mark.parametrize("name", [f"{name} {sample}" for sample in ({}, SAMPLED) for name in JOBS])
def test_ranks_leave_the_file_and_the_figures_of_one_process(ranks, alone, name):
    torch.testing.assert_close(ranks[0][name]["figures"], alone[name]["figures"])
    content = ranks[0][name]["content"]
    assert list(content) == list(alone[name]["content"])
    assert_alike(content, alone[name]["content"])


def assert_alike(found: Any, expected: Any) -> None:
    """Numbers nearly and all else exactly equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
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


def test_fewer_batches_than_processes_are_refused(monkeypatch, supervision, few_digits):
    monkeypatch.setattr("algorithms.features.member", lambda: type(member())(0, 4))
    with pytest.raises(ValueError, match="256 training images in batches of 100 are too few for 4 processes"):
        run_config(configure("classification", supervision, kmeans=16))
