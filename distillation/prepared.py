"""What was made from a teacher: finding the files, reading ours and the authors', and naming the jobs that make them.

Files, below <localpath>, for a supervision experiment A.B.C:

    VQ/A/B/C/codebook_K4096.pth                                 ours
    VQ/A/B/C/vector_quantizer_kmeansK4096_net_epoch*            the authors'
    LDA/A/B/C/decisions_<tap>_S8_L60.pth                        ours
    LDA/A/B/C/{lda_model_scalings, lda_model_xbar, centers_subclass_8[_60], final_scores_8[_60]}.npy    the authors'

Ours are torch files of tensors and a `record` of what made them. Of what the maps are that they were made from, the
record must say what the run has: teacher, tap, pooling, images and their preparation; and the LDA components that were
asked for. What chose among equals, like the seed, and how exactly it was computed it says as well, and any is taken.
The authors' files have no record and are taken as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from architectures import Place, TappedNetwork, create_model
from dataloaders import outline_dataset
from distillation.expressions import losses_of
from distillation.losses import find_loss
from distillation.objective import Teacher
from distillation.signals import Network
from letkd import Codebook, SubclassTargets
from results.places import OutdatedError, Requirement, output_directory
from results.settings import PREPARATION
from storage.documents import log
from storage.state_dicts import Weights, fingerprint
from storage.tensor_files import describe_value, first_line, is_dense, load_tensors, save_tensors

Config = dict[str, Any]

CODEBOOK_FORMAT = "letkd-codebook-1"
DECISIONS_FORMAT = "letkd-decisions-1"
DECISION_TENSORS = ("scalings", "xbar", "centers", "decisions")  # (C, R), (C,), (N*S, L), (N*S, N*S)
PUBLISHED_COMPONENTS = 60  # of the authors' LDA files
DIGEST_LENGTH = 64  # of a SHA-256 in hexadecimal digits
ALLOWED_DIFFERENCE = 1e-3  # of mean and std: where decoders round otherwise, what is measured differs by less


def _codebook_job(config: Config) -> Requirement:
    what = f"no codebook of {config['num_words']} words of {config['supervision']}"
    made_from = {"network": config["teacher"], "weights": config["teacher_weights"]}
    options = made_from | {"kmeans": config["num_words"]}
    return Requirement(what, config["supervision"], options, given_as={"kmeans": "num_words"})


def _decisions_job(config: Config) -> Requirement:
    teacher = _outline(config["teacher"])
    stage = next(index for index, tap in teacher.stages.items() if tap == teacher.intermediate)
    made_from = {"network": config["teacher"], "weights": config["teacher_weights"]}
    settings = {key: config[key] for key in ("subclasses_per_class", "lda_components")}
    what = f"no decision scores of {config['supervision']}"
    return Requirement(what, config["supervision"], made_from | settings | {"LDA": stage})


def open_codebook(config: Config, student: Network, teacher: Teacher) -> Codebook:
    """The teacher's words, for a student with these maps."""
    path, centroids, content = _read_codebook(config)
    if content.get("format") == CODEBOOK_FORMAT:
        _check_record(path, content, config, student, teacher, "penultimate")
        log.info("codebook   %s", path)
    else:
        log.info("codebook   %s, the authors': no record of the teacher that made it", path)
    channels = teacher.network.outline.place("penultimate").channels
    if centroids.ndim != 2:
        raise ValueError(f"{path} holds words of shape {tuple(centroids.shape)}, not (words, channels)")
    if centroids.shape[0] != config["num_words"]:
        raise ValueError(f"{path} has {centroids.shape[0]} words, not num_words={config['num_words']}")
    if centroids.shape[1] != channels:
        raise ValueError(f"{path} has words of {centroids.shape[1]} channels; {config['teacher']} has {channels}")
    _check_finite(path, centroids)
    return Codebook(centroids.float(), temperature=config["temperature"])


def _read_codebook(config: Config) -> tuple[Path, Tensor, dict[str, Any]]:
    """The file of the teacher's words, the words, and all that it holds."""
    path = _find_codebook(config)
    if path is None:
        raise FileNotFoundError(_codebook_job(config).what)
    content = load_tensors(path)
    is_ours = content.get("format") == CODEBOOK_FORMAT
    return path, _tensor(content, "centroids", path) if is_ours else _authors_centroids(path, content), content


def _read_decisions(config: Config) -> tuple[Path, dict[str, Tensor], dict[str, Any] | None]:
    """The file of the teacher's decisions, its tensors, and all that it holds; None for the authors' arrays."""
    path = _find_decisions(config)
    if path is None:
        raise FileNotFoundError(_decisions_job(config).what)
    if path.suffix == ".npy":
        return path, _authors_decisions(path), None
    content = load_tensors(path)
    if content.get("format") != DECISIONS_FORMAT:
        raise ValueError(f"{path} holds no decision scores ({DECISIONS_FORMAT})")
    return path, {name: _tensor(content, name, path) for name in DECISION_TENSORS}, content


def open_subclasses(config: Config, student: Network, teacher: Teacher) -> SubclassTargets:
    """The teacher's sub-class decisions, for a student with these maps."""
    path, tensors, content = _read_decisions(config)
    if content is None:
        log.info("decisions  %s, the authors': no record of the teacher that made them", path)
    else:
        _check_record(path, content, config, student, teacher, "intermediate")
        log.info("decisions  %s", path)
    num_subclasses = config["subclasses_per_class"]
    outline = teacher.network.outline
    place, num_targets = outline.place("intermediate"), outline.num_classes * num_subclasses
    _check_decisions(path, tensors, config["teacher"], place, num_targets)
    return SubclassTargets(*(tensors[name] for name in DECISION_TENSORS), num_subclasses=num_subclasses)


def codebook_path(directory: Path, num_words: int) -> Path:
    return directory / f"codebook_K{num_words}.pth"


def decisions_path(directory: Path, tap: str, *, num_subclasses: int, num_components: int) -> Path:
    return directory / f"decisions_{tap}_S{num_subclasses}_L{num_components}.pth"


def save_codebook(path: Path, centroids: Tensor, record: dict[str, Any]) -> None:
    save_tensors(path, {"format": CODEBOOK_FORMAT, "centroids": centroids.cpu(), "record": record})


def save_decisions(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write `scalings` (C, R), `xbar` (C,), `centers` (N*S, L), `prototypes` (N*S, L) and `decisions` (N*S, N*S)."""
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    save_tensors(path, {"format": DECISIONS_FORMAT, **tensors, "record": record})


def supervision_record(config: Config, weights: Weights, **facts: Any) -> dict[str, Any]:
    """What a codebook or decision file says of its making."""
    keys = ("network", "dataset", "downscale", "val_split", "lda_components", "ksubset", "seed", "precision")
    return (
        {"teacher": fingerprint(weights.state), "weights": str(weights.source)}
        | {key: config[key] for key in keys}
        | _outline_images(config, weights.data or {})
        | facts
    )


def _outline_images(config: Config, known: dict[str, Any]) -> dict[str, Any]:
    """What tells images and their preparation from others; `known` is what the weights that see them were made with."""
    prepared = {key: config[key] or known.get(key) for key in PREPARATION}
    return outline_dataset(config["dataset"], data_dir=config["data_dir"], **prepared)


def _find_codebook(config: Config) -> Path | None:
    if config["codebook"]:
        return Path(config["codebook"])
    directory = output_directory(config["localpath"], config["supervision"], "kmeans")
    published = f"vector_quantizer_kmeansK{config['num_words']}_net_epoch*"
    return _first_file([codebook_path(directory, config["num_words"]), *sorted(directory.glob(published))])


def _find_decisions(config: Config) -> Path | None:
    if config["decisions"]:
        return Path(config["decisions"])
    directory = output_directory(config["localpath"], config["supervision"], "LDA")
    num_subclasses, num_components = config["subclasses_per_class"], config["lda_components"]
    tap = _outline(config["teacher"]).intermediate.path
    own = decisions_path(directory, tap, num_subclasses=num_subclasses, num_components=num_components)
    published = [directory / f"final_scores_{num_subclasses}_{num_components}.npy"]
    if num_components == PUBLISHED_COMPONENTS:
        published.append(directory / f"final_scores_{num_subclasses}.npy")
    return _first_file([own, *published])


def _outline(name: str) -> TappedNetwork:
    """A network without numbers in it, to read taps from."""
    with torch.device("meta"):
        return create_model(name)


def _first_file(candidates: list[Path]) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _expected_record(config: Config, student: Network, teacher: Teacher, place: str) -> dict[str, Any]:
    """What the record of a file must say for this run."""
    expected = {
        "teacher": teacher.identity,
        "tap": teacher.network.outline.place(place).path,
        "downscale": student.pooling_of(teacher.network, place),
        "dataset": config["dataset"],
        "val_split": config["val_split"],
    }
    if place == "intermediate":
        expected["lda_components"] = config["lda_components"]
    return expected | _outline_images(config, known={})


def _check_record(
    path: Path, content: dict[str, Any], config: Config, student: Network, teacher: Teacher, place: str
) -> None:
    """Compare the record of a file with this run; what an older file does not say yet is not compared.

    Raises:
        OutdatedError: they differ; names the first fact.
        ValueError: there is no record.
    """
    record = content.get("record")
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it has no record of what made it")
    expected = _expected_record(config, student, teacher, place)
    others = [key for key, value in expected.items() if key in record and not _agree(record[key], value)]
    if not others:
        return
    found, wanted = (_shortened(facts[others[0]]) for facts in (record, expected))
    message = f"{path} was made with another {others[0]} ({found}, this run has {wanted})"
    option, job = ("codebook", _codebook_job) if place == "penultimate" else ("decisions", _decisions_job)
    if config[option]:  # the remedy makes the standard file and not this one
        message += f"; leave out {option}= to use the standard file"
    remedy = job(config)
    prepared = {key: expected[key] for key in others if key in PREPARATION}  # else it would be the teacher's once more
    raise OutdatedError(message, replace(remedy, options=remedy.options | prepared))


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return all(isinstance(value, (int, float)) for value in found) and all(
            math.isclose(*pair, abs_tol=ALLOWED_DIFFERENCE) for pair in zip(found, wanted, strict=True)
        )
    return found == wanted


def _shortened(fact: Any) -> str:
    return f"{fact[:12]}..." if isinstance(fact, str) and len(fact) == DIGEST_LENGTH else str(fact)


def _tensor(content: dict[str, Any], name: str, path: Path) -> Tensor:
    if not isinstance(content.get(name), Tensor):
        raise ValueError(f"{path} is damaged: it holds no tensor {name!r}")
    return _numbers(content[name], name, path)


def _numbers(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not is_dense(tensor):
        raise ValueError(f"{path} is damaged: its tensor {name!r} is {describe_value(tensor)}, not dense numbers")
    if not tensor.is_floating_point():
        raise ValueError(f"{path} is damaged: its tensor {name!r} holds {tensor.dtype}, not floating-point numbers")
    return tensor


def _check_decisions(path: Path, tensors: dict[str, Tensor], name: str, place: Place, num_targets: int) -> None:
    """Refuse decision scores of other shapes than those of teacher `name` at `place`, or that are not finite."""
    scalings, xbar, centers, decisions = (tuple(tensors[key].shape) for key in DECISION_TENSORS)
    belong = len(xbar) == 1 and len(scalings) == len(centers) == 2 and decisions == 2 * centers[:1]
    if not belong or scalings[0] != xbar[0] or scalings[1] < centers[1]:
        shapes = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in DECISION_TENSORS)
        raise ValueError(f"{path} holds no decision scores: shapes that do not belong together ({shapes})")
    if xbar[0] != place.channels:
        raise ValueError(f"{path} was made from maps of {xbar[0]} channels; {name} has {place.channels}")
    if centers[0] != num_targets:
        raise ValueError(f"{path} has {centers[0]} sub-classes; this run has {num_targets}")
    for tensor in tensors.values():
        _check_finite(path, tensor)


def _check_finite(path: Path, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"{path} is damaged: it holds values that are not finite")


def _authors_centroids(path: Path, content: dict[str, Any]) -> Tensor:
    network = content.get("network")
    centroids = network.get("_embedding.weight") if isinstance(network, dict) else None
    if not isinstance(centroids, Tensor):
        raise ValueError(f"{path} is no codebook: neither {CODEBOOK_FORMAT} nor the authors' format")
    return _numbers(centroids, "_embedding.weight", path)


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
    _check_finite(path, array)
    return array


@dataclass(frozen=True)
class Prepared:
    """A kind of file that losses are built from.

    Args:
        what: it is called in messages.
        find: the file of a run, or None.
        job: what makes it.
        open: reads it for a student and a teacher.
        numbers: the tensors in it, whose fingerprint a run records.
    """

    what: str
    find: Callable[[Config], Path | None]
    job: Callable[[Config], Requirement]
    open: Callable[[Config, Network, Teacher], Any]
    numbers: Callable[[Config], dict[str, Tensor]]


# By the name under which a loss is built from it; an option of that name chooses another file.
PREPARED = {
    "codebook": Prepared(
        "the codebook", _find_codebook, _codebook_job, open_codebook,
        lambda config: {"centroids": _read_codebook(config)[1]},
    ),
    "decisions": Prepared(
        "the decision scores", _find_decisions, _decisions_job, open_subclasses,
        lambda config: _read_decisions(config)[1],
    ),
}  # fmt: skip


def supervised_losses(config: Config) -> list[str]:
    """Keys of the losses of an experiment that are built from such files."""
    return [key for key in losses_of(config) if find_loss(key).prepared]


def prepared_of(config: Config) -> list[str]:
    """Names of the files that the losses of an experiment are built from.

    Raises:
        ValueError: the experiment has no options of such a file.
    """
    wanted = [(key, name) for key in losses_of(config) for name in find_loss(key).prepared]
    for key, name in wanted:
        if name not in config:
            raise ValueError(
                f"{key} is built from {PREPARED[name].what}, of which {config['method']} has no options; sum it with "
                "letKD-1, letKD-2 or QuEST for a codebook, with letKD-2 for decisions"
            )
    return [name for _, name in wanted]
