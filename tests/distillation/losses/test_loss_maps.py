"""Maps brought to another grid: the values of adaptive pooling, with gradients that a GPU sums in one order."""

import pytest
import torch
import torch.nn.functional as F

from distillation.losses.maps import average_to


def operations(node) -> set[str]:
    """Names of what a gradient passes through on its way back."""
    if node is None:
        return set()
    return {node.name()}.union(*(operations(other) for other, _ in node.next_functions))


@pytest.mark.parametrize(
    ("own", "grid"),
    [((7, 5), (3, 3)), ((8, 6), (4, 4)), ((5, 8), (5, 3)), ((7, 7), (1, 2)), ((3, 2), (7, 5)), ((2, 2), (4, 4))],
)
def test_grids_that_do_not_divide_have_the_windows_of_adaptive_pooling(own, grid):
    torch.manual_seed(0)
    features, weights = torch.randn(2, 3, *own, requires_grad=True), torch.randn(2, 3, *grid)
    found, expected = average_to(features, grid), F.adaptive_avg_pool2d(features, grid)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((weights * each).sum(), features)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert any("Adaptive" in name for name in operations(expected.grad_fn))
    assert not any("Adaptive" in name for name in operations(found.grad_fn))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("own", "grid"), [((8, 8), (4, 4)), ((6, 8), (3, 2)), ((7, 7), (1, 1))])
def test_grids_that_divide_are_pooled_as_usual(own, grid, layout):
    torch.manual_seed(0)
    features = torch.randn(2, 3, *own).to(memory_format=layout)
    windows = [side // cells for side, cells in zip(own, grid, strict=True)]
    assert torch.equal(average_to(features, grid), F.avg_pool2d(features, windows))
    assert average_to(features, own) is features
