"""Files that are whole or absent, and loading that runs no code.

Everything this project writes goes to a temporary file beside its target, is flushed to the disk and then renamed;
files of tensors carry a checksum, and a downloaded teacher has it beside it, `<name>.sha256` as sha256sum writes it.
Everything that is read is data: tensors, numbers, strings and containers of them.
"""

import argparse
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.documents import first_line, load_json, save_json, write_atomically

__all__ = ["first_line", "load_json", "load_tensors", "save_json", "save_tensors", "write_atomically"]

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
        ValueError: the file is damaged, unpacks to more than it holds, or asks for objects that could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    data = path.read_bytes()
    sealed = data[-SEAL_BYTES:].startswith(SEAL_MARK)
    if sealed and data[-SEAL_BYTES:] != _seal(data[:-SEAL_BYTES]):
        raise ValueError(f"{path} is damaged: its checksum does not fit")
    if _unpacked_bytes(data) > len(data):
        raise ValueError(f"{path} is refused: it unpacks to more than it holds")
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


def is_dense(value: Any) -> bool:
    """Whether something is a tensor whose numbers are there: neither sparse, quantised, nested, nor without memory."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )


def describe_value(value: Any) -> str:
    """What something is that is no dense tensor, in a word or two."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:
        return "nested"
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    return str(value.dtype) if value.is_quantized else f"on the device {value.device.type}"


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


def _unpacked_bytes(data: bytes) -> int:
    """What the members of a zip archive say they hold: torch packs nothing, so more than the file is a claim.

    That each tensor's storage is as large as its member, torch itself checks before it reserves anything.
    """
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception:  # no zip archive (torch's format before 1.6), or a damaged one: reading it says so
        return 0
    return sum(member.file_size for member in members)


def _seal(body: bytes) -> bytes:
    return SEAL_MARK + hashlib.sha256(body).hexdigest().encode()
