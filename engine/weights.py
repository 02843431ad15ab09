"""Network weights of a run: finding a teacher's, reading those of anybody, and telling those of another run."""

import functools
from pathlib import Path
from typing import Any

from architectures.classifier import num_classes_in, shapes
from architectures.published import Published
from architectures.published import published as published_by_library
from engine.checkpoints import LAST, STOPPED, Checkpoint, check_content, is_checkpoint, load_checkpoint, other_epoch
from engine.records import PROGRESS, RESULTS, log
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import checksum_path, load_json
from storage.weight_files import Read, fitted, other_state_dicts, read_weights, split_entry


class UnfinishedError(ValueError):
    """The training that weights are wanted of has not reached its last epoch.

    Args:
        epochs: those that it shall have.
        options: of that training.
    """

    def __init__(self, message: str, *, epochs: int, options: dict[str, Any]):
        super().__init__(message)
        self.epochs, self.options = epochs, options


def find_weights(
    *, experiment: str, directory: Path, chosen: str | None, published: str | None, network: str | None = None
) -> Weights:
    """The weights of a network trained alone: a chosen file, else its own training here, else the published file.

    Args:
        experiment: name of the experiment that trains the network.
        directory: that experiment's directory.
        chosen: what the options name, as `read_published` takes it.
        published: file that serves when the network was not trained here.
        network: that they are for, by whose names the tensors of a file of somebody else's are called.

    Raises:
        FileNotFoundError: there are none; says where they were looked for.
        UnfinishedError: the training here has not finished.
    """
    files = [directory / name for name in (LAST, STOPPED, PROGRESS, RESULTS)]
    files += [Path(published), checksum_path(Path(published))] if published else []
    files += _files_of(chosen) if chosen else []
    return _find(experiment, directory, chosen, published, network, tuple(map(as_it_is, files)))


def forget_weights() -> None:
    """Let go of the weights that were found last, where a network has them by now."""
    _find.cache_clear()


@functools.lru_cache(maxsize=1)
def _find(
    experiment: str, directory: Path, chosen: str | None, published: str | None, network: str | None, files: tuple
) -> Weights:
    """As `find_weights`, which a start asks for the same weights several times: they are read once.

    Args:
        files: all that may be read, as `as_it_is` has them: what has changed is read again.
    """
    own = directory / LAST
    if chosen:
        return read_published(chosen, network)
    state = own if own.is_file() else directory / STOPPED  # there is no whole epoch yet
    if state.is_file():
        checkpoint = load_own(state)
        if checkpoint["epoch"] < checkpoint["epochs"]:
            raise UnfinishedError(
                f"the training of {experiment} stands at epoch {checkpoint['epoch']} of {checkpoint['epochs']}",
                epochs=checkpoint["epochs"],
                options=checkpoint["config"],
            )
        data = checkpoint["data"]
        return Weights(
            checkpoint["model"],
            own,
            data,
            checkpoint.get("config"),
            len(data["classes"]),
            classifier=checkpoint.get("classifier"),
        )
    if published and Path(published).is_file():
        return read_published(published, network)
    places = f"neither {own} nor {published}" if published else f"no {own}"
    raise FileNotFoundError(f"no weights of {experiment}: there is {places}")


def _files_of(source: str) -> list[Path]:
    """What `read_published` may read."""
    path, _ = split_entry(source)
    if path.is_dir():
        return sorted(path.iterdir())
    known = None if path.exists() else published_by_library(source)
    return [path, checksum_path(path)] if known is None else list(known.files)


def as_it_is(path: Path) -> tuple[Any, ...]:
    """What tells a file from another one in its place; each that is written here is a new one."""
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def read_published(source: str | Path, network: str | None = None) -> Weights:
    """Weights as anybody saves them: a file or a folder (`storage.weight_files`), or the name of published ones.

    Where a file was downloaded, its checksum beside it must fit.

    Args:
        source: timm/NAME and torchvision/NAME are weights that the library has on the disk; a file goes before them.
        network: that they are for; None leaves the names of the tensors as they are in the file, but for those of
            torch's wrappers.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`, or nothing of that name is on the disk.
    """
    path, entry = split_entry(source)
    known = None if path.exists() else published_by_library(str(source))
    read = read_weights(source) if known is None else _on_the_disk(str(source), known)
    ours = read.content if is_checkpoint(read.content) else {}  # a foreign entry of these names may be anything
    if ours:
        check_content(path, dict(ours))
    elif entry is None and (others := other_state_dicts(read.content)):
        _say(f"note: {path} also holds {', '.join(others)}, which {path}#{others[0]} takes")
    state = read.state if network is None or ours else _by_names_of(network, read, source)
    data = ours.get("data")
    num_classes = len(data["classes"]) if data else network and num_classes_in(network, state)
    told = {"trained_with": read.trained_with, "classifier": ours.get("classifier")}
    return Weights(state, Path(source), data, ours.get("config"), num_classes, **told)


def _on_the_disk(name: str, known: Published) -> Read:
    """The weights that a library has downloaded, as its network has them."""
    if not known.files:
        raise FileNotFoundError(
            f"the weights {name} are not on this machine" + (known.get and f"; get them: {known.get}")
        )
    _say(f"weights    {name} is {known.files[0]}")
    state = read_weights(known.files[0]).state
    try:
        return Read(known.translated(state), trained_with=known.trained_with)
    except RuntimeError as error:
        raise ValueError(f"{known.files[0]} does not hold {name}: {'; '.join(str(error).splitlines())}") from error


@functools.cache
def _say(message: str) -> None:
    """Mention something once: the same weights are looked for and read again and again."""
    log.info("%s", message)


def _by_names_of(network: str, read: Read, source: str | Path) -> dict[str, Any]:
    """The tensors by the names of a network.

    Raises:
        ValueError: they are of another one, which tells what it is.
    """
    names = shapes(network)
    state = fitted(read.state, names.keys())
    if read.network is not None and not names.keys() & state.keys():
        raise ValueError(
            f"{source} is a {read.network}, whose tensors ({next(iter(state))}, ...) are not those of {network} "
            f"({next(iter(names))}, ...); name a network that has them, like my.module:function"
        )
    return state


def load_own(path: Path) -> Checkpoint:
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
    What is not recorded is not compared, and a damaged record is left to those who need it.

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
    is_told = isinstance(recorded, list) and isinstance(held, list)
    differs = f"other figures of epoch {epoch}" if is_told and (epoch := other_epoch(recorded, held)) else None
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
