"""The BatchNorm of a KD layer: its settings are torch's, in one process and in several."""

import copy

import pytest
import torch
import torch.nn.functional as F
from rank_tools import on_ranks
from torch import Tensor, nn

from letkd import KDLayer, Student
from letkd import values as letkd_values

C, K = 5, 7
FEATURES = torch.randn(6, C, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer_with(norm: nn.Module) -> KDLayer:
    torch.manual_seed(0)
    layer = KDLayer(C, K, alpha=0.5).double()
    layer.bn = norm.double()
    return layer


def formula(layer: KDLayer, features: Tensor, norm: nn.Module) -> Tensor:
    """The layer with a BatchNorm that torch computes."""
    unit_PC = layer.scores.unit_patches(features)
    weights_PK = F.relu(norm(unit_PC @ layer.scores.scaled_templates().T))
    values_PC = F.normalize(weights_PK) @ (layer.scale * F.normalize(layer.semantic_vectors)).T
    return features + layer.alpha * values_PC.view(len(features), 4, 3, C).permute(0, 3, 1, 2)


SETTINGS = {
    "its defaults": {},
    "momentum": {"momentum": 0.37},
    "all batches equally": {"momentum": None},
    "nothing tracked": {"track_running_stats": False},
    "eps": {"eps": 0.3},
    "no gain and shift": {"affine": False},
    "no momentum": {"momentum": 0.0},
}


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_are_followed(settings):
    """Through three batches in training, and in evaluation, with gradients and without."""
    norm = nn.BatchNorm1d(K, **settings).double()
    layer = layer_with(copy.deepcopy(norm))
    for features in FEATURES.split(2):
        torch.testing.assert_close(layer(features)[0], formula(layer, features, norm))
    torch.testing.assert_close(layer.bn.state_dict(), norm.state_dict())
    layer.eval(), norm.eval()
    before = copy.deepcopy(layer.bn.state_dict())
    for gradients in (True, False):
        for with_scores in (True, False):
            with torch.set_grad_enabled(gradients):
                output = layer(FEATURES, with_scores=with_scores)[0]
            torch.testing.assert_close(output, formula(layer, FEATURES, norm))
    torch.testing.assert_close(layer.bn.state_dict(), before, rtol=0, atol=0)
    grads = [torch.autograd.grad(found.square().sum(), [p for p in layer.parameters() if p.ndim > 1]) for found in (
        layer(FEATURES)[0], formula(layer, FEATURES, layer.bn))]  # fmt: skip
    torch.testing.assert_close(*grads)


def test_tracking_can_be_switched_off_later():
    """Then torch's BatchNorm keeps what it has: the batch's in training, the kept ones in evaluation."""
    layer = layer_with(nn.BatchNorm1d(K))
    layer(FEATURES)
    layer.bn.track_running_stats = False
    norm = copy.deepcopy(layer.bn)
    torch.testing.assert_close(layer(FEATURES + 1)[0], formula(layer, FEATURES + 1, norm))
    torch.testing.assert_close(layer.bn.state_dict(), norm.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(layer.eval()(FEATURES)[0], formula(layer, FEATURES, norm.eval()))


def test_a_frozen_norm_keeps_its_statistics_while_the_rest_trains():
    layer = layer_with(nn.BatchNorm1d(K))
    layer(FEATURES)
    layer.train().bn.eval()
    norm = copy.deepcopy(layer.bn)
    for features in (FEATURES, FEATURES[:1, :, :1, :1], FEATURES + 2):  # a single patch too
        output, scores = layer(features)
        (output.square().sum() + scores.square().sum()).backward()
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    torch.testing.assert_close(layer.bn.state_dict(), norm.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(layer(FEATURES)[0], formula(layer, FEATURES, norm))


@pytest.mark.parametrize("train", [True, False])
def test_a_single_patch_has_no_statistics_in_evaluation_either(train):
    layer = layer_with(nn.BatchNorm1d(K, track_running_stats=False)).train(train)
    with pytest.raises(ValueError, match="more than one patch"):
        layer(FEATURES[:1, :, :1, :1])


# --- several processes -----------------------------------------------------------------------------------------------


def student() -> Student:
    """A student whose only BatchNorm is that of its KD layer: torch synchronises those of maps on a GPU only."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, C, 3), nn.Flatten(), nn.Linear(4 * C, 2))
    return Student(network, {"0": KDLayer(C, K)}).double()


def step(images: Tensor, upstream: Tensor) -> tuple[dict[str, Tensor], ...]:
    """Outputs, gradients and state after two steps in training and a look in evaluation."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(student())
    assert type(network.layers["0"].bn) is nn.SyncBatchNorm
    for _ in range(2):
        logits, scores = network.forward_with_scores(images)
        loss = (logits * upstream).sum() + scores["0"].square().sum()
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    seen = {"logits": logits.detach(), "in evaluation": network.eval()(images).detach()}
    return seen, gradients, network.state_dict()


def test_a_layer_behind_a_norm_that_is_converted_stays_there():
    network = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(Student(network, {"1": KDLayer(C, K)}).eval())
    assert {type(converted.backbone[1]), type(converted.layers["1"].bn)} == {nn.SyncBatchNorm}
    images = torch.randn(2, 3, 4, 4)
    features = converted.backbone[0](images) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(converted(images), converted.layers["1"](features)[0])
    assert (converted(images) - features).abs().max() > 0.1


FEW_PATCHES = {"many": (10**6, 10**6), "few": (0, 0), "one of both": (0, 10**6)}  # which way each rank takes
SHARES = [(3, 3), (5, 1), (6, 0)]


def data() -> tuple[Tensor, Tensor]:
    """Images and the gradients of their logits."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(6, *shape, dtype=torch.float64, generator=generator) for shape in ((3, 4, 4), (2,)))


def all_steps(rank: int) -> dict[tuple, tuple[dict[str, Tensor], ...]]:
    """What a rank computes of its share, for all ways and shares: processes take longer to start than to compute."""
    found = {}
    for way, elements in FEW_PATCHES.items():
        letkd_values.SQUARED_CHANNELS_A_PATCH = elements[rank]
        for shares in SHARES:
            found[way, shares] = step(*(part.split(shares)[rank] for part in data()))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(2, all_steps, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("way", FEW_PATCHES)
def test_ranks_train_as_one_process_on_the_whole_batch(ranks, way, shares):
    """Whichever way each takes to its statistics, with equal shares or not, and with none."""
    found = [rank[way, shares] for rank in ranks]
    seen, gradients, state = step(*data())
    for name, expected in seen.items():
        torch.testing.assert_close(torch.cat([rank[0][name] for rank in found]), expected)
    for name, expected in gradients.items():  # of sums of losses; of means, DDP would average them
        torch.testing.assert_close(sum(rank[1][name] for rank in found), expected)
    for rank in found:
        torch.testing.assert_close(rank[2], state)
