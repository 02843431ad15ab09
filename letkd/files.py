"""Files of tensors: sealed, whole or absent, and read without running code.

A file of ours is what `torch.save` writes, with a checksum of all before it as the comment that a zip archive may carry
at its end, so that any torch reads it as it is. Everything that is read is data: tensors, numbers, strings and
containers of them.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OUR_FORMATS = "letkd-"  # what the `format` of every file we write begins with
UNSEALED_FORMATS = ("letkd-supervision-1",)  # of an earlier version; their zip archive has checksums of its own
SEAL_MARK = b"sha256="
SEAL_BYTES = len(SEAL_MARK) + 64
END_RECORD_BYTES, COMMENT_LENGTH_BYTES = 22, 2  # of a zip archive


def pack(content: Mapping[str, Any]) -> bytes:
    """A sealed file that holds a dictionary of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    assert archive[-END_RECORD_BYTES:].startswith(b"PK\x05\x06") and archive.endswith(b"\0\0"), "no bare zip archive"
    body = archive[:-COMMENT_LENGTH_BYTES] + SEAL_BYTES.to_bytes(COMMENT_LENGTH_BYTES, "little")
    return body + _seal(body)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or, after a failure, what it was before.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def load_tensors(path: Path, *, safe_globals: Iterable[Any] = ()) -> dict[str, Any]:
    """Read a torch file onto the CPU, ours or a published one.

    Args:
        safe_globals: what it may hold besides tensors and plain values, for `torch.serialization.safe_globals`.

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
        with torch.serialization.safe_globals(list(safe_globals)):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(
                f"{path} is refused: it asks for {refused[1]}, which could run code (tensors alone "
                "do not: torch.save(network.state_dict(), FILE))"
            ) from error
        told = describe_file(data) or f"{type(error).__name__} on reading"
        raise ValueError(f"{path} is damaged, or no torch file: {told}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    if not sealed and str(content.get("format")).startswith(OUR_FORMATS):
        if content["format"] not in UNSEALED_FORMATS:
            raise ValueError(f"{path} is damaged: it has lost its checksum")
        _check_members(path, data)
    return content


def fingerprint(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict: equal for equal weights, wherever they were stored.

    What a state dict holds besides tensors does not count.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, value in state.items() if isinstance(value, Tensor)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def describe_file(data: bytes) -> str | None:
    """What the content of a file is that cannot be read as tensors, and what helps; None where it does not show."""
    head = data[:1024].lstrip().lower()
    if not data:
        return "it is empty"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a page of the web and not the file that it is about; download that one"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS and not the file that it stands for; get that one with git lfs pull"
    if data.startswith(b"\x89HDF"):
        return "a file of HDF5, as Keras writes it"
    if data.startswith(b"PK\x03\x04"):
        return _describe_zip(data)
    return _describe_safetensors(data) if data[8:9] == b"{" else None


def _describe_zip(data: bytes) -> str | None:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except Exception:  # as in `_unpacked_bytes`
        return None if b"PK\x05\x06" in data else "half a download: its end is missing"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a program of TorchScript; save the tensors of its network, torch.save(network.state_dict(), FILE)"
    return "arrays of NumPy (.npz)" if names and all(name.endswith(".npy") for name in names) else None


def _describe_safetensors(data: bytes) -> str | None:
    """Eight bytes with the length of a header in JSON, the header, and the numbers: do they end too early?"""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    try:
        ends = [info["data_offsets"][1] for name, info in json.loads(header).items() if name != "__metadata__"]
        missing = 8 + len(header) + max(ends, default=0) - len(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        missing = 8 + int.from_bytes(data[:8], "little") - len(data)
    return f"half a download: {missing} bytes are missing at its end" if missing > 0 else None


def _unpacked_bytes(data: bytes) -> int:
    """What the members of a zip archive say they hold: torch packs nothing, so more than the file is a claim.

    That each tensor's storage is as large as its member, torch itself checks before it reserves anything.
    """
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception:  # no zip archive (torch's format before 1.6), or a damaged one: reading it says so
        return 0
    return sum(member.file_size for member in members)


def _check_members(path: Path, data: bytes) -> None:
    """Compare the members of a zip archive with the checksums in it, at which torch does not look."""
    try:
        damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()
    except Exception as error:  # as above
        raise ValueError(f"{path} is damaged: {type(error).__name__} on reading") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not fit")


def _seal(body: bytes) -> bytes:
    return SEAL_MARK + hashlib.sha256(body).hexdigest().encode()
