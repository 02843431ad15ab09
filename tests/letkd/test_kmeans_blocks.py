"""Products that the triangle inequality leaves out on a CPU change no assignment, in any iteration."""

import pytest
import torch
from torch import Tensor

from letkd import KMeans, kmeans
from letkd.processes import ALONE

NUM_PATCHES, NUM_CLUSTERS, NUM_ITERATIONS = 1500, 40, 12


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    for name, value in {"MIN_CLUSTERS": 2, "MIN_PATCHES_A_CLUSTER": 2, "BLOCK_ROWS": 16}.items():
        monkeypatch.setattr(kmeans, name, value)


def patches(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NUM_PATCHES, 8, generator=generator)
    if kind == "clustered":
        return 5 * torch.randn(60, 8, generator=generator)[torch.arange(NUM_PATCHES) % 60] + 0.3 * noise
    if kind == "far from the origin":
        return noise + 300
    if kind == "with equal rows":
        return noise.round()
    return noise.relu()


@pytest.mark.parametrize("kind", ["rectified", "clustered", "far from the origin", "with equal rows"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_iteration_assigns_to_the_nearest_centroid(monkeypatch, kind, num_threads):
    features = patches(kind)
    compared = []

    class Checked(kmeans._Assignment):
        def __call__(self, centroids: Tensor) -> tuple[Tensor, float]:
            index, objective = super().__call__(centroids)
            distances = torch.cdist(features.double(), centroids.double()).square()
            found = distances.gather(1, index[:, None])[:, 0]
            # Another centroid may be as near, up to the rounding of float32 sums.
            rounding = 1e-5 * (features.double().square().sum(dim=1) + 1)
            assert (found <= distances.amin(dim=1) + rounding).all()
            assert objective == pytest.approx(found.sum().item(), rel=1e-4, abs=rounding.sum().item())
            compared.append(self._blocks)
            return index, objective

    monkeypatch.setattr(kmeans, "_Assignment", Checked)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        KMeans(NUM_CLUSTERS, max_iter=NUM_ITERATIONS).fit(features)
    finally:
        torch.set_num_threads(before)
    assert len(compared) == NUM_ITERATIONS + 1
    assert compared[-1] is not None, "the blocks were not used"


def test_blocks_and_dense_products_give_the_same_centroids(monkeypatch):
    features = patches("clustered")
    fitted = KMeans(NUM_CLUSTERS, max_iter=NUM_ITERATIONS).fit(features)
    monkeypatch.setattr(kmeans, "MIN_CLUSTERS", 10**6)
    dense = KMeans(NUM_CLUSTERS, max_iter=NUM_ITERATIONS).fit(features)
    torch.testing.assert_close(fitted.cluster_centers_, dense.cluster_centers_)
    assert fitted.inertias_ == pytest.approx(dense.inertias_, rel=1e-5)
    assert torch.equal(fitted.labels_, dense.labels_)


def test_products_are_left_out(monkeypatch):
    """In settled clusters a block is compared with few of them."""
    products = []
    addmm = torch.addmm

    def counting(bias: Tensor, left: Tensor, right: Tensor, **options) -> Tensor:
        found = addmm(bias, left, right, **options)
        products.append(found.numel())
        return found

    features = patches("clustered")
    fitted = KMeans(60, max_iter=20).fit(features)
    assign = kmeans._Assignment(features, ALONE)
    assign(fitted.cluster_centers_)
    assign(fitted.cluster_centers_)
    monkeypatch.setattr(torch, "addmm", counting)
    assign(fitted.cluster_centers_ + 1e-4)
    assert 0 < sum(products) < 0.5 * len(features) * 64
