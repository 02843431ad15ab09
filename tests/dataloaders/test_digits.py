"""The digits: halves in file order, enlarged grey, constants that are what they say."""

import pytest
import torch
from sklearn.datasets import load_digits

from dataloaders import load_dataset
from dataloaders.image_folder import channel_statistics


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_the_first_half_trains_and_the_second_evaluates(digits):
    target = torch.from_numpy(load_digits().target).long()
    assert torch.equal(digits.train.labels, target[:898]) and torch.equal(digits.eval.labels, target[898:])
    assert len(digits.eval) == 899 and digits.classes == tuple("0123456789")


def test_digits_are_never_flipped_and_pad_an_eighth(digits):
    assert (digits.image_size, digits.padding, digits.flip) == (16, 2, False)
    assert load_dataset("digits", image_size=32).padding == 4


def test_images_are_grey_uint8_of_the_full_range(digits):
    images = digits.train.images
    assert images.shape == (898, 16, 16, 3) and images.dtype == torch.uint8
    assert torch.equal(images[..., 0], images[..., 1]) and torch.equal(images[..., 0], images[..., 2])
    assert images.min() == 0 and images.max() == 255


def test_at_the_native_size_the_pixels_are_the_grey_levels():
    images = load_dataset("digits", image_size=8, splits=("train",)).train.images
    levels = torch.from_numpy(load_digits().images[:898])
    assert torch.equal(images[..., 0], (levels * 255 / 16).round().to(torch.uint8))


def test_the_normalisation_constants_are_those_of_the_training_half(digits):
    mean, std = channel_statistics([digits.train.images])
    assert digits.mean == pytest.approx(mean, abs=5e-5) and digits.std == pytest.approx(std, abs=5e-5)


def test_only_the_asked_split_is_there_and_arguments_override():
    dataset = load_dataset("digits", splits=("eval",), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert dataset.train is None and dataset.mean == (0.1, 0.2, 0.3) and dataset.std == (0.4, 0.5, 0.6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="image_size 4 is too small for digits"):
        load_dataset("digits", image_size=4)
    with pytest.raises(ValueError, match=r"digits has no split 'test': .*choose from train, eval"):
        load_dataset("digits", splits=("test",))
