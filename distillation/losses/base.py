"""What a distillation loss is, and losses by name.

A loss is a module that takes outputs and never calls a network: it says which signals of student and teacher it reads,
and returns its terms, unweighted. What trains in it (connectors) are parameters, what it remembers (memory banks and
their counters) are buffers: both are saved with a run. A new loss is one file in this folder with a class that
`register_loss` decorates; `docs/own-method.md` shows one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from config.options import OPTIONS, PUBLISHED_NAMES
from config.schema import Option, option, options_of
from dataloaders import Batch
from distillation.signals import Network, Signals, Wanted
from letkd.losses import autocast_is_on, no_autocast

PENULTIMATE, INTERMEDIATE = "penultimate", "intermediate"  # places of an outline, and of KD layers
WARM_UP, WARM_UP_OF = 20, 240  # epochs of the published warm-ups, in the protocol that they belong to
STEERS = {"jobs": ("train",), "bears": "training"}  # of every option of a loss
KINDS = ("words", "logits", "teacher-free", "features", "relations")  # relations are those of samples with each other
# What a loss reads of labels, where a batch may have images without one, which have -1. "none": nothing, all images
# teach. "any": those that are there; images without one weigh 0, and means are over the others. "all": that of every
# image, so that such a batch is refused.
Labels = Literal["none", "any", "all"]
# Pairs that methods are compared with on ImageNet.
IMAGENET = (("torchvision/resnet34", "torchvision/resnet18"), ("torchvision/resnet50", "mobilenetv1"))


@dataclass(frozen=True)
class Needs:
    """What an instance of a loss reads of each network.

    Args:
        whole_batch: whether it compares samples with each other, so that it is no mean over them: of a run of many
            processes each gets the signals of all.
    """

    student: Wanted = dataclasses.field(default_factory=Wanted)
    teacher: Wanted = dataclasses.field(default_factory=Wanted)
    whole_batch: bool = False


@dataclass(frozen=True)
class Data:
    """What a loss may know of the training data.

    Args:
        num_images: that train, those without labels among them; None where a loss with prepared files is built to be
            looked at, without the training images.
    """

    num_images: int | None
    num_classes: int


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Args:
        authors: family names.
        venue: the conference, or the number of a preprint.
    """

    authors: str
    title: str
    venue: str
    year: int


@dataclass(frozen=True)
class NoOptions:
    """Of a loss without options."""


class Part(nn.Module):
    """What has options on the command line and is told of epochs: a loss, or a transform in front of one.

    Attributes:
        key: what options are called by.
        Options: a frozen dataclass made of `option(...)`.
        paper: where it was published; None for one of one's own.
    """

    key: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    paper: ClassVar[Paper | None] = None

    @classmethod
    def options(cls) -> tuple[dataclasses.Field, ...]:
        """The fields of its options."""
        return dataclasses.fields(cls.Options)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The values of its options where nothing else is said."""
        return dataclasses.asdict(cls.Options())

    @classmethod
    def described(cls) -> dict[str, Option]:
        """Its options by their names on the command line; they steer a training alone."""
        options = options_of(cls.Options, prefix=f"{cls.key}.")
        return {name: dataclasses.replace(said, **STEERS) for name, said in options.items()}

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first step of an epoch, and when a run goes on inside one.

        A pure function of both; what changes are 0-dim buffers, filled in place, so that a recorded step sees it.

        Args:
            epoch: from 1.
            epochs: of the whole run.
        """


class Loss(Part):
    """Base of all losses; a subclass sets the attributes and writes `__init__`, `build` where it needs more, `forward`.

    Attributes:
        key: what options are called by, and the loss in checkpoints; `register_loss` sets it and `method`.
        method: the name in expressions, like "DKD"; None for what is only part of methods.
        kind: what it compares, one of `KINDS`.
        terms: what `forward` returns, and the weight of each. A term that is called like the loss is weighted by the
            option `<key>.weight`, others by `<key>.<term>`.
        ce: weight of the cross-entropy where the method stands alone.
        yields: terms that compare logits as a loss on logits does: in a sum with one that stands in their place, and
            their default weight is 0.
        published: weights and options by (teacher, student), where a pair has its own; "ce" is the cross-entropy's.
        needs_teacher: whether it reads the teacher's signals.
        reads_weights: whether `build` takes numbers out of the teacher's weights, which must be trained by then.
        prepared: names of what jobs make and files hold (`distillation.prepared`); `build` gets each by its name.
        replaces_classifier: whether the student predicts through another classifier than its own.
        takes_mixed: whether it can weigh the two labels of a mixed image, where it reads labels; one that may need
            every label is not asked to.
        labels: what it reads of labels, one of `Labels`; a loss of your own that reads none says "none", and one that
            takes `known_labels` and `mean_of_labelled` says "any".
        label_terms: the terms that read them, of a loss that reads labels; None for all.
        needs: of the instance; set by `__init__`, or by the class where they are always the same.
    """

    method: ClassVar[str | None]
    kind: ClassVar[str] = "features"
    terms: ClassVar[Mapping[str, float]]
    ce: ClassVar[float] = 1.0
    yields: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[tuple[str, str], Mapping[str, Any]]] = {}
    needs_teacher: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False
    prepared: ClassVar[tuple[str, ...]] = ()
    replaces_classifier: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = True
    labels: ClassVar[Labels] = "all"
    label_terms: ClassVar[tuple[str, ...] | None] = None
    needs: Needs

    @classmethod
    def term_name(cls, term: str) -> str:
        """What a term is called among those of a sum: `dkd.nckd`; `kd` where it is called like its loss."""
        return cls.key if term == cls.key else f"{cls.key}.{term}"

    @classmethod
    def weight_option(cls, term: str) -> str:
        """The option that is a term's weight."""
        return f"{cls.key}.{'weight' if term == cls.key else term}"

    @classmethod
    def described(cls) -> dict[str, Option]:
        """Its weights and options by their names on the command line.

        What has a published name is described under that one.
        """
        weights = [
            Option(
                name=cls.weight_option(term),
                default=float(weight),
                types=(float,),
                help=f"weight of the term `{cls.term_name(term)}`",
                at_least=0,
                **STEERS,
            )
            for term, weight in cls.terms.items()
        ]
        found = {said.name: said for said in weights} | super().described()
        published = {name: OPTIONS[PUBLISHED_NAMES[name]] for name in found if name in PUBLISHED_NAMES}
        return found | {name: dataclasses.replace(said, name=name) for name, said in published.items()}

    @classmethod
    def build(cls, student: Network, teacher: Network | None, data: Data, **options: Any) -> "Loss":
        """An instance for two networks, drawn from the random numbers as they are.

        Args:
            student, teacher: their outlines have the channels and grids; what of the teacher is needed is copied.
            options: the fields of `Options`.

        Raises:
            ValueError: the networks do not have or do not fit what the loss needs; names loss and network.
        """
        return cls(**options)

    @classmethod
    def check_networks(cls, student: Network, teacher: Network, **options: Any) -> None:
        """Refuse networks as `build` does; of a loss with prepared files, which may still have to be made.

        Raises:
            ValueError: as `build`.
        """

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """The terms, scalars that are not weighted; 0 that keeps the graph where no sample counts."""
        raise NotImplementedError

    def statistics(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """What one wants to see now and then, on the device; names end in how steps are summed up: /mean or /count."""
        return {}


# --- labels ----------------------------------------------------------------------------------------------------------


def weighs_mixed(loss: Loss | type[Loss]) -> bool:
    """Whether a loss may have mixed images: it reads no labels, or says that it weighs both of an image."""
    return loss.takes_mixed and loss.labels != "all"


def known_labels(batch: Batch) -> Tensor:
    """The labels (B,) of a batch as indices of classes: 0 for an image without one, whose value must not count."""
    return batch.labels if batch.labelled is None else batch.labels.clamp_min(0)


def mean_of_labelled(value_B: Tensor, batch: Batch) -> Tensor:
    """The mean of a value over the images that have a label; 0, with its graph, where none has."""
    if batch.labelled is None:
        return value_B.mean()
    kept_B = torch.where(batch.labelled, value_B, 0.0)  # no product, which is NaN where a value is not finite
    return kept_B.sum() / batch.labelled.sum().clamp_min(1)


# --- precision -------------------------------------------------------------------------------------------------------

_NETWORKS_AUTOCAST: ContextVar[bool] = ContextVar("_NETWORKS_AUTOCAST", default=False)


@contextmanager
def loss_precision(device: torch.device) -> Iterator[None]:
    """The context of losses: autocast is off, and `Connector` knows whether it was on."""
    token = _NETWORKS_AUTOCAST.set(autocast_is_on(device))
    try:
        with no_autocast(device):
            yield
    finally:
        _NETWORKS_AUTOCAST.reset(token)


class Connector(nn.Sequential):
    """Modules of a loss that train, one behind the other; they run in the precision of the networks."""

    def forward(self, features: Tensor) -> Tensor:
        if not _NETWORKS_AUTOCAST.get():
            return super().forward(features)
        kind = features.device.type
        with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind)):
            return super().forward(features)


def warm_up(epoch: int, epochs: int, length: float | None = None, *, published: int = WARM_UP) -> float:
    """min(epoch / length, 1) as the published methods raise their weights.

    Args:
        epoch: those that count; some methods count from 0.
        epochs: of the run.
        length: None for the published one of 240 epochs, scaled to the run's, and for none where that is no longer
            than an epoch, of which a method that counts from 0 would be without its term; 0 for none.
        published: that one.
    """
    if length is None:
        length = published * epochs / WARM_UP_OF
        length = length if length > 1 else 0.0
    return min(epoch / length, 1.0) if length else 1.0


class WarmUp(Part):
    """What is raised over the first epochs: it multiplies terms by `factor`, and has the option `warmup`.

    Attributes:
        first_epoch: the number of a run's first epoch where the method was published; in epoch 0 the factor is 0.
        factor: 0-dim; 1 before a run begins.

    Args:
        warmup: the length of `warm_up`.
        others: for what stands behind this among the bases.
    """

    first_epoch: ClassVar[int] = 1
    factor: Tensor

    def __init__(self, *others: Any, warmup: float | None):
        super().__init__(*others)
        self.warmup = warmup
        self.register_buffer("factor", torch.ones(()))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.factor.fill_(warm_up(epoch - 1 + self.first_epoch, epochs, self.warmup))


def warmup_option(raised: str, default: float | None = None) -> Any:
    """The field `warmup` of the options of a `WarmUp`.

    Args:
        raised: what is, "both terms are raised".
    """
    return option(default, f"epochs over which {raised}; None: {WARM_UP} of {WARM_UP_OF}", at_least=0.0)


# --- losses by name --------------------------------------------------------------------------------------------------

_LOSSES: dict[str, type[Loss]] = {}


def register_loss(name: str, *, is_method: bool = True) -> Callable[[type[Loss]], type[Loss]]:
    """Class decorator: a loss of this name, and a method that is this loss beside the cross-entropy.

    Args:
        is_method: False for a loss that is only part of methods.

    Raises:
        ValueError: the name is taken, up to case, which options do not have.
    """

    def register(cls: type[Loss]) -> type[Loss]:
        cls.key, cls.method = name.lower(), name if is_method else None
        if cls.key in _LOSSES:
            raise ValueError(f"a loss {name!r} is registered already; choose another name")
        _LOSSES[cls.key] = cls
        return cls

    return register


def find_loss(key: str) -> type[Loss]:
    """The loss whose options are called `key`."""
    return _LOSSES[key]


def list_losses() -> list[str]:
    """Keys of all losses in canonical order, which is the order of summation."""
    return sorted(_LOSSES, key=lambda key: (ORDER.index(key) if key in ORDER else len(ORDER), key))


# Ours: the losses of the paper, then those on logits, without a teacher, on features. Others follow by name.
ORDER = (
    "ce", "words", "decisions", "kd", "dkd", "nkd", "dist", "ttm", "wttm", "ls", "tfkd",
    "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "ofd", "reviewkd", "itrd", "cat-kd", "srrl", "kdpp",
    "ab", "ft", "fsp",
)  # fmt: skip
