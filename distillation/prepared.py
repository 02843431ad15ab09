"""What was made from a teacher: finding the files, comparing what they say with a run, and the jobs that make them.

What the files are called, and how they are read, is in `distillation/supervision_files.py`. A pair whose student has a
coarser grid needs averaged maps. `pooled2` in a name says so, where `downscale` of the supervision experiment itself is
another one. For a teacher that is given by its weights alone this experiment is weights.<data set>.<their fingerprint>.

Of what the map is that it was made from, a file must say what the run has: teacher, tap, pooling, grid, images and
their preparation; their number where no digest tells them; and the LDA components that were asked for. What chose among
equals, like the seed, and how exactly it was computed it says as well, and any is taken. What it does not say is not
compared: make_supervision knows no data set. The authors' files have no record and are taken as they are.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.experiments import is_experiment, load_experiment
from config.options import Options
from dataloaders import outline_dataset
from dataloaders.unlabelled import digest_of_pictures
from distillation.expressions import PENULTIMATE, losses_of, places_of
from distillation.inputs import FIELDS, TEACHER, handed_on, options_of
from distillation.losses import find_loss
from distillation.objective import Teacher
from distillation.places import image_size, pooling, stage_of, teacher_path
from distillation.signals import Network
from distillation.supervision_files import (
    SupervisionFile,
    codebook_path,
    decisions_path,
    means_path,
    read_codebook,
    read_decisions,
    read_means,
    read_ours,
)
from letkd import Codebook, SubclassTargets
from letkd.supervision import CODEBOOK_TENSORS, DECISION_TENSORS, check_decisions, check_finite, earlier_fingerprint
from results.places import OutdatedError, Requirement, output_directory
from results.settings import PREPARATION
from storage.documents import log
from storage.tensor_files import load_tensors

PUBLISHED_COMPONENTS = 60  # of the authors' LDA files
BY_WEIGHTS = "weights"  # the first part of what supervision is called whose teacher has no experiment
# What tells the job on a pair which supervision is wanted.
OF_THE_PAIR = (
    "name", "teacher", "student", "teacher_experiment", "teacher_weights", "words_place", "words_teacher_place",
    "decisions_place", "decisions_teacher_place",
)  # fmt: skip
DIGEST_LENGTH = 64  # of a SHA-256 in hexadecimal digits
ALLOWED_DIFFERENCE = 1e-3  # of mean and std: where decoders round otherwise, what is measured differs by less


def _codebook_job(options: Options) -> Requirement:
    num_words, place = options.words.num_words, places_of(options, "words")[1]
    told: dict[str, Any] = {"kmeans": num_words}
    if place != PENULTIMATE:
        told["words_teacher_place"] = place
    if options.data.is_label_free:
        told |= {"unlabelled": options.data.unlabelled, "unlabelled_share": 1.0}
    what = f"no codebook of {num_words} words of {options.words.supervision}"
    return _job_of_maps(options, "words", what, told, given_as={"kmeans": "num_words"})


def _decisions_job(options: Options) -> Requirement:
    told = asdict(options.subclasses)
    told["LDA"] = stage_of(options.pair.teacher, teacher_path(options, "decisions"))
    return _job_of_maps(options, "decisions", f"no decision scores of {options.words.supervision}", told)


def _means_job(options: Options) -> Requirement:
    home = means_home(options)
    return _job(options, home, f"no class means of {home}", {"class_means": True})


def means_home(options: Options) -> str:
    """What class means lie under. They are of no map, so that all students of a teacher find the same."""
    return options.pair.teacher_experiment or options.words.supervision


def _job_of_maps(
    options: Options, key: str, what: str, told: dict[str, Any], given_as: dict[str, str] | None = None
) -> Requirement:
    """As `_job`, for what is made of the maps that a loss reads."""
    home, side = options.words.supervision, _pooled(options, key)
    if side is None:
        return _job(options, home, what, told, given_as=given_as)
    what += f", of maps averaged over {side} x {side}"
    return _job(options, home, what, told, {"downscale": side}, given_as)


def _job(
    options: Options,
    home: str,
    what: str,
    told: dict[str, Any],
    of_alone: dict[str, Any] | None = None,
    given_as: dict[str, str] | None = None,
) -> Requirement:
    """What makes a file: a job on the experiment that it lies under, or on the pair where there is none.

    Args:
        told: the options that say what is made.
        of_alone: those of the network alone, which follow from the pair.
    """
    pair = options.pair
    told = images_for_teacher(options) | told
    if home.startswith(f"{BY_WEIGHTS}."):
        own = {key: options.flat[key] for key in OF_THE_PAIR if key in options.flat} | options_of(options, TEACHER)
        return Requirement(what, options.job.config, own | told, given_as=given_as or {})
    made_from = {"network": pair.teacher, "weights": pair.teacher_weights} | handed_on(options, TEACHER)
    made_from |= of_alone or {}
    return Requirement(what, home, made_from | told, given_as=given_as or {})


def images_for_teacher(options: Options) -> dict[str, Any]:
    """The size of the images of a run, for what is made of them as a teacher sees them that has a size of its own: the
    weights of the teacher may know another.
    """
    is_own = options.data.image_size is None and options.pair.teacher_size is not None
    return {"image_size": image_size(options)} if is_own else {}


def _pooled(options: Options, key: str) -> int | None:
    return pooled_apart(options.words.supervision, pooling(options, key))


def pooled_apart(supervision: str, side: int) -> int | None:
    """What the name of a file says of the windows that maps are averaged over: nothing where its experiment says it.

    Args:
        supervision: the experiment, or the name of a run, for which nothing is averaged.
        side: of the windows.
    """
    usual = load_experiment(supervision).get("downscale", 1) if is_experiment(supervision) else 1
    return None if side == usual else side


def open_codebook(options: Options, student: Network, teacher: Teacher) -> Codebook:
    """The teacher's words, for a student with these maps."""
    name, words = options.pair.teacher, options.words
    file = _read_codebook(options)
    _check_made_from(file, options, student, teacher, "words")
    path, centroids = file.path, file.tensors["centroids"]
    authors = "" if file.facts is not None else ", the authors': no record of the teacher that made it"
    log.info("codebook   %s%s", path, authors)
    channels = teacher.network.outline.place(places_of(options, "words")[1]).channels
    if centroids.ndim != 2:
        raise ValueError(f"{path} holds words of shape {tuple(centroids.shape)}, not (words, channels)")
    if centroids.shape[0] != words.num_words:
        raise ValueError(f"{path} has {centroids.shape[0]} words, not num_words={words.num_words}")
    if centroids.shape[1] != channels:
        raise ValueError(f"{path} has words of {centroids.shape[1]} channels; {name} has {channels}")
    check_finite(file.tensors, path)
    return Codebook(centroids.float(), temperature=words.temperature)


def open_subclasses(options: Options, student: Network, teacher: Teacher) -> SubclassTargets:
    """The teacher's sub-class decisions, for a student with these maps."""
    file = _read_decisions(options)
    _check_made_from(file, options, student, teacher, "decisions")
    authors = "" if file.facts is not None else ", the authors': no record of the teacher that made them"
    log.info("decisions  %s%s", file.path, authors)
    num_classes, num_subclasses = student.outline.num_classes, options.subclasses.subclasses_per_class
    check_decisions(file.tensors, file.path)
    channels, num_targets = len(file.tensors["xbar"]), len(file.tensors["centers"])
    if channels != (wanted := teacher.network.outline.place(places_of(options, "decisions")[1]).channels):
        name = options.pair.teacher
        raise ValueError(f"{file.path} was made from maps of {channels} channels; {name} has {wanted}")
    own = num_subclasses if file.made_from is None else file.made_from.num_subclasses
    if num_targets != (wanted := num_classes * num_subclasses) or own != num_subclasses:
        theirs = "" if file.made_from is None else f" (the file {own} of each of {num_targets // own})"
        raise ValueError(
            f"{file.path} has {num_targets} sub-classes; this run has {wanted}, {num_subclasses} of each of "
            f"{num_classes} classes{theirs}"
        )
    check_finite(file.tensors, file.path)
    return SubclassTargets(*(file.tensors[name] for name in DECISION_TENSORS), num_subclasses=num_subclasses)


def open_means(options: Options, student: Network, teacher: Teacher) -> Tensor:
    """The class means (N, C) of the teacher's pooled vectors."""
    path, means, record = _read_means(options)
    _check_facts(path, record, _expected_of_teacher(options, teacher), lambda: _means_job(options))
    log.info("means      %s", path)
    wanted = student.outline.num_classes, teacher.network.outline.num_features
    if tuple(means.shape) != wanted:
        raise ValueError(f"{path} holds class means {tuple(means.shape)}; {options.pair.teacher} has {wanted}")
    check_finite({"means": means}, path)
    return means.float()


def _draw_codebook(options: Options, student: Network, teacher: Teacher) -> Codebook:
    channels = teacher.network.outline.place(places_of(options, "words")[1]).channels
    return Codebook(torch.randn(options.words.num_words, channels), temperature=options.words.temperature)


def _draw_subclasses(options: Options, student: Network, teacher: Teacher) -> SubclassTargets:
    channels = teacher.network.outline.place(places_of(options, "decisions")[1]).channels
    num_classes, num_subclasses = student.outline.num_classes, options.subclasses.subclasses_per_class
    num_components = max(1, min(options.subclasses.lda_components, num_classes - 1, channels))
    num_targets = num_classes * num_subclasses
    return SubclassTargets(
        scalings_CL=torch.randn(channels, num_components),
        xbar_C=torch.randn(channels),
        centers_ML=torch.randn(num_targets, num_components),
        decisions_MM=torch.randn(num_targets, num_targets).softmax(dim=1),
        num_subclasses=num_subclasses,
    )


def _draw_means(options: Options, student: Network, teacher: Teacher) -> Tensor:
    return torch.rand(student.outline.num_classes, teacher.network.outline.num_features)


def _read_codebook(options: Options) -> SupervisionFile:
    path = _find_codebook(options)
    if path is None:
        raise FileNotFoundError(_codebook_job(options).what)
    return read_codebook(path, teacher_path(options, "words"))


def _read_decisions(options: Options) -> SupervisionFile:
    path = _find_decisions(options)
    if path is None:
        raise FileNotFoundError(_decisions_job(options).what)
    return read_decisions(path, teacher_path(options, "decisions"))


def _read_means(options: Options) -> tuple[Path, Tensor, dict[str, Any]]:
    """The file, the means in it, and what it says of their making."""
    path = _find_means(options)
    if path is None:
        raise FileNotFoundError(_means_job(options).what)
    return path, *read_means(path)


def _facts_of(file: SupervisionFile) -> tuple[Path, dict[str, Any]]:
    return file.path, file.facts or {}


def _find_codebook(options: Options) -> Path | None:
    words = options.words
    if words.codebook:
        return Path(words.codebook)
    directory = output_directory(options.run.localpath, words.supervision, "kmeans")
    is_usual, side = places_of(options, "words")[1] == PENULTIMATE, _pooled(options, "words")
    tap = None if is_usual else teacher_path(options, "words")
    own, plain = (codebook_path(directory, words.num_words, tap=tap, pooled=pooled) for pooled in (side, None))
    if options.data.is_label_free:
        return _first_file([codebook_path(directory, words.num_words, tap=tap, pooled=side, label_free=True)])
    if side is not None:
        return _first_file([own]) or _averaged_over(side, plain, teacher_path(options, "words"), CODEBOOK_TENSORS)
    published = f"vector_quantizer_kmeansK{words.num_words}_net_epoch*"
    return _first_file([own, *(sorted(directory.glob(published)) if is_usual else ())])


def _find_decisions(options: Options) -> Path | None:
    if options.decisions.decisions:
        return Path(options.decisions.decisions)
    directory = output_directory(options.run.localpath, options.words.supervision, "LDA")
    num_subclasses, num_components = options.subclasses.subclasses_per_class, options.subclasses.lda_components
    tap, side = teacher_path(options, "decisions"), _pooled(options, "decisions")
    numbers = {"num_subclasses": num_subclasses, "num_components": num_components}
    own, plain = (decisions_path(directory, tap, **numbers, pooled=pooled) for pooled in (side, None))
    if side is not None:
        return _first_file([own]) or _averaged_over(side, plain, tap, DECISION_TENSORS)
    published = [directory / f"final_scores_{num_subclasses}_{num_components}.npy"]
    if num_components == PUBLISHED_COMPONENTS:
        published.append(directory / f"final_scores_{num_subclasses}.npy")
    return _first_file([own, *published])


def _averaged_over(side: int, path: Path, tap: str, names: tuple[str, ...]) -> Path | None:
    """A file of an earlier version, whose name does not say what maps were averaged over, where its content says it."""
    if not path.is_file():
        return None
    return path if read_ours(path, load_tensors(path), tap, names).facts.get("downscale") == side else None


def _find_means(options: Options) -> Path | None:
    return _first_file([means_path(output_directory(options.run.localpath, means_home(options), "class_means"))])


def _first_file(candidates: list[Path]) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _expected_facts(options: Options, student: Network, teacher: Teacher, key: str) -> dict[str, Any]:
    """What a file must say for this run, which a loss is built from."""
    place, teacher_place = places_of(options, key)
    expected = {
        "teacher": teacher.identity,
        "tap": teacher.network.outline.place(teacher_place).path,
        "downscale": student.pooling_of(teacher.network, place, teacher_place),
    }
    if key == "decisions":
        expected["lda_components"] = options.subclasses.lda_components
    elif options.data.is_label_free:
        expected["unlabelled"] = digest_of_pictures(options.data.unlabelled)
    return expected | _expected_of_teacher(options, teacher) | {"grid": list(student.outline.place(place).grid)}


def _expected_of_teacher(options: Options, teacher: Teacher) -> dict[str, Any]:
    """Of these, what is of the teacher and of what it sees."""
    data = options.data
    own = {"teacher": teacher.identity, "dataset": data.dataset, "val_split": data.val_split}
    preparation = {key: getattr(data, key) for key in PREPARATION}
    images = outline_dataset(data.dataset, data_dir=options.run.data_dir, **preparation)
    return own | images | (teacher.seen.facts() if teacher.seen else {})


def _check_made_from(file: SupervisionFile, options: Options, student: Network, teacher: Teacher, key: str) -> None:
    """Compare what a file says of its making with this run, whose teacher is not folded yet.

    Raises:
        OutdatedError: they differ; names the first fact.
    """
    if file.facts is None:
        return
    facts, expected = dict(file.facts), _expected_facts(options, student, teacher, key)
    if file.made_from is not None and file.made_from.teacher == earlier_fingerprint(teacher.network.module):
        facts["teacher"] = teacher.identity
    kind = PREPARED["codebook" if key == "words" else "decisions"]
    chosen_by = kind.option if kind.chosen(options) else None
    _check_facts(file.path, facts, expected, lambda: kind.job(options), chosen_by=chosen_by)


def _check_facts(
    path: Path,
    facts: dict[str, Any],
    expected: dict[str, Any],
    job: Callable[[], Requirement],
    *,
    chosen_by: str | None = None,
) -> None:
    """Compare what a file says with what it must say; what it does not say is not compared.

    Args:
        job: makes the standard file again.
        chosen_by: the option that has chosen this file instead.

    Raises:
        OutdatedError: they differ; names the first fact.
    """
    both = facts, expected
    if all("image_size" in said for said in both) and "dataset" in facts:  # a job says where it was another size before
        facts, expected = (said | {"crop_size": said.get("crop_size", said["image_size"])} for said in both)
    others = [key for key, value in expected.items() if key in facts and not _agree(facts[key], value)]
    if not others:
        return
    found, wanted = (_shortened(said[others[0]]) for said in (facts, expected))
    message = f"{path} was made with another {others[0]} ({found}, this run has {wanted})"
    if chosen_by:  # the remedy makes the standard file and not this one
        message += f"; leave out {chosen_by}= to use the standard file"
    remedy = job()
    raise OutdatedError(message, replace(remedy, options=remedy.options | _prepared_as(others, expected, remedy)))


def _prepared_as(others: list[str], expected: dict[str, Any], remedy: Requirement) -> dict[str, Any]:
    """The options that have the teacher see what it sees in this run: otherwise it would be what it was trained with
    once more.
    """
    role = TEACHER if TEACHER in remedy.options else "network"
    names = {field: f"{role}_{ending}" for field, ending in FIELDS.items()}
    if (crop := expected.get("crop_size", expected.get("image_size"))) == expected.get("image_size"):
        return {key: expected[key] for key in others if key in PREPARATION and names[key] not in remedy.options}
    seen = {name: expected[field] for field, name in names.items() if field in expected}
    return seen | {"image_size": crop}


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return all(isinstance(value, (int, float)) for value in found) and all(
            math.isclose(*pair, abs_tol=ALLOWED_DIFFERENCE) for pair in zip(found, wanted, strict=True)
        )
    return found == wanted


def _shortened(fact: Any) -> str:
    return f"{fact[:12]}..." if isinstance(fact, str) and len(fact) == DIGEST_LENGTH else str(fact)


@dataclass(frozen=True)
class Prepared:
    """A kind of file that losses are built from.

    Args:
        what: it is called in messages.
        find: the file of a run, or None.
        job: what makes it.
        open: reads it for a student and a teacher.
        draw: the same of random numbers, for those who only need its shapes.
        numbers: the tensors in it, whose fingerprint a run records.
        facts: where it is, and what it says of its making; nothing of a file of the authors'.
        group: of the options that say which; None: it needs none of its own.
        option: of this group, which chooses another file.
    """

    what: str
    find: Callable[[Options], Path | None]
    job: Callable[[Options], Requirement]
    open: Callable[[Options, Network, Teacher], Any]
    draw: Callable[[Options, Network, Teacher], Any]
    numbers: Callable[[Options], dict[str, Tensor]]
    facts: Callable[[Options], tuple[Path, dict[str, Any]]]
    group: str | None = None
    option: str | None = None

    def chosen(self, options: Options) -> str | None:
        """The other file that an experiment chooses."""
        group = self.group and getattr(options, self.group)
        return getattr(group, self.option) if group else None


# By the name under which a loss is built from it.
PREPARED = {
    "codebook": Prepared(
        "the codebook", _find_codebook, _codebook_job, open_codebook, _draw_codebook,
        lambda options: _read_codebook(options).tensors, lambda options: _facts_of(_read_codebook(options)),
        group="words", option="codebook",
    ),
    "decisions": Prepared(
        "the decision scores", _find_decisions, _decisions_job, open_subclasses, _draw_subclasses,
        lambda options: _read_decisions(options).tensors, lambda options: _facts_of(_read_decisions(options)),
        group="decisions", option="decisions",
    ),
    "means": Prepared(
        "the class means", _find_means, _means_job, open_means, _draw_means,
        lambda options: {"means": _read_means(options)[1]}, lambda options: _read_means(options)[::2],
    ),
}  # fmt: skip


def check_num_images(name: str, options: Options, num_images: int) -> None:
    """Compare of how many images a file is with those of a run, where it says so and has no digest of them.

    Args:
        name: of `PREPARED`.
        num_images: for training, of the run.

    Raises:
        OutdatedError: of another number, as of a part of the data set.
    """
    kind = PREPARED[name]
    path, facts = kind.facts(options)
    # What make_supervision wrote has no data set; images with a digest, and pictures without labels, are compared so.
    if "dataset" not in facts or "images" in facts or "unlabelled" in facts:
        return
    found = facts.get("num_images") or _num_images_of(facts)
    if found is not None:
        chosen_by = kind.option if kind.chosen(options) else None
        both = {"num_images": found}, {"num_images": num_images}
        _check_facts(path, *both, lambda: kind.job(options), chosen_by=chosen_by)


def _num_images_of(facts: dict[str, Any]) -> int | None:
    """As its patches tell, where a file of an earlier version has all of them."""
    patches, most, grid = facts.get("patches"), facts.get("max_patches"), facts.get("grid")
    if patches is None or most is None or grid is None or 0 < most <= patches:
        return None
    return patches // math.prod(grid)


def supervised_losses(options: Options) -> list[str]:
    """Keys of the losses of an experiment that are built from such files."""
    return [key for key in losses_of(options) if find_loss(key).prepared]


def prepared_of(options: Options) -> list[str]:
    """Names of the files that the losses of an experiment are built from.

    Raises:
        ValueError: the experiment has no options of such a file.
    """
    wanted = [(key, name) for key in losses_of(options) for name in find_loss(key).prepared]
    for key, name in wanted:
        kind = PREPARED[name]
        if kind.group is not None and getattr(options, kind.group) is None:
            raise ValueError(
                f"{key} is built from {kind.what}, of which {options.experiment.method} has no options; sum it with "
                "letKD-1, letKD-2 or QuEST for a codebook, with letKD-2 for decisions"
            )
    return [name for _, name in wanted]
