"""The examples run as they stand, one of them with nothing of this project but the installed package."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Folders of two classes, 32 x 32, 8 images for training and 4 for validation each."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(128 * label, 128 * label + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def run(name: str, *arguments: object) -> None:
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def accuracies(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", output)]


def test_plain_training_on_a_folder(images, capsys):
    run("plain_training", "--data", images, "--epochs", 1, "--words", 8, "--device", "cpu")
    assert len(accuracies(capsys.readouterr().out)) == 2


def test_torchvision_pair_keeps_its_teacher_and_supervision(images, tmp_path, capsys):
    options = ["--data", images, "--epochs", 1, "--words", 4, "--subclasses", 2, "--image-size", 64, "--batch-size", 8]
    options += ["--teacher", "resnet18", "--output", tmp_path, "--device", "cpu"]
    run("torchvision_pair", *options)
    first = capsys.readouterr().out
    assert "layer4.0: 64 patches of 16 images" in first and first.count("epoch 1") == 2
    run("torchvision_pair", *options)
    assert capsys.readouterr().out.count("epoch 1") == 1
    saved = torch.load(tmp_path / "resnet18.letkd.pth", weights_only=True)
    assert saved["taps"] == {"layer4": 4, "layer4.0": 4}
    assert saved["model"]["layers.layer4/0.scores.templates"].shape == (4, 512)


@pytest.mark.parametrize(
    "pair",
    [
        ["--teacher", "regnety_002", "--student", "regnety_002"],
        ["--teacher", "regnety_002", "--student", "resnet10t", "--words", "layer4=s4", "--decisions", "layer4.0=s4.b1"],
    ],
)
def test_timm_pair(images, capsys, pair):
    options = ["--data", images, "--epochs", 1, "--num-words", 4, "--num-subclasses", 2, "--image-size", 64]
    run("timm_pair", *options, *pair, "--batch-size", 8, "--device", "cpu")
    assert len(accuracies(capsys.readouterr().out)) == 2


def test_the_installed_package_is_enough(tmp_path):
    """A wheel of the project holds `letkd` alone, and the plain example needs nothing else of ours."""
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("letkd", "algorithms", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", installed, source], check=True)
    assert sorted(path.name.partition("-")[0] for path in installed.iterdir()) == ["letkd", "letkd"]
    metadata = next(installed.glob("letkd-*.dist-info/METADATA")).read_text()
    assert re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", metadata, re.MULTILINE) == ["torch", "numpy"]

    shutil.copy(EXAMPLES / "plain_training.py", tmp_path)
    script = (
        "import sys, importlib.util\n"
        "ours = ('algorithms', 'architectures', 'config', 'dataloaders', 'main_classification')\n"
        "assert not any(map(importlib.util.find_spec, ours)), 'found beside the package'\n"
        "sys.modules['faiss'] = sys.modules['sacred'] = None\n"
        "import letkd\n"
        "assert 'sklearn' not in sys.modules and 'scipy' not in sys.modules and 'torchvision' not in sys.modules\n"
        f"assert letkd.__file__.startswith({str(installed)!r}), letkd.__file__\n"
        "import plain_training\n"
        "plain_training.main(['--epochs', '2', '--words', '32', '--device', 'cpu'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    teacher, student = accuracies(done.stdout)
    assert min(teacher, student) > 50
