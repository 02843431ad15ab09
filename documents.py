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
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger("letKD.run")  # the run's, for notices
SEAL = "sha256"
OPTIONS_FILES = (".json", ".yaml", ".yml")
LARGEST_OPTIONS_FILE = 2**20  # bytes; all options of an experiment are four thousand


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


def load_options(path: Path) -> dict[str, Any]:
    """Read options from a JSON or YAML file: names, and behind each what `is_option_value` accepts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, damaged, or holds something else; names the file, and the option.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix.lower() not in OPTIONS_FILES:
        raise ValueError(f"{path}: options are read from files that end in {', '.join(OPTIONS_FILES)}")
    if not path.is_file() or path.stat().st_size > LARGEST_OPTIONS_FILE:
        raise ValueError(f"{path} is no file of options: it is a folder, a device, or larger than 1 MiB")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else _load_yaml(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as options: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not options by name, like {{'epochs': 5}}")
    for name, value in content.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{path}: {reprlib.repr(name)} is no name of an option")
        if not is_option_value(value):
            raise ValueError(f"{path}: {name}={reprlib.repr(value)} {OPTION_VALUES}")
    return content


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ValueError("PyYAML is missing; install it (python -m pip install PyYAML), or write JSON") from error

    class Loader(yaml.SafeLoader):
        """Of plain values alone, and 1e-3 is a number here too, which it is not in YAML 1.1."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
    try:
        return yaml.load(text, Loader=Loader)
    except Exception as error:  # what is no YAML, or does not fit its tag, can fail in any way
        raise ValueError(str(error)) from error


OPTION_VALUES = "must be a text, a finite number, True, False, None, or a list of such"


def is_option_value(value: Any) -> bool:
    """Whether this is what an option can be: a plain value, or a list of plain values.

    Anything deeper is refused as it stands: a dictionary may be an instruction to whoever restores objects from JSON,
    as sacred does, and the aliases of YAML make large trees of short files.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    return all(part is None or isinstance(part, (str, int)) or _is_finite_float(part) for part in parts)


def _is_finite_float(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
