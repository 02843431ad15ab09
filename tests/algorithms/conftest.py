"""The run that nobody stops, for the tests of runs that are stopped or killed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from digits_tools import fewer_digits
from training_tools import THREE_EPOCHS, outcome, train


@pytest.fixture(scope="session")
def whole(supervision: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What three epochs leave, of a method whose losses have parameters and of one whose losses have none."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    with fewer_digits():
        return {method: outcome(train(method, folder, **THREE_EPOCHS)) for method in ("letKD-2", "QuEST")}
