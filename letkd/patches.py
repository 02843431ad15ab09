"""Maps as rows of patches: every position of a (B, C, H, W) map is one patch of C numbers.

The method works on patches, P = B * H * W rows in the order image, row, column. Matrix products over rows are what
the hardware is best at, and a map in channels_last format already lies in memory that way.
"""

import torch.nn.functional as F
from torch import Tensor


def to_patches(map_BCHW: Tensor) -> Tensor:
    """Rows (P, C) of a map (B, C, H, W); a view when the map is in channels_last format."""
    return map_BCHW.permute(0, 2, 3, 1).reshape(-1, map_BCHW.shape[1])


def to_map(patches_PC: Tensor, like_BxHW: Tensor) -> Tensor:
    """The map (B, C, H, W) of rows (P, C), with the batch and grid of `like`; a view in channels_last format."""
    batch, _, height, width = like_BxHW.shape
    return patches_PC.view(batch, height, width, patches_PC.shape[1]).permute(0, 3, 1, 2)


def pool_map(map_BCHW: Tensor, factor: int) -> Tensor:
    """Average over `factor` x `factor` windows (stride `factor`): how a finer teacher meets a coarser student."""
    return map_BCHW if factor == 1 else F.avg_pool2d(map_BCHW, factor)
