"""Fixtures of the tests that run whole jobs."""

from collections.abc import Iterator

import pytest
import sklearn.datasets

import dataloaders.digits

NUM_TRAIN, NUM_EVAL = 256, 128


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """The data set `digits` has 256 training and 128 evaluation images: an epoch is four steps of 64."""
    whole = sklearn.datasets.load_digits()
    part = slice(NUM_TRAIN + NUM_EVAL)
    few = type(whole)(**whole | {key: whole[key][part] for key in ("data", "images", "target")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: few)
        patch.setattr(dataloaders.digits, "NUM_TRAIN", NUM_TRAIN)
        yield
