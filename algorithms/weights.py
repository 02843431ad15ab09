"""Network weights: loading them strictly, finding a teacher's, telling two sets of them apart."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.checkpoints import LAST, STOPPED, load_checkpoint
from algorithms.files import check_checksum, load_tensors

SHOWN_NAMES = 3  # of missing, unexpected or misshaped tensors in an error


@dataclass(frozen=True)
class Weights:
    """A state dict and where it came from."""

    state: dict[str, Tensor]
    source: Path
    data: dict[str, Any] | None = None  # classes, image size and normalisation it was trained with, where known


def check_fit(expected: dict[str, Tensor], state: dict[str, Tensor], *, source: Path | str, what: str) -> None:
    """Compare names and shapes of a state dict with those of the network it is meant for.

    Args:
        expected: state dict of that network, on any device, `meta` too.
        source: file it came from, for the error.
        what: the network, for the error.

    Raises:
        ValueError: tensors are missing, unexpected or have another shape; names them.
    """
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "other shapes": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    complaints = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems.items() if names)
    if complaints:
        raise ValueError(f"{source} does not hold {what}: {complaints}")


def load_strictly(module: nn.Module, state: dict[str, Tensor], *, source: Path | str, what: str) -> None:
    """Load a state dict that must fit exactly; arguments and errors as in `check_fit`."""
    check_fit(module.state_dict(), state, source=source, what=what)
    module.load_state_dict(state)


class UnfinishedError(ValueError):
    """The training that weights are wanted of has not reached its last epoch; `epochs` are those it shall have."""

    def __init__(self, message: str, epochs: int):
        super().__init__(message)
        self.epochs = epochs


def find_weights(*, experiment: str, directory: Path, chosen: str | None, published: str | None) -> Weights:
    """The weights of a network trained alone: a chosen file, else its own training here, else the published file.

    Args:
        experiment: name of the experiment that trains the network.
        directory: that experiment's directory.
        chosen: file that the configuration names.
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
        checkpoint = load_checkpoint(state)
        if checkpoint["epoch"] < checkpoint["epochs"]:
            raise UnfinishedError(
                f"the training of {experiment} stands at epoch {checkpoint['epoch']} of {checkpoint['epochs']}; "
                f"finish it: python main_classification.py with config={experiment} checkpoint=-1",
                checkpoint["epochs"],
            )
        return Weights(checkpoint["model"], own, checkpoint["data"])
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
    return Weights({name.removeprefix("module."): tensor for name, tensor in entries}, path, content.get("data"))


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: equal for equal weights, wherever they were stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
