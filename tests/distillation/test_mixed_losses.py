"""What every loss does with mixed images: which weigh both labels, which read none, and which are refused."""

import pytest
import torch
from objective_tools import IMAGE_SIZE, NUM_CLASSES, every_method, objective_of_method, small_digits
from torch import Tensor

from architectures import Input
from config.options import Options, Protocol
from dataloaders import Batch, make_train_loader
from dataloaders.mixing import Mix, mixed, with_mixing
from distillation.losses import Loss, find_loss, list_losses, weighs_mixed
from distillation.losses.ce import CrossEntropy
from distillation.mixing import BOTH_LABELS, REFUSED, check_losses, does_with_mixed
from distillation.objective import Objective
from distillation.signals import Signals
from engine.step import TrainStep, descend
from main_classification import default_config

REFUSING = {"letKD-2", "letKD-2+DKD+AT"}  # sub-classes are those of one class
METHODS = [method for method in every_method() if method not in REFUSING]
SHARE = 0.3


def drawn_objective(method: str) -> Objective:
    torch.manual_seed(0)
    objective = objective_of_method(method).train()
    objective.on_epoch(2, 240)
    return objective


def batch_of(labels: Tensor, **others: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels.permute(0, 3, 1, 2), labels, torch.arange(8), **others)


def terms_of(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(2)  # of a dropout
    with torch.no_grad():
        return objective(batch).terms


def reading(objective: Objective) -> set[str]:
    """The losses that depend on labels, as they and what stands in front of them say it."""
    return {
        key
        for key, loss in objective.losses.items()
        if loss.labels != "none" or any(part.reads_labels for part in getattr(loss, "transforms", {}).values())
    }


@pytest.mark.parametrize("method", METHODS)
def test_terms_are_those_of_both_labels_by_their_shares(method):
    """And of the losses that read no labels the same whatever they are."""
    objective = drawn_objective(method)
    labels, others = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), torch.tensor([1, 3, 1, 4, 9, 5, 6, 2])
    one, other = (terms_of(objective, batch_of(each)) for each in (labels, others))
    both = terms_of(objective, batch_of(labels, other_labels=others, share=torch.full((8,), SHARE)))
    changed = {name.partition(".")[0] for name, term in one.items() if not torch.equal(term, other[name])}
    assert changed == reading(objective) - {"ls"}  # the part of a smoothed label that is the same for all classes
    for name, term in both.items():
        torch.testing.assert_close(term, SHARE * one[name] + (1 - SHARE) * other[name], msg=name)


@pytest.mark.parametrize("method", sorted(REFUSING))
def test_decisions_are_of_one_class(method):
    objective = drawn_objective(method)
    labels = torch.arange(8)
    one, other = (terms_of(objective, batch_of(each)) for each in (labels, labels.flip(0)))
    assert not torch.equal(one["decisions"], other["decisions"]) and "decisions" in reading(objective)
    with pytest.raises(ValueError, match="decisions cannot weigh the labels of mixed images"):
        objective(batch_of(labels, other_labels=labels, share=torch.ones(8)))


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_on_mixed_digits(method):
    """Of batches as training mixes them: one of each kind."""
    objective = drawn_objective(method)
    loader = make_train_loader(small_digits(), batch_size=8, device="cpu", seed=0)
    batches = iter(with_mixing(loader, Protocol(mixup=0.4), seed=0))
    plain = next(iter(loader))
    optimizer = torch.optim.SGD((p for p in objective.parameters() if p.requires_grad), lr=1e-4)
    for batch in (next(batches), mixed(plain, Mix("cutmix", 0.5, 0.5, 0.5), blends=True)):
        step = objective(batch)
        assert list(step.terms) == list(objective.weights)
        assert all(term.isfinite() for term in (step.loss, *step.terms.values()))
        descend(optimizer, step.loss)
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_gradient_of_the_cross_entropy_by_hand():
    """(softmax(z) - l e_y - (1 - l) e_y') / B."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, others, share = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 2, 4]), torch.tensor([1.0, 0.7, 0.2, 0.0])
    batch = Batch(torch.zeros(4), labels, labels, others, share)
    CrossEntropy()(Signals(logits=logits), None, batch)["ce"].backward()
    target = torch.zeros(4, 5)
    for row, (label, other, weight) in enumerate(zip(labels, others, share, strict=True)):
        target[row, label] += weight
        target[row, other] += 1 - weight
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(dim=1) - target) / 4)


def test_teacher_and_student_see_the_same_mixture():
    """Each in the normalisation of its own."""
    objective = drawn_objective("KD")
    objective.teacher.input = Input((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    objective.shares_input = False
    seen = []
    for each in (objective.input, objective.teacher.input):
        each.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    objective(mixed(batch_of(torch.arange(8)), Mix("mixup", 0.6), blends=True))
    assert len(seen) == 2 and torch.equal(*seen) and seen[0].dtype == torch.float32


def test_accumulated_parts_are_of_the_same_mixture():
    """Up to BatchNorm, which is in eval mode here, the gradient is that of the whole batch."""
    objective = drawn_objective("DKD").eval()
    batch = mixed(batch_of(torch.arange(8)), Mix("mixup", 0.6), blends=True)
    found = []
    for parts in (1, 4):
        twin = drawn_objective("DKD").eval()
        twin.load_state_dict(objective.state_dict())
        optimizer = torch.optim.SGD(twin.student.parameters(), lr=0.1)
        TrainStep(twin, optimizer, lambda: torch.autocast("cpu", enabled=False), parts)(batch)
        found.append(twin.student.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


class OfLabels(Loss):
    """A loss of one's own that does not say what it reads of labels."""

    needs_teacher = False


def test_a_loss_that_says_nothing_of_labels_has_no_mixed_images():
    assert not weighs_mixed(OfLabels) and does_with_mixed(OfLabels) == REFUSED
    assert all(weighs_mixed(find_loss(key)) for key in list_losses() if key != "decisions")


def test_what_losses_do_is_said_of_each():
    said = {key: does_with_mixed(find_loss(key)) for key in list_losses()}
    assert {key for key, does in said.items() if does == REFUSED} == {"decisions"}
    assert {key for key, does in said.items() if does == BOTH_LABELS} == {"ce", "dkd", "nkd", "ls", "tfkd", "kdpp"}
    assert NUM_CLASSES == 10 and len(said) == 28


@pytest.mark.parametrize("method", ["letKD-2", "letKD-2+DKD"])
@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_what_cannot_be_is_refused_by_name(mixing, method):
    options = Options.of(default_config(f"digits.RN14_RN8.{method}"))
    check_losses(options)
    named = " and ".join(f"{key}={value:g}" for key, value in mixing.items())
    message = (
        f"{method} cannot learn from mixed images: decisions needs one class an image; leave out {named}, or choose "
        "another method"
    )
    with pytest.raises(ValueError, match=f"^{message.replace('+', '[+]')}$"):
        check_losses(options.changed(**mixing))


@pytest.mark.parametrize("method", ["letKD-1", "QuEST", "KD", "LS", "KDPP"])
def test_what_can_be_is_not(method):
    check_losses(Options.of(default_config(f"digits.RN14_RN8.{method}")).changed(mixup=0.2, cutmix=1.0))
