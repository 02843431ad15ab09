"""The offline part: k-means, LDA and decision matrix, against the authors' numbers and scikit-learn."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from letkd import LDA, KMeans, decision_matrix, fit_subclasses, lda
from letkd.kmeans import nearest

BACKENDS = [
    "torch",
    pytest.param("faiss", marks=pytest.mark.skipif(not importlib.util.find_spec("faiss"), reason="no faiss")),
]


def blobs(num_patches: int = 3000, channels: int = 8, clusters: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = 4 * torch.randn(clusters, channels, generator=generator)
    labels = torch.randint(clusters, (num_patches,), generator=generator)
    return centers[labels] + torch.randn(num_patches, channels, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kmeans_reaches_scikit_learns_objective(backend):
    features = blobs()
    kmeans = KMeans(40, random_state=1, backend=backend).fit(features)
    first = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(1))[:40]]
    reference = ReferenceKMeans(40, init=first.numpy(), n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(features)
    distances = torch.cdist(features, kmeans.cluster_centers_).amin(dim=1).square().sum().item()
    assert distances == pytest.approx(reference.inertia_, rel=1e-3)
    assert len(kmeans.inertias_) == 20
    assert all(later <= earlier * 1.0001 for earlier, later in itertools.pairwise(kmeans.inertias_))


@pytest.mark.parametrize("num_centroids", [1, 2, 8, 9, 130])
def test_nearest_is_the_first_of_the_nearest(num_centroids):
    """Whole numbers: every distance is exact, and many are equal."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-2, 3, (20_000, 3), generator=generator).float()
    centroids = torch.randint(-2, 3, (num_centroids, 3), generator=generator).float()
    squared = (features[:, None] - centroids).square().sum(dim=2)
    least = squared.amin(dim=1)
    assert num_centroids == 1 or ((squared == least[:, None]).sum(dim=1) > 1).any()
    index, partial = nearest(features, centroids)
    assert torch.equal(index, (squared == least[:, None]).int().argmax(dim=1))
    assert torch.equal(partial, least - features.square().sum(dim=1))


@pytest.mark.parametrize("num_centroids", [8, 9])
def test_a_patch_that_is_not_finite_gets_an_index_that_exists(num_centroids):
    features = torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0], [0.0, 0.0]])
    index, _ = nearest(features, torch.randn(num_centroids, 2))
    assert ((index >= 0) & (index < num_centroids)).all()


def test_kmeans_objective_is_the_sum_of_squared_distances():
    features = blobs(500)
    kmeans = KMeans(5, max_iter=1, backend="torch").fit(features)
    first = features[torch.randperm(500, generator=torch.Generator().manual_seed(0))[:5]]
    expected = torch.cdist(features, first).amin(dim=1).square().sum().item()
    assert kmeans.inertias_ == pytest.approx([expected], rel=1e-4)


def test_inertia_is_of_the_labels_and_centres_that_are_left():
    features = blobs(500)
    kmeans = KMeans(5, max_iter=3).fit(features)
    expected = (features - kmeans.cluster_centers_[kmeans.labels_]).square().sum().item()
    assert kmeans.inertia_ == pytest.approx(expected, rel=1e-5) and kmeans.inertia_ < kmeans.inertias_[-1]
    assert kmeans.n_iter_ == len(kmeans.inertias_) == 3


def test_kmeans_repeats_with_its_seed_and_differs_with_another():
    features = blobs()
    first, again, other = (
        KMeans(9, random_state=seed, backend="torch").fit(features).cluster_centers_ for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kmeans_refills_empty_clusters(backend, value):
    """Blank images give many equal patches, which lie at zero behind a ReLU, and the first centroids are patches."""
    features = torch.cat([torch.full((1000, 2), value), blobs(1000, 2)])
    kmeans = KMeans(40, backend=backend).fit(features)
    assert len(kmeans.labels_.unique()) == 40
    assert torch.equal(kmeans.labels_, kmeans.predict(features))
    assert all(later <= earlier * 1.0001 for earlier, later in itertools.pairwise(kmeans.inertias_))


def test_kmeans_reports_iterations_and_refuses_nonsense():
    seen = []
    KMeans(3, max_iter=4, backend="torch", on_iteration=lambda i, objective: seen.append(i)).fit(blobs(100))
    assert seen == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="100 patches cannot have 101 clusters"):
        KMeans(101).fit(blobs(100))
    for backend in ("torch", "faiss") if importlib.util.find_spec("faiss") else ("torch",):
        with pytest.raises(ValueError, match="finite"):
            KMeans(2, backend=backend).fit(torch.full((10, 2), torch.nan))
    with pytest.raises(ValueError, match="unknown k-means backend 'scipy'"):
        KMeans(2, backend="scipy")


def test_kmeans_without_faiss_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'faiss' is not installed; install faiss-gpu or faiss-cpu, or use 'torch'"):
        KMeans(2, max_iter=1, backend="faiss").fit(blobs(20))


def align_signs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Columns of `found` flipped where that brings them closer: a component's sign means nothing."""
    return found * np.sign((found * expected).sum(axis=0))


def within_class_std(projected: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    means = np.stack([projected[labels == label].mean(axis=0) for label in labels.unique()])
    return np.sqrt(((projected - means[labels]) ** 2).mean(axis=0))


def test_lda_agrees_with_the_authors(fill, method_golden):
    labels = method_golden["lda/labels"]
    features = fill.array("lda/features", (500, 16)) + 1.5 * fill.array("lda/class_means", (5, 16))[labels]
    fitted = LDA().fit(torch.from_numpy(features), torch.from_numpy(labels))
    for name, found in {
        "scalings": fitted.scalings_.numpy(),
        "transformed": fitted.transform(torch.from_numpy(features)).numpy(),
    }.items():
        expected = method_golden[f"lda/{name}"]
        np.testing.assert_allclose(align_signs(found, expected), expected, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(fitted.xbar_, method_golden["lda/xbar"], rtol=1e-5)


@pytest.mark.parametrize("broken", ["nothing", "a constant channel", "a channel that repeats another"])
def test_lda_equals_scikit_learn(broken):
    features = blobs(2000, 6).double() + 1000  # far from zero, where naive sums of squares lose their digits
    labels = torch.arange(2000) % 7
    features = features + torch.randn(7, 6, generator=torch.Generator().manual_seed(2)).double()[labels]
    if broken == "a constant channel":
        features[:, 2] = 5
    elif broken == "a channel that repeats another":
        features[:, 4] = 3 * features[:, 1]
    reference = LinearDiscriminantAnalysis(solver="svd").fit(features.numpy(), labels.numpy())
    fitted = LDA().fit(features, labels)
    expected = (features.numpy() - reference.xbar_) @ reference.scalings_
    found = ((features - fitted.xbar_) @ fitted.scalings_).numpy()
    np.testing.assert_allclose(within_class_std(found, labels), 1, rtol=1e-6)
    expected /= within_class_std(expected, labels)  # scikit-learn divides by P - N before 1.9 and by P since
    assert fitted.rank_ == (6 if broken == "nothing" else 5)
    np.testing.assert_allclose(align_signs(found, expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 64, 128, 300, 899])
def test_lda_in_batches_is_lda_at_once_bit_for_bit(batch, monkeypatch):
    monkeypatch.setattr(lda, "ROWS", 128)
    features, labels = 3 + blobs(900, 5), torch.arange(900) % 4
    batches, whole = LDA(), LDA().fit(features, labels)
    for rows in zip(features.split(batch), labels.split(batch), strict=True):
        batches.partial_fit(*(part.clone().requires_grad_(part.is_floating_point()) for part in rows), num_classes=4)
    batches.solve()
    assert torch.equal(batches.scalings_, whole.scalings_) and torch.equal(batches.xbar_, whole.xbar_)
    monkeypatch.setattr(lda, "ROWS", 127)
    assert not torch.equal(LDA().fit(features, labels).scalings_, whole.scalings_)  # so that the blocks matter here


def test_batches_that_their_owner_uses_again_are_kept():
    features, labels = blobs(90, 5), torch.arange(90) % 3
    found, batch = LDA(), torch.empty(30, 5)
    for rows, classes in zip(features.split(30), labels.split(30), strict=True):
        found.partial_fit(batch.copy_(rows), classes, num_classes=3)
    assert torch.equal(found.solve().scalings_, LDA().fit(features, labels).scalings_)


def test_components_that_do_not_exist_are_left_out_with_a_notice():
    features, labels = blobs(90, 5), torch.arange(90) % 3
    with pytest.warns(UserWarning, match="3 classes has 2 components, not n_components=4: all of them are kept"):
        found = LDA(n_components=4).fit(features, labels)
    assert found.n_components == 4 and torch.equal(found.classes_, torch.arange(3))
    assert torch.equal(found.transform(features), LDA().fit(features, labels).transform(features))


def test_lda_refuses_what_it_cannot_solve():
    features, labels = blobs(90, 5), torch.arange(90) % 3
    with pytest.raises(ValueError, match="none of class 3, 4"):
        LDA().partial_fit(features, labels, num_classes=5).solve()
    with pytest.raises(ValueError, match="finite"):
        LDA().fit(features.masked_fill(features > 0, torch.inf), labels)
    with pytest.raises(ValueError, match="no patches"):
        LDA().solve()


def test_decision_matrix_agrees_with_the_authors(fill, method_golden):
    members = method_golden["decision/predictions"]
    features = fill.array("decision/features", (10000, 6)) + 0.7 * fill.array("decision/offsets", (20, 6))[members]
    prototypes, decisions = decision_matrix(torch.from_numpy(features), torch.from_numpy(members), num_targets=20)
    np.testing.assert_allclose(prototypes, method_golden["decision/prototypes"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decisions, method_golden["decision/scores"], rtol=1e-5)


def test_a_subclass_without_members_decides_for_itself():
    projected = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    prototypes, decisions = decision_matrix(projected, torch.tensor([0, 0, 2, 2]), num_targets=3)
    torch.testing.assert_close(decisions, torch.eye(3))
    assert torch.isfinite(prototypes).all()


def test_subclasses_are_ordered_class_by_class():
    labels = torch.arange(600) % 3
    features = blobs(600, 4)
    centers, members = fit_subclasses(features, labels, num_classes=3, num_subclasses=5)
    assert centers.shape == (15, 4)
    assert torch.equal(members // 5, labels)
    own = torch.cdist(features, centers).masked_fill(torch.arange(15) // 5 != labels[:, None], torch.inf)
    assert torch.equal(own.argmin(dim=1), members)
    with pytest.raises(ValueError, match="class 0 has 4 patches, too few for 5"):
        fit_subclasses(features[:10], labels[:10], num_classes=3, num_subclasses=5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6 / 7])
@pytest.mark.parametrize("apart", [0.0, 0.7])
def test_lda_of_classes_without_scatter_has_no_direction(value, apart):
    """Rounding is no scatter."""
    labels = torch.arange(999) % 3
    features = torch.full((999, 4), value) + apart * labels[:, None]
    with pytest.raises(ValueError, match="all patches are equal inside each of 3 classes: no direction separates"):
        LDA().fit(features, labels)
    features[:, 1] += torch.randn(999)
    assert LDA().fit(features, labels).rank_ == 1


def test_lda_of_one_class_or_of_equal_means_has_no_direction():
    features = blobs(300, 4)
    for repeats in (1, 3):
        with pytest.raises(ValueError, match=f"means of {repeats} classes are equal: no direction separates"):
            LDA().fit(features.repeat(repeats, 1), torch.arange(repeats).repeat_interleave(300))


@pytest.mark.parametrize("labels", [torch.arange(90) % 3 - 1, torch.zeros(90), torch.zeros(80, dtype=torch.int64)])
def test_labels_of_the_offline_part_are_checked(labels):
    for fit in (lambda: LDA().partial_fit(blobs(90, 5), labels, num_classes=3), lambda: fit_subclasses(
        blobs(90, 5), labels, num_classes=3, num_subclasses=2
    )):  # fmt: skip
        with pytest.raises(ValueError, match="labels must be whole numbers"):
            fit()


def test_patches_that_are_equal_make_no_clusters():
    with pytest.raises(ValueError, match="all 100 are equal"):
        KMeans(2).fit(torch.full((100, 3), 0.1))
    with pytest.warns(UserWarning, match="only 4 of 400 patches are different: some of 5 clusters are copies"):
        KMeans(5).fit(blobs(4, 3).repeat(100, 1))
    with pytest.raises(ValueError, match="class 1: k-means needs different patches"):
        fit_subclasses(
            torch.cat((blobs(10, 2), torch.ones(10, 2))), torch.arange(20) // 10, num_classes=2, num_subclasses=2
        )


def test_decisions_need_members_that_there_are_and_finite_patches():
    for members in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match="must be sub-classes 0 to 2"):
            decision_matrix(torch.zeros(2, 1), members, num_targets=3)
    with pytest.raises(ValueError, match="finite"):
        decision_matrix(torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), num_targets=2)
