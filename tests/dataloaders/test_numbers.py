"""Two-digit numbers: which digits they are made of, where these stand, and that they are the same everywhere."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dataloaders import load_dataset
from dataloaders.facts import image_facts
from dataloaders.image_folder import channel_statistics
from dataloaders.numbers import NUM_TRAIN_DIGITS, draw, side_by_side

# A stretch that every filling of the form has as it stands.
OF_THE_FORM = "095565098984177351"
SHA256 = {  # of labels and pixels
    "train": "6b9ac402717ead5280596a337c490a990f6be4fc97f8bb349468d4112ea926cd",
    "eval": "338d490713a44727adc0af1ba459eab119a709d871ed26bebafb01354b5d0a16",
}


@pytest.fixture(scope="module")
def numbers():
    return load_dataset("numbers")


def halves(split) -> np.ndarray:
    """Grey values (N, 2, 16, 8) of the left and the right half of every picture."""
    return split.images[..., 0].reshape(-1, 16, 2, 8).transpose(1, 2).numpy()


def digits_in(split) -> set[bytes]:
    """The digits of all pictures without the empty rows above and below."""
    flat = halves(split).reshape(-1, 16, 8)
    return {half[half.any(axis=1)].tobytes() for half in flat}


def test_the_pictures_are_the_same_on_every_platform(numbers):
    facts = image_facts(numbers)["images"]
    assert {split: fact["sha256"] for split, fact in facts.items()} == SHA256


def test_every_class_has_as_many_pictures_in_both_splits(numbers):
    assert numbers.classes == tuple(f"{tens}{units}" for tens in range(10) for units in range(10))
    for split in (numbers.train, numbers.eval):
        assert len(split) == 4000 and torch.equal(split.labels.bincount(), torch.full((100,), 40))


def test_a_number_is_its_two_digits_in_their_order(numbers):
    """Each half, moved back to the top, is a digit of the file that is what the class says."""
    source = load_digits()
    digit_of = {}
    for image, target in zip(source.images, source.target, strict=True):
        pixels = (image * 255 / 16).round().astype(np.uint8)
        digit_of[pixels[pixels.any(axis=1)].tobytes()] = target
    for split in (numbers.train, numbers.eval):
        shown = [[digit_of[half[half.any(axis=1)].tobytes()] for half in both] for both in halves(split)]
        assert (np.array(shown) @ [10, 1]).tolist() == split.labels.tolist()


def test_no_digit_is_in_both_splits_and_nearly_all_are_used(numbers):
    train, evaluation = digits_in(numbers.train), digits_in(numbers.eval)
    assert not train & evaluation
    assert len(train) > 0.99 * NUM_TRAIN_DIGITS and len(evaluation) > 0.99 * (1797 - NUM_TRAIN_DIGITS)


def test_the_splits_part_between_two_fillings_of_the_form():
    labels = "".join(map(str, load_digits().target))
    before, behind = labels[:NUM_TRAIN_DIGITS], labels[NUM_TRAIN_DIGITS:]
    assert before.count(OF_THE_FORM) == behind.count(OF_THE_FORM) == 7
    assert before.endswith("490898") and labels.endswith("490898"), "how the form ends"
    assert before.startswith("0123456789" * 3 + OF_THE_FORM), "how it begins"
    assert behind.startswith(("0123456789" * 3)[1:] + OF_THE_FORM), "here without its first digit"


def test_digits_stand_at_all_heights():
    digits_M = np.arange(10).repeat(3)
    picks, tops = draw(digits_M, np.arange(2000) % 100, seed=5)
    assert digits_M[picks].tolist() == [[n % 100 // 10, n % 10] for n in range(2000)]
    assert set(picks.flatten()) == set(range(30)) and tops.min() == 0 and tops.max() == 8
    assert abs(np.corrcoef(tops.T)[0, 1]) < 0.1, "the two heights are independent"


def test_two_digits_are_pasted_at_their_heights():
    digits = np.stack([np.full((8, 8), 3.0), np.full((8, 8), 7.0)])[None]
    (picture,) = side_by_side(digits, np.array([[0, 8]]))
    assert (picture[:8, :8] == 3).all() and (picture[8:, 8:] == 7).all() and picture.sum() == 64 * 10


def test_the_normalisation_constants_are_those_of_the_training_pictures(numbers):
    mean, std = channel_statistics([numbers.train.images])
    assert numbers.mean == pytest.approx(mean, abs=5e-5) and numbers.std == pytest.approx(std, abs=5e-5)


def test_numbers_are_never_flipped_and_pad_an_eighth(numbers):
    assert (numbers.image_size, numbers.padding, numbers.flip) == (16, 2, False)
    larger = load_dataset("numbers", image_size=32, splits=("eval",))
    assert larger.padding == 4 and larger.eval.images.shape == (4000, 32, 32, 3) and larger.train is None


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="image_size 8 is too small for numbers: they are 16x16"):
        load_dataset("numbers", image_size=8)
    with pytest.raises(ValueError, match=r"numbers has no split 'test': .*choose from train, eval"):
        load_dataset("numbers", splits=("test",))
