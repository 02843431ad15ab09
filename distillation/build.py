"""From the options of an experiment to its student, and to the objective that trains it."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from architectures import InputConfig, create_model, create_on_meta, fold_batch_norm_, outline
from architectures.classifier import classifier_of
from config.options import EMA, Options
from dataloaders import Dataset, refuse_other_classes
from dataloaders.unlabelled import find_pictures
from distillation.cache_options import refuse_other_readers
from distillation.expressions import (
    ALONE,
    INTERMEDIATE,
    PAPER,
    PENULTIMATE,
    alphas_of,
    losses_of,
    places_of,
    teacher_network,
    transforms_of,
    weights_of,
)
from distillation.inputs import TEACHER, images_of_data, input_of_student, mention, mention_other, network_input
from distillation.losses import Data, Loss, find_loss, find_transform
from distillation.losses.base import Part
from distillation.objective import Objective, Teacher, union
from distillation.prepared import PREPARED, check_num_images
from distillation.signals import Network, measured
from letkd import Student, kd_layer
from letkd.reach import check_layers
from storage.documents import log
from storage.state_dicts import Weights, load_strictly

LAYERS = {PENULTIMATE: "words", INTERMEDIATE: "decisions"}  # the losses that supervise KD layers, by their layers


def build_student(options: Options, num_classes: int, image_size: int) -> nn.Module:
    """The deployable network of an experiment, freshly drawn: alone, or with the KD layers of its options.

    It needs neither teacher nor supervision: what it is follows from the options.

    Args:
        image_size: of the images that it shall see.

    Raises:
        ValueError: unknown network or place, or a method of KD layers without any.
    """
    if _layers_of(options, num_classes):
        return build_network(options, num_classes, image_size).module
    return create_model(network_name(options), num_classes=num_classes, image_size=image_size, **_rates(options))


def build_network(options: Options, num_classes: int, image_size: int) -> Network:
    """As `build_student`, with its outline.

    Raises:
        ValueError: as `build_student`, or a layer cannot be at its place (`letkd.reach`).
    """
    name = network_name(options)
    backbone = create_model(name, num_classes=num_classes, image_size=image_size, **_rates(options))
    found = outline(backbone, image_size, name)
    if not (sizes := _layers_of(options, num_classes)):
        return Network(backbone, found)
    places = {layer: found.place(places_of(options, LAYERS[layer])[0]) for layer in sizes}
    alphas = alphas_of(options)
    wanted = [(place.path, place.layout, alphas[layer]) for layer, place in places.items()]
    check_layers(backbone, wanted, (3, image_size, image_size))
    layers = {layer: kd_layer(places[layer].layout, size, alphas[layer]) for layer, size in sizes.items()}
    return Network(Student(backbone, layers, {layer: place.path for layer, place in places.items()}), found)


def network_name(options: Options) -> str:
    """The network that an experiment trains."""
    return options.network.network if options.experiment.method == ALONE else options.pair.student


def _rates(options: Options) -> dict[str, float | None]:
    """Dropout and stochastic depth of the network that an experiment trains."""
    return {"dropout": options.protocol.dropout, "drop_path": options.protocol.drop_path}


def check_names(options: Options) -> None:
    """Refuse a network that does not exist or does not take what is asked of dropout and stochastic depth, and a method
    of KD layers without any, before anything is loaded.
    """
    create_on_meta(network_name(options), num_classes=2, **_rates(options))
    _layers_of(options, num_classes=2)


def _layers_of(options: Options, num_classes: int) -> dict[str, int]:
    """The KD layers of an experiment, and their numbers of templates."""
    alphas, summed = alphas_of(options), options.experiment.method.split("+")
    if not alphas and (layered := [name for name in summed if name in PAPER and name != "QuEST"]):
        raise ValueError(
            f"penultimate=False and intermediate=False leave {layered[0]} no KD layer; use a network alone instead"
        )
    words, subclasses = options.words, options.subclasses
    sizes = {
        PENULTIMATE: words and words.num_words,
        INTERMEDIATE: subclasses and num_classes * subclasses.subclasses_per_class,
    }
    return {layer: sizes[layer] for layer in alphas}


def build_objective(
    options: Options,
    dataset: Dataset,
    teacher_weights: Weights | None,
    keys: Collection[str] | None = None,
    *,
    drawn: bool = False,
) -> Objective:
    """What a training step computes. The student is drawn first, from the random numbers as they are; nothing else is.

    Args:
        teacher_weights: None where no loss reads a teacher, or the teacher is the average of the student.
        keys: of the losses; None for all that the experiment has.
        drawn: random numbers stand where files of supervision would be read: to see what a step costs.

    Raises:
        ValueError: networks, weights or supervision do not fit the losses or each other.
        FileNotFoundError: a file of the supervision is not there.
    """
    seen = input_of_student(options, dataset)
    student = build_network(options, dataset.num_classes, seen.image_size)
    teacher = None
    keys = losses_of(options) if keys is None else keys
    taught = [key for key in keys if find_loss(key).needs_teacher]
    if teacher_weights is not None:
        sees = network_input(options, TEACHER, images_of_data(dataset), teacher_weights)
        if not drawn:
            mention(TEACHER, sees, images_of_data(dataset))
            mention_other(options, TEACHER, sees, teacher_weights)
        teacher = open_teacher(options.pair.teacher, dataset, teacher_weights, taught, sees)
        if on_logits := [key for key in taught if find_loss(key).kind == "logits"]:  # they look at classes themselves
            refuse_other_logits(on_logits, dataset, teacher_weights, options.pair.teacher)
    elif taught and options.pair.teacher == EMA:
        log.info("teacher    the average of the student, ema_decay=%g", options.protocol.ema_decay)
        average = build_copy(options, dataset, student.module)
        teacher = Teacher(average, seen.module(), identity="the average of the student", seen=seen)
    losses = {key: build_loss(key, options, dataset, student, teacher, drawn=drawn) for key in keys}
    refuse_other_readers(options, losses)
    if teacher is not None:
        teacher.network = teacher.network.reading(union(loss.needs.teacher for loss in losses.values()))
    if teacher_weights is not None:  # an average has the student's classes, and goes on changing
        readers = [key for key, loss in losses.items() if loss.needs.teacher.reads_classes]
        refuse_other_logits(readers, dataset, teacher_weights, options.pair.teacher)
        fold_teacher_(teacher)
    return Objective(student, seen.module(), losses, weights_of(options), teacher)


def build_copy(options: Options, dataset: Dataset, student: nn.Module) -> Network:
    """Another network like the student of an experiment, with its weights; none of the run's random numbers are drawn.

    It is built and not copied: a network of one's own need not be fit for deep copies.
    """
    with torch.random.fork_rng(devices=[]):
        copied = build_network(options, dataset.num_classes, input_of_student(options, dataset).image_size)
    copied.module.load_state_dict(student.state_dict())
    return copied


def open_teacher(
    name: str, dataset: Dataset, weights: Weights, keys: Collection[str], seen: InputConfig | None = None
) -> Teacher:
    """A frozen network with the weights of a file; none of the run's random numbers are drawn.

    It has as many classes as its weights; `refuse_other_logits` says what these are good for.

    Args:
        keys: of the losses that it teaches, for the error.
        seen: what it sees of the images; None for the images as they are.

    Raises:
        ValueError: the weights do not fit.
    """
    seen = seen or images_of_data(dataset)
    num_classes = weights.num_classes or dataset.num_classes
    with torch.random.fork_rng(devices=[]):
        network = create_model(name, num_classes=num_classes, image_size=seen.image_size)
    what = f"{name} with {num_classes} classes, the teacher of {', '.join(keys)}"
    load_trained(network, name, weights, what=what)
    network.to(memory_format=torch.channels_last)
    return Teacher(
        measured(network, seen.image_size, name),
        seen.module(),
        weights.fingerprint,
        knows_classes=knows_classes(weights, dataset),
        seen=seen,
    )


def load_trained(network: nn.Module, name: str, weights: Weights, *, what: str) -> None:
    """Load the weights of a network that nobody asks for its classes: without a classifier it keeps what was drawn.

    Args:
        network: called `name`, with as many classes as the weights.
        what: it is, for the error.

    Raises:
        ValueError: they do not fit.
    """
    state = weights.state
    if weights.num_classes == 0:
        drawn = network.state_dict()
        state = {key: drawn[key] for key in classifier_of(name)} | state
    load_strictly(network, state, source=weights.source, what=what)


def knows_classes(weights: Weights, dataset: Dataset) -> bool:
    """Whether weights tell the classes of the images apart, by the same numbers, as far as both say what they are."""
    known = (weights.data or {}).get("classes", dataset.classes)
    is_known = tuple(known) == dataset.classes and weights.num_classes in (None, dataset.num_classes)
    return is_known and numbered_otherwise(weights, dataset) is None


def numbered_otherwise(weights: Weights, dataset: Dataset) -> tuple[int, int] | None:
    """The first class of the images whose name weights of others give another number: (its number there, here).

    None where there is none: what they call otherwise may be the same.
    """
    there, here = _numbers(weights.trained_with.get("classes", ())), _numbers(dataset.classes)
    pairs = ((there.get(name, number), number) for name, number in here.items())
    return next((pair for pair in pairs if pair[0] != pair[1]), None)


def _numbers(classes: Sequence[str]) -> dict[str, int]:
    """Of classes by name, without case and signs; a name that several have is left out."""
    plain = [re.sub(r"[\W_]+", " ", name).casefold() for name in classes]
    count = Counter(plain)
    return {name: number for number, name in enumerate(plain) if count[name] == 1}


def refuse_other_logits(readers: Collection[str], dataset: Dataset, weights: Weights, name: str) -> None:
    """Refuse losses that read logits or the classifier of a teacher whose classes are not those of the images.

    Maps and pooled vectors are of no classes: what reads them alone may have any teacher.

    Args:
        readers: keys of these losses.
        name: of the teacher's network.

    Raises:
        ValueError: names the losses.
    """
    if knows_classes(weights, dataset):
        return
    if not readers:
        log.info("note: the classes of the teacher are others: it teaches by its maps alone")
        return
    if known := (weights.data or {}).get("classes"):
        refuse_other_classes(dataset, tuple(known), f"the teacher, {weights.source},")
    what = f"tells {weights.num_classes} classes apart and {dataset.name} has {dataset.num_classes}"
    if renumbered := numbered_otherwise(weights, dataset):
        there, here = renumbered
        what = f"has {dataset.classes[here]!r} as class {there}, which is class {here} of {dataset.name}"
    raise ValueError(
        f"{weights.source} {what}: {', '.join(readers)} {'reads' if len(readers) == 1 else 'read'} the logits of the "
        f"teacher; choose methods of maps alone, or first train {name} on {dataset.name}, from these weights: "
        f"init={weights.source}"
    )


def fold_teacher_(teacher: Teacher) -> None:
    """Fold the BatchNorms of a teacher where nothing is read that would change: the last step, after all are built."""
    network = teacher.network
    places = [*network.maps.values(), *network.preact.values()]
    kept = [path for place in places for path in (place.path, place.norm) if path]
    fold_batch_norm_(network.module, kept=kept)


def build_loss(
    key: str, options: Options, dataset: Dataset, student: Network, teacher: Teacher | None, *, drawn: bool = False
) -> Loss:
    """A loss for two networks, drawn under a seed of its own: another loss beside it changes nothing; behind transforms
    where the method has them.

    Args:
        drawn: as of `build_objective`.

    Raises:
        ValueError: an option is none of its choices, or as `Loss.build`.
    """
    cls, seed = find_loss(key), options.run.seed
    kinds = {name: PREPARED[name] for name in cls.prepared}
    values = values_for(cls, options) | {
        name: (kind.draw if drawn else kind.open)(options, student, teacher) for name, kind in kinds.items()
    }
    for name in () if drawn or dataset.train is None else kinds:
        check_num_images(name, options, len(dataset.train))
    networks = student, teacher and teacher.network, Data(_num_images(options, dataset), dataset.num_classes)
    with _drawn_from(seed, key):
        loss = cls.build(*networks, **values)
    transforms = {}
    for name in transforms_of(options.experiment.method).get(key, ()):
        with _drawn_from(seed, f"{name}:{key}"):
            transforms[name] = find_transform(name).build(*networks, **values_for(find_transform(name), options))
    return loss.behind(transforms) if transforms else loss


def _num_images(options: Options, dataset: Dataset) -> int | None:
    """Images that train, the pictures without labels among them; None where they are not loaded."""
    if dataset.train is None:
        return None
    pictures = options.data.unlabelled
    return len(dataset.train) + (0 if pictures is None else len(find_pictures(pictures)[0]))


def values_for(part: type[Part], options: Options) -> dict[str, Any]:
    """What an experiment says of the options of a loss or transform, by the names of its fields.

    Raises:
        ValueError: one cannot be what it is.
    """
    found = {name: options.of_loss(f"{part.key}.{name}", default) for name, default in part.defaults().items()}
    described = part.described()
    for name, value in found.items():
        described[f"{part.key}.{name}"].check(value)
    return found


def check_networks(options: Options, dataset: Dataset, weights: Weights | None = None) -> None:
    """Refuse networks that do not fit the losses or each other, before there are files that are made from the teacher.

    Losses that are built from such files say it without being built.

    Args:
        weights: the teacher's, where they are there already.

    Raises:
        ValueError: as `build_loss`, or as `refuse_other_logits`.
    """
    losses = {key: find_loss(key) for key in losses_of(options)}
    keys = [key for key, loss in losses.items() if loss.needs_teacher]
    if not keys:
        return
    name, seen = teacher_network(options.pair), input_of_student(options, dataset)
    sees = seen if options.pair.teacher == EMA else network_input(options, TEACHER, images_of_data(dataset), weights)
    with torch.random.fork_rng(devices=[]):
        student = build_network(options, dataset.num_classes, seen.image_size)
        num_classes = (weights and weights.num_classes) or dataset.num_classes
        network = create_model(name, num_classes=num_classes, image_size=sees.image_size)
    untrained = measured(network, sees.image_size, name)
    teacher = Teacher(untrained, sees.module(), identity="untrained")
    readers = [key for key in keys if losses[key].kind == "logits"]
    if weights is not None and readers:
        refuse_other_logits(readers, dataset, weights, name)
    needs = {key: losses[key].needs for key in keys if hasattr(losses[key], "needs")}
    for key in keys:
        if losses[key].prepared:
            losses[key].check_networks(student, untrained, **values_for(losses[key], options))
        else:
            built = build_loss(key, options, dataset, student, teacher)
            refuse_other_readers(options, {key: built})
            needs[key] = built.needs
    readers = [key for key in keys if key in needs and needs[key].teacher.reads_classes]
    if weights is not None and readers:
        refuse_other_logits(readers, dataset, weights, name)


@contextmanager
def _drawn_from(seed: int, name: str) -> Iterator[None]:
    """The context in which random numbers follow from a seed and a name."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest, "little"))
        yield
