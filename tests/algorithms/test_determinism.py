"""The same seed gives the same run: whatever reads the images, and with `deterministic` on a GPU too."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_tools import differences, outcome, train

import main_classification
from algorithms import command_for, run_config
from algorithms import train as training
from config.options import Options
from engine.numerics import set_numerics
from letkd.losses import full_precision
from storage.tensor_files import load_json

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def numerics() -> tuple:
    """Everything global that a run may set."""
    cudnn = torch.backends.cudnn
    return (
        torch.get_deterministic_debug_mode(), os.environ.get(VARIABLE), cudnn.benchmark, cudnn.deterministic,
        cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
    )  # fmt: skip


def test_a_deterministic_run_repeats_is_recorded_and_leaves_nothing_behind(few_digits, tmp_path, monkeypatch):
    seen, measured = [], training.evaluate
    monkeypatch.setattr(
        training, "evaluate", lambda *given, **named: seen.append(numerics()) or measured(*given, **named)
    )
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # somebody else's choice
    before = numerics()
    runs = [
        train("classification", tmp_path / str(number), epochs=1, milestones=[], deterministic=True, precision="tf32")
        for number in (1, 2)
    ]
    assert set(seen) == {(2, ":4096:8", False, True, True, True)}
    assert numerics() == before
    assert differences(*map(outcome, runs)) == []
    results = load_json(runs[0] / "results.json")
    assert results["deterministic"] is True and results["options"]["deterministic"] is True


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["classification", "letKD-2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_on_a_gpu_repeats_bit_for_bit(method, precision, few_digits, folder):
    """An operation that cannot is an error of torch's."""
    found = []
    for _ in range(2):
        options = {"epochs": 2, "milestones": [1], "cuda": True, "deterministic": True, "precision": precision}
        directory = train(method, folder, **options)
        found.append(outcome(directory))
        shutil.rmtree(directory)  # with its curves
    assert differences(*found) == []


def test_numerics_come_back_after_a_failure_and_keep_what_was_set(monkeypatch):
    monkeypatch.setenv(VARIABLE, ":16:8")
    before = numerics()
    with pytest.raises(ZeroDivisionError), set_numerics("bf16", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled() and os.environ[VARIABLE] == ":4096:8"
        _ = 1 / 0
    assert numerics() == before
    with set_numerics("fp32", deterministic=False):
        assert numerics()[:4] == before[:4]


def test_supervision_keeps_float32_in_one_job_after_another():
    products = torch.backends.cuda.matmul
    for precision, whole in [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "tf32"), ("fp32", "ieee")]:
        with set_numerics(precision, deterministic=False):
            with full_precision(torch.device("cpu")):
                assert products.fp32_precision == "ieee"
            assert products.fp32_precision == whole


def test_what_a_run_prepares_is_deterministic_as_well():
    from results.places import Requirement

    config = main_classification.default_config("digits.RN14_RN8.letKD-1") | {"deterministic": True}
    command = command_for(Requirement("", "digits.RN14"), Options.of(config))
    assert "deterministic=True" in command


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Two classes of four photographs at image size 100: more than what is kept in memory."""
    folder = tmp_path_factory.mktemp("photographs")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 11, 12, 3), dtype=np.uint8)
    for label, images in zip("ab", pixels, strict=True):
        (folder / "train" / label).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).resize((120, 110)).save(folder / "train" / label / f"{number}.png")
    (folder / "val").symlink_to(folder / "train")
    return folder


def test_neither_workers_nor_looks_change_a_run_on_streamed_images(photographs, tmp_path):
    runs = []
    for number, (workers, disp_step) in enumerate([(0, 1), (2, 1), (0, 50)]):
        config = main_classification.default_config("ImageFolder.RN8") | {
            "data_dir": str(photographs), "image_size": 100, "mean": [0.5] * 3, "std": [0.25] * 3, "batch_size": 2,
            "epochs": 2, "milestones": [], "cuda": False, "num_workers": workers, "disp_step": disp_step,
            "localpath": str(tmp_path / str(number)),
        }  # fmt: skip
        run_config(config)
        runs.append(outcome(tmp_path / str(number) / "ImageFolder/RN8"))
    assert differences(runs[0], runs[1]) == []
    assert differences(runs[0], runs[2]) == []
