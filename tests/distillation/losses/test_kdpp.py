"""KD++ against the definition, sample by sample, and at the points where a length is 0."""

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, batch, network

from config.experiments import load_experiment
from config.options import Options
from distillation.expressions import weights_of
from distillation.losses.kdpp import KDPP
from distillation.signals import Signals

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])


def build(means, channels=None, warmup=0.0, temperature=4.0):
    num_classes, teacher_channels = means.shape
    sides = (
        network(num_classes=num_classes, num_features=width)
        for width in (channels or teacher_channels, teacher_channels)
    )
    return KDPP.build(*sides, DATA, means=means, temperature=temperature, warmup=warmup)


def values(loss, student, teacher, labels=LABELS, **mixed):
    torch.manual_seed(1)
    logits = torch.randn(2, len(student), len(loss.directions))
    seen, taught = (Signals(logits=z, pooled=p) for z, p in zip(logits, (student, teacher), strict=True))
    return loss(seen, taught, batch(labels, **mixed)), logits


def test_norm_and_direction_towards_the_mean_of_the_class():
    torch.manual_seed(0)
    means, student, teacher = torch.randn(3, 5), torch.randn(6, 5), torch.randn(6, 5)
    student[:3] *= 4  # longer than the teacher's
    terms, (z, u) = values(build(means, temperature=2.0), student, teacher)
    expected = 0.0
    for f, g, y in zip(student.double(), teacher.double(), LABELS.tolist(), strict=True):
        c = means[y].double()
        expected += 1 - (f @ c) / (c.norm() * max(f.norm(), g.norm()))
    assert terms["nd"].item() == pytest.approx(expected.item() / 6, rel=1e-5)
    kl = F.kl_div((z / 2).log_softmax(1), (u / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["kd"], 4 * kl)


def test_a_longer_student_turns_and_a_shorter_one_grows():
    """The gradient goes through the length where it is the student's: along the vector there is none."""
    means, teacher = torch.eye(3)[:, :2] + 0.1, torch.ones(2, 2)
    student = torch.tensor([[5.0, 1.0], [0.1, 0.0]], requires_grad=True)
    values(build(means), student, teacher, labels=torch.tensor([1, 0]))[0]["nd"].backward()
    along = (student * student.grad).sum(dim=1)
    assert along[0].abs() < 1e-6 and student.grad[0].any() and along[1] < 0


def test_lengths_of_zero_and_classes_without_images_are_finite():
    torch.manual_seed(0)
    means, student, teacher = torch.randn(3, 5), torch.randn(6, 5), torch.randn(6, 5)
    means[2] = 0  # no training images
    student[0] = 0
    student[1:3], teacher[1:3] = 0, 0
    student.requires_grad_()
    terms, _ = values(build(means), student, teacher)
    terms["nd"].backward()
    assert terms["nd"].isfinite() and student.grad.abs().max() < 10
    assert student.grad[0].any() and not student.grad[LABELS == 2].any()


def test_mixed_images_have_two_classes():
    torch.manual_seed(0)
    loss = build(torch.randn(3, 5))
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    others, share = LABELS.flip(0), torch.linspace(0, 1, 6)
    mixed, _ = values(loss, student, teacher, other_labels=others, share=share)
    one, two = (loss.cosine(student, teacher, labels) for labels in (LABELS, others))
    torch.testing.assert_close(mixed["nd"], 1 - (share * one + (1 - share) * two).mean())


def test_only_students_of_another_width_have_a_connector():
    means = torch.randn(3, 5)
    assert not list(build(means).parameters())
    loss = build(means, channels=4)
    norm, dropout, linear = loss.connector
    assert (norm.num_features, dropout.p, linear.in_features, linear.out_features) == (4, 0.5, 4, 5)
    terms, _ = values(loss, torch.randn(6, 4), torch.randn(6, 5))
    terms["nd"].backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert {name for name in loss.state_dict() if "connector" not in name} == {"factor"}  # the means have their file


@pytest.mark.parametrize(
    ("warmup", "epoch", "epochs", "factor"),
    [
        (None, 1, 240, 0.0),
        (None, 2, 240, 0.05),
        (None, 2, 24, 0.5),
        (None, 1, 13, 0.0),
        (None, 1, 12, 1.0),
        (None, 1, 1, 1.0),
        (4.0, 2, 240, 0.25),
        (0.0, 1, 240, 1.0),
    ],
)
def test_the_warm_up_raises_the_divergence_alone(warmup, epoch, epochs, factor):
    torch.manual_seed(0)
    means, student, teacher = torch.randn(3, 5), torch.randn(6, 5), torch.randn(6, 5)
    loss = build(means, warmup=warmup)
    before = loss.factor
    whole, _ = values(loss, student, teacher)
    loss.on_epoch(epoch, epochs)
    found, _ = values(loss, student, teacher)
    assert loss.factor is before
    torch.testing.assert_close(found, {"kd": factor * whole["kd"], "nd": whole["nd"]})


def test_other_classes_are_refused():
    sides = network("a", num_classes=3), network("b", num_classes=4)
    with pytest.raises(ValueError, match=r"^KDPP compares logits .*: a has 3 classes and b 4; choose"):
        KDPP.build(*sides, DATA, means=torch.randn(4, 32), temperature=4.0, warmup=None)


@pytest.mark.parametrize(
    ("expression", "kd", "nd"),
    [
        ("KDPP", 1.0, 2.0),
        ("letKD-2+KDPP", 1.0, 2.0),
        ("ReviewKD+KDPP", 1.0, 2.0),
        ("KD+KDPP", 0.0, 2.0),
        ("KDPP+DKD", 0.0, 2.0),
        ("lskd:DKD+KDPP", 0.0, 2.0),
        ("DIST+KDPP", 0.0, 2.0),
    ],
)
def test_a_loss_on_logits_stands_in_the_place_of_the_divergence(expression, kd, nd):
    for pair in ("digits.RN14_RN8", "CIFAR100.resnetv1.RN56_RN20"):
        found = weights_of(Options.of(load_experiment(f"{pair}.{expression}")))
        assert (found["kdpp.kd"], found["kdpp.nd"]) == (kd, nd)
    other = load_experiment(f"CIFAR100.resnetv1.RN32x4_RN8x4.{expression}")
    assert weights_of(Options.of(other))["kdpp.kd"] == 3.5 * kd
    changed = load_experiment(f"{pair}.{expression}") | {"kdpp.kd": 0.5}
    assert weights_of(Options.of(changed))["kdpp.kd"] == 0.5
