"""The learning rate of every step: closed-form values, warm-up, and what groups of parameters have of it."""

import math

import pytest
import torch

from config.options import Protocol
from engine.schedule import (
    changes_every_step,
    check_warm_up,
    learning_rate,
    num_warm_up_steps,
    set_learning_rate,
)

STEPS, EPOCHS = 4, 5
TOTAL = STEPS * EPOCHS


def rates(**options) -> list[float]:
    """Those of all steps of a run with a learning rate of 1."""
    protocol = Protocol(learning_rate=1.0, epochs=EPOCHS, **options)
    places = ((epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(1, STEPS + 1))
    return [learning_rate(protocol, epoch, step, STEPS) for epoch, step in places]


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(1, 0.05), (150, 0.05), (151, 5e-3), (180, 5e-3), (181, 5e-4), (210, 5e-4), (211, 5e-5), (240, 5e-5)],
)
@pytest.mark.parametrize("step", [1, 781])
def test_the_learning_rate_follows_the_paper(epoch, rate, step):
    assert learning_rate(Protocol(), epoch, step, 781) == pytest.approx(rate, rel=1e-12)


def test_a_cosine_falls_from_the_rate_to_the_final_one():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / TOTAL)) / 2 for step in range(TOTAL)]
    assert rates(schedule="cosine", final_learning_rate=0.1) == pytest.approx(expected)
    assert expected[0] == 1 and expected[TOTAL // 2] == pytest.approx(0.55)


def test_a_line_falls_by_as_much_in_every_step():
    assert rates(schedule="linear") == pytest.approx([1 - step / TOTAL for step in range(TOTAL)])


def test_a_constant_rate_knows_no_milestones():
    assert rates(schedule="constant", milestones=[1]) == [1.0] * TOTAL


@pytest.mark.parametrize("warm_up", [{"warmup": 1.5}, {"warmup_steps": 6}], ids=["epochs", "steps"])
@pytest.mark.parametrize("schedule", ["step", "cosine", "linear", "constant"])
def test_a_warm_up_rises_to_the_rate_and_the_rest_of_the_run_falls_from_it(schedule, warm_up):
    found = rates(schedule=schedule, milestones=[4], **warm_up)
    assert found[:6] == pytest.approx([(step + 1) / 6 for step in range(6)])
    assert found[5] == found[6] == 1  # the last of the warm-up, and the first behind it
    falls = {
        "step": [1.0] * 10 + [0.1] * 4,  # milestones are epochs of the run
        "cosine": [(1 + math.cos(math.pi * step / 14)) / 2 for step in range(14)],
        "linear": [1 - step / 14 for step in range(14)],
        "constant": [1.0] * 14,
    }
    assert found[6:] == pytest.approx(falls[schedule])


def test_parts_of_an_epoch_are_whole_steps():
    assert num_warm_up_steps(Protocol(warmup=0.3), 10) == 3
    assert num_warm_up_steps(Protocol(warmup=0.01), 10) == 0


@pytest.mark.parametrize(
    ("warm_up", "said"),
    [({"warmup_steps": 20}, "warmup_steps=20"), ({"warmup": 4.9}, "warmup=4.9"), ({"warmup": 5.0}, "warmup=5")],
)
def test_a_warm_up_as_long_as_the_run_is_refused(warm_up, said):
    with pytest.raises(ValueError, match=rf"^{said} leaves nothing of a training of 20 steps, 5 epochs of 4$"):
        check_warm_up(Protocol(epochs=EPOCHS, **warm_up), STEPS)
    check_warm_up(Protocol(epochs=EPOCHS, warmup_steps=19), STEPS)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False),
        ({"schedule": "constant"}, False),
        ({"schedule": "cosine"}, True),
        ({"schedule": "linear"}, True),
        ({"warmup": 1.0}, True),
        ({"schedule": "constant", "warmup_steps": 3}, True),
    ],
    ids=str,
)
def test_which_rates_are_others_in_every_step(options, changes):
    assert changes_every_step(Protocol(**options)) == changes


def test_every_group_has_its_share_of_a_rate_and_a_tensor_stays_where_it_is():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "rate_factor": 1.0}, {"params": [parameters[1]], "rate_factor": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    tensor = optimizer.param_groups[1]["lr"] = torch.tensor(1.0)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[1]["lr"] is tensor and tensor.item() == pytest.approx(0.05)
