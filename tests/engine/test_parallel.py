"""Training in 2 and 3 processes: what they compute of their parts is what one process computes of the whole batch."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from objective_tools import IMAGE_SIZE, NUM_CLASSES, every_method, objective_of_method
from rank_tools import on_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from config.options import Protocol
from dataloaders import Batch
from dataloaders.augmentation import derive_seed
from distillation.objective import Step
from engine.batch_norm import average_statistics, synchronise_
from engine.optimization import make_optimizer
from engine.parallel import parallel
from engine.parameters import freeze
from engine.step import TrainStep
from letkd.processes import member

CPU = torch.device("cpu")
COUNT = 12
METHODS = ("classification", "KD", "QuEST", "letKD-1", "letKD-2", "RKD")  # the last of the whole batch
OTHERS = [name for name in every_method() if name not in METHODS]


def batch(number: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (COUNT, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(NUM_CLASSES, (COUNT,), generator=generator)
    return Batch(pixels.to(memory_format=torch.channels_last), labels, torch.arange(COUNT))


def part_of(whole: Batch) -> Batch:
    share = member().share(COUNT)
    return Batch(*(value if value is None else value[share.start : share.stop] for value in whole))


def autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def build(
    method: str, dtype: torch.dtype, alpha: float | None = None, accumulate: int = 1
) -> tuple[nn.Module, TrainStep]:
    """An objective and its step, which is that of all processes where there are several."""
    torch.manual_seed(0)
    objective = objective_of_method(method).to(dtype).train()
    objective.on_epoch(30, 240)
    for module in objective.modules():
        if alpha is not None and hasattr(module, "alpha"):
            module.alpha = alpha
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    wrapped: nn.Module = objective
    if member().size > 1:
        synchronise_(objective.student, CPU)
        for loss in objective.losses.values():
            if not loss.needs.whole_batch:
                synchronise_(loss, CPU)
        wrapped = parallel(objective, part_of(batch()), autocast())
    return objective, TrainStep(wrapped, optimizer, autocast, accumulate)


def train(method: str, dtype: torch.dtype, steps: int, alpha: float | None = None) -> dict[str, dict[str, Tensor]]:
    """Gradients behind the first step, and the state behind all of them."""
    objective, step = build(method, dtype, alpha)
    for number in range(steps):
        step(part_of(batch(number)))
        if number == 0:
            found = {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}
            gradients = {name: grad.clone() for name, grad in found.items()}
    return {"gradients": gradients, "state": objective.state_dict()}


def train_all(rank: int, calls: list[tuple[Any, ...]]) -> list[dict[str, dict[str, Tensor]]]:
    return [train(*call) for call in calls]


def agree(number: int, folder: Any, calls: list[tuple[Any, ...]], *, rtol: float, atol: float) -> None:
    """All ranks have the same, bit for bit, and one process the same but for rounding."""
    ranks = [by_name(calls, found) for found in on_ranks(number, train_all, folder, calls)]
    for other in ranks[1:]:
        torch.testing.assert_close(other, ranks[0], rtol=0, atol=0)
    assert_close_to(by_name(calls, train_all(0, calls)), ranks[0], rtol=rtol, atol=atol)


def assert_close_to(alone: dict[str, Tensor], found: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    """The tensors of several processes are those of one. The largest error is printed, for `pytest -s`.

    Args:
        rtol: of the largest number of a tensor: small ones are differences of others.
    """
    assert found.keys() == alone.keys()
    worst = 0.0
    for name, expected in alone.items():
        error, size = (found[name] - expected).abs().max().item(), expected.abs().max().item()
        assert error <= atol + rtol * size, name
        worst = max(worst, error / (1 + size))
    print(f"largest error, in parts of 1 + the largest number of a tensor: {worst:.1e}")


def by_name(calls: list[tuple[Any, ...]], found: list[dict[str, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """All tensors in one dictionary, by names that tell where they are from."""
    return {
        f"{call[0]} {kind} {name}": value
        for call, one in zip(calls, found, strict=True)
        for kind, tensors in one.items()
        for name, value in tensors.items()
    }


LONG = [pytest.param(number, METHODS, marks=pytest.mark.slow) for number in (2, 3)]


@pytest.mark.parametrize(("number", "methods"), [(2, ["letKD-2", "RKD"]), *LONG])
def test_the_first_step_is_that_of_one_process(number, methods, tmp_path):
    """Gradients of all parameters, weights and running statistics."""
    agree(number, tmp_path, [(method, torch.float64, 1) for method in methods], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_the_first_step_of_every_method_is_that_of_one_process(number, tmp_path):
    """Some losses compute in single precision always."""
    agree(number, tmp_path, [(method, torch.float32, 1) for method in OTHERS], rtol=1e-3, atol=1e-5)


def test_a_layer_whose_values_are_not_added_trains_its_scores(tmp_path):
    """What no gradient reaches has none, in one process as in several, and the second step does not wait for it."""
    agree(2, tmp_path, [("letKD-2", torch.float64, 2, 0.0)], rtol=1e-9, atol=1e-12)


def test_two_steps_in_single_precision(tmp_path):
    agree(2, tmp_path, [("letKD-2", torch.float32, 2)], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_fifty_steps_in_double_precision(number, tmp_path):
    agree(number, tmp_path, [(method, torch.float64, 50) for method in ("letKD-2", "RKD")], rtol=1e-9, atol=1e-9)


# --- options of training ---------------------------------------------------------------------------------------------

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.layer1.*")
CLIPPED = Protocol(clip_gradients=0.05, learning_rate=0.1)  # far below the norm of these gradients


def with_options(rank: int, dtype: torch.dtype, is_bf16: bool) -> dict[str, Tensor]:
    """Two steps of clipped gradients with a frozen part, as a training makes them."""
    torch.manual_seed(0)
    objective = objective_of_method("letKD-2").to(dtype).train()
    objective.on_epoch(30, 240)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    if member().size > 1:
        synchronise_(objective.student, CPU)
    norms = freeze(objective, FROZEN)
    optimizer = make_optimizer(objective, CLIPPED)

    def numerics() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=is_bf16)

    wrapped = parallel(objective, part_of(batch()), numerics()) if member().size > 1 else objective
    for norm in norms:
        norm.eval()
    step = TrainStep(wrapped, optimizer, numerics)
    for number in range(2):
        step(part_of(batch(number)))
    norm = torch.stack([each.grad.norm() for each in objective.parameters() if each.grad is not None]).norm()
    stayed = [name for name, value in objective.state_dict().items() if torch.equal(value, before[name])]
    assert any("layer1" in name for name in stayed) and not any("layer2.0.conv" in name for name in stayed)
    return objective.state_dict() | {"norm": norm}


def test_clipped_gradients_and_frozen_parts_are_those_of_one_process(tmp_path):
    """The norm is that of the gradient of the whole batch, and no gradient of a frozen part is waited for."""
    first, second = on_ranks(2, with_options, tmp_path, torch.float64, False)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["norm"].item() == pytest.approx(CLIPPED.clip_gradients)
    assert_close_to(with_options(0, torch.float64, False), first, rtol=1e-9, atol=1e-12)


def test_steps_in_bfloat16_are_near_those_of_one_process(tmp_path):
    first, second = on_ranks(2, with_options, tmp_path, torch.float32, True)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_close_to(with_options(0, torch.float32, True), first, rtol=2e-2, atol=2e-2)


class Dropped(nn.Module):
    """Of a batch of ones, which units stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50))

    def forward(self, batch: Tensor, with_statistics: bool = False) -> Step:
        kept = F.dropout(batch * self.weight, 0.5, training=True)
        return Step(kept.mean(), kept, {}, {})


def dropped(rank: int) -> tuple[Tensor, Tensor]:
    """Which units stay in a process, and the gradient behind the mean of all."""
    torch.manual_seed(derive_seed(0, 1, member().rank))  # as a training begins an epoch
    objective = Dropped()
    wrapped = parallel(objective, torch.ones(6, 50), autocast())
    step = TrainStep(wrapped, torch.optim.SGD(objective.parameters(), lr=1.0), autocast)
    kept = step(torch.ones(6, 50)).logits
    return kept, objective.weight.grad


def test_dropout_drops_others_in_each_process_and_all_have_the_mean_of_the_gradients(tmp_path):
    """The search for what a step reaches takes no random number: the masks are those of the seeds."""
    (first, gradient), (second, same) = on_ranks(2, dropped, tmp_path)
    assert not torch.equal(first, second) and torch.equal(gradient, same)
    for rank, kept in enumerate((first, second)):
        torch.manual_seed(derive_seed(0, 1, rank))
        assert torch.equal(kept, F.dropout(torch.ones(6, 50), 0.5))
    torch.testing.assert_close(gradient, torch.cat([first, second]).sum(dim=0) / (2 * first.numel()))


# --- batches in parts ------------------------------------------------------------------------------------------------

PARTS = 2


def in_parts(rank: int, method: str) -> dict[str, Tensor]:
    """Gradients of the second of two steps whose batches come in parts, each of as many images of every process.

    Beside them stands how many numbers were sent in both.
    """
    objective, step = build(method, torch.float64, accumulate=PARTS)
    sent = torch.zeros((), dtype=torch.int64)

    def count(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.add_(bucket.buffer().numel())
        return allreduce_hook(group, bucket)

    if member().size > 1:
        step.objective.register_comm_hook(None, count)
    order = torch.arange(COUNT)
    if member().size == 1:  # the first part of both processes, and then their second
        order = order.reshape(2, PARTS, -1).transpose(0, 1).flatten()
    for number in range(2):
        whole = Batch(*(value if value is None else value[order] for value in batch(number)))
        step(part_of(whole))
    gradients = {name: each.grad.clone() for name, each in objective.named_parameters() if each.grad is not None}
    return gradients | {"sent": sent}


@pytest.mark.parametrize("method", ["letKD-2", "RKD"])
def test_the_parts_of_a_batch_have_the_gradients_of_one_process_and_are_sent_once(method, tmp_path):
    first, second = on_ranks(2, in_parts, tmp_path, method)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = in_parts(0, method)
    sent, _ = first.pop("sent"), alone.pop("sent")
    assert sent == 2 * sum(gradient.numel() for gradient in first.values())
    assert_close_to(alone, first, rtol=1e-9, atol=1e-12)


# --- BatchNorm -------------------------------------------------------------------------------------------------------


def own_statistics(rank: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144))
    twin, images = copy.deepcopy(network), torch.randn(4, COUNT, 3, 8, 8)
    share = member().share(COUNT)
    for number, each in enumerate(images):
        network(each[share.start : share.stop])
        twin(each[share.start : share.stop])
        if number == 1:
            average_statistics(twin)
    before = copy.deepcopy(network.state_dict())
    average_statistics(network, twin)
    return [before, network.state_dict(), twin.state_dict()]


def test_running_statistics_of_parts_are_averaged(tmp_path):
    """Before they are evaluated or saved; whenever it is done, the same comes out."""
    (before, after, twin), (other, same, _) = on_ranks(2, own_statistics, tmp_path)
    assert not torch.equal(before["1.running_mean"], other["1.running_mean"])
    for name in before:
        torch.testing.assert_close(after[name].double(), (before[name].double() + other[name].double()) / 2)
    torch.testing.assert_close(after, same, rtol=0, atol=0)
    torch.testing.assert_close(after, twin)


def equal_statistics(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of a BatchNorm that does not move, before and after, beside one that does."""
    torch.manual_seed(0)
    frozen, other = nn.BatchNorm2d(100), nn.BatchNorm2d(100)
    nn.init.normal_(frozen.running_mean)
    nn.init.uniform_(frozen.running_var)
    before = copy.deepcopy(frozen)
    nn.init.constant_(other.running_mean, rank)
    average_statistics(frozen, other)
    assert torch.equal(other.running_mean, torch.ones(100))
    return before.state_dict(), frozen.state_dict()


def test_statistics_that_are_the_same_everywhere_stay_bit_for_bit(tmp_path):
    """A third of the sum of three equal numbers is often another number."""
    for before, after in on_ranks(3, equal_statistics, tmp_path):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_batch_norm_of_a_kind_of_its_own_is_refused():
    class Other(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"^sync_bn=True does not know Other; leave it out$"):
        synchronise_(nn.Sequential(nn.Conv2d(3, 4, 3), Other(4)), CPU)
