"""Reading maps of a frozen teacher."""

import torch
from torch import nn

from letkd import FrozenTaps


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Flatten(), nn.Linear(6 * 16, 4)
    )


def test_frozen_taps_return_the_maps_and_never_train():
    teacher = network()
    taps = FrozenTaps(teacher, {"late": "0", "early": "0.0"}).train()
    images = torch.randn(2, 3, 6, 6)
    maps = taps(images)
    torch.testing.assert_close(maps["late"], teacher[0](images))
    torch.testing.assert_close(maps["early"], teacher[0][0](images))
    assert not any(module.training for module in taps.modules())
    assert not any(p.requires_grad for p in taps.parameters())
