"""Files that are whole or absent, and loading that runs no code.

Everything this project writes goes to a temporary file beside its target, is flushed to the disk and then renamed;
files of tensors carry a checksum (`letkd.files`), and a downloaded teacher has it beside it, `<name>.sha256` as
sha256sum writes it. Everything that is read is data: tensors, numbers, strings and containers of them.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from letkd import files
from letkd.files import describe_value, is_dense
from storage.documents import first_line, load_json, save_json, write_atomically

__all__ = [
    "describe_value", "first_line", "is_dense", "load_json", "load_tensors", "save_json", "save_tensors",
    "write_atomically",
]  # fmt: skip

_SCALAR = np.float64(0).__reduce__()[0]
# What published checkpoints hold besides tensors and plain values: the training script's options, and NumPy scalars.
PUBLISHED_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 called it
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values for `load_tensors`, sealed with a checksum."""
    data = files.pack(content)
    write_atomically(path, lambda file: file.write(data))


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a torch file onto the CPU, ours or a published one, as `letkd.files.load_tensors`; or one of safetensors."""
    if path.suffix == ".safetensors" or _begins_as_safetensors(path):
        return _load_safetensors(path)
    return files.load_tensors(path, safe_globals=PUBLISHED_GLOBALS)


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file of another name has the length of a header, and a header in JSON behind it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, as timm and others publish weights."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        install = "python -m pip install -r requirements-networks.txt"
        raise ValueError(f"{path} needs safetensors; install it: {install}") from error
    data = path.read_bytes()
    try:
        return load(data)
    except Exception as error:  # a damaged file can fail in any way
        told = files.describe_file(data) or first_line(error)
        raise ValueError(f"{path} is damaged, or no file of safetensors: {told}") from error


def checksum_path(path: Path) -> Path:
    """Where the checksum of a file of somebody else's stands."""
    return path.with_name(f"{path.name}.sha256")


def save_checksum(path: Path) -> None:
    """Write down the checksum of a file as it is now, for `check_checksum`."""
    line = f"{_sha256(path)}  {path.name}\n"
    write_atomically(checksum_path(path), lambda file: file.write(line.encode()))


def check_checksum(path: Path) -> None:
    """Compare a file with the checksum beside it, where there is one.

    Raises:
        ValueError: it has changed since.
    """
    beside = checksum_path(path)
    if path.is_file() and beside.is_file() and beside.read_bytes().split()[:1] != [_sha256(path).encode()]:
        raise ValueError(f"{path} is damaged: its checksum in {beside.name} does not fit (of another file, delete it)")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
