"""Fixtures test folders share: the golden tensors and their deterministic inputs, few digits, and a small teacher.

Torch is not loaded here: the process that hands tests out to others needs none of it.
"""

import gc
import importlib.util
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from digits_tools import fewer_digits

# Next to nothing of what is imported while tests are collected goes again: no collector of garbage need look for it.
gc.disable()

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every process that collects the tests has to find the same names; without a GPU its tests are skipped.

    The networks here are tiny: a second thread that waits for a busy core costs far more than it gives. And autograd,
    which counts devices when it first runs and counts some more behind an export, would then have threads that no fork
    of the tests may have.
    """
    import torch

    torch.set_num_threads(1)
    torch.ones((), requires_grad=True).backward()
    assert not [item.nodeid for item in items if re.search(" at 0x[0-9a-f]+", item.nodeid)], "an address in a name"
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Modules stay: the collector of garbage, which sees all of torch and its friends, need not look at them again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Some libraries complain at the end of what is never collected."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts here and in what is started, though the tests be a job of a shell that lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def no_power_failure() -> Iterator[None]:
    """Files of tests need not outlive one: nobody waits until they are on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What a run says, which otherwise goes no further than to its own console and file."""
    monkeypatch.setattr(logging.getLogger("letKD.run"), "propagate", True)
    caplog.set_level("INFO")
    return caplog


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    """`fill.array(name, shape)` and `fill.fill_(module)`: values that depend on names and shapes only."""
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def method_golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "method.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """The data set `digits` has 256 training and 128 evaluation images: an epoch is four steps of 64."""
    with fewer_digits():
        yield


@pytest.fixture(scope="session")
def supervision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of one epoch with its codebook, decision scores and class means, to be copied."""
    from training_tools import train

    folder = tmp_path_factory.mktemp("supervision")
    with fewer_digits():
        train("classification", folder, epochs=1)
        train("classification", folder, kmeans=16)
        train("classification", folder, LDA=5, subclasses_per_class=2)
        train("classification", folder, class_means=True)
    return folder


@pytest.fixture
def folder(supervision: Path, tmp_path: Path) -> Path:
    """A copy of `supervision` to train in."""
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    return tmp_path
