"""Finding the weights of a teacher: they are read once, and again where a file has changed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import train

from architectures import create_model
from engine import weights as engine_weights
from engine.weights import find_weights, forget_weights
from storage.state_dicts import Weights, fingerprint


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files that are read."""
    found: list[Path] = []

    def counted(name: str) -> None:
        original = getattr(engine_weights, name)

        def count(path: Any) -> Any:
            found.append(Path(path))
            return original(path)

        monkeypatch.setattr(engine_weights, name, count)

    counted("read_weights")
    counted("load_own")
    forget_weights()
    return found


def state_of(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return create_model("resnet8", num_classes=10).state_dict()


def found_in(path: Path, network: str | None = "resnet8") -> Weights:
    nowhere = path.parent / "nowhere"
    return find_weights(experiment="A.B", directory=nowhere, chosen=str(path), published=None, network=network)


def replace(path: Path) -> None:
    torch.save(state_of(1), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def rewrite(path: Path) -> None:
    torch.save(state_of(1), path)
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_file_is_read_once_until_it_is_another(change, tmp_path, read):
    path = tmp_path / "teacher.pth"
    torch.save(state_of(0), path)
    size = path.stat().st_size
    assert found_in(path) is found_in(path) and read == [path]
    change(path)
    assert path.stat().st_size == size
    found = found_in(path)
    assert found.fingerprint == fingerprint(found.state) == fingerprint(state_of(1)) and read == [path] * 2
    forget_weights()
    found_in(path)
    assert read == [path] * 3


def test_its_checksum_is_one_of_the_files(tmp_path, read):
    path = tmp_path / "teacher.pth"
    torch.save(state_of(0), path)
    found_in(path)
    (tmp_path / "teacher.pth.sha256").write_text("0  teacher.pth\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"its checksum in teacher\.pth\.sha256 does not fit"):
            found_in(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*teacher\.pth"):
        found_in(path)


def test_another_network_has_other_names_for_the_same_file(tmp_path, read):
    path = tmp_path / "teacher.pth"
    torch.save({f"net.{name}": tensor for name, tensor in state_of(0).items()}, path)
    assert set(found_in(path).state) == set(state_of(0))
    assert all(name.startswith("net.") for name in found_in(path, network=None).state) and read == [path] * 2


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("chosen", [False, True], ids=["of its training", "of a file"])
def test_a_start_reads_its_teacher_once(chosen, folder, read):
    path, options = folder / "digits/RN8/last.pth", {}
    if chosen:
        path = Path(shutil.copy(path, folder / "teacher.pth"))
        options = {"teacher_weights": str(path)}
    train("letKD-2", folder, epochs=1, **options)
    assert read == [path]
