"""The examples run as they stand and distil, one of them with nothing of this project but the installed package."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from torch import nn

import letkd

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Folders of two classes, 32 x 32, 8 images for training and 4 for validation each."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(128 * label, 128 * label + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


@pytest.fixture
def divergences(monkeypatch) -> list[float]:
    """What the layers of students diverge by in each step, together."""
    seen, compute = [], letkd.Student.forward_with_losses

    def watched(student: nn.Module, *batch: torch.Tensor) -> tuple:
        logits, terms = compute(student, *batch)
        seen.append(sum(terms.values()).item())
        return logits, terms

    monkeypatch.setattr(letkd.Student, "forward_with_losses", watched)
    return seen


def fall(divergences: list[float]) -> float:
    """The mean of the last third of the steps, in parts of that of the first third."""
    third = len(divergences) // 3
    return sum(divergences[-third:]) / sum(divergences[:third])


def example(name: str) -> ModuleType:
    random.seed(0)  # timm's augmentation
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> None:
    example(name).main([str(argument) for argument in arguments])


def accuracies(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", output)]


def test_plain_training_teaches_digits(divergences, capsys, monkeypatch):
    program = example("plain_training")
    monkeypatch.setattr(program, "DEVICE", "cpu")
    program.main(epochs=4, num_words=32)
    teacher, student = accuracies(capsys.readouterr().out)
    assert teacher > 90 and student > 70, "10 is chance"
    assert fall(divergences) < 0.9  # without the divergences in the loss: 0.98


PAIR_OPTIONS = ["--batch-size", 8, "--lr", 0.05, "--device", "cpu"]


@pytest.mark.slow  # as the pair of timm below, of larger networks
def test_torchvision_pair_keeps_what_it_makes(images, divergences, tmp_path, capsys):
    options = ["--data", images, "--words", 4, "--subclasses", 2, "--image-size", 64, *PAIR_OPTIONS]
    options += ["--teacher", "resnet18", "--output", tmp_path]
    run("torchvision_pair", *options, "--epochs", 6)
    first = capsys.readouterr().out
    assert "layer4.0: 64 patches of 16 images" in first and first.count("epoch 1") == 2
    assert fall(divergences) < 0.95  # without the divergences in the loss these end at 1.0 to 1.2
    run("torchvision_pair", *options, "--epochs", 1)
    assert capsys.readouterr().out.count("epoch 1") == 1, "the teacher is there"
    saved = torch.load(tmp_path / "resnet18.letkd.pth", weights_only=True)
    assert saved["taps"] == {"layer4": 4, "layer4.0": 4}
    assert saved["alphas"] == {"layer4": 1.0, "layer4.0": 1.0}
    assert saved["model"]["layers.layer4/0.scores.templates"].shape == (4, 512)


@pytest.mark.parametrize(
    ("student", "words", "decisions"),
    [
        ("resnet10t", "layer4", "layer4.0"),
        pytest.param("regnety_002", "s4", "s4.b1", marks=pytest.mark.slow),  # of one family, which asks less
    ],
)
def test_timm_pair_keeps_its_student(images, divergences, tmp_path, student, words, decisions):
    options = ["--data", images, "--num-words", 4, "--num-subclasses", 2, "--image-size", 32, *PAIR_OPTIONS]
    options += ["--teacher", "regnety_002", "--student", student, "--output", tmp_path, "--epochs", 6]
    run("timm_pair", *options, "--words", f"{words}=s4", "--decisions", f"{decisions}=s4.b1")
    assert fall(divergences) < 0.9  # without the divergences in the loss: 0.97 and 1.15
    saved = torch.load(tmp_path / f"{student}.letkd.pth", weights_only=True)
    assert saved["taps"] == {words: 4, decisions: 4} and saved["alphas"] == {words: 1.0, decisions: 1.0}
    network = timm.create_model(student, num_classes=2)
    rebuilt = letkd.attach(network, saved["taps"], alpha=saved["alphas"], images=torch.zeros(1, 3, 64, 64))
    rebuilt.load_state_dict(saved["model"])
    assert rebuilt.eval()(torch.rand(2, 3, 64, 64)).isfinite().all()


@pytest.fixture
def three_classes(tmp_path) -> Path:
    """train/ with classes a, b and c, val/ with a and c."""
    for split, names in (("train", "abc"), ("val", "ac")):
        for name in names:
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(place / "0.png")
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["torchvision_pair", "timm_pair"])
def test_val_is_numbered_by_train(name, three_classes, tmp_path, monkeypatch):
    program, labels = example(name), []

    class Stop(Exception):
        pass

    def look(_model, _loss, _train, val, _args):
        labels.extend(label for _, numbers in val for label in numbers.tolist())
        raise Stop

    monkeypatch.setattr(program, "fit", look)
    options = ["--data", str(three_classes), "--output", str(tmp_path / "out"), "--image-size", "32", "--device", "cpu"]
    teacher = ["--teacher", "resnet18" if name == "torchvision_pair" else "resnet10t"]
    with pytest.raises(Stop):
        program.main(options + teacher)
    assert labels == [0, 2]
    (three_classes / "val" / "d").mkdir()
    with pytest.raises(SystemExit, match=r"val has classes that .*train has not: d"):
        program.main(options + teacher)


@pytest.mark.parametrize("name", ["torchvision_pair", "timm_pair"])
def test_images_are_turned_upright(name, three_classes, tmp_path, monkeypatch):
    program, seen = example(name), []
    tags, lying = Image.Exif(), Image.new("RGB", (32, 32))
    tags[ExifTags.Base.Orientation] = 6  # the left is the top
    lying.paste((255, 255, 255), (0, 0, 16, 32))
    lying.save(three_classes / "val" / "a" / "0.png", exif=tags)
    monkeypatch.setattr(program, "fit", lambda _model, _loss, _train, val, _args: seen.extend(val))
    monkeypatch.setattr(letkd, "make_supervision", lambda *_args, **_options: sys.exit("enough"))
    options = ["--data", str(three_classes), "--output", str(tmp_path / "out"), "--image-size", "32", "--device", "cpu"]
    with pytest.raises(SystemExit, match="enough"):
        program.main([*options, "--teacher", "resnet18" if name == "torchvision_pair" else "resnet10t"])
    picture = seen[0][0][0].mean(0)
    assert picture[:12].min() > picture[20:].max()


def test_supervision_that_does_not_fit_is_one_line(images, tmp_path):
    out = tmp_path / "out"
    options = ["--data", images, "--output", out, "--image-size", "32", "--device", "cpu", "--epochs", 1]
    out.mkdir()
    names = ["--teacher", "resnet18", "--student", "resnet18"]
    (out / "resnet18.supervision").write_bytes(b"odd")
    with pytest.raises(SystemExit, match=r"error: .*resnet18\.supervision: [^\n]+; remove it, or choose another"):
        run("torchvision_pair", *options, *names)


def test_supervision_of_other_numbers_is_one_line(images, tmp_path):
    """Of a teacher of random weights: neither training nor supervision is long."""
    out = tmp_path / "out"
    program = example("torchvision_pair")
    torch.save(program.network("resnet18", 2).state_dict(), tmp_path / "teacher.pth")
    options = ["--data", images, "--output", out, "--image-size", "32", "--device", "cpu", "--epochs", 0]
    options += ["--teacher", "resnet18", "--student", "resnet18", "--teacher-checkpoint", tmp_path / "teacher.pth"]
    run("torchvision_pair", *options, "--words", 4, "--subclasses", 2)
    for words, subclasses, what in ((8, 2, "layer4 has 4 words, and 8"), (4, 1, "layer4.0 has 4 sub-classes .* and 2")):
        with pytest.raises(SystemExit, match=rf"error: .*resnet18\.supervision: {what} are asked for; remove it"):
            run("torchvision_pair", *options, "--words", words, "--subclasses", subclasses)


@pytest.mark.parametrize(("name", "teacher"), [("torchvision_pair", "resnet18"), ("timm_pair", "resnet10t")])
def test_a_teacher_of_ones_own_is_read_strictly(name, teacher, three_classes, tmp_path):
    options = ["--data", three_classes, "--teacher", teacher, "--output", tmp_path / "out", "--device", "cpu"]
    torch.save({"fc.weight": torch.zeros(3, 512)}, tmp_path / "other.pth")
    for file in ("other.pth", "missing.pth"):
        with pytest.raises(SystemExit, match=f"error: .*{file} does not fit the teacher: [^\n]+$"):
            run(name, *options, "--teacher-checkpoint", tmp_path / file)
    program = example(name)
    network, own = (program.network(teacher, 3, False) for _ in range(2))
    torch.save(own.state_dict(), tmp_path / "own.pth")
    program.load_teacher(network, tmp_path / "own.pth")
    assert torch.equal(network.fc.weight, own.fc.weight)


def test_published_weights_without_internet_are_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    from torch import hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "urlopen", lambda *_: (_ for _ in ()).throw(OSError("no internet")))
    for name, network in (("timm_pair", "regnety_002"), ("torchvision_pair", "resnet18")):
        start = time.monotonic()
        with pytest.raises(SystemExit, match=f"error: the published weights of {network} .*--teacher-checkpoint"):
            example(name).network(network, 2, True)
        assert time.monotonic() - start < 10


@pytest.mark.slow  # the quick tests read what it would hold and import: tests/test_project_files.py, test_structure.py
def test_the_installed_package_is_enough(tmp_path):
    """A wheel of the project holds `letkd` alone, and the plain example needs nothing else of ours."""
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("letkd", "algorithms", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", installed, source], check=True)
    assert sorted(path.name.partition("-")[0] for path in installed.iterdir()) == ["letkd", "letkd"]
    (about,) = installed.glob("letkd-*.dist-info")
    assert (installed / "letkd/py.typed").is_file() and (about / "licenses/LICENSE").is_file()
    metadata = (about / "METADATA").read_text()
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
        "plain_training.DEVICE = 'cpu'\n"
        "plain_training.main(epochs=2, num_words=32)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    teacher, student = accuracies(done.stdout)
    assert min(teacher, student) > 50
