"""Fixtures of the fault tests: few digits, and a finished letKD-2 run with its teacher and supervision to break."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tools import PAIR, SMALL, TEACHER, fewer_digits, run_here, start

FEW = (256, 128)  # training and evaluation digits: an epoch is four steps of 64


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """As FEW says."""
    with fewer_digits(*FEW):
        yield


@pytest.fixture(scope="session")
def supervision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of one epoch with its codebook and decision scores, to be copied."""
    folder = tmp_path_factory.mktemp("supervision")
    with fewer_digits(*FEW):
        run_here(*TEACHER, "epochs=1", localpath=folder)
        run_here(*TEACHER, "kmeans=16", localpath=folder)
        run_here(*TEACHER, "LDA=5", SMALL[1], localpath=folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, supervision: Path) -> Path:
    """The same and a letKD-2 run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    with fewer_digits(*FEW):
        run_here(*PAIR, "epochs=2", "milestones=[1]", localpath=folder)
    return folder


@pytest.fixture
def folder(few_digits: None, finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to break."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def supervision_of_all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of all digits, for commands that are processes of their own."""
    folder = tmp_path_factory.mktemp("all")
    for words in (("epochs=1", "milestones=[]"), ("kmeans=16",), ("LDA=5", SMALL[1])):
        process = start(*TEACHER, *words, localpath=folder)
        _, error = process.communicate()
        assert process.returncode == 0, error
    return folder
