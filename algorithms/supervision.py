"""The teacher and what was made from it: finding the files, reading ours and the authors', and saying what is missing.

Files, below <localpath>, for a supervision experiment A.B.C:

    VQ/A/B/C/codebook_K4096.pth                                 ours
    VQ/A/B/C/vector_quantizer_kmeansK4096_net_epoch*            the authors'
    LDA/A/B/C/decisions_<tap>_S8_L60.pth                        ours
    LDA/A/B/C/{lda_model_scalings, lda_model_xbar, centers_subclass_8[_60], final_scores_8[_60]}.npy    the authors'

Ours are torch files of tensors and a `record` of what made them. A record that names another teacher or setting than
the run's is refused; the authors' files have no record and are taken as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.base import OutdatedError, Requirement, output_directory
from algorithms.files import first_line, load_tensors, save_tensors
from algorithms.records import log
from algorithms.weights import Weights, find_weights, fingerprint, load_strictly
from architectures import Tap, TappedNetwork, create_model
from letkd import Codebook, FrozenTaps, SubclassTargets, pool_map

Config = dict[str, Any]

CODEBOOK_FORMAT = "letkd-codebook-1"
DECISIONS_FORMAT = "letkd-decisions-1"
PUBLISHED_COMPONENTS = 60  # of the authors' LDA files


class Teacher(nn.Module):
    """A frozen teacher's maps at the student's resolution.

    Args:
        taps: returns maps by name.
        pooling: by the same names, the side of the window that brings each map to the student's grid.
        identity: fingerprint of the weights, which supervision must have been made from.
    """

    def __init__(self, taps: FrozenTaps, pooling: dict[str, int], identity: str):
        super().__init__()
        self.taps = taps
        self.pooling = pooling
        self.identity = identity

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: pool_map(found, self.pooling[name]) for name, found in self.taps(images).items()}


def missing_supervision(config: Config) -> Iterator[Requirement]:
    """What a distillation run needs and cannot find, in the order in which it has to be made."""
    yield from missing_weights(
        config,
        network=config["teacher"],
        experiment=config["teacher_experiment"],
        chosen=config["teacher_weights"],
    )
    if _supervises(config, "penultimate") and _find_codebook(config) is None:
        yield _codebook_job(config)
    if _supervises(config, "intermediate") and _find_decisions(config) is None:
        yield _decisions_job(config)


def _codebook_job(config: Config) -> Requirement:
    what = f"no codebook of {config['num_words']} words of {config['supervision']}"
    made_from = {"network": config["teacher"], "weights": config["teacher_weights"]}
    return Requirement(what, config["supervision"], made_from | {"kmeans": config["num_words"]})


def _decisions_job(config: Config) -> Requirement:
    teacher = _outline(config["teacher"])
    stage = next(index for index, tap in teacher.stages.items() if tap == teacher.intermediate)
    made_from = {"network": config["teacher"], "weights": config["teacher_weights"]}
    settings = {key: config[key] for key in ("subclasses_per_class", "lda_components")}
    what = f"no decision scores of {config['supervision']}"
    return Requirement(what, config["supervision"], made_from | settings | {"LDA": stage})


def missing_weights(config: Config, *, network: str, experiment: str, chosen: str | None) -> Iterator[Requirement]:
    """The weights of a network trained alone, if they are not there; a chosen file that is not there is an error."""
    directory = output_directory(config["localpath"], experiment, "train")
    published = config["published_weights"]
    try:
        find_weights(experiment=experiment, directory=directory, chosen=chosen, published=published)
    except FileNotFoundError as error:
        if chosen:
            raise
        yield Requirement(first_line(error), experiment, {"network": network}, published and Path(published))


def teacher_weights(config: Config) -> Weights:
    """The teacher's weights of a distillation run."""
    experiment = config["teacher_experiment"]
    directory = output_directory(config["localpath"], experiment, "train")
    return find_weights(
        experiment=experiment,
        directory=directory,
        chosen=config["teacher_weights"],
        published=config["published_weights"],
    )


def open_teacher(config: Config, num_classes: int, student: nn.Module, *, maps: list[str]) -> Teacher:
    """The frozen teacher of a distillation run.

    Args:
        student: the backbone whose grid the maps are pooled to.
        maps: "penultimate", "intermediate" or both.

    Raises:
        ValueError: the weights do not fit, or the teacher's grid is not a multiple of the student's.
    """
    weights = teacher_weights(config)
    log.info("teacher    %s from %s", config["teacher"], weights.source)
    network = create_model(config["teacher"], num_classes=num_classes)
    load_strictly(network, weights.state, source=weights.source, what=f"{config['teacher']} with {num_classes} classes")
    network.to(memory_format=torch.channels_last)
    taps: dict[str, Tap] = {name: getattr(network, name) for name in maps}
    pooling = {}
    for name, tap in taps.items():
        ratio, rest = divmod(getattr(student, name).reduction, tap.reduction)
        if rest or not ratio:
            raise ValueError(f"the {name} map of {config['teacher']} is coarser than that of {config['student']}")
        pooling[name] = ratio
    paths = {name: tap.path for name, tap in taps.items()}
    return Teacher(FrozenTaps(network, paths), pooling, fingerprint(weights.state))


def open_codebook(config: Config, teacher: Teacher) -> Codebook:
    """The teacher's words."""
    path = _find_codebook(config)
    if path is None:
        raise FileNotFoundError(_codebook_job(config).what)
    content = load_tensors(path)
    if content.get("format") == CODEBOOK_FORMAT:
        centroids = content["centroids"]
        expected = _expected_record(config, teacher, "penultimate")
        _check_record(path, content["record"], expected, remedy=_codebook_job(config))
        log.info("codebook   %s", path)
    else:
        centroids = _authors_centroids(path, content)
        log.info("codebook   %s, the authors': no record of the teacher that made it", path)
    if centroids.shape[0] != config["num_words"]:
        raise ValueError(f"{path} has {centroids.shape[0]} words, not num_words={config['num_words']}")
    channels = teacher.taps.network.penultimate.channels
    if centroids.shape[1] != channels:
        raise ValueError(f"{path} has words of {centroids.shape[1]} channels; {config['teacher']} has {channels}")
    return Codebook(centroids, temperature=config["temperature"])


def open_subclasses(config: Config, teacher: Teacher, num_classes: int) -> SubclassTargets:
    """The teacher's sub-class decisions."""
    path = _find_decisions(config)
    if path is None:
        raise FileNotFoundError(_decisions_job(config).what)
    if path.suffix == ".npy":
        content = _authors_decisions(path)
        log.info("decisions  %s, the authors': no record of the teacher that made them", path)
    else:
        content = load_tensors(path)
        if content.get("format") != DECISIONS_FORMAT:
            raise ValueError(f"{path} holds no decision scores ({DECISIONS_FORMAT})")
        expected = _expected_record(config, teacher, "intermediate")
        _check_record(path, content["record"], expected, remedy=_decisions_job(config))
        log.info("decisions  %s", path)
    channels, found = teacher.taps.network.intermediate.channels, content["xbar"].shape[0]
    if found != channels:
        raise ValueError(f"{path} was made from maps of {found} channels; {config['teacher']} has {channels}")
    num_targets = num_classes * config["subclasses_per_class"]
    if content["centers"].shape[0] != num_targets:
        raise ValueError(f"{path} has {content['centers'].shape[0]} sub-classes; this run has {num_targets}")
    return SubclassTargets(
        content["scalings"],
        content["xbar"],
        content["centers"],
        content["decisions"],
        num_subclasses=config["subclasses_per_class"],
    )


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
    keys = ("network", "dataset", "downscale", "val_split", "seed")
    return (
        {"teacher": fingerprint(weights.state), "weights": str(weights.source)}
        | {key: config[key] for key in keys}
        | facts
    )


def _supervises(config: Config, place: str) -> bool:
    if not config.get("supervised", True):
        return False
    return bool(config.get(place, config["method"] == "QuEST" and place == "penultimate"))


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


def _expected_record(config: Config, teacher: Teacher, place: str) -> dict[str, Any]:
    """What the record of a file must say for this run."""
    return {
        "teacher": teacher.identity,
        "tap": getattr(teacher.taps.network, place).path,
        "downscale": teacher.pooling[place],
        "dataset": config["dataset"],
        "val_split": config["val_split"],
    }


def _check_record(path: Path, record: dict[str, Any], expected: dict[str, Any], *, remedy: Requirement) -> None:
    for key, value in expected.items():
        if record.get(key) != value:
            found, wanted = (str(side)[:12] for side in (record.get(key), value))
            raise OutdatedError(f"{path} was made with another {key} ({found}, this run has {wanted})", remedy)


def _authors_centroids(path: Path, content: dict[str, Any]) -> Tensor:
    try:
        return content["network"]["_embedding.weight"].float()
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no codebook: neither {CODEBOOK_FORMAT} nor the authors' format") from None


def _authors_decisions(scores_path: Path) -> dict[str, Tensor]:
    names = {
        "scalings": "lda_model_scalings.npy",
        "xbar": "lda_model_xbar.npy",
        "centers": scores_path.name.replace("final_scores", "centers_subclass"),
        "decisions": scores_path.name,
    }
    return {key: _read_array(scores_path.with_name(name)) for key, name in names.items()}


def _read_array(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which belongs to the decision scores beside it")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
