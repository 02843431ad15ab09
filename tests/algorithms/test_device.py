"""Where a step runs must not change what it computes, and on a GPU it must not wait for the host."""

import copy

import pytest
import torch

from algorithms.letkd import LetKD
from algorithms.step import descend
from algorithms.supervision import Teacher
from algorithms.training import Meter, make_optimizer
from architectures import create_model
from dataloaders import load_dataset, make_train_loader
from letkd import Codebook, FrozenTaps, KDLayer, Student, SubclassTargets

PROTOCOL = {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
NUM_WORDS, NUM_SUBCLASSES = 16, 2


@pytest.fixture
def training() -> LetKD:
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
    return LetKD(
        Student(
            backbone,
            {"penultimate": KDLayer(64, NUM_WORDS), "intermediate": KDLayer(64, num_targets)},
            {"penultimate": "layer3", "intermediate": "layer3.0"},
        ),
        Teacher(
            FrozenTaps(teacher, {"penultimate": "layer3", "intermediate": "layer3.0"}),
            {"penultimate": 1, "intermediate": 1},
            "test",
        ),
        Codebook(torch.randn(NUM_WORDS, 64)),
        subclasses,
        {"cls_loss_coef": 1.0, "quest_loss_coef": 1.0, "sub_loss_coef": 1.0},
    ).train()


def test_channels_last_changes_nothing_but_the_layout(training):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    twin = copy.deepcopy(training).to(memory_format=torch.channels_last)
    plain, channels_last = training(images, labels), twin(images.to(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(channels_last.loss, plain.loss, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_the_supervision_in_float32(training):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = training(images, labels)
    plain = training(images, labels)
    assert reduced.logits.dtype == torch.bfloat16
    assert {term.dtype for term in reduced.terms.values()} == {torch.float32}
    for name, term in plain.terms.items():
        assert reduced.terms[name].item() == pytest.approx(term.item(), rel=0.02), name


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(training):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    twin = copy.deepcopy(training).cuda()
    on_cpu, on_gpu = training(images, labels), twin(images.cuda(), labels.cuda())
    for name, term in on_cpu.terms.items():
        assert on_gpu.terms[name].item() == pytest.approx(term.item(), rel=1e-3), name


@pytest.mark.gpu
def test_an_epoch_never_waits_for_the_host(training):
    training.cuda()
    dataset = load_dataset("digits")
    loader = make_train_loader(dataset, batch_size=64, device="cuda", seed=0)
    optimizer = make_optimizer(training, PROTOCOL)
    meter = Meter(torch.device("cuda"))
    batches = iter(loader)
    first = next(batches)  # the epoch's random numbers are copied here
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in [first, *batches]:
            step = training(images, labels)
            descend(optimizer, step.loss)
            meter.add(step, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.means()["loss"] > 0
