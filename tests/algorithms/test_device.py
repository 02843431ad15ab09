"""Where a step runs must not change what it computes, and on a GPU it must not wait for the host."""

import copy
import functools

import pytest
import torch
from device_tools import Replaying, host_reads, never_waiting
from objective_tools import (
    IMAGE_SIZE,
    batch_of,
    drawn_codebook,
    drawn_subclasses,
    every_method,
    letkd_of,
    objective_of_method,
)

from architectures import Input, create_model
from config.options import Protocol
from dataloaders import Batch, load_dataset, make_train_loader
from distillation.losses import Loss
from distillation.losses.base import Needs
from distillation.objective import Objective
from engine.meter import Meter
from engine.numerics import computes_bfloat16
from engine.optimization import make_optimizer
from engine.step import WARM_UP_STEPS, GraphedStep, TrainStep
from letkd import KDLayer, Student

PROTOCOL = Protocol()


@pytest.fixture
def training() -> Objective:
    torch.manual_seed(0)
    teacher, backbone = create_model("resnet8", num_classes=10), create_model("resnet8", num_classes=10)
    codebook, subclasses = drawn_codebook(), drawn_subclasses()
    student = Student(
        backbone,
        {"penultimate": KDLayer(64, codebook.num_words), "intermediate": KDLayer(64, subclasses.num_targets)},
        {"penultimate": "layer3", "intermediate": "layer3.0"},
    )
    return letkd_of(student, teacher, codebook, subclasses, image_size=16).train()


def test_channels_last_changes_nothing_but_the_layout(training):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    twin = copy.deepcopy(training).to(memory_format=torch.channels_last)
    plain, channels_last = (
        training(batch_of(images, labels)),
        twin(batch_of(images.to(memory_format=torch.channels_last), labels)),
    )
    torch.testing.assert_close(channels_last.loss, plain.loss, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_the_supervision_in_float32(training):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = training(batch_of(images, labels))
    plain = training(batch_of(images, labels))
    assert reduced.logits.dtype == torch.float32  # as losses read them
    assert {term.dtype for term in reduced.terms.values()} == {torch.float32}
    for name, term in plain.terms.items():
        assert reduced.terms[name].item() == pytest.approx(term.item(), rel=0.02), name


class IndexSum(Loss):
    """A whole number that the batch alone tells, as a term that weighs nothing."""

    terms = {"index": 0.0}  # noqa: RUF012
    key, method, needs_teacher = "index", None, False

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs()

    def forward(self, student, teacher, batch):
        return {"index": batch.index.sum()}


@functools.lru_cache(maxsize=1)
def with_index(method: str) -> Objective:
    """The objective of a method and, last, what its steps saw of the batch; to be copied."""
    torch.manual_seed(0)
    objective = objective_of_method(method).train()
    objective.losses["index"] = IndexSum()
    objective.weights |= IndexSum.terms
    objective.on_epoch(1, 4)
    return objective


def batches_on(device: str, number: int) -> list[Batch]:
    """Batches of 8 images, each of others of a split."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for first in range(0, 8 * number, 8):
        pixels = torch.randint(256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        batch = Batch(pixels.permute(0, 3, 1, 2), labels, torch.arange(first, first + 8))
        found.append(Batch(*(value if value is None else value.to(device) for value in batch)))
    return found


def step_of(kind: type[TrainStep], objective: Objective, device: str, *, bfloat16: bool) -> TrainStep:
    def autocast() -> torch.autocast:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16)

    return kind(objective, make_optimizer(objective, PROTOCOL), autocast)


BOTH = pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16"])


@BOTH
@pytest.mark.parametrize("method", every_method())
@pytest.mark.parametrize(
    ("kind", "device"), [(Replaying, "cpu"), pytest.param(GraphedStep, "cuda", marks=pytest.mark.gpu)]
)
def test_a_recorded_step_trains_as_a_plain_one_and_neither_reads_anything_back(kind, device, method, bfloat16):
    """On a CPU bit for bit; nothing is read in between, so that on a GPU order must come from the streams alone.

    But that on a CPU each divergence of scores looks at the factor of its gradient, which is free there.
    """
    objective = with_index(method)
    before = WARM_UP_STEPS + 1  # the optimiser makes its buffers, and a graph is recorded
    batches = batches_on(device, before + 2)
    divergences = len({"words", "decisions"} & set(objective.losses))
    means, trained = [], []
    for each in (TrainStep, kind):
        own = copy.deepcopy(objective).to(device, memory_format=torch.channels_last)
        step, meter = step_of(each, own, device, bfloat16=bfloat16), Meter(torch.device(device))
        for batch in batches[:before]:
            meter.add(step(batch), batch.labels)
        with never_waiting(device, free=2 * divergences):
            for batch in batches[before:]:
                meter.add(step(batch), batch.labels)
        if device == "cpu":
            with host_reads() as reads:
                meter.means()
            assert reads == {"tolist": 1}
        means.append(meter.means())
        trained.append(own.student.state_dict() | own.losses.state_dict())
    differ, tolerance = (0.0, 0.0) if device == "cpu" else (0.02, 0.1) if bfloat16 else (1e-3, 0.01)
    assert means[1] == pytest.approx(means[0], rel=differ, abs=0)
    assert means[0]["index"] == sum(batch.index.sum().item() for batch in batches) / len(batches)
    for name, tensor in trained[0].items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(trained[1][name], tensor, rtol=0, atol=tolerance * scale, msg=name)


def test_computes_bfloat16_is_what_the_processor_says(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert computes_bfloat16(torch.device("cpu")) is there


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(training, gpu):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    twin = copy.deepcopy(training).to(gpu)
    on_cpu, on_gpu = training(batch_of(images, labels)), twin(batch_of(images.to(gpu), labels.to(gpu)))
    for name, term in on_cpu.terms.items():
        assert on_gpu.terms[name].item() == pytest.approx(term.item(), rel=1e-3), name
    on_cpu.loss.backward()
    on_gpu.loss.backward()
    for (name, parameter), twins in zip(training.named_parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(twins.grad.cpu(), parameter.grad, rtol=0, atol=0.01 * scale, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TrainStep, GraphedStep])
@pytest.mark.parametrize("enabled", [False, True], ids=["fp32", "bf16"])
def test_an_epoch_never_waits_for_the_host(training, gpu, kind, enabled):
    """But a graph while it is recorded, once for each learning rate."""
    training.to(gpu)
    dataset = load_dataset("digits")
    training.input = Input(dataset.mean, dataset.std).to(gpu)
    batches = iter(make_train_loader(dataset, batch_size=64, device="cuda", seed=0))
    step = kind(
        training,
        make_optimizer(training, PROTOCOL),
        lambda: torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled),
    )
    meter = Meter(gpu)
    for _ in range(WARM_UP_STEPS + 1):  # the epoch's random numbers are copied here, and a graph is recorded
        batch = next(batches)
        meter.add(step(batch), batch.labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            meter.add(step(batch), batch.labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.means()["loss"] > 0
