"""Names, splits and what a Dataset refuses."""

import dataclasses

import pytest
import torch

from dataloaders import Dataset, ImageTensors, list_datasets, load_dataset, outline_dataset, register_dataset
from dataloaders.registry import _BUILDERS


def tiny_dataset(**changes):
    split = ImageTensors(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    fields = {
        "name": "tiny",
        "classes": ("a", "b"),
        "image_size": 8,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "padding": 1,
        "flip": True,
        "train": split,
    }
    return Dataset(**(fields | changes))


def test_the_names_are_listed():
    assert list_datasets() == [
        "CIFAR10", "CIFAR100", "CIFAR100_10k", "ImageFolder", "ImageNet", "TinyImageNet", "digits", "numbers",
    ]  # fmt: skip


def test_an_unknown_name_brings_the_nearest_first_and_then_all():
    with pytest.raises(ValueError) as error:
        load_dataset("CIFAR-100")
    message = str(error.value)
    assert "unknown dataset 'CIFAR-100'; did you mean 'CIFAR100'" in message and "\n" not in message
    assert message.endswith(
        "known: CIFAR10, CIFAR100, CIFAR100_10k, ImageFolder, ImageNet, TinyImageNet, digits, numbers"
    )


def test_a_new_dataset_joins_by_registering(monkeypatch):
    monkeypatch.setattr("dataloaders.registry._BUILDERS", dict(_BUILDERS))

    @register_dataset("tiny")
    def tiny(request):
        return tiny_dataset(mean=request.mean)

    assert outline_dataset("tiny", mean=(0.1, 0.1, 0.1)) == {"mean": [0.1, 0.1, 0.1]}, "it says nothing of itself"
    assert "tiny" in list_datasets()
    assert load_dataset("tiny", mean=[0.1, 0.1, 0.1]).mean == (0.1, 0.1, 0.1)


def test_an_outline_is_what_the_loaded_data_set_has():
    for given in ({}, {"image_size": 8}, {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}):
        dataset = load_dataset("digits", **given)
        expected = {"image_size": dataset.image_size, "mean": list(dataset.mean), "std": list(dataset.std)}
        assert outline_dataset("digits", **given) == expected
    sizes = {name: outline_dataset(name)["image_size"] for name in list_datasets() if name != "ImageFolder"}
    assert sizes == {
        "CIFAR10": 32, "CIFAR100": 32, "CIFAR100_10k": 32, "ImageNet": 224, "TinyImageNet": 64, "digits": 16,
        "numbers": 16,
    }  # fmt: skip


def test_unknown_splits_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown split 'evaluation'; did you mean 'eval'"):
        load_dataset("digits", splits=("evaluation",))
    with pytest.raises(ValueError, match="image_size 0 must be at least 1 pixel"):
        load_dataset("digits", image_size=0)


def test_data_with_other_classes_than_the_checkpoints_is_refused():
    classes = tuple("0123456789")
    assert load_dataset("digits", classes=list(classes)).classes == classes
    with pytest.raises(ValueError, match="digits has 10 classes where 2 are expected"):
        load_dataset("digits", classes=["0", "1"])
    with pytest.raises(ValueError, match="class 9 is '9', expected 'nine'"):
        load_dataset("digits", classes=[*classes[:9], "nine"])


def test_a_split_is_had_by_name_or_refused_with_those_that_are_loaded():
    dataset = tiny_dataset()
    assert dataset.split("train") is dataset.train and dataset.num_classes == 2
    with pytest.raises(ValueError, match="tiny is loaded without a split 'eval'; it has train"):
        dataset.split("eval")


def test_normalisation_in_other_units_is_refused():
    with pytest.raises(ValueError, match=r"mean \(129, 124, 112\) of tiny must be three numbers in 0\.\.1"):
        tiny_dataset(mean=(129, 124, 112))
    with pytest.raises(ValueError, match=r"std .* of tiny must be three numbers above 0"):
        tiny_dataset(std=(0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="three numbers"):
        tiny_dataset(mean=(0.5,))


def test_a_dataset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_dataset().image_size = 16
