"""CAT-KD against loops over classes and windows, and with the classifier of a network."""

import math

import pytest
import torch
from loss_tools import DATA, batch, network, outlined

from architectures import Place
from distillation.losses.catkd import CATKD
from distillation.signals import Head, Signals


def side(channels, grid, num_classes=3, name="net"):
    return network(name, [channels], [grid], num_classes=num_classes, num_features=channels)


def value(students, teachers, heads, **options):
    """The term for a map (B, C, h, w) of each, and weights of their classifiers (N, C)."""
    nets = [side(maps.shape[1], tuple(maps.shape[2:])) for maps in (students, teachers)]
    loss = CATKD.build(*nets, DATA, **{"grid": 2, "normalize": False} | options)
    seen, taught = (
        Signals(maps={"penultimate": maps}, head=Head(head, torch.ones(len(head))))
        for maps, head in zip((students, teachers), heads, strict=True)
    )
    return loss(seen, taught, batch(torch.zeros(len(students), dtype=torch.int64)))["cat-kd"]


def activation(sample, weight, grid, normalize):
    """Of one sample and class as a flat list: windows of the map, weighted over channels."""
    _, height, width = sample.shape

    def window(index, size):
        return slice(index * size // grid, -(-(index + 1) * size // grid))

    cells = [sample[:, window(i, height), window(j, width)].mean((1, 2)) for i in range(grid) for j in range(grid)]
    found = [sum(w * x for w, x in zip(weight.tolist(), cell.tolist(), strict=True)) for cell in cells]
    length = math.sqrt(sum(x * x for x in found)) if normalize else 1.0
    return [x / length for x in found]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("grid", "teacher_grid", "r"), [((4, 4), (4, 4), 2), ((4, 4), (8, 8), 2), ((7, 5), (4, 4), 3), ((2, 2), (8, 8), 4)]
)
def test_mean_squared_error_of_class_maps(grid, teacher_grid, r, normalize):
    torch.manual_seed(0)
    students, teachers = torch.randn(2, 5, *grid), torch.randn(2, 4, *teacher_grid)
    heads = torch.randn(3, 5), torch.randn(3, 4)
    total = 0.0
    for one, other in zip(students, teachers, strict=True):
        for n in range(3):
            a, b = (activation(x, w[n], r, normalize) for x, w in zip((one, other), heads, strict=True))
            total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (2 * 3 * r * r)
    assert value(students, teachers, heads, grid=r, normalize=normalize).item() == pytest.approx(total, rel=1e-4)


def test_the_mean_of_a_class_map_is_the_logit_without_its_bias():
    torch.manual_seed(0)
    features, weight = torch.randn(4, 5, 8, 8), torch.randn(3, 5)
    loss = CATKD.build(side(5, (8, 8)), side(5, (8, 8)), DATA, grid=4, normalize=False)
    found = loss.class_maps(Signals(maps={"penultimate": features}, head=Head(weight, torch.ones(3))))
    torch.testing.assert_close(found.mean(dim=2), features.mean((2, 3)) @ weight.T)


def test_the_students_classifier_is_trained_too():
    torch.manual_seed(0)
    weight, frozen = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    value(torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), (weight, frozen)).backward()
    assert weight.grad.any()


@pytest.mark.parametrize("which", [0, 1], ids=["student", "teacher"])
def test_a_map_that_does_not_enter_the_classifier_is_refused(which):
    nets = [side(5, (4, 4)), side(5, (4, 4))]
    places = nets[which].outline.places | {"penultimate": Place("last", 7, (4, 4))}
    nets[which] = outlined(nets[which], network="other", places=places)
    message = (
        r"^CAT-KD needs a map whose mean enters the classifier, which the penultimate map of other is not; choose .*$"
    )
    with pytest.raises(ValueError, match=message):
        CATKD.build(*nets, DATA, grid=2, normalize=True)


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"^CAT-KD compares .*: a has 3 classes and b 4; choose"):
        CATKD.build(side(5, (4, 4), name="a"), side(5, (4, 4), 4, "b"), DATA, grid=2, normalize=True)
