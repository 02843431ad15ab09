"""JSON documents, and files that are whole or absent. Standard library only, so that reading results needs no torch.

Everything this project writes goes to a temporary file beside its target, is flushed to the disk and then renamed;
the name is flushed too.
A JSON document carries a checksum: its last key `sha256` is that of the others as `json.dumps(others, sort_keys=True,
separators=(",", ":"))` writes them.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger("letKD.run")  # the run's: `engine.records` gives it a console and a file
SEAL = "sha256"


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` with a binary file that becomes `path` when it is complete; an earlier file survives a failure.

    Raises:
        OSError: it cannot be written (no space, no permission); names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with names_file(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            flush_names(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def names_file(path: Path) -> Iterator[None]:
    """An OSError says that `path` cannot be written: most of them say only why."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def flush_names(directory: Path) -> None:
    """Bring what was renamed or removed in a directory to the disk, where its file system knows how to."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems answer that flush no directories
            raise
    finally:
        os.close(descriptor)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object for `load_json`, with its checksum."""
    plain = json.loads(json.dumps(content))  # as it will be read: tuples are lists, all keys strings
    plain.pop(SEAL, None)
    text = json.dumps(plain | {SEAL: _checksum(plain)}, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, without its checksum; one that never had a checksum is accepted with a notice.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = _checksum(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    if SEAL not in content:
        if re.fullmatch("[0-9a-f]{64}", str(next(reversed(content.values()), None))):
            raise ValueError(f"{path} is damaged: the name of its checksum has changed")
        log.info("note: %s has no checksum: it is older than they are, or written by hand", path)
        return content
    if content.pop(SEAL) != checksum:
        raise ValueError(f"{path} is damaged: its checksum does not fit (whoever edits it leaves out {SEAL!r})")
    return content


def _checksum(content: Any) -> str:
    """Of all keys but the checksum's own."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
