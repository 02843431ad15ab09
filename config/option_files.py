"""Options read from files, as data: JSON and YAML with plain values, and nothing else."""

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Any

OPTIONS_FILES = (".json", ".yaml", ".yml")
LARGEST_OPTIONS_FILE = 2**20  # bytes; all options of an experiment are four thousand
OPTION_VALUES = "must be a text, a finite number, True, False, None, or a list of such"


def load_options(path: Path) -> dict[str, Any]:
    """Read options from a JSON or YAML file: names, and behind each what `is_option_value` accepts.

    Options of a loss are called dkd.nckd, or stand together behind its name: {"dkd": {"nckd": 8.0}}.

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
        is_json = path.suffix.lower() == ".json"
        content = json.loads(text, object_pairs_hook=_once_each) if is_json else _load_yaml(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as options: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not options by name, like {{'epochs': 5}}")
    for name, value in content.items():
        if not _is_name(name):
            raise ValueError(f"{path}: {reprlib.repr(name)} is no name of an option")
        if not is_option_value(value) and not _is_group(value):
            raise ValueError(f"{path}: {name}={reprlib.repr(value)} {OPTION_VALUES}")
    return content


def _is_name(name: Any) -> bool:
    """Whether an option can be called so: epochs, and dkd.nckd where it is one of a loss."""
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _is_group(value: Any) -> bool:
    """Whether these are options of a loss by name, {"nckd": 8.0}."""
    if not isinstance(value, dict) or not value:
        return False
    return all(_is_name(name) and is_option_value(part) for name, part in value.items())


def _once_each(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Names and values as a dictionary. Raises ValueError where a name stands there twice: one of the two is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice; remove one")
    return found


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ValueError("PyYAML is missing; install it (python -m pip install PyYAML), or write JSON") from error

    class Loader(yaml.SafeLoader):
        """Of plain values alone, and 1e-3 is a number here too, which it is not in YAML 1.1."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _once_each([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
    try:
        return yaml.load(text, Loader=Loader)
    except Exception as error:  # what is no YAML, or does not fit its tag, can fail in any way
        raise ValueError(str(error)) from error


def is_option_value(value: Any) -> bool:
    """Whether this is what an option can be: a plain value, or a list of plain values.

    Anything deeper is refused as it stands: a dictionary may be an instruction to whoever restores objects from JSON,
    as sacred does, and the aliases of YAML make large trees of short files.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    return all(part is None or isinstance(part, (str, int)) or _is_finite_float(part) for part in parts)


def _is_finite_float(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
