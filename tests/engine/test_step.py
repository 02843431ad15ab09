"""A recorded step trains as a plain one does; without a GPU, what decides when to record and when to replay."""

import copy

import pytest
import torch
from device_tools import Replaying
from objective_tools import batch_of
from torch import nn

from dataloaders import Batch
from distillation.objective import Step
from engine.step import WARM_UP_STEPS, GraphedStep, TrainStep

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
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
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
