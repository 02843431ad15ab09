"""The teacher's accuracy before a training: on which images, what is guessing, and that it is measured once."""

import json
import math
import re
import shutil

import pytest
import torch
from training_tools import configure, differences, outcome, train

from algorithms import run_config, set_up_console
from algorithms.teacher_accuracy import Accuracy, at_least, is_guessing, spread
from architectures import create_model

pytestmark = pytest.mark.usefixtures("few_digits")
KNOWN = ", as its training says"
KEPT = ", as measured before"


def told(out: str) -> str:
    """The line of the teacher's accuracy, without its name."""
    (line,) = re.findall(r"^teacher    resnet8: (\d+\.\d\d% top-1 on \d+ evaluation images.*)$", out, re.MULTILINE)
    return line


@pytest.fixture(autouse=True)
def console():
    """Messages go to stdout."""
    set_up_console()


@pytest.fixture
def guesser(tmp_path):
    """The weights of a network that says the same of every image."""
    network = create_model("resnet8", num_classes=10, image_size=8)
    torch.nn.init.zeros_(network.fc.weight)
    path = tmp_path / "guesser.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(("images", "chance"), [(20, 0.5), (30, 0.1), (5, 1.0)])
def test_the_tail_is_that_of_a_binomial(images, chance):
    for right in range(images + 1):
        ways = (math.comb(images, k) * chance**k * (1 - chance) ** (images - k) for k in range(right, images + 1))
        assert at_least(right, images, chance) == pytest.approx(math.fsum(ways))


@pytest.mark.parametrize(
    ("images", "num_classes", "largest"), [(2000, 100, 31), (899, 10, 111), (7, 2, 6), (6, 2, -1), (1, 10, -1)]
)
def test_so_many_right_ones_are_those_of_guessing(images, num_classes, largest):
    """As the head of the module says; -1: of so few images nothing is concluded."""
    for right in {0, max(largest, 0), largest + 1, images}:
        assert is_guessing(Accuracy(right, images), num_classes) == (right <= largest)


def test_images_are_the_same_ones_of_all_classes_in_their_order():
    labels = torch.arange(10).repeat_interleave(500)[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    chosen = spread(labels)
    assert torch.equal(chosen, spread(labels)) and torch.equal(chosen, chosen.unique()) and len(chosen) == 2000
    assert labels[chosen].bincount().tolist() == [200] * 10
    assert torch.equal(spread(labels[:50]), torch.arange(50)), "all, where there are no more"


def test_a_teacher_that_guesses_is_refused_and_leaves_nothing(guesser, tmp_path):
    config = configure("KD", tmp_path / "runs", teacher_weights=str(guesser), allow_poor_teacher=False, epochs=1)
    with pytest.raises(ValueError, match=r"resnet8 is right on \d+ of 128 .*guessing.*allow_poor_teacher=True$"):
        run_config(config)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_guesses_may_be_allowed(guesser, tmp_path, capsys):
    train("KD", tmp_path, teacher_weights=str(guesser), allow_poor_teacher=True, epochs=1)
    assert told(capsys.readouterr().out).endswith("on 128 evaluation images")


def test_a_teacher_is_measured_once(folder, monkeypatch, capsys):
    """By its training, or else by the first start; and the training is the same either way."""
    shutil.copy(folder / "digits/RN8/last.pth", folder / "teacher.pth")
    chosen = {"teacher_weights": str(folder / "teacher.pth"), "epochs": 1}
    found, lines = [], []
    for localpath, options in (("", {"epochs": 1}), ("other", chosen), ("other", chosen)):
        found.append(outcome(train("KD", folder / localpath, **options)))
        lines.append(told(capsys.readouterr().out))
    measured = lines[1]
    assert lines == [measured + KNOWN, measured, measured + KEPT]
    assert not differences(found[0], found[1]) and not differences(found[1], found[2])
    top1 = json.loads((folder / "digits/RN8/results.json").read_text())["top1"]
    assert measured.startswith(f"{top1:.2f}% ")


def test_other_images_are_measured_anew(folder, capsys):
    train("KD", folder, epochs=1, val_split=64)
    assert told(capsys.readouterr().out).endswith(" on 64 evaluation images")


def test_a_damaged_measurement_is_made_again(guesser, tmp_path, capsys):
    options = {"teacher_weights": str(guesser), "allow_poor_teacher": True, "epochs": 1}
    train("KD", tmp_path, **options)
    (path,) = (tmp_path / ".teachers").iterdir()
    before = path.read_text()
    path.write_text(before[:-20])
    capsys.readouterr()
    train("KD", tmp_path, **options)
    assert not told(capsys.readouterr().out).endswith(KEPT) and path.read_text() == before
