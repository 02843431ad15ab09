"""Sums of methods: which there are, and that a sum teaches whatever of it trains, and nothing else.

In `make test` every method alone, beside letKD-2, and five further pairs; all pairs in `make test-all`.
"""

import itertools

import pytest
import torch
from objective_tools import IMAGE_SIZE, objective_of_method, takes_average

from config.options import EMA
from dataloaders import Batch
from distillation.expressions import list_methods, summands

PAIRS = list(itertools.combinations(list_methods(), 2))
# Losses that train on the teacher's side, that read its classifier, that have files, that know epochs.
FIXED = [("CC", "FT"), ("CAT-KD", "SRRL"), ("OFD", "KDPP"), ("DKD", "ReviewKD"), ("VID", "LS")]
TAUGHT_BY_AVERAGE = ("DKD", "CC", "CAT-KD", "ReviewKD", "FT")  # of every kind; all of them in `make test-all`
# All that may be refused.
BRING_WORDS = {"letKD-1", "letKD-2", "QuEST"}
REPLACE_CLASSIFIER: set[str] = set()  # none is here yet
HARD_LABELS = {"letKD-2"}  # whose sub-classes are those of one class


def is_refused(*methods: str) -> bool:
    """Whether two methods cannot be in one sum."""
    return any(set(methods) <= those for those in (BRING_WORDS, REPLACE_CLASSIFIER))


def batch_of(*, mixed: bool = False) -> Batch:
    pixels = torch.randint(256, (6, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 3, 9])
    return Batch(pixels, labels, torch.arange(6), *((labels.flip(0), torch.rand(6)) if mixed else ()))


def check_two_steps(expression: str, teacher_name: str = "resnet8") -> None:
    torch.manual_seed(0)
    objective = objective_of_method(expression, teacher_name).train()
    teacher = [] if objective.teacher is None else list(objective.teacher.network.module.parameters())
    frozen = [*teacher, *(parameter for parameter in objective.parameters() if not parameter.requires_grad)]
    before = [parameter.clone() for parameter in frozen]
    untaught = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(untaught.values(), lr=1e-4)
    objective.on_epoch(2, 240)
    for _ in range(2):
        optimizer.zero_grad()
        step = objective(batch_of())
        step.loss.backward()
        optimizer.step()
        assert list(step.terms) == list(objective.weights)
        assert all(term.isfinite() for term in (step.loss, *step.terms.values()))
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        untaught = {name: parameter for name, parameter in untaught.items() if not parameter.grad.any()}
    assert list(untaught) == []
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert all(map(torch.equal, frozen, before))


def check_pair(one: str, other: str) -> None:
    if is_refused(one, other):
        with pytest.raises(ValueError, match=f"{one} and {other} both .*leave out one of them$"):
            summands(f"{one}+{other}")
    else:
        check_two_steps(f"{one}+{other}")


@pytest.mark.parametrize("method", list_methods())
def test_a_method_alone(method):
    check_two_steps(method)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=[] if method in TAUGHT_BY_AVERAGE else pytest.mark.slow)
        for method in list_methods()
        if takes_average(method)
    ],
)
def test_a_method_that_the_average_of_the_student_teaches(method):
    check_two_steps(method, EMA)


@pytest.mark.parametrize("method", [method for method in list_methods() if method != "letKD-2"])
def test_beside_letkd(method):
    check_pair(*sorted(("letKD-2", method), key=list_methods().index))


@pytest.mark.parametrize(("one", "other"), FIXED)
def test_pairs(one, other):
    check_two_steps(f"{one}+{other}")


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), [pair for pair in PAIRS if "letKD-2" not in pair and pair not in FIXED])
def test_all_pairs(one, other):
    check_pair(one, other)


@pytest.mark.parametrize("method", list_methods())
def test_mixed_labels_are_refused_by_what_needs_one_class_an_image(method):
    torch.manual_seed(0)
    objective = objective_of_method(method)
    if method in HARD_LABELS:
        with pytest.raises(ValueError, match="cannot weigh the labels of mixed images"):
            objective(batch_of(mixed=True))
    else:
        assert objective(batch_of(mixed=True)).loss.isfinite()
