"""State dicts as others save them: where in a file they are, and by which names.

    FILE            a state dict, or one under an entry of `WRAPPERS`; of torch, or of safetensors
    FILE#ENTRY      the one under this entry, ema or state_dict_ema for instance; a point leads into an entry
    FOLDER          of Hugging Face: model.safetensors or pytorch_model.bin, whole or in shards, and config.json

An average of weights (EMA) beside the plain ones is taken where it is asked for and never otherwise. Names lose what
torch's wrappers put before them, and what an optimizer's average brings; what else stands before all of them goes where
the names of the network are known (`fitted`).
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from storage.documents import first_line
from storage.state_dicts import SHOWN_NAMES
from storage.tensor_files import check_checksum, describe_value, is_dense, load_tensors

State = dict[str, Tensor]

WRAPPERS = ("model", "state_dict", "net", "network", "model_state_dict", "model_state", "teacher", "weights")
COMPILED = "_orig_mod."  # of torch.compile, also inside a name where a part of a network was compiled
PARALLEL = "module."  # of DataParallel, DistributedDataParallel and AveragedModel
AVERAGED = "n_averaged"  # a counter of AveragedModel
OWN_PARTS = ("module", "model", "backbone")  # what trainings call the network, also where a head stands beside it
CONFIG = "config.json"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_ENDING = ".index.json"
ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers what is known here
SHOWN_ENTRIES = 12


@dataclass(frozen=True)
class Read:
    """What a file or folder of weights holds.

    Args:
        state: its tensors, by names without those of torch's wrappers.
        content: of a file, all of it.
        trained_with: of a folder, `classes`, `image_size`, `mean`, `std` and `interpolation` as far as it tells them.
        network: of a folder, what it calls its network.
    """

    state: State
    content: Mapping[str, Any] = field(default_factory=dict)
    trained_with: Mapping[str, Any] = field(default_factory=dict)
    network: str | None = None


def split_entry(source: str | Path) -> tuple[Path, str | None]:
    """A file, and the entry that is chosen behind a #; of a file whose own name has one, none."""
    path = Path(source)
    name, mark, entry = str(source).rpartition("#")
    return (Path(name), entry) if mark and name and not path.exists() else (path, None)


def name_of_weights(source: str) -> str:
    """What weights are called where their file is not told: without its ending, with the entry that is chosen in it."""
    path, entry = split_entry(source)
    name = path.stem if path.suffix in ENDINGS else path.name  # a tag of published weights is no ending
    return f"{name}-{entry}".replace("/", "-") if entry else name


def read_weights(source: str | Path) -> Read:
    """Read what `source` means.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state dict, or several of which none is chosen; says what it holds.
    """
    path, entry = split_entry(source)
    if path.is_dir():
        if entry is not None:
            raise ValueError(f"{source}: {path} is a folder, which has no entries; name the file in it")
        return _read_folder(path)
    check_checksum(path)
    content = load_tensors(path)
    state = _state_in(path, content, entry)
    check_dense_state(source, state)
    return Read(plain_names(state), content)


def check_dense_state(source: str | Path, state: State) -> None:
    """Refuse tensors whose numbers are not there.

    Raises:
        ValueError: names the first.
    """
    if odd := next((name for name, tensor in state.items() if not is_dense(tensor)), None):
        raise ValueError(
            f"{source} is no checkpoint: its tensor {odd!r} is {describe_value(state[odd])}, not dense numbers"
        )


def plain_names(state: State) -> State:
    """A state dict without what torch's own wrappers put into names: compiled, parallel and averaged, in any order."""
    named = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        return state
    while (others := named.keys() - {AVERAGED}) and all(name.startswith(PARALLEL) for name in others):
        named.pop(AVERAGED, None)
        named = {name.removeprefix(PARALLEL): tensor for name, tensor in named.items()}
    return named


def fitted(state: State, names: Collection[str]) -> State:
    """A state dict by the names of a network, as far as they are these behind what stands before them.

    Args:
        names: of the network's tensors. Of all that can be taken away, that is taken which leaves most of these.
    """
    return max(_shortened(state), key=lambda candidate: len(candidate.keys() & names))


def _shortened(state: State) -> Iterator[State]:
    """The state dict, then again and again without the first part of its names: what all share, or `OWN_PARTS`."""
    while True:
        yield state
        parts = {name.partition(".")[0] for name in state}
        goes = parts if len(parts) == 1 else parts.intersection(OWN_PARTS)
        shorter = {_without_first(name, goes): tensor for name, tensor in state.items()}
        if len(shorter) < len(state) or shorter.keys() == state.keys():
            return
        state = shorter


def _without_first(name: str, parts: Collection[str]) -> str:
    first, point, rest = name.partition(".")
    return rest if point and first in parts else name


def is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _state_in(path: Path, content: dict[str, Any], entry: str | None) -> State:
    if entry is not None:
        return _entry_of(path, content, entry)
    if is_state_dict(content) and "model" not in content:  # which is no name of a tensor
        return content
    found = dict(_state_dicts(content))
    named = {name: state for name, state in found.items() if set(name.split(".")) <= set(WRAPPERS)}
    choices = ", ".join(f"{path}#{name}" for name in found)
    if len(named) == 1:
        return next(iter(named.values()))
    if named:
        raise ValueError(f"{path} is no checkpoint of one network: it holds {len(named)}; choose one: {choices}")
    entries = ", ".join([str(key) for key in content][:SHOWN_ENTRIES]) or "none"
    more = f" and {len(content) - SHOWN_ENTRIES} more" if len(content) > SHOWN_ENTRIES else ""
    remedy = f"; choose a state dict in it: {choices}" if found else ""
    raise ValueError(
        f"{path} is no checkpoint: it has no entry 'model' with a state dict, nor {', '.join(WRAPPERS[1:])}; its "
        f"entries: {entries}{more}{remedy}"
    )


def other_state_dicts(content: Mapping[str, Any]) -> list[str]:
    """Entries of a file with state dicts that are not taken where nothing is chosen, like an average of weights."""
    if is_state_dict(content):
        return []
    return [name for name, _ in _state_dicts(content) if not set(name.split(".")) <= set(WRAPPERS)]


def _state_dicts(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, State]]:
    """State dicts in a file by their entries, in wrappers also inside each other."""
    for key, value in content.items():
        name = f"{before}{key}"
        if is_state_dict(value):
            yield name, value
        elif key in WRAPPERS and isinstance(value, dict):
            yield from _state_dicts(value, f"{name}.")


def _entry_of(path: Path, content: dict[str, Any], entry: str) -> State:
    """The state dict under an entry.

    Raises:
        ValueError: there is none; lists those that there are.
    """
    found: Any = content
    rest = entry
    while rest and isinstance(found, dict):  # keys may have points in them
        key = next((key for key in _starts(rest) if key in found), None)
        if key is None:
            break
        found, rest = found[key], rest[len(key) + 1 :]
    if not rest and isinstance(found, dict) and not is_state_dict(found):
        inside = dict(_state_dicts(found))
        found = next(iter(inside.values())) if len(inside) == 1 else found
    if rest or not is_state_dict(found):
        there = ", ".join(name for name, _ in _state_dicts(content)) or "none"
        raise ValueError(f"{path}#{entry}: {path} has no entry {entry!r} with a state dict; it has {there}")
    return found


def _starts(entry: str) -> Iterator[str]:
    parts = entry.split(".")
    yield from (".".join(parts[:end]) for end in range(len(parts), 0, -1))


# --- folders of Hugging Face -----------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> Read:
    """Weights and what is said of them.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: it is no such folder, or a file of it is damaged.
    """
    paths = _files_of(folder)
    state: State = {}
    for path in paths:
        content = load_tensors(path)
        part = _state_in(path, content, None)
        check_dense_state(path, part)
        state |= part
    config = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    named = config.get("architectures") or [config.get("architecture")]
    network = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    return Read(plain_names(state), trained_with=_told(folder, config), network=network)


def _files_of(folder: Path) -> list[Path]:
    for name in FOLDER_FILES:
        index = folder / f"{name}{INDEX_ENDING}"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
                raise ValueError(f"{index} is damaged: it has no weight_map with the file of every tensor")
            paths = [folder / Path(file).name for file in sorted(set(shards.values()))]
            if missing := next((path for path in paths if not path.is_file()), None):
                raise FileNotFoundError(f"no file {missing}, which {index} names: the folder is half a download")
            return paths
    others = sorted(path.name for path in folder.iterdir() if path.suffix in ENDINGS)
    there = f"; name a file in it: {', '.join(others[:SHOWN_NAMES])}" if others else ""
    raise ValueError(f"{folder} is no folder of Hugging Face: it has none of {', '.join(FOLDER_FILES)}{there}")


def _read_json(path: Path) -> dict[str, Any]:
    """An object that somebody else has written, who gives it no checksum."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def _told(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says of the classes and images that its network was trained with."""
    own = config.get("pretrained_cfg")  # as timm writes it
    own = own if isinstance(own, dict) else {}
    path = folder / "preprocessor_config.json"  # as transformers does
    images = _read_json(path) if path.is_file() else {}
    size = own.get("input_size") or images.get("crop_size") or images.get("size") or config.get("image_size")
    labels = config.get("label_names") or own.get("label_names") or config.get("id2label")
    found = {
        "classes": _in_order(labels),
        "image_size": _side(size),
        "mean": own.get("mean") or images.get("image_mean"),
        "std": own.get("std") or images.get("image_std"),
        "interpolation": own.get("interpolation") or _named_resampling(images.get("resample")),
    }
    return {key: value for key, value in found.items() if value is not None}


def _named_resampling(number: Any) -> str | None:
    return RESAMPLING.get(number) if isinstance(number, int) else None


def _side(size: Any) -> int | None:
    """Of a size as it may be written: 224, [3, 224, 224], {"height": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        size = next((size[key] for key in ("height", "shortest_edge") if key in size), None)
    if isinstance(size, list):
        size = size[-1] if size else None
    return size if isinstance(size, int) else None


def _in_order(labels: Any) -> list[str] | None:
    """Names of classes by their numbers; None where nobody has given them names."""
    if isinstance(labels, dict):
        try:
            labels = [labels[key] for key in sorted(labels, key=int)]
        except ValueError:
            return None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        return None
    return None if labels[0].upper() == "LABEL_0" else labels
