"""Network weights of a run: finding a teacher's, reading files, and telling those of another run."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoints import LAST, STOPPED, check_content, is_checkpoint, load_checkpoint
from engine.records import PROGRESS, RESULTS
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import check_checksum, describe_value, is_dense, load_json, load_tensors


class UnfinishedError(ValueError):
    """The training that weights are wanted of has not reached its last epoch.

    Args:
        epochs: those that it shall have.
        options: of that training.
    """

    def __init__(self, message: str, *, epochs: int, options: dict[str, Any]):
        super().__init__(message)
        self.epochs, self.options = epochs, options


def find_weights(*, experiment: str, directory: Path, chosen: str | None, published: str | None) -> Weights:
    """The weights of a network trained alone: a chosen file, else its own training here, else the published file.

    Args:
        experiment: name of the experiment that trains the network.
        directory: that experiment's directory.
        chosen: file that the options name.
        published: file that serves when the network was not trained here.

    Raises:
        FileNotFoundError: there are none; says where they were looked for.
        UnfinishedError: the training here has not finished.
    """
    own = directory / LAST
    if chosen:
        return read_published(Path(chosen))
    state = own if own.is_file() else directory / STOPPED  # there is no whole epoch yet
    if state.is_file():
        checkpoint = load_own(state)
        if checkpoint["epoch"] < checkpoint["epochs"]:
            raise UnfinishedError(
                f"the training of {experiment} stands at epoch {checkpoint['epoch']} of {checkpoint['epochs']}",
                epochs=checkpoint["epochs"],
                options=checkpoint["config"],
            )
        return Weights(checkpoint["model"], own, checkpoint["data"], checkpoint.get("config"))
    if published and Path(published).is_file():
        return read_published(Path(published))
    places = f"neither {own} nor {published}" if published else f"no {own}"
    raise FileNotFoundError(f"no weights of {experiment}: there is {places}")


def read_published(path: Path) -> Weights:
    """A checkpoint `{'model': state_dict, ...}`, published or ours, or a bare state dict as torchvision publishes them.

    Names of a DataParallel run lose their `module.`. Where the file was downloaded, its checksum beside it must fit.
    """
    check_checksum(path)
    content = load_tensors(path)
    state = content.get("model", content)
    entries = state.items() if isinstance(state, dict) else ()
    if not entries or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        raise ValueError(f"{path} is no checkpoint: it has no entry 'model' with a state dict")
    if odd := next((name for name, tensor in entries if not is_dense(tensor)), None):
        raise ValueError(
            f"{path} is no checkpoint: its tensor {odd!r} is {describe_value(state[odd])}, not dense numbers"
        )
    if is_checkpoint(content):
        check_content(path, content)
    ours = content if is_checkpoint(content) else {}  # a foreign entry of these names may be anything
    state = {name.removeprefix("module."): tensor for name, tensor in entries}
    return Weights(state, path, ours.get("data"), ours.get("config"))


def load_own(path: Path) -> dict[str, Any]:
    """A checkpoint that belongs to the run whose records lie beside it.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
        ValueError: it is of another run.
    """
    checkpoint = load_checkpoint(path)
    check_belongs(path, checkpoint)
    return checkpoint


def check_belongs(path: Path, checkpoint: dict[str, Any]) -> None:
    """Compare a checkpoint with what the records beside it say: the figures of its epochs, and the last one's weights.

    While a run goes on `progress.json` is its record: `results.json` may still be of epochs that it has gone back from.
    A run's figures have its times in them, so those of two runs differ. What is not recorded is not compared, and a
    damaged record is left to those who need it.

    Raises:
        ValueError: they are of two runs; names both files.
    """
    directory = path.parent
    record = next((file for name in (PROGRESS, RESULTS) if (file := directory / name).is_file()), None)
    try:
        told = load_json(record) if record else {}
    except ValueError:
        return
    if told.get("mode") != "train":
        return
    recorded, held = told.get("history"), checkpoint.get("history")
    pairs = zip(recorded, held, strict=False) if isinstance(recorded, list) and isinstance(held, list) else ()
    texts = ([json.dumps(figures, sort_keys=True) for figures in pair] for pair in pairs)  # NaN is NaN in a text
    differs = next((f"other figures of epoch {n}" for n, (one, other) in enumerate(texts, 1) if one != other), None)
    is_end = checkpoint.get("epoch") == told.get("epochs") and "unfinished" not in checkpoint
    if not differs and record.name == RESULTS and is_end and told.get("fingerprint"):
        found = fingerprint(checkpoint["model"])
        if found != told["fingerprint"]:
            differs = f"weights {found[:12]}... instead of {told['fingerprint'][:12]}..."
    if differs:
        raise ValueError(
            f"{path} is not of the run that {record} tells of ({differs}); put that run's own file in its place, "
            f"or move {record.name} away"
        )
