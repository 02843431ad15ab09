"""The pages, followed word by word: their programs are written, and their commands run, on small data.

What takes too long is made short behind their back: every experiment has one epoch, every data set few images, one
network is narrow, and pictures are laid out but not painted. What needs CIFAR-100 and the like is left to `test_docs`,
which checks options.
"""

import importlib
import json
import multiprocessing
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from digits_tools import fewer_digits
from docs_tools import ROOT, Command, entry_commands, programs
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import architectures
import config
import dataloaders.numbers
import distillation.losses
import main_classification
from algorithms import export
from architectures import registry
from config import experiments
from config.experiments import ENTRY_OPTIONS, load_experiment
from distillation.losses import base
from reporting.pictures import embedding, subclasses, templates
from storage.documents import load_json

DOCS = ROOT / "docs"
OWN_METHOD = DOCS / "own-method.md"
# The long ones repeat jobs of the short ones and draw pictures; `test_docs` asks the entry about their commands, too.
SHORT = [
    "own-images.md", "own-network.md", "weights.md", "options.md", "commands.md", "runs.md", "recipes.md",
    "teacher-cache.md", "networks.md",
]  # fmt: skip
LONG = ["demo.md", "how-it-works.md", "reproduce.md", "studies.md", "watch.md"]
APART = ["export.md", OWN_METHOD.name]  # have a test of their own
HERE = ("digits.", "numbers.", "ImageFolder.", "mine.")  # experiments whose images are here
NUM_TRAIN, NUM_EVAL = 128, 64  # digits, also those of two-digit numbers: two steps an epoch
NUM_PICTURES = 200  # of such numbers, of either split
SHORTER = {"epochs": 1, "milestones": [1], "cuda": False, "num_workers": 0, "disp_step": 1, "allow_poor_teacher": True}
FEWER = {"num_words": 16, "val_split": 10, "mongo": None}  # instead of what a command says; no server is here
SKETCHES = {
    embedding: {"NUM_IMAGES": 20, "NUM_VECTORS": 20},
    subclasses: {"NUM_EXAMPLES": 1},
    templates: {"NUM_IMAGES": 1, "NUM_TEMPLATES": {1: 1, 2: 1}},
}  # pictures of few things
NARROW = {"resnet10t": {"channels": (16, 32, 64, 128)}}  # networks of a quarter of their width
PACKAGES = {"architectures": architectures, "config": config, "distillation.losses": distillation.losses}


@pytest.fixture(scope="module", autouse=True)
def little() -> Iterator[None]:
    """Short experiments, few digits, sketches for pictures; and no faiss, because README says nothing here needs it."""
    with fewer_digits(NUM_TRAIN, NUM_EVAL), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloaders.numbers, "NUM_TRAIN_DIGITS", NUM_TRAIN)
        patch.setattr(dataloaders.numbers, "NUM_PICTURES", NUM_PICTURES)
        patch.setattr(experiments, "ENTRY_OPTIONS", shortened(ENTRY_OPTIONS))
        patch.setattr(experiments, "load_experiment", lambda name: shortened(load_experiment(name)))
        patch.setattr("matplotlib.figure.Figure.savefig", save_quickly)
        patch.setattr(timm, "create_model", create_narrow)
        patch.setattr(export, "TIMED_SECONDS", 0)
        for module, sizes in SKETCHES.items():
            for size, value in sizes.items():
                patch.setattr(module, size, value)
        patch.setitem(sys.modules, "faiss", None)
        yield


def save_quickly(figure: Figure, file: Any, *, draw: Callable[..., None] = Figure.savefig, **options: Any) -> None:
    """Draws the charts of the report, which are read again, and no picture."""
    if options.get("format") == "svg":
        draw(figure, file, **options)
    else:
        file.write(b"a picture")


def create_narrow(name: str, *, create: Callable[..., nn.Module] = timm.create_model, **options: Any) -> nn.Module:
    return create(name, **NARROW.get(name, {}), **options)


def shortened(options: dict[str, Any]) -> dict[str, Any]:
    return {key: SHORTER.get(key, value) for key, value in options.items()}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Where all pages are followed, one after the other: a folder of images, and what the pages before have left."""
    folder, random = tmp_path_factory.mktemp("workplace"), np.random.default_rng(0)
    for place in (folder / "my_images" / split / label for split in ("train", "val") for label in ("cat", "dog")):
        place.mkdir(parents=True)
        for number in range(40):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.jpg")
    (folder / "my_pictures").mkdir()
    for number in range(70):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"my_pictures/{number}.jpg")
    return folder


@pytest.fixture
def follow(workplace, tmp_path, monkeypatch) -> Iterator:
    """Writes the programs of a page, where the project finds them, and runs its commands; nothing of it stays."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    monkeypatch.setattr(base, "_LOSSES", dict(base._LOSSES))
    for name, package in PACKAGES.items():
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path.joinpath(*name.split(".")))])
    before = set(sys.modules)

    def follow(page: Path, whole: bool = True) -> list[Command]:
        for file in write_programs(page, tmp_path):
            if not file.startswith("config/"):  # the entry finds these itself; the others, another test says
                importlib.import_module(file.removesuffix(".py").replace("/", "."))
        commands = [command for command in commands_here(page) if whole or not takes_long(command)]
        for command in commands:
            run(command)
        return commands

    yield follow
    for name in set(sys.modules) - before:
        if name.startswith(tuple(PACKAGES)):
            del sys.modules[name]


def write_programs(page: Path, root: Path) -> list[str]:
    """Write what a page says into the files that it names, below `root`."""
    named = {file: program for file, program in programs(page) if file is not None}
    for file, program in named.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(program)
    return list(named)


def run(command: Command) -> None:
    pairs = (word.partition("=") for word in command.words)
    words = [f"{key}={FEWER.get(key, value)}" for key, _, value in pairs]
    name = [] if command.name == "run" else [command.name]
    assert main_classification.main(["main_classification.py", *name, *["with"] * bool(words), *words]) == 0, command


def commands_here(page: Path) -> list[Command]:
    """Those that can be run without images that are not here."""
    commands = (command for command in entry_commands(page) if command.name != "--help")
    return [command for command in commands if command.experiment.startswith(HERE)]


def takes_long(command: Command) -> bool:
    """What other tests run of a digits pair: exports, those of the page on them, pictures and studies, their own."""
    return command.name in ("pictures", "study") or "export" in command.updates


WAYS = [pytest.param(name, False, id=name) for name in SHORT]
WAYS += [pytest.param(name, True, id=f"{name}-whole", marks=pytest.mark.slow) for name in (*LONG, "own-network.md")]


@pytest.mark.parametrize(("name", "whole"), WAYS)
def test_a_page_can_be_followed(name, whole, follow):
    commands = follow(DOCS / name, whole)
    trained = [command for command in commands if command.name == "run" and "trials" not in command.updates]
    for command in trained:
        place = Path("experiments", *command.updates.get("name", command.experiment).split("."))
        results = load_json(place / "results.json")
        assert results["mode"] == "train" and results["epochs"] == 1
    assert commands


def test_no_page_with_commands_is_left_out():
    assert {page.name for page in DOCS.glob("*.md") if commands_here(page)} == {*SHORT, *LONG, *APART}


def test_the_readme_has_commands_of_the_pages():
    """Which are run: it brings none of its own."""
    shown = commands_here(ROOT / "README.md")
    assert shown and all(any(command in commands_here(DOCS / name) for name in SHORT) for command in shown)


def test_an_exported_student_is_used_as_the_page_says(follow, capsys):
    """Its programs run, and the one that has nothing of the project answers as `predict` does."""
    page = DOCS / "export.md"
    with_onnx, with_pt2, write_photos = (program for _, program in programs(page))
    exec(write_photos, {})
    predictions = [command for command in follow(page) if command.name == "predict"]
    assert len(predictions) == 3
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(with_onnx, names)
    (printed,) = capsys.readouterr().out.split()
    run(predictions[-1]._replace(words=[f"export_file={names['file']}", "images=photo.png", "format=json", "top=10"]))
    (answer,) = json.loads(capsys.readouterr().out)["images"]
    found = {guess["class"]: guess["probability"] for guess in answer["predictions"]}
    probabilities = torch.from_numpy(names["logits"][0]).softmax(dim=0).tolist()
    assert found == pytest.approx(dict(zip(names["about"]["classes"], probabilities, strict=True)), abs=1e-6)
    assert printed == answer["predictions"][0]["class"]
    names = {}
    exec(with_pt2, names)
    assert names["logits"].shape == (4, 10) and names["about"]["classes"] == [str(digit) for digit in range(10)]


def found_in(project: str) -> list[str]:
    """Where a project has the loss and the network of the pages; in a process that imports it anew."""
    ours = {path.stem for path in Path(project).iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.path.insert(0, project)
    losses, networks = map(importlib.import_module, ("distillation.losses", "architectures"))
    assert Path(networks.__file__).is_relative_to(project)
    return [losses.find_loss("direction").__module__, type(networks.create_model("tinynet", num_classes=2)).__module__]


def test_what_the_pages_write_is_found_by_the_project(tmp_path):
    """A network and a loss by themselves: a file each in its folder."""
    for package in ROOT.glob("*/__init__.py"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package.parent, tmp_path / package.parent.name, ignore=ignored)
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    for name in ("own-network.md", "own-method.md"):
        write_programs(DOCS / name, tmp_path)
    with multiprocessing.get_context("fork").Pool(1) as process:
        found = process.apply(found_in, (str(tmp_path),))
    assert found == ["distillation.losses.direction", "architectures.tinynet"]


def test_the_loss_of_the_page_is_short_and_distils(follow):
    """Alone and in a sum, with the options and weights that the page says; its commands run."""
    ((file, program),) = programs(OWN_METHOD)
    assert file == "distillation/losses/direction.py" and len(program.splitlines()) < 30
    follow(OWN_METHOD)
    place = Path("experiments/digits/RN14_RN8")
    alone, summed = (load_json(place / name / "results.json") for name in ("Direction", "letKD-2+Direction"))
    assert alone["objective"]["weights"] == {"ce": 1.0, "direction": 2.0} and alone["options"]["direction.hidden"] == 32
    assert list(summed["objective"]["weights"]) == ["ce", "words", "decisions", "direction"]
    for results in (alone, summed):
        assert 0 < results["history"][0]["train"]["direction"] < 1
    assert alone["parameters"] == alone["parameters_without_kd_layers"]
    assert summed["evaluations"] and "Direction" in Path("experiments/report/report.md").read_text()


def test_the_student_outside_the_framework_learns():
    """The program of the page, with networks and images for its names."""
    torch.manual_seed(0)

    def small_network() -> nn.Module:
        block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        parts = OrderedDict(layer4=nn.Sequential(block), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        return nn.Sequential(parts)

    teacher, network = small_network(), small_network()
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    names = {"teacher": teacher, "network": network, "loader": [(images, labels)], "num_classes": 4}
    names |= {"images": images, "labels": labels}
    exec(dict(programs(DOCS / "own-network.md"))[None], names)
    names["loss"].backward()
    assert names["student"].layers["layer4"].scores.templates.shape == (4096, 4)
    assert all(layer.scores.templates.grad.abs().sum() > 0 for layer in names["student"].layers.values())
