"""What losses on feature maps share: which stages meet, and maps brought to one grid."""

import torch.nn.functional as F
from torch import Tensor

from distillation.signals import Network


def paired_stages(method: str, student: Network, teacher: Network) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the student's and the teacher's stages that meet: all behind the stem, in order.

    Raises:
        ValueError: one has more of them; names the method, both networks and their stages.
    """
    one, other = (network.outline.stages[1:] for network in (student, teacher))
    if len(one) != len(other):
        raise ValueError(
            f"{method} compares networks stage by stage: {student.outline.network} has {', '.join(one)} "
            f"and {teacher.outline.network} {', '.join(other)}; choose networks with as many stages"
        )
    return one, other


def average_to(map_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """The map averaged to a grid that is not larger.

    The windows are those of adaptive pooling. Where they are equal ordinary pooling does it, whose gradient is
    deterministic on a GPU.
    """
    own = map_BCHW.shape[-2:]
    if own == grid:
        return map_BCHW
    if own[0] % grid[0] or own[1] % grid[1]:
        return F.adaptive_avg_pool2d(map_BCHW, grid)
    return F.avg_pool2d(map_BCHW, (own[0] // grid[0], own[1] // grid[1]))
