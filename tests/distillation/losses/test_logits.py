"""Losses on logits: constants, extreme logits, and what stands in front of them; tests/golden has reference values."""

import math

import pytest
import torch
from loss_tools import DATA, batch, constants, network, signals
from torch import Tensor

from architectures import list_models
from distillation.losses import LogitLoss, Loss, find_loss, find_transform, list_losses, list_transforms
from distillation.losses.base import Part
from distillation.losses.ctkd import DECAY, LOWEST, RANGE
from distillation.losses.dist import correlation
from distillation.losses.lskd import standardised
from distillation.losses.sdd import FINEST, region_logits, windows
from distillation.signals import Head, Signals, Wanted

ON_LOGITS = [key for key in list_losses() if issubclass(find_loss(key), LogitLoss)]


def build(expression: str, num_classes: int = 10, grid: tuple[int, int] = (4, 4), **options) -> Loss:
    """A loss with default options but for those that are given, for outlines of one stage, behind transforms."""
    *transforms, key = expression.split(":")
    one, other = (network(name, (6,), (grid,), num_classes=num_classes, num_features=6) for name in ("one", "other"))
    cls = find_loss(key)
    loss = cls.build(one, other, DATA, **cls.defaults() | options)
    found = {name: find_transform(name) for name in transforms}
    return loss.behind({name: cls.build(one, other, DATA, **cls.defaults()) for name, cls in found.items()})


def expressions() -> list[str]:
    """Every loss on logits alone, behind every transform that it takes, and behind all of these."""
    found = []
    for key in ON_LOGITS:
        cls = find_loss(key)
        kinds = [
            name
            for name in list_transforms()
            if set(find_transform(name).replaces) <= set(cls.defaults())
            and (cls.per_sample or not find_transform(name).weighs_rows)
        ]
        found += [key, *(f"{name}:{key}" for name in kinds), ":".join([*kinds, key])]
    return list(dict.fromkeys(found))


# --- what is published ------------------------------------------------------------------------------------------------


def test_constants_are_the_published_ones():
    nkd, dist, ttm, wttm = (find_loss(key) for key in ("nkd", "dist", "ttm", "wttm"))
    assert constants("nkd") == {
        "temperature_cifar100": nkd.Options().temperature,
        "gamma_cifar100": nkd.terms["non_target"],
    }
    weight = dist.terms["inter"]
    assert weight == dist.terms["intra"]
    assert constants("dist") == {
        "tau": dist.Options().temperature, "beta": 1, "gamma": 1, "kd_loss_weight": weight, "weight_ce": dist.ce,
    }  # fmt: skip
    for cls in (ttm, wttm):
        assert constants(cls.key) == {"example_gamma": cls.Options().gamma, "example_beta": cls.terms[cls.key]}


def test_constants_of_transforms_are_the_published_ones():
    lskd = find_transform("lskd").published
    assert constants("lskd") == {
        "base_temperature": lskd["KD"][None]["temperature"],
        "kd_weight": lskd["KD"][None]["kd"],
        "weight_ce": find_loss("kd").ce,
    }
    assert lskd["DKD"]["resnet56", "resnet20"] == {"temperature": 3.0, "tckd": 18.0, "nckd": 36.0}
    found = constants("ctkd")
    assert (found["t_start"], found["t_end"], found["decay_loops"]) == (LOWEST, RANGE, DECAY)
    assert build("ctkd:kd").transforms["ctkd"].temperature.item() == pytest.approx(15.6, abs=0.05)


@pytest.mark.parametrize("name", list_transforms())
def test_what_is_published_of_a_transform_is_a_term_or_an_option(name):
    cls = find_transform(name)
    for option in cls.described().values():
        option.check(option.default)
    for expression, pairs in cls.published.items():
        loss = find_loss(expression.split(":")[-1].lower())
        assert not set(loss.defaults()) & set(cls.defaults())
        known = {"ce", *loss.terms, *loss.defaults(), *cls.defaults()}
        assert all(set(values) <= known for values in pairs.values())
        assert all(set(pair) <= set(list_models()) for pair in pairs if pair is not None)


# --- what cannot be in float32 ----------------------------------------------------------------------------------------


def extremes(size: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Rows of both networks: equal logits, one class that dominates, both signs, certain of the same and of others."""
    torch.manual_seed(0)
    one = torch.eye(num_classes)
    rows = [torch.zeros(num_classes), one[0], -one[0], one[1], one[-1] - one[0], torch.ones(num_classes)]
    rows += list(torch.randn(4, num_classes)) + list(torch.randn(2, num_classes).sign())
    pairs = [(size * a, size * b) for a in rows for b in rows]
    return tuple(torch.stack(side) for side in zip(*pairs, strict=True))


def seen(logits_BN: Tensor) -> Signals:
    """Signals whose map has these logits as channels, for a classifier that passes them."""
    num_classes = logits_BN.shape[1]
    maps = logits_BN[:, :, None, None] * torch.linspace(0.5, 1.5, 16).view(1, 1, 4, 4)
    return Signals(logits=logits_BN, maps={"penultimate": maps}, head=Head(torch.eye(num_classes), None))


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("expression", expressions())
def test_finite_for_all_finite_logits(expression, size, num_classes):
    student, teacher = extremes(size, num_classes)
    student.requires_grad_()
    loss = build(expression, num_classes)
    for part in loss.modules():
        if isinstance(part, Part):
            part.on_epoch(30, 240)
    terms = loss(seen(student), seen(teacher), batch(torch.arange(len(student)) % num_classes))
    sum(terms.values()).backward()
    assert list(terms) == list(loss.terms)
    assert all(term.isfinite() for term in terms.values())
    assert all(tensor.grad.isfinite().all() for tensor in (student, *loss.parameters()))


@pytest.mark.parametrize("expression", expressions())
def test_gradients_are_moderate_where_logits_are_equal(expression):
    """As those of a classifier that starts from zero; of the order of those elsewhere."""
    torch.manual_seed(0)
    largest, teacher = [], seen(torch.randn(8, 10))
    usual, equal = torch.randn(8, 10), torch.randn(1, 10).expand(8, 10)
    for logits in (usual, torch.zeros(8, 10), torch.full((8, 10), 0.3), equal):
        student = logits.clone().requires_grad_()
        terms = build(expression)(seen(student), teacher, batch(torch.arange(8)))
        sum(terms.values()).backward()
        largest.append(student.grad.abs().max().item())
    assert max(largest) <= 100 * largest[0]


# --- DIST -------------------------------------------------------------------------------------------------------------


def test_correlation_is_pearsons():
    torch.manual_seed(0)
    one, other = torch.rand(2, 5, 7)

    def found(*pair):
        means = [each.mean(dim=1) for each in pair]
        return correlation(*(each - mean[:, None] for each, mean in zip(pair, means, strict=True)), *means, dim=1)

    expected = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(one, other, strict=True)]
    torch.testing.assert_close(found(one, other), torch.stack(expected))
    assert found(torch.ones(1, 7), other[:1]) == found(one[:1], torch.full((1, 7), 0.5)) == 0


def test_of_one_sample_the_correlation_between_samples_is_a_constant():
    student = torch.randn(1, 10, requires_grad=True)
    terms = build("dist")(Signals(logits=student), Signals(logits=torch.randn(1, 10)), batch(torch.tensor([3])))
    assert terms["intra"] == 16
    terms["intra"].backward()
    assert not student.grad.any()
    assert build("dist").needs.whole_batch


def test_correlations_are_the_same_of_mixed_images():
    torch.manual_seed(0)
    labels = torch.tensor([3, 1, 4, 1])
    student, teacher = (Signals(logits=torch.randn(4, 10)) for _ in range(2))
    mixed = build("dist")(student, teacher, batch(labels, other_labels=labels.flip(0), share=torch.rand(4)))
    torch.testing.assert_close(mixed, build("dist")(student, teacher, batch(labels)))


# --- transforms -------------------------------------------------------------------------------------------------------


def test_standardised_logits_have_no_scale():
    torch.manual_seed(0)
    logits = torch.randn(5, 7)
    found = standardised(logits)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.var(dim=1), torch.ones(5))
    torch.testing.assert_close(standardised(30 * logits + 4), found, rtol=1e-4, atol=1e-5)
    assert torch.equal(standardised(torch.full((1, 4), 2.5)), torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 2.5, -1000.0])
def test_where_logits_are_equal_standardising_passes_their_gradient(value, dtype):
    logits = torch.full((2, 10), value, dtype=dtype, requires_grad=True)
    standardised(logits)[0, 3].backward()
    assert not standardised(logits).any() and 0.5 <= logits.grad.abs().max() <= 1


@pytest.mark.parametrize(
    ("epoch", "epochs", "expected"),
    [(1, 240, -0.0245), (5, 240, -0.5), (10, 240, -1.0), (200, 240, -1.0), (1, 24, -1.0), (1, 48, -0.5)],
)
def test_the_temperature_climbs_where_the_student_descends(epoch, epochs, expected):
    torch.manual_seed(0)
    loss = build("ctkd:kd")
    transform = loss.transforms["ctkd"]
    before = transform.reversal
    transform.on_epoch(epoch, epochs)
    assert transform.reversal is before and before.item() == pytest.approx(expected, abs=1e-4)
    raw = transform.raw.detach().clone().requires_grad_()
    logits = [Signals(logits=torch.randn(8, 10)) for _ in range(2)]
    given = batch(torch.zeros(8, dtype=torch.int64))
    loss(*logits, given)["kd"].backward()
    fixed = build("kd", temperature=LOWEST + RANGE * torch.sigmoid(raw))
    fixed(*logits, given)["kd"].backward()
    torch.testing.assert_close(transform.raw.grad, before * raw.grad)
    statistics = loss.statistics(*logits, given)
    assert statistics == {"kd.temperature/mean": LOWEST + RANGE * torch.sigmoid(raw)}


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 2), (7, 7), (6, 9)])
@pytest.mark.parametrize("grids", [[2, 4], [4, 2], [2], [], [8]])
def test_regions_are_averages_of_the_finest_grid(grid, grids):
    torch.manual_seed(0)
    features = torch.randn(3, 5, *grid)
    head = Head(torch.randn(6, 5), torch.randn(6))
    found = region_logits(features, head, windows(grid, grids))
    cells = torch.nn.functional.adaptive_avg_pool2d(features, max([FINEST, *grids]))
    expected = [
        head(torch.nn.functional.adaptive_avg_pool2d(cells, side)[:, :, row, column])
        for side in (1, *sorted(grids))
        for row in range(side)
        for column in range(side)
    ]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))
    if all(side % FINEST == 0 for side in grid):
        torch.testing.assert_close(found[:, 0], head(features.mean(dim=(2, 3))))


def test_regions_where_the_teacher_is_right_otherwise_weigh_two():
    """Against a loop over samples and regions, with KD."""
    torch.manual_seed(0)
    loss = build("sdd:kd", num_classes=3)
    net = network("net", (6,), ((4, 4),), num_classes=3, num_features=6)
    one, other = (signals(net, loss.needs.student) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    table = windows((4, 4), [2, 4])
    regions = [region_logits(each.maps["penultimate"], each.head, table) for each in (one, other)]
    plain, total, weights = build("kd", num_classes=3), 0.0, []
    for sample, label in enumerate(labels):
        for region in range(21):
            right = [regions[1][sample, number].argmax() == label for number in (0, region)]
            weights.append(2 if right[0] != right[1] else 1)
            row = [Signals(logits=side[sample, region][None]) for side in regions]
            total += weights[-1] * plain(*row, batch(label[None]))["kd"].item()
    assert set(weights) == {1, 2}
    assert loss(one, other, batch(labels))["kd"].item() == pytest.approx(total / len(weights), rel=1e-4)


def test_mixed_labels_weigh_what_is_made_of_regions():
    torch.manual_seed(0)
    loss = build("sdd:dkd", num_classes=3)
    one, other = (
        signals(network("net", (6,), ((4, 4),), num_classes=3, num_features=6), loss.needs.student) for _ in "12"
    )
    labels, others, share = torch.tensor([0, 1] * 4), torch.tensor([2, 0] * 4), torch.linspace(0, 1, 8)
    mixed = loss(one, other, batch(labels, other_labels=others, share=share))
    first, second = (loss.values(one, other, given) for given in (labels, others))
    for name, value in mixed.items():
        torch.testing.assert_close(value, (share * first[name] + (1 - share) * second[name]).mean())


@pytest.mark.parametrize("expression", expressions())
def test_two_labels_are_compared_twice_where_labels_are_read_alone(expression, monkeypatch):
    """Whether they are is seen in the terms, and what is mixed is the mean of both."""
    torch.manual_seed(0)
    loss = build(expression, num_classes=3)
    net = network("net", (6,), ((4, 4),), num_classes=3, num_features=6)
    wanted = loss.needs.student | Wanted(logits=True)
    given = [signals(net, wanted, batch_size=16) for _ in "12"]
    labels, others = torch.arange(16) % 3, (torch.arange(16) + 1) % 3
    share = torch.linspace(0, 1, 16)
    one, two = (loss.values(*given, each) for each in (labels, others))
    reads = any(not torch.equal(one[name], two[name]) for name in one)
    calls, compare = [], loss.compare
    monkeypatch.setattr(loss, "compare", lambda *args: calls.append(args) or compare(*args))
    assert loss.takes_mixed
    mixed = loss(*given, batch(labels, other_labels=others, share=share))
    assert len(calls) == (2 if reads else 1)
    for name, value in mixed.items():
        torch.testing.assert_close(value, (share * one[name] + (1 - share) * two[name]).mean())


def test_the_weights_of_certain_teachers_are_smallest():
    """w of WTTM lies between 1 and N^(1 - gamma)."""
    loss = build("wttm", gamma=0.5)
    plain = build("ttm", gamma=0.5)
    student = Signals(logits=torch.randn(1, 10))
    for teacher, weight in ((torch.zeros(1, 10), math.sqrt(10)), (1e4 * torch.eye(10)[:1], 1.0)):
        ratio = (each(student, Signals(logits=teacher), batch(torch.tensor([0]))) for each in (loss, plain))
        found, expected = (next(iter(terms.values())).item() for terms in ratio)
        assert found / expected == pytest.approx(weight, rel=1e-4)
