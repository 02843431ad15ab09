"""Folding BatchNorm changes the arithmetic of a frozen network, and nothing that it computes."""

import pytest
import torch
from torch import nn

from architectures import create_model, fold_batch_norm_, list_models

SMALL = [name for name in list_models() if "/" not in name and not name.startswith("resnet110")]


def with_random_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize("name", SMALL)
def test_folded_networks_compute_the_same(name):
    torch.manual_seed(0)
    network = with_random_statistics(create_model(name, num_classes=10)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        num_batch_norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        num_folded = fold_batch_norm_(network)
        torch.testing.assert_close(network(images), expected)
    remaining = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert num_folded == num_batch_norms - remaining
    # Wide residual networks normalise before the convolution: what follows a sum stays.
    assert remaining == 0 or name.startswith("wrn")


def test_paths_stay_and_a_kept_convolution_is_left_alone():
    network = with_random_statistics(create_model("resnet8", num_classes=10))
    paths = [path for path, _ in network.named_modules()]
    fold_batch_norm_(network, kept=["conv1"])
    assert [path for path, _ in network.named_modules()] == paths
    assert isinstance(network.bn1, nn.BatchNorm2d)
    assert isinstance(network.layer1[0].bn1, nn.Identity)


class Shared(nn.Module):
    """A convolution that two modules read, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.bn(x) + x + self.other(self.twice(self.twice(x)))


def test_a_convolution_that_others_read_is_left_alone():
    network = with_random_statistics(Shared())
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert fold_batch_norm_(network) == 0
    torch.testing.assert_close(network(images), expected)
