"""Files that are whole or absent, and loading that runs no code.

Everything this project writes goes to a temporary file beside its target, is flushed to the disk and then renamed;
files of tensors carry a checksum. Everything it reads is data: tensors, numbers, strings and containers of them.
"""

import argparse
import contextlib
import hashlib
import io
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

OUR_FORMATS = "letkd-"  # what the `format` of every file we write begins with
SEAL_MARK = b"sha256="
SEAL_BYTES = len(SEAL_MARK) + 64
END_RECORD_BYTES, COMMENT_LENGTH_BYTES = 22, 2  # of a zip archive


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` with a binary file that becomes `path` when it is complete; an earlier file survives a failure.

    Raises:
        OSError: it cannot be written (no space, no permission); names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values for `load_tensors`, sealed with a checksum.

    The checksum is the comment that a zip archive may carry at its end: any torch reads the file as it is.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    assert archive[-END_RECORD_BYTES:].startswith(b"PK\x05\x06") and archive.endswith(b"\0\0"), "no bare zip archive"
    body = archive[:-COMMENT_LENGTH_BYTES] + SEAL_BYTES.to_bytes(COMMENT_LENGTH_BYTES, "little")
    write_atomically(path, lambda file: file.write(body + _seal(body)))


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a torch file onto the CPU, ours or a published one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds objects that could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    data = path.read_bytes()
    sealed = data[-SEAL_BYTES:].startswith(SEAL_MARK)
    if sealed and data[-SEAL_BYTES:] != _seal(data[:-SEAL_BYTES]):
        raise ValueError(f"{path} is damaged: its checksum does not fit")
    try:
        with torch.serialization.safe_globals(PUBLISHED_GLOBALS):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(f"{path} is refused: it asks for {refused[1]}, which could run code") from error
        raise ValueError(f"{path} is damaged, or no torch file: {type(error).__name__} on reading") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    if not sealed and str(content.get("format")).startswith(OUR_FORMATS):
        raise ValueError(f"{path} is damaged: it has lost its checksum")
    return content


def _seal(body: bytes) -> bytes:
    return SEAL_MARK + hashlib.sha256(body).hexdigest().encode()


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
