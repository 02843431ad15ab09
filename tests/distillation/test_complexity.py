"""Multiply-adds: closed forms, the formula for every network, attention, and a model that stays as it was."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import create_model, list_models
from architectures.on_meta import ShapesAlone
from distillation.complexity import count_multiply_adds
from letkd import KDLayer, Student

NUM_TEMPLATES = {"penultimate": 64, "intermediate": 20}  # words, and sub-classes
RESNET20 = 40_818_944  # at 32 x 32, 100 classes: 442,368 + 14,155,776 + 2 * (12,976,128 + 131,072) + 6,400


def with_layers(
    name: str, *, alpha: float = 1.0, num_templates: dict[str, int] = NUM_TEMPLATES, num_classes: int = 10
) -> Student:
    """A network with KD layers at its places."""
    network = create_model(name, num_classes=num_classes)
    taps = {place: getattr(network, place) for place in num_templates}
    layers = {place: KDLayer(tap.channels, num_templates[place], alpha) for place, tap in taps.items()}
    return Student(network, layers, {place: tap.path for place, tap in taps.items()})


def test_convolutions_and_linear_layers_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), groups=4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 3, 5),
    )
    first, second, last = (8 * 6 * 6) * (3 * 9), (8 * 4 * 6) * (2 * 3), (8 * 2 * 3) * 5
    total = first + second + last
    assert count_multiply_adds(network, 12) == {"multiply_adds": total, "multiply_adds_without_kd_layers": total}


def test_resnet20_by_hand():
    assert count_multiply_adds(create_model("resnet20", num_classes=100), 32)["multiply_adds"] == RESNET20


@pytest.mark.parametrize(("alpha", "num_products"), [(1.0, 2), (0.5, 2), (0.0, 0)])
def test_a_kd_layer_costs_its_cosine_products(alpha, num_products):
    alone = count_multiply_adds(create_model("resnet8", num_classes=10), 16)["multiply_adds"]
    counted = count_multiply_adds(with_layers("resnet8", alpha=alpha), 16)
    grid, channels = 4 * 4, 64
    assert counted == {
        "multiply_adds": alone + num_products * (64 + 20) * channels * grid,
        "multiply_adds_without_kd_layers": alone,
    }


def formula(student: Student, image_size: int) -> dict[str, int]:
    """The sums of convolutions, linear layers and KD layers from the shapes that pass them."""
    totals: Counter[str] = Counter()

    def add_product(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        totals["backbone"] += output.numel() * module.weight[0].numel()

    def add_kd_layer(layer: KDLayer, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]) -> None:
        totals["layers"] += 2 * inputs[0][:, 0].numel() * layer.scores.templates.numel()

    for module in student.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add_product)
        elif isinstance(module, KDLayer):
            module.register_forward_hook(add_kd_layer)
    with torch.no_grad(), ShapesAlone():
        student.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    return {"multiply_adds": totals.total(), "multiply_adds_without_kd_layers": totals["backbone"]}


ONE_A_FAMILY = (
    "resnet8", "resnet18", "wrn_16_1", "mobilenetv1", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vgg8",
    "torchvision/resnet18",
)  # fmt: skip
DEEPER = [pytest.param(name, marks=pytest.mark.slow) for name in list_models() if name not in ONE_A_FAMILY]


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, *DEEPER])
def test_every_network_has_the_count_of_the_formula(name):
    with torch.device("meta"), ShapesAlone():
        student = with_layers(name)
    image_size = 224 if name.startswith("torchvision/") else 32
    assert count_multiply_adds(student, image_size) == formula(student, image_size)


def test_the_students_of_the_paper():
    """ResNet-20 with 4096 words, and with 800 sub-classes before them."""
    with torch.device("meta"), ShapesAlone():
        words = with_layers("resnet20", num_templates={"penultimate": 4096}, num_classes=100)
        both = with_layers("resnet20", num_templates={"penultimate": 4096, "intermediate": 800}, num_classes=100)
    assert count_multiply_adds(words, 32) == {
        "multiply_adds": 74_373_376,
        "multiply_adds_without_kd_layers": RESNET20,
    }
    assert count_multiply_adds(both, 32) == {"multiply_adds": 80_926_976, "multiply_adds_without_kd_layers": RESNET20}


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels as tokens (B, T, C) for a block."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        return self.block(self.patches(images).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    """Two heads."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.attend = attend
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        batch, length, channels = tokens_BTC.shape
        q, k, v = self.qkv(tokens_BTC).view(batch, length, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v)


CHANNELS, NUM_TOKENS = 8, 9
PATCHES = NUM_TOKENS * CHANNELS * 3 * 16
PROJECTIONS, PRODUCTS = NUM_TOKENS * CHANNELS * 3 * CHANNELS, 2 * NUM_TOKENS**2 * CHANNELS
MIXED, FEED_FORWARD = NUM_TOKENS * CHANNELS**2, 2 * NUM_TOKENS * CHANNELS * 32


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Attention(F.scaled_dot_product_attention), PROJECTIONS + PRODUCTS),
        (Attention(lambda q, k, v: (q @ k.transpose(2, 3)).softmax(dim=3) @ v), PROJECTIONS + PRODUCTS),
        (
            nn.TransformerEncoderLayer(CHANNELS, 2, dim_feedforward=32, batch_first=True),
            PROJECTIONS + PRODUCTS + MIXED + FEED_FORWARD,
        ),
    ],
    ids=["scaled_dot_product_attention", "matmul", "TransformerEncoderLayer"],
)
def test_attention_is_counted(block, expected):
    """Also where torch has a fused operation for a whole layer in evaluation."""
    total = PATCHES + expected
    assert count_multiply_adds(Tokens(block), 12) == {"multiply_adds": total, "multiply_adds_without_kd_layers": total}


def test_the_model_and_the_random_state_stay_as_they_were():
    student = with_layers("resnet8").train()
    student.backbone.layer1.eval()
    state, modes = copy.deepcopy(student.state_dict()), [module.training for module in student.modules()]
    hooks = [len(module._forward_hooks) for module in student.modules()]
    random_state = torch.get_rng_state()
    count_multiply_adds(student, 16)
    torch.testing.assert_close(student.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in student.modules()] == modes
    assert [len(module._forward_hooks) for module in student.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert student(torch.zeros(2, 3, 16, 16)).device.type == "cpu"
