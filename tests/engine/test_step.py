"""A recorded step trains as a plain one does; without a GPU, what decides when to record and when to replay."""

import copy

import pytest
import torch
from device_tools import Replaying, never_waiting
from objective_tools import IMAGE_SIZE, NUM_CLASSES, batch_of, objective_of_method
from torch import nn

from config.options import Protocol
from dataloaders import Batch
from distillation.objective import Step
from engine.optimization import make_optimizer
from engine.schedule import set_learning_rate
from engine.step import WARM_UP_STEPS, GraphedStep, TrainStep, join_steps, split_batch

NUM_STEPS = WARM_UP_STEPS + 6
NEW_RATE_AT, STATISTICS_AT = WARM_UP_STEPS + 2, WARM_UP_STEPS + 4


class TinyObjective(nn.Module):
    """A convolution, BatchNorm and a linear layer with a cross-entropy, and a term that reads the index."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        )

    def forward(self, batch: Batch, *, with_statistics: bool = False) -> Step:
        logits = self.model(batch.images)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        terms = {"ce": loss.detach(), "index": batch.index.sum()}
        return Step(loss, logits, terms, {"logit/mean": logits.mean()} if with_statistics else {})


def train(kind: type[TrainStep], objective: TinyObjective, device: str) -> tuple[list[float], TinyObjective, TrainStep]:
    """Losses of a few steps, one of them at a new learning rate and one with statistics."""
    objective = copy.deepcopy(objective).to(device)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    step = kind(objective, optimizer, lambda: torch.autocast(device, enabled=False))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for number in range(NUM_STEPS):
        if number == NEW_RATE_AT:
            optimizer.param_groups[0]["lr"] = 0.01
        images = torch.randn(8, 3, 6, 6, generator=generator).to(device)
        labels = torch.randint(5, (8,), generator=generator).to(device)
        batch = batch_of(images, labels)._replace(index=torch.arange(number, number + 8, device=device))
        result = step(batch, with_statistics=number == STATISTICS_AT)
        assert result.terms["index"].item() == 28 + 8 * number
        assert not result.loss.requires_grad
        assert bool(result.statistics) == (number == STATISTICS_AT)
        losses.append(result.loss.item())
    return losses, objective, step


@pytest.mark.parametrize(
    ("kind", "device"), [(Replaying, "cpu"), pytest.param(GraphedStep, "cuda", marks=pytest.mark.gpu)]
)
def test_recorded_steps_train_as_plain_ones(kind, device):
    torch.manual_seed(0)
    objective = TinyObjective()
    losses, trained, _ = train(TrainStep, objective, device)
    losses_recorded, trained_recorded, _ = train(kind, objective, device)
    assert losses_recorded == pytest.approx(losses, rel=1e-5)
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(trained_recorded.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_new_learning_rate_is_recorded_anew_and_nothing_else():
    _, _, step = train(Replaying, TinyObjective(), "cpu")
    assert step.num_recorded == 2


def test_another_batch_shape_is_recorded_anew():
    _, _, step = train(Replaying, TinyObjective(), "cpu")
    step(batch_of(torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.long)))
    assert step.num_recorded == 3


def test_a_rate_that_is_a_tensor_may_change_without_another_recording():
    """The steps are those of rates that are numbers."""
    torch.manual_seed(0)
    objective, protocol = TinyObjective(), Protocol(schedule="cosine", clip_gradients=1.0)
    twin = copy.deepcopy(objective)
    recorded = Replaying(objective, make_optimizer(objective, protocol, recorded=True), no_autocast)
    plain = TrainStep(twin, make_optimizer(twin, protocol), no_autocast)
    for number in range(NUM_STEPS):
        images, labels = torch.randn(8, 3, 6, 6), torch.randint(5, (8,))
        for step in (recorded, plain):
            set_learning_rate(step.optimizer, 0.1 / (1 + number))
            step(batch_of(images, labels))
    assert recorded.num_recorded == 1
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(objective.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_recorded_steps_of_a_cosine_train_as_plain_ones(optimizer):
    torch.manual_seed(0)
    protocol = Protocol(optimizer=optimizer, schedule="cosine", clip_gradients=1.0)
    objective = TinyObjective().cuda()
    twin = copy.deepcopy(objective)
    recorded = GraphedStep(objective, make_optimizer(objective, protocol, recorded=True), no_autocast, 2)
    plain = TrainStep(twin, make_optimizer(twin, protocol), no_autocast, 2)
    for number in range(NUM_STEPS):
        batch = batch_of(torch.randn(8, 3, 6, 6).cuda(), torch.randint(5, (8,)).cuda())
        for step in (recorded, plain):
            set_learning_rate(step.optimizer, 0.01 / (1 + number))
            step(batch)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(objective.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


# --- accumulation ----------------------------------------------------------------------------------------------------


def no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("method", ["classification", "KD", "letKD-2"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parts_of_a_batch_take_the_step_of_the_whole(method, optimizer):
    """Where BatchNorm normalises by its own statistics, so that no image plays a part for another one."""
    torch.manual_seed(0)
    whole = objective_of_method(method).eval()
    apart, protocol = copy.deepcopy(whole), Protocol(optimizer=optimizer, learning_rate=1e-3, clip_gradients=1.0)
    pixels = torch.randint(256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    batch = batch_of(pixels, torch.arange(8) % NUM_CLASSES)
    results = [
        TrainStep(each, make_optimizer(each, protocol), no_autocast, number)(batch, with_statistics=True)
        for each, number in ((whole, 1), (apart, 4))
    ]
    for name, parameter in whole.named_parameters():
        other = apart.get_parameter(name)
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(other, parameter, rtol=1e-3, atol=1e-4 if optimizer == "adamw" else 1e-6)
    one, other = results
    torch.testing.assert_close(other.logits, one.logits)
    torch.testing.assert_close(other.loss, one.loss)
    assert list(other.terms) == list(one.terms) and not other.loss.requires_grad
    for name, term in one.terms.items():
        torch.testing.assert_close(other.terms[name], term)
    assert set(other.statistics) == set(one.statistics)
    for name in (name for name in one.statistics if name.endswith("/count")):
        assert torch.equal(other.statistics[name], one.statistics[name])


def test_a_step_with_every_option_reads_nothing_back():
    torch.manual_seed(0)
    objective = objective_of_method("KD").train()
    options = {"schedule": "cosine", "clip_gradients": 1.0, "decay_norms_and_biases": False, "learning_rates": ["fc=2"]}
    optimizer = make_optimizer(objective, Protocol(**options))
    step = TrainStep(objective, optimizer, no_autocast, 2)
    batch = batch_of(torch.zeros(8, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), torch.arange(8))
    step(batch)  # the optimizer makes its buffers
    with never_waiting("cpu"):
        set_learning_rate(optimizer, 0.01)
        step(batch)


def test_parts_are_of_equal_size_and_in_order():
    batch = batch_of(torch.randn(6, 3, 2, 2), torch.arange(6))
    mixed = batch._replace(other_labels=torch.arange(6) + 1, share=torch.rand(6), labelled=torch.arange(6) < 3)
    parts = split_batch(mixed, 3)
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
               for name, value in mixed._asdict().items() if value is not None)  # fmt: skip
    taught = {"logits": torch.rand(6, 4), "maps/stage1": torch.rand(6, 4, 2, 2)}
    parts = split_batch(batch._replace(taught=taught), 2)
    assert all(torch.equal(torch.cat([part.taught[name] for part in parts]), taught[name]) for name in taught)
    assert [part.share for part in split_batch(batch, 2)] == [None, None]


def test_figures_of_parts_are_those_of_the_whole():
    def step(loss: float, count: int) -> Step:
        statistics = {"a/mean": torch.tensor(loss), "b/count": torch.tensor([count, 1])}
        return Step(torch.tensor(loss), torch.full((2, 3), loss), {"ce": torch.tensor(2 * loss)}, statistics)

    joined = join_steps([step(1.0, 3), step(2.0, 4)])
    assert (joined.loss.item(), joined.terms["ce"].item(), joined.statistics["a/mean"].item()) == (1.5, 3.0, 1.5)
    assert joined.statistics["b/count"].tolist() == [7, 2] and joined.logits[:, 0].tolist() == [1, 1, 2, 2]
