"""Trainings with pictures without classes: beside labelled images, and alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rank_tools import ended, started
from sklearn.datasets import load_digits
from training_tools import FAST, THREE_EPOCHS, configure, differences, outcome, stop_at, train

import main_classification
from algorithms import run_config
from algorithms.jobs import make_algorithm
from algorithms.predict import Prediction
from algorithms.run import steps_before
from algorithms.train import Training
from config.options import Options
from distillation.labels import check_labels, learns_without_labels
from engine.checkpoints import load_checkpoint
from reporting.pictures import PICTURES
from storage.tensor_files import load_tensors

pytestmark = pytest.mark.usefixtures("few_digits")
NUM_PICTURES = 100  # 32 of a batch of 64: a pass is three steps


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Digits that the data set of these tests does not have, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(load_digits().images[-NUM_PICTURES:]):
        save(folder / ("some" if number % 3 else ".") / f"{number:03}.png", image)
    return folder


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)


def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


def interrupt() -> None:
    import signal

    signal.raise_signal(signal.SIGINT)


# --- beside labelled images ------------------------------------------------------------------------------------------


def test_pictures_teach_beside_labelled_images(folder, pictures, caplog):
    options = {"unlabelled": str(pictures), "epochs": 1, "milestones": [], "disp_step": 1}
    with caplog.at_level("INFO", logger="letKD.run"):
        directory = train("letKD-2", folder, **options)
    assert "unlabelled 100 images, of a batch 32 labelled and 32 of these; 8 steps an epoch" in caplog.text
    found = results(directory)
    assert found["options"]["unlabelled"] == str(pictures) and found["options"]["unlabelled_share"] == 0.5
    assert "classifier" not in found and 0 <= found["history"][0]["train"]["top1"] <= 100
    data = load_checkpoint(directory / "last.pth")["data"]["images"]
    assert data["unlabelled"]["number"] == NUM_PICTURES and set(data) == {"train", "eval", "unlabelled"}
    evaluated = run_config(configure("letKD-2", folder, **options, evaluate=True))
    assert evaluated["evaluations"]["last"]["top1"] == pytest.approx(found["top1"])


def test_a_run_stopped_within_an_epoch_goes_on_exactly(folder, pictures, monkeypatch, tmp_path_factory):
    options = {"unlabelled": str(pictures), **THREE_EPOCHS, "epochs": 2}
    expected = outcome(train("QuEST", folder, **options))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 8 + 3, interrupt)
        train("QuEST", folder, **options)
    torch.manual_seed(123)
    with pytest.raises(
        ValueError, match=r"stopped within an epoch of unlabelled_share=0\.5, this run has .*=0\.75; beg"
    ):
        train("QuEST", folder, checkpoint=-1, **options | {"unlabelled_share": 0.75})
    with pytest.raises(
        ValueError, match=r"stopped within an epoch of unlabelled='.*', this run has unlabelled=None; b"
    ):
        train("QuEST", folder, checkpoint=-1, **options | {"unlabelled": None})
    directory = train("QuEST", folder, checkpoint=-1, **options)
    assert differences(outcome(directory), expected) == []


def test_other_pictures_are_mentioned_when_a_run_goes_on(folder, pictures, tmp_path, caplog):
    options = {"unlabelled": str(tmp_path / "some"), "milestones": []}
    images = [np.full((8, 8), number) for number in range(40)]
    for number, image in enumerate(images):
        save(tmp_path / "some" / f"{number}.png", image)
    train("QuEST", folder, epochs=1, **options)
    save(tmp_path / "some" / "more.png", images[3])
    with caplog.at_level("INFO", logger="letKD.run"):
        train("QuEST", folder, epochs=2, checkpoint=-1, **options)
    assert "images were added, removed or replaced since the training (unlabelled: 40 then, 41 now)" in caplog.text


def test_parts_of_a_batch_have_the_gradient_of_the_whole(folder, pictures):
    """Of a network without BatchNorm's statistics of the batch: means over as many labelled images in every part."""
    gradients = []
    for accumulate in (1, 2):
        options = {"unlabelled": str(pictures), "accumulate": accumulate, "epochs": 1, "milestones": []}
        job = Training(Options.of(configure("letKD-2", folder, **options)))
        torch.manual_seed(0)
        job._build(None)
        job.train_loader.set_epoch(1)
        batch = next(iter(job.train_loader))
        job.objective.eval()
        result = job.step.__class__(job.objective, torch.optim.SGD(job.objective.parameters(), lr=0.0), job.autocast,
                                    accumulate)(batch)  # fmt: skip
        assert result.terms["ce"] > 0 and result.terms["decisions"] > 0
        gradients.append({name: each.grad for name, each in job.objective.named_parameters() if each.grad is not None})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_images_of_both_kinds_count_once_in_the_accuracy_of_training(folder, pictures, monkeypatch):
    """Labelled ones alone: a network that is always right on them has 100 %."""
    seen = []

    def add(meter, result, labels, *mixed, num_unlabelled=0):
        seen.append((len(labels), num_unlabelled, int((labels < 0).sum())))
        right = torch.nn.functional.one_hot(labels.clamp_min(0), 10).float()
        original(meter, result._replace(logits=right), labels, *mixed, num_unlabelled=num_unlabelled)

    from engine.meter import Meter

    original = Meter.add
    monkeypatch.setattr(Meter, "add", add)
    options = {"unlabelled": str(pictures), "unlabelled_share": 0.75, "epochs": 1, "milestones": []}
    directory = train("QuEST", folder, **options)
    assert seen == [(64, 48, 48)] * 16
    assert results(directory)["history"][0]["train"]["top1"] == 100


def test_two_processes_train_as_one(folder, pictures, capfd):
    """With BatchNorm of the whole batch; each has its share of both kinds. Three cannot share 32 and 32 images."""
    argv = [
        "main_classification.py", "with", "config=digits.RN14_RN8.letKD-2", "teacher=resnet8", "image_size=8",
        "cuda=False", "teacher_experiment=digits.RN8", "supervision=digits.RN8", "num_words=16",
        "subclasses_per_class=2", "allow_poor_teacher=True", "epochs=1", "milestones=[]", "sync_bn=True",
        "learning_rate=0.005", f"localpath={folder}", f"unlabelled={pictures}",
    ]  # fmt: skip
    assert ended(started(2, [*argv, "name=two.processes"])) == [0, 0]
    assert main_classification.main([*argv, "name=one.process"]) == 0
    two, one = (results(folder / name)["history"][0]["train"] for name in ("two/processes", "one/process"))
    assert two == pytest.approx(one, rel=1e-3, abs=1)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    models = (load_checkpoint(folder / name / "last.pth")["model"] for name in ("two/processes", "one/process"))
    torch.testing.assert_close(*models, rtol=1e-2, atol=1e-2)
    capfd.readouterr()
    assert ended(started(4, [*argv, "name=four.processes", "batch_size=60"])) == [1] * 4
    assert "batch_size=60 with unlabelled_share=0.5 is 30 labelled and 30 other images, which 4 parts of 4 proc" in (
        capfd.readouterr().err
    )


# --- alone -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_images(tmp_path_factory) -> Path:
    """Twenty digits of each class to train on and ten to evaluate, in folders of classes."""
    root, digits = tmp_path_factory.mktemp("own"), load_digits()
    for label in range(10):
        for number, image in enumerate(digits.images[digits.target == label][:30]):
            save(root / ("train" if number < 20 else "val") / str(label) / f"{number}.png", image)
    return root


def label_free(folder: Path, own_images: Path, **updates: Any) -> dict[str, Any]:
    """The recipe, with a teacher of random weights."""
    torch.manual_seed(1)
    from architectures import create_model

    weights = folder / "teacher.pth"
    if not weights.is_file():
        torch.save(create_model("resnet14", num_classes=7).state_dict(), weights)
    usual = main_classification.default_config("ImageFolder.unlabelled")
    assert usual["cls_loss_coef"] == 0 and usual["unlabelled_share"] == 1 and usual["method"] == "QuEST"
    own = {"teacher": "resnet14", "teacher_experiment": None, "supervision": None, "teacher_weights": str(weights)}
    own |= {"name": "mine.digits", "num_words": 16, "epochs": 2, "milestones": [], "num_workers": 0}
    return usual | FAST | own | {"localpath": str(folder), "data_dir": str(own_images)} | updates


def test_words_of_pictures_alone_teach_and_a_probe_measures(tmp_path, own_images, pictures, caplog):
    """Random weights of other classes: the words are of the pictures, nothing reads a label, the last epoch is best."""
    config = label_free(tmp_path, own_images, unlabelled=str(pictures))
    with pytest.raises(FileNotFoundError, match=r"no codebook of 16 words .* kmeans=16 .*unlabelled="):
        run_config(config)
    with caplog.at_level("INFO", logger="letKD.run"):
        found = run_config(config | {"prepare": True})
    assert (
        "note: nothing trains the classifier, so its accuracy says nothing, and the last epoch counts as" in caplog.text
    )
    codebooks = list((tmp_path / "VQ").rglob("*.pth"))
    assert [path.name for path in codebooks] == ["codebook_unlabelled_K16.pth"]
    assert found["classifier"] == "untrained"
    assert found["best_epoch"] == found["epochs"] == 2 and found["best_top1"] == found["top1"]
    assert "top1" not in found["history"][0]["train"] and found["history"][0]["train"]["ce"] == 0
    assert found["history"][1]["train"]["words"] < found["history"][0]["train"]["words"]
    first, last = (load_tensors(tmp_path / "mine/digits" / name)["model"] for name in ("best.pth", "last.pth"))
    assert differences(first, last) == []
    probed = run_config(label_free(tmp_path, own_images, probe=True, unlabelled=str(pictures)))["linear_probe"]
    assert probed["last"]["map"] > 30  # of ten classes

    tuned = main_classification.default_config("ImageFolder.RN8") | FAST
    tuned |= {"localpath": str(tmp_path), "data_dir": str(own_images), "epochs": 1, "milestones": [], "num_workers": 0}
    began = run_config(tuned | {"init": str(tmp_path / "mine/digits/last.pth")})
    assert began["init_fingerprint"] == found["fingerprint"]


def test_an_untrained_classifier_is_said_by_all_that_read_it(tmp_path, own_images, pictures, caplog):
    """By the checkpoint itself: results are gone. Pictures of the words take those that have taught."""
    pytest.importorskip("matplotlib")
    asked = label_free(tmp_path, own_images, unlabelled=str(pictures), epochs=1)
    run_config(asked | {"prepare": True})
    directory = tmp_path / "mine/digits"
    assert load_checkpoint(directory / "last.pth")["classifier"] == "untrained"
    (directory / "results.json").unlink()
    with caplog.at_level("INFO", logger="letKD.run"):
        measured = run_config(asked | {"evaluate": True})
    assert "note: nothing has trained the classifier of" in caplog.text
    assert measured["classifier"] == measured["evaluations"]["last"]["classifier"] == "untrained"
    said = r"^nothing has trained the classifier of .*last\.pth, so .* probe=True, .* init=.*last\.pth$"
    before = sorted(directory.rglob("*"))
    with pytest.raises(ValueError, match=said):
        run_config(asked | {"export": "pt2"})
    with pytest.raises(ValueError, match=said):
        Prediction(Options.of(asked | {"images": str(pictures)})).run()
    assert sorted(directory.rglob("*")) == before

    usage = PICTURES["usage"](Options.of(asked), "")
    usage.open()
    assert usage.is_untrained
    labelled = label_free(tmp_path, own_images)
    run_config(labelled | {"kmeans": 16, "unlabelled_share": 0.5})
    without = PICTURES["usage"](Options.of(labelled), "")
    with pytest.raises(
        ValueError,
        match=r"was trained with .*, and there is .*: its training had unlabelled=.* unlabelled_share=1, say",
    ):
        without.open()


def test_words_of_other_pictures_are_refused_with_the_command(tmp_path, own_images):
    folder = tmp_path / "pictures"
    for number in range(70):
        save(folder / f"{number}.png", np.full((8, 8), number % 16))
    config = label_free(tmp_path, own_images, unlabelled=str(folder), batch_size=16, epochs=1)
    run_config(config | {"prepare": True})
    save(folder / "more.png", np.full((8, 8), 3))
    with pytest.raises(ValueError, match=r"was made with another unlabelled \(.*\.\.\., this run has .*kmeans=16"):
        run_config(config)


def test_labelled_words_are_not_taken_for_those_of_pictures(folder, pictures):
    """Beside labelled images the words are those of the teacher's other students."""
    train("QuEST", folder, unlabelled=str(pictures), epochs=1, milestones=[])
    with pytest.raises(FileNotFoundError, match=r"no codebook of 16 words .*unlabelled="):
        train("QuEST", folder, unlabelled=str(pictures), unlabelled_share=1.0, cls_loss_coef=0.0)


def test_logits_of_the_teacher_train_the_classifier_without_labels(folder, pictures):
    config = main_classification.default_config("digits.RN14_RN8.KD") | FAST
    config |= {"teacher": "resnet8", "teacher_experiment": "digits.RN8", "localpath": str(folder), "epochs": 1}
    config |= {"allow_poor_teacher": True, "milestones": [], "name": "mine.kd", "ce.weight": 0.0}
    found = run_config(config | {"unlabelled": str(pictures), "unlabelled_share": 1.0})
    assert "classifier" not in found and found["history"][0]["train"]["kd"] > 0
    assert found["history"][0]["train"]["ce"] == 0 and "top1" not in found["history"][0]["train"]


@pytest.mark.parametrize("options, message", [
    ({}, r"^words are of labelled images unless unlabelled_share=1; leave out unlabelled=.*, or say unlabelled_s"),
    ({"unlabelled": "nowhere"}, r"^words are of labelled images unless unlabelled_share=1; leave out .*=nowhere,"),
    ({"unlabelled": "nowhere", "unlabelled_share": 1.0}, r"^unlabelled=nowhere: there is no such folder"),
    ({"unlabelled": None, "unlabelled_share": 1.0}, r"^unlabelled_share=1 is of pictures: unlabelled= their folder$"),
])  # fmt: skip
def test_pictures_that_words_would_not_be_of_are_refused(options, message, folder, pictures):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        train("QuEST", folder, **{"kmeans": 16, "unlabelled": str(pictures)} | options)
    assert sorted(folder.rglob("*")) == before


def test_pictures_beside_labelled_images_leave_the_words_to_these(folder, pictures):
    """The step that makes them is told of no pictures."""
    job = make_algorithm(configure("QuEST", folder, unlabelled=str(pictures), unlabelled_share=0.75, num_words=8))
    (step,) = steps_before(job)
    assert step.job.mode == "kmeans" and step.job.options.data.unlabelled is None and "unlabelled" not in step.command
    step.job.check_images(step.job.open_training_data)


def test_class_means_beside_a_divergence_learn_from_all_images():
    """Of KDPP one term reads labels: the other has the pictures, alone too."""
    options = Options.of(main_classification.default_config("digits.RN14_RN8.KDPP"))
    check_labels(options, num_labelled=32)
    assert learns_without_labels(options)
    without = {"ce.weight": 0.0, "kdpp.nd": 0.0}
    check_labels(Options.of(main_classification.default_config("digits.RN14_RN8.KDPP") | without), num_labelled=0)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, options, message", [
    ("QuEST", {"unlabelled": "nowhere"}, r"^unlabelled=nowhere: there is no such folder; it must hold image files, at"),
    ("QuEST", {"unlabelled_share": 1.0}, r"^unlabelled_share=1 leaves no labelled image in a batch, and ce reads "
     r"labels; choose a smaller share, or leave it out of the loss: cls_loss_coef=0$"),
    ("letKD-2", {"unlabelled_share": 1.0}, r" and ce, decisions reads labels; .*: cls_loss_coef=0, sub_loss_coef=0$"),
    ("KDPP", {"unlabelled_share": 1.0}, r" and ce, kdpp reads labels; .*: cls_loss_coef=0, kdpp\.nd=0$"),
    ("KD+KDPP", {"unlabelled_share": 1.0}, r" and ce, kdpp reads labels; .*: cls_loss_coef=0, kdpp\.nd=0$"),
    ("KDPP", {"kdpp.kd": 0.0}, r"^all that this run minimises reads labels \(ce, kdpp\): leave out unlabelled=, or"),
    ("QuEST", {"unlabelled_share": 0.001}, r"^unlabelled_share=0\.001 of batch_size=64 leaves no unlabelled image; "),
    ("QuEST", {"unlabelled_share": 0.0}, r"^unlabelled_share=0\.0 must be above 0$"),
    ("QuEST", {"unlabelled_share": 1.5}, r"^unlabelled_share=1\.5 must be at most 1$"),
    ("QuEST", {"accumulate": 4, "unlabelled_share": 0.9}, r"^batch_size=64 with unlabelled_share=0\.9 is 6 labelled"),
    ("classification", {}, r"^all that this run minimises reads labels \(ce\): leave out unlabelled=, or choose a"),
    ("QuEST", {"batch_size": 256, "unlabelled_share": 0.5}, r"has 128 unlabelled images, and there are 100; choose a"),
    ("QuEST", {"mixup": 0.2}, r"^mixup=0\.2 mixes labels too, and unlabelled= brings images without; leave out one$"),
    ("QuEST", {"unlabelled": None, "unlabelled_share": 0.25}, r"^unlabelled_share=0\.25 is of pictures: unlabelled="),
])  # fmt: skip
def test_what_cannot_work_is_one_line_and_leaves_nothing(method, options, message, folder, pictures):
    with pytest.raises(ValueError, match=message) as caught:
        train(method, folder, **{"unlabelled": str(pictures)} | options)
    assert "\n" not in str(caught.value)
    assert not (folder / "digits/RN14_RN8").exists()


def test_a_damaged_picture_is_named_and_leaves_nothing(folder, pictures, tmp_path):
    broken = tmp_path / "broken"
    for number in range(40):
        save(broken / f"{number}.png", np.full((8, 8), number % 16))
    (broken / "7.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(ValueError, match=r"^cannot read image .*/broken/7\.png: .*; replace or remove it$"):
        train("QuEST", folder, unlabelled=str(broken))
    assert not (folder / "digits/RN14_RN8").exists()


def test_pictures_too_large_for_memory_are_refused_before_anything_is_made(folder, pictures, monkeypatch):
    job = make_algorithm(configure("QuEST", folder, unlabelled=str(pictures)))
    job.check_images(job.open_training_data)
    monkeypatch.setattr("dataloaders.unlabelled.MAX_RESIDENT_BYTES", 500)
    with pytest.raises(ValueError, match=r"^unlabelled=.*: 100 images of 8x8 need 0\.0 GiB, and at most 0 are held in"):
        job.check_images(job.open_training_data)
