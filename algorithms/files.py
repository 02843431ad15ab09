"""Files that are whole or absent, and loading that runs no code.

Everything this project writes goes to a temporary file beside its target, is flushed to the disk and then renamed.
Everything it reads is data: tensors, numbers, strings and containers of them.
"""

import argparse
import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

_SCALAR = np.float64(0).__reduce__()[0]
# What published checkpoints hold besides tensors and plain values: the training script's options, and NumPy scalars.
PUBLISHED_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 called it
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` with a binary file that becomes `path` when it is complete; an earlier file survives a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values for `load_tensors`."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a torch file onto the CPU, ours or a published one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds objects that could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(PUBLISHED_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(f"{path} is refused: it asks for {refused[1]}, which could run code") from error
        raise ValueError(f"{path} is damaged, or no torch file: {type(error).__name__} on reading") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def save_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
