"""Fixtures every test folder shares: the golden tensors and their deterministic inputs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

# The networks here are tiny: a second thread that waits for a busy core costs far more than it gives.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
