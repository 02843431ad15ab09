"""CIFAR-100 as a folder of PNG files for each class: the same as the pickles, and every mistake named in one line."""

import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_tools import differences, outcome

import main_classification
from algorithms import run_config
from dataloaders import Dataset, cifar, load_dataset, outline_dataset
from dataloaders.cifar import CIFAR100_CLASSES
from dataloaders.facts import data_facts, image_facts
from storage.tensor_files import load_tensors, save_tensors

NUM_TRAIN, NUM_EVAL = 200, 100
FOLDER = "cifar-100-python"


@pytest.fixture(scope="module")
def pickles(tmp_path_factory) -> Path:
    """Two training images and a test image of every class, in the layout of the published files."""
    data_dir, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (data_dir / FOLDER).mkdir()
    for name, number in (("train", NUM_TRAIN), ("test", NUM_EVAL)):
        labels = random.permutation(np.arange(number) % len(CIFAR100_CLASSES)).tolist()
        content = {"data": random.integers(0, 256, (number, 3072), dtype=np.uint8), "fine_labels": labels}
        (data_dir / FOLDER / name).write_bytes(pickle.dumps(content))
    (data_dir / FOLDER / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100_CLASSES)}))
    return data_dir


@pytest.fixture(scope="module")
def exported(pickles, tmp_path_factory) -> Path:
    """The tree that the program of the documentation writes from `data`."""
    place = tmp_path_factory.mktemp("exported")
    (place / "data").symlink_to(pickles)
    page = Path(main_classification.__file__).with_name("docs") / "reproduce.md"
    (program,) = re.findall("```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(program, {})
    return place / "cifar100"


@pytest.fixture
def tree(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "tree")


def train(data_dir: Path, localpath: Path) -> Path:
    """The directory of a small network that has seen every training image once."""
    config = main_classification.default_config("CIFAR100.resnetv1.RN20") | {"network": "resnet8", "name": "mine.net"}
    config |= {"data_dir": str(data_dir), "localpath": str(localpath), "cuda": False, "num_workers": 0}
    run_config(config | {"epochs": 1, "milestones": [], "batch_size": 50})
    return localpath / "mine" / "net"


@pytest.fixture(scope="module")
def trained(exported, tmp_path_factory) -> Path:
    return train(exported, tmp_path_factory.mktemp("trained"))


def load(data_dir: Path, **options: Any) -> Dataset:
    return load_dataset("CIFAR100", data_dir=data_dir, **options)


# --- the same --------------------------------------------------------------------------------------------------------


def test_a_tree_that_is_called_by_numbers_is_the_pickles(pickles, exported):
    one, other = load(pickles), load(exported)
    for split in ("train", "eval"):
        assert torch.equal(one.split(split).images, other.split(split).images)
        assert torch.equal(one.split(split).labels, other.split(split).labels)
    assert image_facts(one) == image_facts(other) and data_facts(one) == data_facts(other)
    assert (one.padding, one.flip) == (other.padding, other.flip)


def test_training_on_either_gives_the_same_bits(pickles, trained, tmp_path):
    assert differences(outcome(train(pickles, tmp_path)), outcome(trained)) == []


@pytest.mark.parametrize("names", ["letters", "numbers of each class"])
def test_other_names_are_in_order_class_by_class(names, tree):
    before = load(tree).train
    for folder in (tree / "train").iterdir():
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / (f"{folder.name}_s_{number:06}.png" if names == "letters" else f"{number}.png"))
    after = load(tree).train
    order = before.labels.argsort(stable=True)
    assert torch.equal(after.labels, before.labels[order]) and torch.equal(after.images, before.images[order])


def test_val_stands_in_for_test(exported, tree):
    (tree / "test").rename(tree / "val")
    assert image_facts(load(tree)) == image_facts(load(exported))


def test_the_test_images_alone_are_evaluated(tree):
    shutil.rmtree(tree / "train")
    dataset = load(tree, splits=("eval",))
    assert dataset.train is None and len(dataset.eval) == NUM_EVAL and dataset.classes == CIFAR100_CLASSES


def test_pickles_go_before_a_tree_which_is_read_where_it_is_named(pickles, tree, monkeypatch):
    shutil.copytree(pickles / FOLDER, tree / FOLDER)
    shutil.rmtree(tree / "train" / "worm")
    assert len(load(tree).train) == NUM_TRAIN
    shutil.rmtree(tree / FOLDER)
    monkeypatch.chdir(tree.parent)
    tree.rename("data")
    asked = []
    monkeypatch.setattr(cifar, "_unpack", lambda source, data_dir, files: asked.append(data_dir))
    with pytest.raises(ValueError, match="No such file"):  # the download has brought nothing
        load_dataset("CIFAR100")
    assert asked == [Path("data")]


def test_what_is_made_of_a_part_is_not_taken_for_the_whole(pickles, tree, monkeypatch):
    whole = outline_dataset("CIFAR100")
    assert outline_dataset("CIFAR100", data_dir=pickles) == whole
    part = outline_dataset("CIFAR100", data_dir=tree)
    assert part == whole | {"images": part["images"]}
    monkeypatch.setattr(cifar, "NUM_TRAIN", NUM_TRAIN)
    assert outline_dataset("CIFAR100", data_dir=tree) == whole


def test_cifar10_is_read_alike(tmp_path):
    for number, label in enumerate(cifar.CIFAR10_CLASSES * 2):
        path = tmp_path / ("train" if number < 10 else "test") / label / f"{20 - number}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    dataset = load_dataset("CIFAR10", data_dir=tmp_path)
    assert dataset.classes == cifar.CIFAR10_CLASSES
    assert dataset.train.labels.tolist() == list(range(9, -1, -1)), "by number, and not by class"
    assert dataset.eval.images[:, 0, 0, 0].tolist() == list(range(19, 9, -1))


# --- mistakes --------------------------------------------------------------------------------------------------------


def first_of(folder: Path) -> Path:
    return min(folder.iterdir())


def resize(tree: Path) -> None:
    path = first_of(tree / "train" / "bee")
    Image.open(path).resize((36, 32)).save(path)


def as_jpeg(tree: Path) -> None:
    path = first_of(tree / "test" / "bee")
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()


MISTAKES = {
    "a class missing in train": (
        lambda tree: shutil.rmtree(tree / "train" / "bee"),
        "the split 'train' has no images of 1 of 100 classes: 'bee'",
    ),
    "a class missing in test": (
        lambda tree: shutil.rmtree(tree / "test" / "worm"),
        "the split 'eval' has no images of 1 of 100 classes: 'worm'",
    ),
    "an empty class": (lambda tree: first_of(tree / "test" / "bee").unlink(), "test/bee holds no images"),
    "another name": (
        lambda tree: (tree / "train" / "bee").rename(tree / "train" / "beee"),
        "is not one of the 100 training classes; did you mean 'bee'?",
    ),
    "a class more": (
        lambda tree: shutil.copytree(tree / "test" / "bee", tree / "test" / "zebra"),
        "'zebra', the class of ",
    ),
    "another size": (resize, ".png is 36x32, and those of this data set are 32x32"),
    "another format": (as_jpeg, ".jpg is no PNG file"),
    "a damaged file": (
        lambda tree: os.truncate(first_of(tree / "train" / "bee"), 100),
        "cannot read image ",
    ),
    "no training images": (lambda tree: shutil.rmtree(tree / "train"), "there is no folder "),
    "no test images": (lambda tree: shutil.rmtree(tree / "test"), "has neither test/ nor val/"),
    "two of them": (lambda tree: shutil.copytree(tree / "test", tree / "val"), "has both test/ and val/"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line(mistake, tree, tmp_path, capsys):
    change, message = MISTAKES[mistake]
    change(tree)
    argv = ["main.py", "with", "config=CIFAR100.resnetv1.RN20", f"data_dir={tree}", f"localpath={tmp_path / 'out'}"]
    assert main_classification.main([*argv, "cuda=False", "num_workers=0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error and str(tree) in error


CLASSES = {
    "another order": (lambda names: [names[1], names[0], *names[2:]], "class 0 is 'apple', expected 'aquarium_fish'"),
    "fewer": (lambda names: names[:-1], "has 100 classes where 99 are expected"),
}


@pytest.mark.parametrize(("change", "expected"), CLASSES.values(), ids=CLASSES)
def test_a_teacher_of_other_classes_is_refused_by_name(change, expected, exported, trained, tmp_path, capsys):
    """Of as many, in another order, the weights fit, and nothing else would tell."""
    words = [f"data_dir={exported}", f"localpath={tmp_path}", "cuda=False", "num_workers=0", "epochs=1"]
    checkpoint = load_tensors(trained / "last.pth")
    names = checkpoint["data"]["classes"] = change(checkpoint["data"]["classes"])
    checkpoint["model"] |= {key: checkpoint["model"][key][: len(names)] for key in ("fc.weight", "fc.bias")}
    other = tmp_path / "other.pth"
    save_tensors(other, checkpoint)
    pair = ["config=CIFAR100.resnetv1.RN56_RN20.KD", "teacher=resnet8", "student=resnet8", "name=mine.student"]
    assert main_classification.main(["main.py", "with", *pair, f"teacher_weights={other}", *words]) == 1
    error = capsys.readouterr().err
    assert f"{expected}: use the data the teacher, {other}," in error and error.count("\n") == 1


def test_cifar100_10k_is_the_same_from_any_copy_and_has_all_test_images(tmp_path, pickles, tree, monkeypatch):
    monkeypatch.setattr(cifar, "PER_CLASS", 1)
    shuffled, random = tmp_path / "shuffled", np.random.default_rng(1)
    shutil.copytree(pickles, shuffled)
    for name in ("train", "test"):
        content = pickle.loads((shuffled / FOLDER / name).read_bytes())
        order = random.permutation(len(content["data"]))
        labels = [content["fine_labels"][index] for index in order]
        (shuffled / FOLDER / name).write_bytes(pickle.dumps({"data": content["data"][order], "fine_labels": labels}))
    whole = load(pickles)
    parts = [load_dataset("CIFAR100_10k", data_dir=place) for place in (pickles, tree, shuffled)]
    for part in parts:
        assert part.name == "CIFAR100_10k" and part.classes == whole.classes and len(part.eval) == NUM_EVAL
        assert part.train.labels.tolist() == list(range(100))
        assert torch.equal(part.train.images, parts[0].train.images)
    for label, image in enumerate(parts[0].train.images):
        of_class = whole.train.images[whole.train.labels == label]
        smallest = min(of_class, key=lambda each: hashlib.sha256(each.numpy().tobytes()).digest())
        assert torch.equal(image, smallest)
    assert load_dataset("CIFAR100_10k", data_dir=pickles, splits=("eval",)).train is None
