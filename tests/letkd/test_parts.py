"""The offline part with the patches in several processes: the words and decisions of one process that has them all."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rank_tools import on_ranks
from torch import Tensor

from letkd import LDA, KMeans, decision_matrix, decisions, fit_subclasses, kmeans
from letkd import fit as fit_module
from letkd import lda as lda_module
from letkd.fit import fit_maps
from letkd.processes import ALONE, Member, member

NUM_CLASSES, NUM_SUBCLASSES, GRID = 3, 2, 4
NUM_IMAGES = 300
SHARES = {1: (300,), 2: (130, 170), 3: (90, 1, 209)}  # images of every rank
NUM_CLUSTERS = 60
BLOCKS = {"MIN_CLUSTERS": 2, "MIN_PATCHES_A_CLUSTER": 2, "BLOCK_ROWS": 64}  # so that products are left out


def labels(order: str) -> Tensor:
    """Of the images: the classes one after the other, as in folders, or in turn."""
    found = torch.arange(NUM_IMAGES) % NUM_CLASSES
    return found.sort().values if order == "sorted" else found


def patches(order: str) -> tuple[Tensor, Tensor]:
    """(P, C) far from zero in some channels, and classes (P,)."""
    labels_P = labels(order).repeat_interleave(GRID)
    generator = torch.Generator().manual_seed(0)
    centers_NC = 2 * torch.randn(NUM_CLASSES, 6, generator=generator) + torch.tensor([0.0, 0, 0, 0, 10, 40])
    return centers_NC[labels_P] + torch.randn(len(labels_P), 6, generator=generator), labels_P


def with_many_equal() -> Tensor:
    """Behind a ReLU many patches are zero, and some of the first centroids: such clusters are empty."""
    found = patches("in turn")[0][:, :4].relu()
    found[torch.rand(len(found), generator=torch.Generator().manual_seed(1)) < 0.4] = 0
    return found


def part(member: Member, *rows: Tensor) -> tuple[Tensor, ...]:
    """Those of a rank."""
    shares = [GRID * images for images in SHARES[member.size]]
    return tuple(tensor.split(shares)[member.rank] for tensor in rows)


class Images:
    """A source of the patches of a rank's images, in batches of some of them."""

    def __init__(self, member: Member, order: str):
        self.patches, self.labels = part(member, *patches(order))
        self.given = 0

    def num_patches(self, path: str) -> int:
        return len(self.labels)

    def channels(self, path: str) -> int:
        return self.patches.shape[1]

    def batches(self, paths: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        for rows in zip(self.patches.split(7 * GRID), self.labels.split(7 * GRID), strict=True):
            self.given += len(rows[0])
            yield dict.fromkeys(paths, rows)


# --- what a rank fits ------------------------------------------------------------------------------------------------


def fit_words(member: Member, features: Tensor) -> dict[str, Any]:
    found = KMeans(NUM_CLUSTERS, max_iter=12, member=member).fit(*part(member, features))
    names = ("cluster_centers_", "inertias_", "inertia_", "labels_")
    return {name: getattr(found, name) for name in names}


def fit_decisions(member: Member, order: str) -> dict[str, Any]:
    features, classes = part(member, *patches(order))
    lda = LDA(member=member)
    for rows in zip(features.split(50), classes.split(50), strict=True):
        lda.partial_fit(*rows, num_classes=NUM_CLASSES)
    lda.solve()
    projected, done = lda.transform(features), []
    centers, members = fit_subclasses(
        projected, classes, num_classes=NUM_CLASSES, num_subclasses=NUM_SUBCLASSES, member=member,
        on_class=lambda: done.append(None),
    )  # fmt: skip
    assert len(done) == NUM_CLASSES
    prototypes, decisions = decision_matrix(projected, members, num_targets=len(centers), member=member)
    found = {
        "scalings": lda.scalings_,
        "xbar": lda.xbar_,
        "of fit": LDA(member=member).fit(features, classes).scalings_,
    }
    return found | {"centers": centers, "prototypes": prototypes, "decisions": decisions, "labels_": members}


def fit_all_maps(member: Member, **options: Any) -> dict[str, Any]:
    held, source = [], Images(member, "in turn")

    def hold(number: int, columns: int) -> Tensor:
        held.append(number)
        return torch.empty(number, columns)

    fitted = fit_maps(
        source, words={"late": 9}, decisions={"early": NUM_SUBCLASSES}, num_classes=NUM_CLASSES, hold=hold,
        member=member, **options,
    )  # fmt: skip
    found = {f"{path} {name}": value for path, made in fitted.items() for name, value in made.tensors.items()}
    return found | {"patches": fitted["late"].num_patches, "labels_": fitted["late"].kmeans.labels_, "held": held}


def refused(member: Member) -> dict[str, str]:
    """What is said of patches that cannot be fitted, where one rank alone has what is wrong."""
    features, classes = patches("in turn")
    not_finite, copies = features.clone(), features[:4].repeat(len(features) // 4, 1)
    not_finite[-1, 0] = torch.inf
    found = {}
    for name, fit in {
        "many": lambda: KMeans(len(features) + 1, member=member).fit(*part(member, features)),
        "inf": lambda: KMeans(3, member=member).fit(*part(member, not_finite)),
        "equal": lambda: KMeans(3, member=member).fit(*part(member, torch.ones_like(features))),
        "copies": lambda: KMeans(5, max_iter=1, member=member).fit(*part(member, copies)),
        "LDA": lambda: LDA(member=member).fit(*part(member, not_finite, classes)),
        "no class": lambda: LDA(member=member).fit(*part(member, features, classes.clamp_min(1))),
        "few": lambda: fit_subclasses(
            *part(member, features, classes), num_classes=NUM_CLASSES, num_subclasses=900, member=member
        ),
        "decisions": lambda: decision_matrix(
            *part(member, not_finite, classes), num_targets=NUM_CLASSES, member=member
        ),
    }.items():
        with warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always")
            try:
                fit()
            except ValueError as error:
                found[name] = str(error)
            else:
                found[name] = str(noticed[0].message)
    return found


SAMPLES = {"all": {}, "LDA of held ones": {"incremental": False}, "some": {"max_patches": 500}}


def fit_everything(member: Member) -> dict[str, dict[str, Any]]:
    """All in one start: processes take longer to start than to compute this."""
    fit_module.ROWS = lda_module.ROWS = 64
    found = {
        "words": fit_words(member, patches("in turn")[0]),
        "words of many equal": fit_words(member, with_many_equal()),
    }
    before = {name: getattr(kmeans, name) for name in BLOCKS}
    vars(kmeans).update(BLOCKS)
    found["words by blocks"] = fit_words(member, patches("sorted")[0])
    vars(kmeans).update(before)
    found |= {f"decisions, classes {order}": fit_decisions(member, order) for order in ("in turn", "sorted")}
    found |= {name: fit_all_maps(member, **options) for name, options in SAMPLES.items()}
    return found | {"refused": refused(member)}


def on_a_rank(rank: int) -> dict[str, dict[str, Any]]:
    assert member().rank == rank
    return fit_everything(member())


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:  # puts back what `fit_everything` changes
        for module in (fit_module, lda_module):
            patch.setattr(module, "ROWS", module.ROWS)
        return fit_everything(ALONE)


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def ranks(request, tmp_path_factory):
    return on_ranks(request.param, on_a_rank, tmp_path_factory.mktemp("ranks"))


KINDS = ["words", "words of many equal", "words by blocks", "decisions, classes in turn", "decisions, classes sorted"]


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS + list(SAMPLES))
def test_ranks_make_the_words_and_decisions_of_one_process(ranks, alone, kind):
    expected = alone[kind]
    for name in expected.keys() - {"labels_", "held"}:
        for rank in ranks:
            torch.testing.assert_close(rank[kind][name], expected[name], rtol=1e-5, atol=1e-5)
    same = torch.cat([rank[kind]["labels_"] for rank in ranks]) == expected["labels_"]
    assert same.double().mean() >= 0.9999


@pytest.mark.parametrize("kind", KINDS + list(SAMPLES))
def test_all_ranks_have_the_same_bits(ranks, kind):
    first, *others = ranks
    for name in first[kind].keys() - {"labels_", "held"}:
        for rank in others:
            torch.testing.assert_close(rank[kind][name], first[kind][name], rtol=0, atol=0)


def test_clusters_were_empty(alone):
    features = with_many_equal()
    first = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:NUM_CLUSTERS]]
    counts = kmeans.nearest(features, first)[0].bincount(minlength=NUM_CLUSTERS)
    assert (counts == 0).sum() > 5
    assert len(alone["words of many equal"]["labels_"].unique()) == NUM_CLUSTERS


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_rank_holds_its_part_alone(ranks, alone, kind):
    whole, number = alone[kind]["held"], SAMPLES[kind].get("max_patches", GRID * NUM_IMAGES)
    assert set(whole) == {number} and alone[kind]["patches"] == number
    held = [rank[kind]["held"] for rank in ranks]
    assert [sum(of_ranks) for of_ranks in zip(*held, strict=True)] == whole
    shares = [GRID * images for images in SHARES[len(ranks)]]
    for of_rank, share in zip(held, shares, strict=True):
        expected = share * number / (GRID * NUM_IMAGES)  # of a sample about so many
        assert all(abs(number - expected) <= (0 if kind != "some" else 30) for number in of_rank)


def test_what_one_rank_cannot_fit_is_refused_by_all_in_the_words_of_one_process(ranks, alone):
    assert [rank["refused"] for rank in ranks] == [alone["refused"]] * len(ranks)
    assert len(set(alone["refused"].values())) == 8


def test_classes_that_lie_with_one_rank_are_fitted_there_alone(monkeypatch):
    """Of three ranks the second, while nobody answers: there are the counts, and then one sum."""
    others, sums = torch.tensor([[40, 0, 0], [0, 0, 50]]), []
    monkeypatch.setattr(decisions, "by_rank", lambda own_N, _: torch.stack([others[0], own_N, others[1]]))
    monkeypatch.setattr(decisions, "summed", lambda tensor, _: sums.append(tensor.shape) or tensor)
    features = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    centers, members = fit_subclasses(
        features, torch.ones(30, dtype=torch.int64), num_classes=3, num_subclasses=2, member=Member(1, 3)
    )
    expected = KMeans(2).fit(features)
    assert torch.equal(centers, torch.cat([torch.zeros(2, 2), expected.cluster_centers_, torch.zeros(2, 2)]))
    assert torch.equal(members, 2 + expected.labels_) and sums == [(6, 2)]
