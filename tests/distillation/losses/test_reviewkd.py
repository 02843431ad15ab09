"""ReviewKD against a formulation in NumPy; reference values are in tests/golden."""

import numpy as np
import pytest
import torch
from loss_tools import DATA, batch, constants, network, network_of

from distillation.losses.base import WARM_UP, loss_precision
from distillation.losses.reviewkd import ReviewKD
from distillation.signals import Signals


def build(students, teachers, warmup=None):
    """For maps from shallow to deep, the pooled vectors (B, C) last."""
    nets = [network_of(maps, num_features=pooled.shape[1]) for *maps, pooled in (students, teachers)]
    return ReviewKD.build(*nets, DATA, warmup=warmup)


def forward(loss, students, teachers):
    seen = Signals(maps=dict(zip(loss.stages, students[:-1], strict=True)), pooled=students[-1])
    taught = Signals(preact=dict(zip(loss.teacher_stages, teachers[:-1], strict=True)), pooled=teachers[-1])
    return loss(seen, taught, batch(torch.zeros(len(students[0]), dtype=torch.int64)))["reviewkd"]


def test_constants_are_the_published_ones():
    found = constants("reviewkd")
    maps = [torch.zeros(1, 8, 2, 2), torch.zeros(1, 32)]
    channels = build(maps, maps).fusions[0].reduce[0].out_channels
    assert (channels, WARM_UP) == (found["mid_channels"], found["warmup_epochs"])


# --- the definition once more, in NumPy and float64 -------------------------------------------------------------------


def batch_norm(x):
    """In training mode, with weight 1 and bias 0."""
    return (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def convolution(x, weight):
    """3x3 with padding 1, or 1x1."""
    pad = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[2:]
    return sum(
        np.einsum("bchw,oc->bohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )


def nearest(x, grid):
    rows, columns = ([index * own // new for index in range(new)] for own, new in zip(x.shape[2:], grid, strict=True))
    return x[:, :, rows][:, :, :, columns]


def averaged(x, side):
    """Adaptive average pooling to side x side."""

    def window(index, size):
        return slice(index * size // side, -(-(index + 1) * size // side))

    height, width = x.shape[2:]
    cells = [[x[:, :, window(i, height), window(j, width)].mean((2, 3)) for j in range(side)] for i in range(side)]
    return np.moveaxis(np.array(cells), (0, 1), (2, 3))


def reviewed(loss, students, teachers):
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    total, residual = 0.0, None
    for level, (f, g) in enumerate(zip(students[::-1], teachers[::-1], strict=True)):
        x = batch_norm(convolution(f, state[f"fusions.{level}.reduce.0.weight"]))
        if level:
            y = nearest(residual, x.shape[2:])
            gates = convolution(np.concatenate([x, y], 1), state[f"fusions.{level}.gate.0.weight"])
            gates = 1 / (1 + np.exp(-gates - state[f"fusions.{level}.gate.0.bias"][:, None, None]))
            x = gates[:, :1] * x + gates[:, 1:] * y
        residual = nearest(x, g.shape[2:])
        output = batch_norm(convolution(residual, state[f"fusions.{level}.expand.0.weight"]))
        errors = [((output - g) ** 2).mean()]
        errors += [((averaged(output, s) - averaged(g, s)) ** 2).mean() for s in (4, 2, 1) if s < g.shape[2]]
        weights = [1, 1 / 2, 1 / 4, 1 / 8][: len(errors)]
        total += np.dot(weights, errors) / sum(weights)
    return total


@pytest.mark.parametrize(
    "grids",
    [
        {"student": [(8, 8), (4, 4), (2, 2)], "teacher": [(8, 8), (4, 4), (2, 2)]},
        {"student": [(4, 4), (2, 2)], "teacher": [(8, 8), (4, 4)]},
        {"student": [(14, 14), (7, 7)], "teacher": [(7, 7), (5, 5)]},
        {"student": [(6, 9), (3, 5)], "teacher": [(6, 9), (3, 5)]},
    ],
    ids=["equal", "teacher_larger", "no_multiples", "not_square"],
)
def test_levels_from_the_deepest_up(grids):
    torch.manual_seed(0)
    students = [torch.randn(4, 3 + n, *grid) for n, grid in enumerate(grids["student"])] + [torch.randn(4, 6)]
    teachers = [torch.randn(4, 5 + n, *grid) for n, grid in enumerate(grids["teacher"])] + [torch.randn(4, 9)]
    loss = build(students, teachers)
    arrays = [
        [*(each.double().numpy() for each in maps), pooled.double().numpy()[:, :, None, None]]
        for *maps, pooled in (students, teachers)
    ]
    assert forward(loss, students, teachers).item() == pytest.approx(reviewed(loss, *arrays), rel=1e-5)


def test_at_most_512_channels_between_the_convolutions():
    wide = network("wide", (8,), ((4, 4),), num_features=640)
    loss = ReviewKD.build(wide, network("teacher", (8,), ((4, 4),)), DATA, warmup=None)
    assert [fusion.reduce[0].out_channels for fusion in loss.fusions] == [512, 512]
    bound = (3 / (9 * 512)) ** 0.5  # kaiming uniform with a = 1: sqrt(3 / fan_in)
    assert 0.99 * bound < loss.fusions[1].expand[0].weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("warmup", "epoch", "epochs", "factor"),
    [
        (None, 1, 240, 0.0),
        (None, 2, 240, 0.05),
        (None, 2, 24, 0.5),
        (None, 1, 13, 0.0),
        (None, 1, 12, 1.0),
        (None, 1, 1, 1.0),
        (4.0, 2, 240, 0.25),
        (0.0, 1, 240, 1.0),
    ],
)
def test_warm_up_starts_from_nothing(warmup, epoch, epochs, factor):
    net = network()
    loss = ReviewKD.build(net, net, DATA, warmup=warmup)
    before = loss.factor
    loss.on_epoch(epoch, epochs)
    assert loss.factor is before and before.item() == pytest.approx(factor)


def test_pooled_vectors_in_float32_meet_maps_in_bfloat16():
    """As they come under autocast: the objective widens logits and pooled vectors, and no maps."""
    students, teachers = ([torch.randn(4, 8, 4, 4).bfloat16(), torch.randn(4, 8)] for _ in range(2))
    loss = build(students, teachers)
    with torch.autocast("cpu", dtype=torch.bfloat16), loss_precision(torch.device("cpu")):
        term = forward(loss, students, teachers)
    assert term.dtype == torch.float32
    term.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
