"""Where a step runs must not change what it computes, and on a GPU it must not wait for the host."""

import copy
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from objective_tools import batch_of, letkd_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from architectures import Input, create_model
from dataloaders import load_dataset, make_train_loader
from distillation.objective import Objective
from engine.meter import Meter
from engine.numerics import computes_bfloat16
from engine.optimization import make_optimizer
from engine.step import WARM_UP_STEPS, GraphedStep, TrainStep
from letkd import Codebook, KDLayer, Student, SubclassTargets

PROTOCOL = {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
NUM_WORDS, NUM_SUBCLASSES = 16, 2


@pytest.fixture
def training() -> Objective:
    torch.manual_seed(0)
    teacher, backbone = create_model("resnet8", num_classes=10), create_model("resnet8", num_classes=10)
    num_targets = 10 * NUM_SUBCLASSES
    subclasses = SubclassTargets(
        scalings_CL=torch.randn(64, 9) / 8,
        xbar_C=torch.zeros(64),
        centers_ML=torch.randn(num_targets, 9),
        decisions_MM=torch.randn(num_targets, num_targets).softmax(dim=1),
        num_subclasses=NUM_SUBCLASSES,
    )
    student = Student(
        backbone,
        {"penultimate": KDLayer(64, NUM_WORDS), "intermediate": KDLayer(64, num_targets)},
        {"penultimate": "layer3", "intermediate": "layer3.0"},
    )
    return letkd_of(student, teacher, Codebook(torch.randn(NUM_WORDS, 64)), subclasses, image_size=16).train()


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


class Operations(TorchDispatchMode):
    """Counts the operations that wait for the device: reading a value, or a result whose shape depends on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "is_nonzero", "equal")

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Counts what takes a tensor to the host as a whole, which is no operation on a CPU."""

    WAITING = ("tolist", "cpu", "numpy")

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) in self.WAITING:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads():
    counts = Counter()
    with Operations(counts), Methods(counts):
        yield counts


@pytest.mark.parametrize("enabled", [False, True], ids=["fp32", "bf16"])
def test_a_step_reads_nothing_back(training, enabled):
    """But that on a CPU each of the two divergences looks at the factor of its gradient, which is free there."""
    step = TrainStep(
        training,
        make_optimizer(training, PROTOCOL),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled),
    )
    meter = Meter(torch.device("cpu"))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    meter.add(step(batch_of(images, labels)), labels)  # the optimiser makes its buffers
    with host_reads() as reads:
        meter.add(step(batch_of(images, labels)), labels)
    assert reads == {"_local_scalar_dense": 2}
    with host_reads() as reads:
        meter.means()
    assert reads == {"tolist": 1}


def test_computes_bfloat16_is_what_the_processor_says(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert computes_bfloat16(torch.device("cpu")) is there


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
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


@pytest.mark.gpu
@pytest.mark.parametrize("enabled", [False, True], ids=["fp32", "bf16"])
def test_a_recorded_distillation_step_trains_as_a_plain_one(training, gpu, enabled):
    batches = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,))) for _ in range(WARM_UP_STEPS + 5)]
    means, trained = [], []
    for kind in (TrainStep, GraphedStep):
        method = copy.deepcopy(training).to(gpu)
        step = kind(
            method,
            make_optimizer(method, PROTOCOL),
            lambda: torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled),
        )
        meter = Meter(gpu)
        for images, labels in batches:  # nothing is read in between: order must come from the streams alone
            labels = labels.to(gpu)  # noqa: PLW2901
            meter.add(step(batch_of(images.to(gpu), labels)), labels)
        means.append(meter.means())
        trained.append(method.student.state_dict())
    assert means[1] == pytest.approx(means[0], rel=0.02 if enabled else 1e-3)
    for name, tensor in trained[0].items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(trained[1][name], tensor, rtol=0, atol=(0.1 if enabled else 0.01) * scale, msg=name)
