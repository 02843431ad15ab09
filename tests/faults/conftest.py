"""Fixtures of the fault tests: a finished letKD-2 run with its teacher and supervision to break."""

import shutil
from pathlib import Path

import pytest
from digits_tools import fewer_digits
from fault_tools import PAIR, SMALL, TEACHER, run_here, start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, supervision: Path) -> Path:
    """A teacher of one epoch, its supervision, and a letKD-2 run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    with fewer_digits():
        run_here(*PAIR, "epochs=2", "milestones=[1]", localpath=folder)
    return folder


@pytest.fixture
def folder(few_digits: None, finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to break."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def supervision_of_all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and supervision of all digits, for commands that are processes of their own."""
    folder = tmp_path_factory.mktemp("all")
    for words in (("epochs=1", "milestones=[]"), ("kmeans=16",), ("LDA=5", SMALL[1])):
        process = start(*TEACHER, *words, localpath=folder)
        _, error = process.communicate()
        assert process.returncode == 0, error
    return folder
