"""Fixtures of the tests that run whole jobs."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sklearn.datasets
from training_tools import train

import dataloaders.digits

NUM_TRAIN, NUM_EVAL = 256, 128


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts here and in what is started, though the tests be a job of a shell that lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture(scope="module")
def supervision(tmp_path_factory, few_digits) -> Path:
    """A teacher of one epoch with its codebook and decision scores."""
    folder = tmp_path_factory.mktemp("supervision")
    train("classification", folder, epochs=1)
    train("classification", folder, kmeans=16)
    train("classification", folder, LDA=5, subclasses_per_class=2)
    return folder


@pytest.fixture
def folder(supervision, tmp_path) -> Path:
    """A copy of `supervision` to train in."""
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    return tmp_path
