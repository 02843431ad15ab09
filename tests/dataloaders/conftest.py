"""Photographs, for the tests of loaders that read files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 photographs of 120 x 110 in two classes; at image size 100 they are more than is kept resident."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(13):
        folder = root / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(index).integers(0, 256, (11, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((120, 110)).save(folder / f"{index:02}.png")
    (root / "val").symlink_to(root / "train")
    return root
