"""What each loss makes of images without labels: it learns from all, or from those that have one as if alone."""

import dataclasses
from types import MappingProxyType

import pytest
import torch
from device_tools import OnMeta
from loss_tools import DATA, FILES, batch, changed, network, signals, tensors_of
from torch import nn

from distillation.losses import LogitLoss, Loss, find_loss, find_transform, list_losses, list_transforms
from distillation.losses.base import loss_precision, register_loss
from distillation.losses.decisions import Decisions
from distillation.losses.logits import Transform
from distillation.losses.words import Words
from distillation.objective import Objective
from distillation.signals import Signals
from letkd import Codebook, SubclassTargets, TemplateScores, kl_to_scores

LABELS = torch.tensor([3, -1, 4, 1, -1, 9, 2, -1])
LABELLED = LABELS >= 0
PREPARED = ("words", "decisions")  # are built from files; they have tests of their own
FREE = [key for key in list_losses() if key not in PREPARED]
OF_NO_LABELS = [key for key in FREE if find_loss(key).labels == "none"]
OF_LABELS = [key for key in FREE if find_loss(key).labels == "any"]


def drawn(key: str) -> tuple[Loss, Signals, Signals]:
    """A loss that is past its first epochs, and what its networks return."""
    torch.manual_seed(0)
    cls = find_loss(key)
    student = network("student", num_features=64 if key == "kdpp" else 32)  # of one width KD++ has no dropout
    teacher = network("teacher", (8, 16, 32) if key == "fsp" else (16, 32, 64), num_features=64)
    options = {field.name: field.default for field in cls.options()}
    loss = cls.build(student, teacher, DATA, **options, **{name: FILES[name](teacher) for name in cls.prepared})
    loss.on_epoch(30, 240)
    return loss, signals(student, loss.needs.student, grad=True), signals(teacher, loss.needs.teacher)


def part(found: Signals) -> Signals:
    """The signals of the labelled images."""
    return changed(found, lambda tensor: tensor[LABELLED])


def in_batch(labels: torch.Tensor = LABELS) -> object:
    return batch(labels, labelled=labels >= 0)


def test_every_loss_says_what_it_reads():
    assert {find_loss(key).labels for key in list_losses()} == {"none", "any"}
    assert [key for key in list_losses() if find_loss(key).labels == "any"] == [
        "ce", "decisions", "dkd", "nkd", "ls", "tfkd", "kdpp",
    ]  # fmt: skip
    assert Loss.labels == "all", "a loss that says nothing"
    for key in FREE:
        cls = find_loss(key)
        if issubclass(cls, LogitLoss):
            assert (cls.labels == "none") == (not cls.reads_labels)


@pytest.mark.parametrize("key", OF_NO_LABELS)
def test_what_reads_no_labels_learns_from_all_images(key):
    loss, student, teacher = drawn(key)
    loss.eval()
    known = loss(student, teacher, batch(torch.arange(8)))
    unknown = loss(student, teacher, in_batch())
    assert all(torch.equal(known[name], unknown[name]) for name in loss.terms)
    none = loss(student, teacher, in_batch(torch.full((8,), -1)))
    assert all(torch.equal(known[name], none[name]) for name in loss.terms)


@pytest.mark.parametrize("key", OF_LABELS)
def test_what_reads_labels_is_the_mean_over_the_images_that_have_one(key):
    loss, student, teacher = drawn(key)
    found, alone = student, part(student)
    terms = loss(found, teacher, in_batch())
    expected = loss(alone, part(teacher), batch(LABELS[LABELLED]))
    if key == "kdpp":  # whose divergence reads none
        whole = loss(found, teacher, batch(torch.arange(8)))
        torch.testing.assert_close(terms["kd"], whole["kd"], rtol=0, atol=0)
        del terms["kd"], expected["kd"]
    torch.testing.assert_close(terms, expected)
    sum(terms.values()).backward()
    sum(expected.values()).backward()
    for whole, some in zip(tensors_of(found), tensors_of(alone), strict=True):
        if whole.grad is None:  # kdpp's logits
            continue
        torch.testing.assert_close(whole.grad[LABELLED], some.grad)
        assert not whole.grad[~LABELLED].any()


@pytest.mark.parametrize("key", OF_LABELS)
def test_of_a_batch_without_labels_it_is_zero_and_keeps_the_graph(key):
    loss, student, teacher = drawn(key)
    terms = loss(student, teacher, in_batch(torch.full((8,), -1)))
    terms.pop("kd", None)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(not tensor.grad.any() for tensor in tensors_of(student) if tensor.grad is not None)


@pytest.mark.parametrize("key", [key for key in OF_LABELS if key != "kdpp"])
def test_what_is_not_finite_in_an_image_without_a_label_does_not_count(key):
    loss, student, teacher = drawn(key)
    expected = loss(student, teacher, in_batch())
    spoilt = changed(student, lambda tensor: tensor.masked_fill(~LABELLED[:, None], float("inf")))
    torch.testing.assert_close(loss(spoilt, teacher, in_batch()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("key", FREE)
def test_all_labelled_is_the_batch_without_a_word_of_it_but_for_rounding(key):
    loss, student, teacher = drawn(key)
    loss.eval()
    labels = LABELS.clamp_min(0)
    torch.testing.assert_close(loss(student, teacher, in_batch(labels)), loss(student, teacher, batch(labels)))


@pytest.mark.parametrize("key", FREE)
def test_no_number_of_labels_is_read_back(key):
    loss, _, _ = drawn(key)
    loss.to("meta")
    student, teacher = network("student", num_features=64 if key == "kdpp" else 32), network("teacher", num_features=64)
    if key not in ("fsp",):
        teacher = network("teacher", (16, 32, 64), num_features=64)
    with torch.device("meta"):
        seen, taught = signals(student, loss.needs.student, grad=True), signals(teacher, loss.needs.teacher)
        given = batch(torch.zeros(8, dtype=torch.int64), labelled=torch.zeros(8, dtype=torch.bool))
    with OnMeta(), loss_precision(torch.device("meta")):
        sum(loss(seen, taught, given).values()).backward()


@pytest.mark.parametrize("transform", list_transforms())
def test_behind_a_transform_labels_count_where_it_reads_them(transform):
    loss, student, teacher = drawn("kd")
    cls = find_transform(transform)
    one, other = network("student"), network("teacher", (16, 32, 64), num_features=64)
    front: Transform = cls.build(one, other, DATA, **cls.defaults())
    loss = loss.behind({transform: front})
    student, teacher = signals(one, loss.needs.student), signals(other, loss.needs.teacher)
    terms = loss(student, teacher, in_batch())
    if cls.reads_labels:
        expected = loss(part(student), part(teacher), batch(LABELS[LABELLED]))
    else:
        expected = loss(student, teacher, batch(torch.arange(8)))
    torch.testing.assert_close(terms, expected)


# --- letKD -----------------------------------------------------------------------------------------------------------


def subclasses() -> SubclassTargets:
    torch.manual_seed(0)
    return SubclassTargets(
        torch.randn(16, 4), torch.randn(16), torch.randn(20, 4), torch.rand(20, 20).softmax(dim=1), num_subclasses=2
    )


@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp_min(0), torch.full((8,), -1)])
def test_decisions_are_those_of_the_labelled_images(labels):
    loss, labelled = Decisions(subclasses(), place="intermediate", pooling=1), labels >= 0
    maps, scores = torch.randn(8, 16, 3, 3), torch.randn(8 * 9, 20, requires_grad=True)
    teacher = Signals(maps={"intermediate": maps})
    term = loss(Signals(inner={"intermediate": scores}), teacher, in_batch(labels))["decisions"]
    (3 * term).backward()
    some = scores.detach().view(8, 9, 20)[labelled].flatten(0, 1).requires_grad_()
    only = Signals(maps={"intermediate": maps[labelled]})
    expected = loss(Signals(inner={"intermediate": some}), only, batch(labels[labelled]))["decisions"]
    (3 * expected).backward()
    torch.testing.assert_close(term, expected)
    gradient = scores.grad.view(8, 9, 20)
    torch.testing.assert_close(gradient[labelled].flatten(0, 1), some.grad)
    assert not gradient[~labelled].any()


def test_words_are_of_all_images():
    loss = Words(Codebook(torch.randn(6, 16)), place="penultimate", pooling=1, predictor=TemplateScores(8, 6))
    student, teacher = (
        Signals(maps={"penultimate": torch.randn(8, 8, 3, 3)}),
        Signals(maps={"penultimate": torch.randn(8, 16, 3, 3)}),
    )
    assert Words.labels == "none"
    assert torch.equal(loss(student, teacher, in_batch())["words"], loss(student, teacher, batch(LABELS))["words"])


def test_weights_of_patches_sum_their_divergences():
    """Weights of 1 / P are the mean; the gradient is that of the sum, also where it is multiplied."""
    torch.manual_seed(0)
    scores, weights = torch.randn(12, 5, dtype=torch.float64, requires_grad=True), torch.rand(12, dtype=torch.float64)

    @dataclasses.dataclass
    class Given:
        targets: torch.Tensor

        def rows(self, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
            target = self.targets[chunk]
            return target, (target * target.log()).sum(dim=1)

    given = Given(torch.rand(12, 5, dtype=torch.float64).softmax(dim=1))
    divergence = (given.targets * (given.targets.log() - scores.log_softmax(dim=1))).sum(dim=1)
    torch.testing.assert_close(kl_to_scores(scores, given, weights), weights @ divergence)
    torch.testing.assert_close(kl_to_scores(scores, given, torch.full((12,), 1 / 12)), kl_to_scores(scores, given))
    (expected,) = torch.autograd.grad(2 * (weights @ divergence), scores, retain_graph=True)
    (found,) = torch.autograd.grad(2 * kl_to_scores(scores, given, weights), scores)
    torch.testing.assert_close(found, expected)


# --- the sum ---------------------------------------------------------------------------------------------------------


def objective(*losses: str) -> Objective:
    """A linear student of these losses, none of which reads a teacher."""
    from architectures import Input, Outline
    from distillation.signals import Network

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    outline = Outline(
        network="linear", image_size=2, num_classes=10, num_features=12, head="1", stages=(), places={}, befores={}
    )
    made = {key: find_loss(key).build(None, None, DATA) for key in losses}
    weights = {loss.term_name(term): 1.0 for loss in made.values() for term in loss.terms}
    return Objective(Network(backbone, outline), Input((0.5,) * 3, (0.25,) * 3), made, weights)


def pixels(labels: torch.Tensor, **known: torch.Tensor) -> object:
    images = torch.randint(256, (len(labels), 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return batch(labels, **known)._replace(images=images)


def test_a_loss_that_says_nothing_of_labels_is_refused_beside_images_without(monkeypatch):
    monkeypatch.setattr("distillation.losses.base._LOSSES", dict(find_loss.__globals__["_LOSSES"]))

    @register_loss("silent")
    class Silent(Loss):
        kind = "teacher-free"
        terms = MappingProxyType({"silent": 1.0})
        needs_teacher = False
        needs = find_loss("ce")().needs

        def forward(self, student, teacher, batch):
            return {"silent": student.logits.square().mean()}

    step = objective("ce", "silent")(pixels(LABELS.clamp_min(0)))
    assert step.loss > 0
    with pytest.raises(ValueError, match=r"^silent needs a label of every image; leave out those without$"):
        objective("ce", "silent")(pixels(LABELS, labelled=LABELLED))


def test_images_without_labels_are_not_mixed():
    mixed = pixels(LABELS, labelled=LABELLED, other_labels=LABELS, share=torch.rand(8))
    with pytest.raises(ValueError, match=r"^images without labels are not mixed with others; do not mix any, or leave"):
        objective("ce")(mixed)
