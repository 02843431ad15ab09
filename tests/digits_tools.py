"""Few digits, for runs that take a tenth of a second for each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NUM_TRAIN, NUM_EVAL = 256, 128


@contextmanager
def fewer_digits(num_train: int = NUM_TRAIN, num_eval: int = NUM_EVAL) -> Iterator[None]:
    """The data set `digits` has so many training and evaluation images, in this process and its forks."""
    import sklearn.datasets

    import dataloaders.digits

    whole = sklearn.datasets.load_digits()
    part = slice(num_train + num_eval)
    few = type(whole)(**whole | {key: whole[key][part] for key in ("data", "images", "target")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: few)
        patch.setattr(dataloaders.digits, "NUM_TRAIN", num_train)
        yield
