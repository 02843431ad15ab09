"""All that may run on a GPU, once with every tensor on `meta`: nothing stays on the CPU, and nothing is read back.

A device is not needed for it: `OnMeta` raises where tensors of two devices meet, and `meta` has no values to read. What
reads by design, or has no kernel on `meta`, is listed here with its reason, and an entry that is not needed fails.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from device_tools import Exempt, OnMeta
from objective_tools import IMAGE_SIZE, NUM_CLASSES, every_method, objective_of_method
from torch import Tensor, nn

from architectures import Input, create_model
from config.options import EMA, Protocol
from dataloaders import Batch
from distillation.losses import LogitLoss, Loss, Transform
from distillation.losses.base import Part
from engine.accuracy import evaluate
from engine.average import Average
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.step import TrainStep
from letkd import LDA, KMeans, decision_matrix, fit_subclasses

META = torch.device("meta")
PROTOCOL = Protocol()
NUM_PATCHES, CHANNELS, NUM_SUBCLASSES = 60, 8, 2

DEPENDS = "the size of the result depends on values"


# --- what stands for a value that `meta` does not have ---------------------------------------------------------------


def in_turn(*values: Any) -> Callable[[Tensor], Any]:
    """These, one a call, and from the start again."""
    endless = itertools.cycle(values)
    return lambda x: next(endless)


def counted(index_P: Tensor, weights: None, minlength: int) -> Tensor:
    return torch.empty(minlength, dtype=torch.int64, device=META)


def none_found(x: Tensor) -> Tensor:
    return torch.empty(0, x.ndim, dtype=torch.int64, device=META)


def unique(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return x, none_found(x), none_found(x)


def on_the_cpu(x: Tensor, **kwargs: object) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype)


def alike(counts_RN: Tensor, **kwargs: object) -> Tensor:
    return torch.full(counts_RN.shape, NUM_PATCHES // counts_RN.numel())


# --- what is exempt --------------------------------------------------------------------------------------------------

EPOCH = [Exempt("engine.meter.means", "_to_copy", "an epoch's means are read once, at its end", on_the_cpu)]
LOOKS = [Exempt("engine.meter.look", "_to_copy", "what is looked at is read, every disp_step steps", on_the_cpu)]
WORDS_SEEN = [Exempt("letkd.codebook.statistics", "bincount", "every disp_step steps; no kernel: " + DEPENDS, counted)]
EVALUATION = [Exempt("engine.accuracy.evaluate", "_to_copy", "the counts are read once, at the end", on_the_cpu)]
KMEANS = [
    Exempt("letkd.kmeans.fit", "_to_copy", "the first centroids are drawn on the CPU, the same for every device"),
    Exempt("letkd.kmeans._finite_squared_norms", "_local_scalar_dense", "inf and nan are refused", lambda x: True),
    Exempt("letkd.kmeans._check_different", "unique_dim", "equal patches are refused; no kernel: " + DEPENDS, unique),
    Exempt("letkd.kmeans.__call__", "_local_scalar_dense", "every iteration tells its objective", lambda x: 1.0),
    Exempt("letkd.kmeans.update", "bincount", "no kernel: " + DEPENDS, counted),
    Exempt("letkd.kmeans.update", "nonzero", "which clusters are empty: they are filled", none_found),
    Exempt("letkd.kmeans._follow", "nonzero", "which patches changed: only these are summed", none_found),
]
LDA_FIT = [
    Exempt("letkd.lda.fit", "_local_scalar_dense", "how many classes there are", lambda x: NUM_CLASSES - 1),
    Exempt("letkd.lda._add", "bincount", "no kernel: " + DEPENDS, counted),
    Exempt(
        "letkd.lda.solve",
        "_local_scalar_dense",
        "features, classes and directions are checked",
        in_turn(True, False, False, NUM_CLASSES - 1),
    ),
    Exempt("letkd.lda._whitening", "index", "directions that do not vary are dropped", lambda x, index: x),
]
SUBCLASSES = [
    Exempt("letkd.decisions.fit_subclasses", "bincount", "no kernel: " + DEPENDS, counted),
    Exempt("letkd.decisions.fit_subclasses", "_to_copy", "how many patches the classes have", alike),
]
DECISIONS = [
    Exempt(
        "letkd.decisions.decision_matrix",
        "_local_scalar_dense",
        "members and features are checked",
        in_turn(False, False, True),
    ),
    Exempt("letkd.decisions.decision_matrix", "bincount", "no kernel: " + DEPENDS, counted),
]


@contextmanager
def on_meta(exempt: list[Exempt]) -> Iterator[None]:
    """The context in which only what is listed reads or stays behind, and all that is listed does."""
    with OnMeta(exempt) as mode:
        yield
    unused = set(mode.exempt) - mode.used
    assert not unused, f"not needed any more, take it off the list: {unused}"


def batch_on_meta(size: int = 8, *, mixed: bool = False) -> Batch:
    pixels = torch.empty(size, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8, device=META).permute(0, 3, 1, 2)
    labels = torch.empty(size, dtype=torch.int64, device=META)
    return Batch(pixels, labels, labels, *((labels, torch.empty(size, device=META)) if mixed else ()))


@pytest.mark.parametrize("method", every_method())
def test_a_step_of_every_method(method):
    objective = objective_of_method(method).train().to(META, memory_format=torch.channels_last)
    step = TrainStep(objective, make_optimizer(objective, PROTOCOL), nullcontext)
    silent = {cls.statistics for cls in (Loss, LogitLoss, Transform)}
    shown = {type(part) for part in objective.losses.modules() if isinstance(part, Part)}
    shown = {part.key for part in shown if part.statistics not in silent}
    mixes = all(loss.takes_mixed for loss in objective.losses.values())
    with on_meta(EPOCH + (LOOKS if shown else []) + (WORDS_SEEN if "words" in shown else [])):
        meter = Meter(META)
        objective.on_epoch(1, 4)
        for batch in (batch_on_meta(), batch_on_meta(mixed=mixes)):  # the first makes the optimiser's buffers
            result = step(batch, with_statistics=True)
            meter.add(result, batch.labels)
        meter.look(result.statistics)
        meter.means()
    assert bool(result.statistics) == bool(shown)
    tensors = [*objective.parameters(), *objective.buffers(), *result.terms.values()]
    assert {tensor.device for tensor in tensors} == {META}
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["KD+SRRL", "sdd:DKD+ReviewKD"])  # every kind of signal of a teacher
def test_a_step_that_the_average_of_the_student_teaches(method):
    objective = objective_of_method(method, EMA).train().to(META, memory_format=torch.channels_last)
    average = Average(objective.teacher.network.module, objective.student, 0.999)
    step = TrainStep(objective, make_optimizer(objective, PROTOCOL), nullcontext)
    with on_meta([]):
        for number in (1, 2):
            step(batch_on_meta())
            average.update(number)
    assert {tensor.device for tensor in average.module.state_dict().values()} == {META}


def test_evaluation():
    model = nn.Sequential(Input((0.5,) * 3, (0.5,) * 3), create_model("resnet8", num_classes=NUM_CLASSES)).to(META)
    with on_meta(EVALUATION):
        found = evaluate(model, [batch_on_meta(), batch_on_meta(4)], autocast=nullcontext())
    assert found["top1"] == 0


@pytest.mark.parametrize("num_clusters", [4, 16], ids=["few", "many"])
def test_kmeans(num_clusters):
    features_PC = torch.empty(NUM_PATCHES, CHANNELS, device=META)
    with on_meta(KMEANS):
        kmeans = KMeans(num_clusters, max_iter=2).fit(features_PC)
        index_P = kmeans.predict(features_PC)
    assert kmeans.cluster_centers_.shape == (num_clusters, CHANNELS) and kmeans.labels_.shape == index_P.shape
    assert kmeans.cluster_centers_.is_meta and kmeans.labels_.is_meta and index_P.is_meta


def test_lda():
    features_PC = torch.empty(NUM_PATCHES, CHANNELS, device=META)
    with on_meta(LDA_FIT):
        lda = LDA().fit(features_PC, torch.empty(NUM_PATCHES, dtype=torch.int64, device=META))
        projected_PL = lda.transform(features_PC)
    assert lda.xbar_.is_meta and lda.scalings_.is_meta and projected_PL.is_meta


def test_subclasses():
    projected_PL = torch.empty(NUM_PATCHES, CHANNELS, device=META)
    labels_P = torch.empty(NUM_PATCHES, dtype=torch.int64, device=META)
    with on_meta(SUBCLASSES + KMEANS):
        centers_ML, members_P = fit_subclasses(projected_PL, labels_P, num_classes=3, num_subclasses=NUM_SUBCLASSES)
    assert centers_ML.is_meta and members_P.is_meta
    assert centers_ML.shape == (3 * NUM_SUBCLASSES, CHANNELS) and members_P.shape == (NUM_PATCHES,)


def test_decision_scores():
    projected_PL = torch.empty(NUM_PATCHES, CHANNELS, device=META)
    members_P = torch.empty(NUM_PATCHES, dtype=torch.int64, device=META)
    with on_meta(DECISIONS):
        prototypes_ML, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=20)
    assert prototypes_ML.is_meta and decisions_MM.is_meta and decisions_MM.shape == (20, 20)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x @ torch.zeros(4, 4),
        lambda x: x + torch.zeros(()),
        lambda x: x + torch.zeros(4).to(META),
        lambda x: x.sum().item(),
        lambda x: x.sum() > 0 or None,
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x[0]),
    ],
    ids=["product", "sum", "copy", "item", "truth", "list", "mask", "fill"],
)
def test_what_would_be_wrong_is_noticed(wrong):
    with pytest.raises(AssertionError, match=" in a test: "), OnMeta():
        wrong(torch.empty(4, 4, device=META))


def test_an_exemption_that_is_not_needed_is_noticed():
    with pytest.raises(AssertionError, match=r"take it off the list: .*engine\.meter\.means"), on_meta(EPOCH):
        torch.empty(4, device=META).sum()
