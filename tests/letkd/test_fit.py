"""Words and decisions from sources of patches: the same from batches of any size, held or read again."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from letkd import LDA, KMeans, decision_matrix, fit_subclasses
from letkd import fit as module
from letkd.fit import HeldPatches, fit_maps, hold_patches

NUM_CLASSES, NUM_PATCHES = 3, 700
LABELS = torch.arange(NUM_PATCHES) % NUM_CLASSES
PATCHES = torch.randn(NUM_PATCHES, 6, generator=torch.Generator().manual_seed(0)) + LABELS[:, None]
OPTIONS = {"words": {"late": 9}, "decisions": {"early": 2}, "num_classes": NUM_CLASSES}


class Stream:
    """Two maps of the same images, of four patches and of one, in batches of some images."""

    def __init__(self, images: int):
        self.images = images
        self.readings = 0

    def num_patches(self, path: str) -> int:
        return NUM_PATCHES if path == "early" else NUM_PATCHES // 4

    def channels(self, path: str) -> int:
        return PATCHES.shape[1]

    def batches(self, paths: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        self.readings += 1
        for early, labels in zip(PATCHES.split(4 * self.images), LABELS.split(4 * self.images), strict=True):
            maps = {"early": (early, labels), "late": (early[::4], labels[::4])}
            yield {path: maps[path] for path in paths}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 128)
    monkeypatch.setattr("letkd.lda.ROWS", 128)


def tensors(source: module.PatchSource, **options) -> dict[str, Tensor]:
    fitted = fit_maps(source, **OPTIONS | options)
    return {f"{path} {name}": tensor for path, found in fitted.items() for name, tensor in found.tensors.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_it_is_k_means_lda_sub_classes_and_their_matrix():
    found = tensors(HeldPatches({"early": (PATCHES, LABELS), "late": (PATCHES[::4], LABELS[::4])}), num_components=1)
    lda = LDA().fit(PATCHES, LABELS)
    lda.n_components = 1
    centers, members = fit_subclasses(lda.transform(PATCHES), LABELS, num_classes=NUM_CLASSES, num_subclasses=2)
    prototypes, decisions = decision_matrix(lda.transform(PATCHES), members, num_targets=6)
    expected = {"scalings": lda.scalings_, "xbar": lda.xbar_, "centers": centers, "prototypes": prototypes}
    expected = {f"early {name}": tensor for name, tensor in (expected | {"decisions": decisions}).items()}
    assert_equal(found, expected | {"late centroids": KMeans(9).fit(PATCHES[::4]).cluster_centers_})


@pytest.mark.parametrize("max_patches", [None, 150])
@pytest.mark.parametrize("images", [1, 7, 32, 175])
@pytest.mark.parametrize("incremental", [True, False])
def test_neither_batches_nor_where_the_patches_are_change_a_bit(incremental, images, max_patches):
    source = Stream(images)
    found = tensors(source, incremental=incremental, max_patches=max_patches)
    assert_equal(found, tensors(Stream(50), max_patches=max_patches))
    assert source.readings == (2 if incremental or max_patches else 1)


@pytest.mark.parametrize("incremental", [True, False])
def test_it_tells_how_far_each_phase_is_and_prints_nothing(incremental, capsys):
    told: list[module.Progress] = []
    found = tensors(Stream(9), incremental=incremental, follow=told.append)
    assert_equal(found, tensors(Stream(9), incremental=incremental))
    assert capsys.readouterr() == ("", "")
    phases = [list(group) for _, group in itertools.groupby(told, key=lambda now: (now.number, now.count))]
    expected = {
        "reading patches": (("late", "early"), 875),
        "LDA": (("early",), None if incremental else 2 * NUM_PATCHES),
        "k-means of 9 words": (("late",), 21),
        "sub-classes": (("early",), NUM_CLASSES),
        "decisions": (("early",), 1),
    }
    if incremental:
        expected = {"LDA": expected.pop("LDA")} | expected
    assert {phase[0].what: (phase[0].paths, phase[0].total) for phase in phases} == expected
    assert [phase[0][:2] for phase in phases] == [(number, 5) for number in range(1, 6)]
    for begin, *rest in phases:
        assert begin.done == 0 and rest[-1].done == (begin.total or NUM_PATCHES)
        assert all(before.done < after.done for before, after in itertools.pairwise([begin, *rest]))
    inertias = [now.inertia for now in told if now.inertia is not None]
    fitted = KMeans(9).fit(PATCHES[::4])
    assert inertias == pytest.approx(fitted.inertias_)


def test_lda_sees_all_patches_and_the_rest_a_sample():
    whole, some = tensors(Stream(9)), tensors(Stream(9), max_patches=150)
    same = {name: torch.equal(found, some[name]) for name, found in whole.items()}
    assert {name for name, equal in same.items() if equal} == {"early scalings", "early xbar"}
    rows, labels = hold_patches(Stream(9), ["early"], max_patches=150)["early"]
    assert len(rows) == len(labels) == 150 == fit_maps(Stream(9), **OPTIONS, max_patches=150)["early"].num_patches
    _, index = (rows[:, None] == PATCHES).all(dim=2).nonzero(as_tuple=True)
    assert len(index) == 150 and (index.diff() > 0).all() and torch.equal(labels, LABELS[index])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_source_that_gives_other_numbers_of_patches_is_refused(change):
    class Wrong(Stream):
        def num_patches(self, path: str) -> int:
            return super().num_patches(path) + change

    with pytest.raises(ValueError, match="it must give the same again"):
        hold_patches(Wrong(9), ["late"])


def test_what_cannot_be_fitted_names_the_map():
    with pytest.raises(ValueError, match="175 patches cannot have 176 clusters at 'late'"):
        fit_maps(Stream(9), words={"late": 176})
    with pytest.raises(ValueError, match="too few for 300 sub-classes at 'early'"):
        fit_maps(Stream(9), decisions={"early": 300}, num_classes=NUM_CLASSES)
