"""The files that losses are built from: what they are called, reading ours and the authors', and writing ours.

Below <localpath>, for a supervision experiment A.B.C:

    VQ/A/B/C/codebook_K4096.pth                                 ours, of the penultimate map
    VQ/A/B/C/codebook_<tap>_K4096.pth                           ours, of another one
    VQ/A/B/C/codebook_pooled2_K4096.pth                         ours, of maps averaged over 2 x 2
    VQ/A/B/C/codebook_unlabelled_K4096.pth                      ours, of pictures without labels (`unlabelled_share=1`)
    VQ/A/B/C/vector_quantizer_kmeansK4096_net_epoch*            the authors'
    LDA/A/B/C/decisions_<tap>_S8_L60.pth                        ours
    LDA/A/B/C/{lda_model_scalings, lda_model_xbar, centers_subclass_8[_60], final_scores_8[_60]}.npy    the authors'
    class_means/A/B/C/class_means.pth                           ours, of the pooled vectors, of the teacher

Ours are supervision as `letkd.load_supervision` reads it, and a file that `Supervision.save` wrote can be chosen in
their place: of its maps the teacher's is taken. The authors' files have no record of what made them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letkd import MapSupervision, Supervision
from letkd.supervision import (
    CODEBOOK_TENSORS,
    DECISION_TENSORS,
    EARLIER_FORMAT,
    FORMAT,
    check_dense,
    check_finite,
    read_supervision,
)
from storage.tensor_files import first_line, load_tensors, save_tensors

EARLIER_CODEBOOK, EARLIER_DECISIONS = "letkd-codebook-1", "letkd-decisions-1"  # one map each, and less of what it is
MEANS_FORMAT = "letkd-class-means-1"


@dataclass(frozen=True)
class SupervisionFile:
    """What a file has for a map of the teacher: tensors, and what it says of their making; the authors' say nothing."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any] | None = None
    made_from: MapSupervision | None = None


# --- names -----------------------------------------------------------------------------------------------------------


def codebook_path(
    directory: Path, num_words: int, *, tap: str | None = None, pooled: int | None = None, label_free: bool = False
) -> Path:
    """The file of a codebook.

    Args:
        tap: module path of its map; None for the penultimate one.
        pooled: side of the windows that maps are averaged over, where the name says it (`prepared.pooled_apart`).
        label_free: whether it is of pictures without labels.
    """
    return directory / _file_name("codebook_unlabelled" if label_free else "codebook", tap, pooled, f"K{num_words}")


def decisions_path(
    directory: Path, tap: str, *, num_subclasses: int, num_components: int, pooled: int | None = None
) -> Path:
    """The file of decision scores; arguments as of a codebook."""
    return directory / _file_name("decisions", tap, pooled, f"S{num_subclasses}_L{num_components}")


def _file_name(what: str, tap: str | None, pooled: int | None, numbers: str) -> str:
    return "_".join(filter(None, (what, tap, pooled and f"pooled{pooled}", numbers))) + ".pth"


def means_path(directory: Path) -> Path:
    return directory / "class_means.pth"


# --- writing ---------------------------------------------------------------------------------------------------------


def save_supervision(path: Path, *made: MapSupervision) -> None:
    """Write a file of the teacher's maps, for the jobs and for `letkd.load_supervision`."""
    save_tensors(path, Supervision({found.path: found for found in made}).content())


def save_means(path: Path, means_NC: Tensor, record: dict[str, Any]) -> None:
    """Write class means; `record` says of which teacher and images they are."""
    save_tensors(path, {"format": MEANS_FORMAT, "means": means_NC, "record": record})


# --- reading ---------------------------------------------------------------------------------------------------------


def read_codebook(path: Path, place: str) -> SupervisionFile:
    """The teacher's words of the map at module path `place`.

    Raises:
        ValueError: the file is damaged, or holds no codebook.
    """
    content = load_tensors(path)
    if "format" not in content and "network" in content:
        return SupervisionFile(path, {"centroids": _authors_centroids(path, content)})
    return read_ours(path, content, place, CODEBOOK_TENSORS)


def read_decisions(path: Path, place: str) -> SupervisionFile:
    """The teacher's decisions, likewise.

    Raises:
        ValueError: the file is damaged, or holds no decision scores.
        FileNotFoundError: of the authors' files one is missing.
    """
    if path.suffix == ".npy":
        return SupervisionFile(path, _authors_decisions(path))
    return read_ours(path, load_tensors(path), place, DECISION_TENSORS)


def read_means(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """The teacher's class means, and what their file says of their making.

    Raises:
        ValueError: the file is damaged, or holds no class means.
    """
    content = load_tensors(path)
    if content.get("format") != MEANS_FORMAT:
        raise ValueError(f"{path} holds no class means ({MEANS_FORMAT})")
    if not isinstance(content.get("record"), dict):
        raise ValueError(f"{path} is damaged: it has no record of what made it")
    check_dense(content, ("means",), path)
    return content["means"], content["record"]


def read_ours(path: Path, content: dict[str, Any], place: str, names: tuple[str, ...]) -> SupervisionFile:
    """The tensors `names` of the map at module path `place`; where there is none, those of another map.

    Raises:
        ValueError: the file has no such tensors, or no record.
    """
    earlier, what = {
        CODEBOOK_TENSORS: (EARLIER_CODEBOOK, "codebook"),
        DECISION_TENSORS: (EARLIER_DECISIONS, "decision scores"),
    }[names]
    if content.get("format") == earlier:
        if not isinstance(content.get("record"), dict):
            raise ValueError(f"{path} is damaged: it has no record of what made it")
        check_dense(content, names, path)
        return SupervisionFile(path, {name: content[name] for name in names}, content["record"])
    if content.get("format") not in (FORMAT, EARLIER_FORMAT):
        also = " nor the authors' format" if names == CODEBOOK_TENSORS else ""
        raise ValueError(f"{path} holds no {what}: neither {FORMAT}, {earlier}{also}")
    supervision = read_supervision(content, path)
    found = {at: made for at, made in supervision.items() if (made.num_subclasses is None) == (what == "codebook")}
    if not found:
        other = "a codebook" if names == DECISION_TENSORS else "decision scores"
        raise ValueError(f"{path} holds no {what}; it holds {other} of {', '.join(supervision)}")
    made = found.get(place) or next(iter(found.values()))
    side = set(made.image_shape[1:])
    said = {
        "teacher": made.teacher,
        "tap": place if place in found else ", ".join(found),
        "downscale": made.pooling,
        "grid": list(made.grid),
        "image_size": side.pop() if len(side) == 1 else list(made.image_shape[1:]),
    }
    return SupervisionFile(path, {name: made.tensors[name] for name in names}, made.record | said, made)


def _authors_centroids(path: Path, content: dict[str, Any]) -> Tensor:
    network = content["network"]
    if not isinstance(network, dict) or "_embedding.weight" not in network:
        raise ValueError(f"{path} holds no codebook: neither {FORMAT} nor the authors' format")
    check_dense(network, ["_embedding.weight"], path)
    return network["_embedding.weight"]


def _authors_decisions(scores_path: Path) -> dict[str, Tensor]:
    names = {
        "scalings": "lda_model_scalings.npy",
        "xbar": "lda_model_xbar.npy",
        "centers": scores_path.name.replace("final_scores", "centers_subclass"),
        "decisions": scores_path.name,
    }
    return {key: _read_array(scores_path.with_name(name)) for key, name in names.items()}


def _read_array(path: Path) -> Tensor:
    """The numbers of a .npy file as float64. It is mapped first: a header that claims more than the file has fails."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which belongs to the decision scores beside it")
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can fail in any way
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
    if mapped.dtype.kind != "f":
        raise ValueError(f"{path} holds {mapped.dtype} values, not floating-point numbers")
    array = torch.from_numpy(mapped.astype(np.float64))
    check_finite({path.name: array}, path)
    return array
