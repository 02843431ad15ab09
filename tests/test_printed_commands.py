"""Commands that messages print: pasted as they are, they make what is missing, and none is printed a second time."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import main_classification
from architectures import create_model
from storage.tensor_files import load_tensors, save_tensors

FAST = ("image_size=8", "cuda=False", "num_workers=0", "milestones=[]", "epochs=1")
TAUGHT = (
    "teacher=resnet8", "teacher_experiment=digits.RN8", "num_words=16", "subclasses_per_class=2",
    "allow_poor_teacher=True",
)  # fmt: skip
LETKD2 = ("config=digits.RN14_RN8.letKD-2", "name=mine.pair", *TAUGHT, *FAST)
COARSER = (*LETKD2, "name=mine.coarser", "student=timm/test_resnet")
NETWORK = ("config=digits.RN8", "name=mine.net", "network=resnet14", "seed=1", "learning_rate=0.02", *FAST)
OF_NETWORK = (*LETKD2, "teacher=resnet14", "teacher_experiment=mine.net")

Follow = Callable[..., list[str]]

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture
def place(supervision: Path, tmp_path: Path) -> Path:
    """A teacher of one epoch and its supervision, in a folder whose name needs quotes."""
    return Path(shutil.copytree(supervision, tmp_path / "my runs"))


def run(*words: str) -> int:
    return main_classification.main(["main_classification.py", *words])


@pytest.fixture
def follow(place: Path, capsys: pytest.CaptureFixture) -> Follow:
    """Does a command until it works: runs what its errors print, and returns that; none may come again or fail."""

    def do(*words: str, command: str | None = None) -> list[str]:
        printed: list[str] = []
        capsys.readouterr()
        while run(*([command] if command else []), "with", *words, f"localpath={place}"):
            error = capsys.readouterr().err
            found = re.search(r": python main_classification\.py (.*)\n$", error)
            assert found and error.count("\n") == 1, error
            assert found[1] not in printed, f"again: {error}"
            printed.append(found[1])
            assert run(*shlex.split(found[1])) == 0, (found[1], capsys.readouterr().err)
            capsys.readouterr()
        return printed

    return do


def words_of(command: str) -> set[str]:
    return set(shlex.split(command))


def test_the_training_that_an_evaluation_lacks(follow, place):
    (training,) = follow(*LETKD2, "evaluate=True")
    assert words_of(training) == {"with", *LETKD2, f"localpath={place}"}
    assert follow(*LETKD2, "evaluate=True") == []


@pytest.mark.parametrize("words", [("best=True", "evaluate=True"), ("probe=True",)], ids=" ".join)
def test_every_job_on_a_network_alone_says_how_to_train_it(words, follow, place):
    (training,) = follow(*NETWORK, *words)
    assert words_of(training) == {"with", *NETWORK, f"localpath={place}"}


def test_an_export_asks_for_the_training_that_was_asked_for(place, capsys):
    """And not for one in the precision and on the device of exports."""
    words = [word for word in NETWORK if word != "cuda=False"]
    assert run("with", *words, "precision=bf16", "export=pt2", f"localpath={place}") == 1
    printed = capsys.readouterr().err.partition("python main_classification.py ")[2]
    assert words_of(printed) == {"with", *words, "precision=bf16", f"localpath={place}"}


def test_a_picture_says_how_to_train(follow, place):
    (training,) = follow(*NETWORK, command="picture_confusion")
    assert words_of(training) == {"with", *NETWORK, f"localpath={place}"}
    (picture,) = (place / "mine/net/pictures").glob("*.json")
    drawn = json.loads(picture.read_text())["command"]
    assert run(*shlex.split(drawn.removeprefix("python main_classification.py "))) == 0


def test_a_student_of_a_coarser_grid_has_supervision_of_its_own(follow, place):
    commands = follow(*COARSER)
    assert [word for command in commands for word in ("kmeans=16", "LDA=5") if word in words_of(command)] == [
        "kmeans=16", "LDA=5"
    ]  # fmt: skip
    assert all({"config=digits.RN8", "downscale=2"} <= words_of(command) for command in commands)
    assert follow(*LETKD2) == follow(*COARSER) == [], "the supervision of either stays"


def test_preparing_makes_averaged_supervision_too(place):
    assert run("with", *COARSER, "prepare=True", f"localpath={place}") == 0
    names = {path.name for folder in ("VQ", "LDA") for path in (place / folder / "digits/RN8").glob("*.pth")}
    assert names == {
        "codebook_K16.pth", "codebook_pooled2_K16.pth", "decisions_layer3.0_S2_L60.pth",
        "decisions_layer3.0_pooled2_S2_L60.pth",
    }  # fmt: skip


def test_a_teacher_may_be_a_run_with_a_name_of_its_own(follow, place):
    assert run("with", *NETWORK, f"localpath={place}") == 0
    words, decisions = follow(*OF_NETWORK)
    own = {"config=digits.RN8", "name=mine.net", "network=resnet14"}
    assert own | {"kmeans=16"} <= words_of(words) and own | {"LDA=5"} <= words_of(decisions)
    assert {path.name for path in (place / "VQ/mine/net").glob("*.pth")} == {"codebook_K16.pth"}
    (place / "mine/net/last.pth").unlink()  # and now it has to be trained again, as it was
    training, *_ = follow(*OF_NETWORK)
    assert own | {"seed=1", "learning_rate=0.02", "epochs=1"} <= words_of(training)


def test_a_teacher_that_is_neither_experiment_nor_run_is_said(place, capsys):
    assert run("with", *OF_NETWORK, f"localpath={place}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unknown config 'mine.net'") and error.count("\n") == 1
    assert error.endswith(f"; nor has a run with name=mine.net been trained below {place}\n")


def test_a_teacher_must_be_a_network_alone(follow, place, capsys):
    follow(*LETKD2)
    assert run("with", *LETKD2, "name=mine.second", "teacher_experiment=mine.pair", f"localpath={place}") == 1
    assert "mine.pair is a pair: teacher_experiment and supervision name a network alone" in capsys.readouterr().err


def test_an_unfinished_teacher_is_finished_as_it_began(follow, place):
    assert run("with", *NETWORK, f"localpath={place}") == 0
    path = place / "mine/net/last.pth"
    save_tensors(path, load_tensors(path) | {"epochs": 2})
    training, *_ = follow(*OF_NETWORK)
    assert {"seed=1", "learning_rate=0.02", "epochs=2", "checkpoint=-1", "name=mine.net"} <= words_of(training)


def test_words_of_another_place_are_made_of_a_network_alone(follow, place):
    (words,) = follow(*LETKD2, "words_place=layer2", "words_teacher_place=layer2")
    assert {"config=digits.RN8", "kmeans=16", "words_teacher_place=layer2"} <= words_of(words)
    assert (place / "VQ/digits/RN8/codebook_layer2_K16.pth").is_file()


def test_weights_alone_have_words_and_decisions_of_their_own_grids(follow, place):
    """Read from a file of safetensors: the words are averaged over 2 x 2, the decisions over nothing."""
    torch.manual_seed(0)
    weights = place / "teacher.safetensors"
    save_file(create_model("resnet8", num_classes=10).state_dict(), weights)
    given = ("teacher_experiment=None", f"teacher_weights={weights}", "words_teacher_place=layer2")
    assert len(follow(*LETKD2, *given)) == 2
    files = {path.name for folder in ("VQ", "LDA") for path in (place / folder / "weights").rglob("*.pth")}
    assert files == {"codebook_layer2_pooled2_K16.pth", "decisions_layer3.0_S2_L60.pth"}


def test_a_file_of_the_version_before_is_found_where_its_content_says_the_averages(follow, place):
    """Its name did not say them."""
    assert run("with", "config=digits.RN8", "kmeans=16", "downscale=2", *FAST, f"localpath={place}") == 0
    folder = place / "VQ/digits/RN8"
    (folder / "codebook_pooled2_K16.pth").replace(folder / "codebook_K16.pth")
    assert "kmeans=16" not in " ".join(follow(*COARSER))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("config=digits.RN8", "top=3"), "predict with top=3 config=digits.RN8"),
        (("config=digits.RN8", "watch=True"), "report with watch=True config=digits.RN8"),
    ],
)
def test_options_of_other_commands_are_shown_with_them(words, command, place, capsys):
    assert run("with", *words, "cuda=False", f"localpath={place}") == 1
    printed = shlex.split(capsys.readouterr().err.partition("python main_classification.py ")[2])
    assert " ".join(printed).startswith(command) and f"localpath={place}" in printed
