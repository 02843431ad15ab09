"""Channel shuffles against their definition, in both memory formats."""

import pytest
import torch

from architectures.layers import channel_shuffle, drop_residuals, interleave_channels

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_channel_shuffle_moves_channel_i_of_group_g(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 5, 4).contiguous(memory_format=memory_format)
    shuffled = channel_shuffle(x, groups=3)
    for group in range(3):
        for channel in range(4):
            assert torch.equal(shuffled[:, channel * 3 + group], x[:, group * 4 + channel])
    assert shuffled.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_interleaving_is_a_shuffled_concatenation(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 5, 4).contiguous(memory_format=memory_format)
    left, right = x[:, :6], x[:, 6:].contiguous(memory_format=memory_format)  # `left` is a view, as in the network
    interleaved = interleave_channels(left, right)
    assert torch.equal(interleaved, channel_shuffle(torch.cat([left, right], 1), 2))
    assert interleaved.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_dropped_residual_is_that_of_a_whole_image_and_the_mean_stays(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    residual = torch.rand(400, 3, 2, 2).add(1).contiguous(memory_format=memory_format)
    dropped = drop_residuals(residual, 0.25)
    kept = dropped.flatten(1).any(dim=1)
    torch.testing.assert_close(dropped[kept], residual[kept] / 0.75)
    assert not dropped[~kept].any()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.06)  # three deviations
    assert dropped.is_contiguous(memory_format=memory_format)
