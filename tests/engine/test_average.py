"""The average of a network's weights: its arithmetic, statistics of its own, and that it waits for no device."""

import copy
from contextlib import nullcontext

import pytest
import torch
from device_tools import Replaying, never_waiting
from objective_tools import IMAGE_SIZE, NUM_CLASSES, objective_of_method
from torch import Tensor, nn

from config.options import EMA, Protocol
from dataloaders import Batch
from engine.average import Average
from engine.optimization import make_optimizer
from engine.step import WARM_UP_STEPS, GraphedStep, TrainStep

DECAY = 0.5


class Network(nn.Module):
    """One of every kind of tensor; the weight stands in it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("constant", torch.full((2,), 0.1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x)))


def trained(num_steps: int) -> tuple[Average, list[dict[str, Tensor]]]:
    """An average over some steps, and the states of the network, before the first step and behind each."""
    torch.manual_seed(0)
    network = Network()
    average = Average(copy.deepcopy(network), network, DECAY)
    states = [copy.deepcopy(network.state_dict())]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        network(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        average.update(step)
        states.append(copy.deepcopy(network.state_dict()))
    return average, states


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (2, 3 / 12), (7, 8 / 17), (8, 0.5), (9, 0.5), (100, 0.5)])
def test_the_decay_of_a_step(step, decay):
    network = nn.Linear(1, 1)
    average = Average(nn.Linear(1, 1), network, DECAY)
    nn.init.ones_(average.module.weight), nn.init.zeros_(network.weight)
    average.update(step)
    assert average.module.weight.item() == pytest.approx(decay)


def test_it_is_the_mean_with_falling_weights_of_all_states():
    """Multiplied out by hand: what was drawn keeps the product of all decays, a later state that of those behind it."""
    average, states = trained(12)
    decays = [1.0, *(min(DECAY, (1 + step) / (10 + step)) for step in range(1, 13))]
    shares = [(1 - decay if step else 1.0) for step, decay in enumerate(decays)]
    weights = [share * torch.tensor(decays[step + 1 :]).prod().item() for step, share in enumerate(shares)]
    assert sum(weights) == pytest.approx(1)
    for name, found in average.module.state_dict().items():
        if found.is_floating_point():
            expected = sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert average.module.norm.num_batches_tracked == 12
    assert torch.equal(average.module.constant, torch.full((2,), 0.1))


def test_statistics_of_batchnorm_are_its_own():
    average, states = trained(12)
    for name in ("norm.running_mean", "norm.running_var"):
        own = average.module.state_dict()[name].clone()
        assert not torch.allclose(own, states[-1][name], rtol=1e-2)
        average.module(torch.randn(8, 4))
        assert torch.equal(average.module.state_dict()[name], own)  # its passes move nothing


def test_without_decay_it_is_the_network():
    network = nn.BatchNorm1d(3)
    average = Average(nn.BatchNorm1d(3), network, 0.0)
    network(torch.randn(5, 3))
    average.update(1)
    assert all(map(torch.equal, average.module.state_dict().values(), network.state_dict().values()))


def test_a_network_without_integers_has_an_average():
    average = Average(nn.Linear(2, 2), nn.Linear(2, 2), DECAY)
    average.update(1)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_it_stays_float32_under_autocast():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    average = Average(copy.deepcopy(network), network, DECAY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert average.module[0](torch.randn(2, 4)).dtype == torch.bfloat16
        network(torch.randn(8, 4))
        average.update(1)
    assert {t.dtype for t in average.module.state_dict().values()} == {torch.float32, torch.int64}


def test_nothing_is_read_back():
    network = Network()
    average = Average(copy.deepcopy(network), network, DECAY)
    with never_waiting("cpu"):
        average.update(1)
        average.update(1000)


# --- as a teacher ----------------------------------------------------------------------------------------------------


def train(kind: type[TrainStep], device: str) -> tuple[list[float], dict[str, Tensor], TrainStep]:
    """Losses of some steps, what the average of the student has become, which teaches it, and what took the steps."""
    torch.manual_seed(0)
    objective = objective_of_method("KD", EMA).train().to(device)
    average = Average(objective.teacher.network.module, objective.student, 0.9)
    step = kind(objective, make_optimizer(objective, Protocol()), nullcontext)
    generator, losses = torch.Generator().manual_seed(1), []
    for number in range(1, WARM_UP_STEPS + 6):
        pixels = torch.randint(256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
        labels = torch.randint(NUM_CLASSES, (8,), generator=generator)
        losses.append(step(Batch(*(each.to(device) for each in (pixels, labels, torch.arange(8))))).terms["kd"].item())
        average.update(number)
    return losses, average.module.state_dict(), step


@pytest.mark.parametrize(
    ("kind", "device"), [(Replaying, "cpu"), pytest.param(GraphedStep, "cuda", marks=pytest.mark.gpu)]
)
def test_a_recorded_step_reads_the_average_of_the_step_before(kind, device):
    losses, average, _ = train(TrainStep, device)
    recorded, other, step = train(kind, device)
    assert step.recorded_for is not None
    assert recorded == pytest.approx(losses, rel=1e-4)
    for name, tensor in average.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_it_starts_as_the_student_and_is_in_eval_mode_always():
    torch.manual_seed(0)
    objective = objective_of_method("KD", EMA)
    torch.manual_seed(0)
    other = objective_of_method("LS", EMA)
    network = objective.teacher.network.module
    objective.train()
    assert not any(part.training for part in network.modules())
    for name, tensor in objective.student.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
        assert torch.equal(other.student.state_dict()[name], tensor)  # nothing else is drawn from the run's numbers
        assert network.state_dict()[name].data_ptr() != tensor.data_ptr()
