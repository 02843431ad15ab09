"""What losses on features share: which stages meet, maps brought to one grid, pooled vectors, unit vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillation.signals import Network

Grid = tuple[int, int]
EPSILON = 1e-12  # a vector that is not longer has no direction; torch's own for normalising


def stages_of(method: str, network: Network) -> tuple[str, ...]:
    """Names of a network's stages behind the stem, in order.

    Raises:
        ValueError: it has none; names method and network.
    """
    found = tuple(stage for stage in network.outline.stages if stage != "stem")
    if not found:
        raise ValueError(
            f"{method} compares maps of stages, and {network.outline.network} has none; choose another network, or a "
            "method of logits, like KD"
        )
    return found


def paired_stages(method: str, student: Network, teacher: Network) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the student's and the teacher's stages that meet: all behind the stem, in order.

    Raises:
        ValueError: one has none, or more of them; names the method, both networks and their stages.
    """
    one, other = stages_of(method, student), stages_of(method, teacher)
    if len(one) != len(other):
        raise ValueError(
            f"{method} compares networks stage by stage: {student.outline.network} has {', '.join(one)} "
            f"and {teacher.outline.network} {', '.join(other)}; choose networks with as many stages, or a method of "
            "one map or of pooled vectors, like SP or RKD"
        )
    return one, other


def pooled_widths(method: str, student: Network, teacher: Network) -> tuple[int, int]:
    """Channels of the student's and the teacher's pooled vectors.

    Raises:
        ValueError: one has no pooled vector; names method and network.
    """
    for network in (student, teacher):
        if network.outline.head is None:
            raise ValueError(
                f"{method} compares pooled vectors, and {network.outline.network} has none: its logits come from no "
                "Linear; choose another network, or a method of maps, like AT or SP"
            )
    return student.outline.num_features, teacher.outline.num_features


def check_pools(method: str, place: str, *networks: Network) -> None:
    """Refuse networks in which something other than the mean of a map enters the classifier.

    Raises:
        ValueError: names the method, the place and the network.
    """
    for network in networks:
        if not network.pools(place):
            raise ValueError(
                f"{method} needs a map whose mean enters the classifier, which the {place} map of "
                f"{network.outline.network} is not; choose a network that averages its last map, or a method of whole "
                "logits, like KD"
            )


def average_to(map_BCHW: Tensor, grid: Grid) -> Tensor:
    """The map averaged to a grid.

    The windows are those of adaptive pooling: they overlap where a side is no multiple of the grid's, and are single
    positions, repeated, or pairs of them where the grid is the larger one. Gradients are deterministic on a GPU, which
    those of adaptive pooling are not: windows of one size are pooled as usual, others are products with matrices.
    """
    own = map_BCHW.shape[-2:]
    if own == grid:
        return map_BCHW
    if own[0] % grid[0] or own[1] % grid[1]:
        rows_Hh, columns_Ww = (pooling_matrix(*sides, map_BCHW) for sides in zip(own, grid, strict=True))
        return rows_Hh.T @ (map_BCHW @ columns_Ww)
    return F.avg_pool2d(map_BCHW, (own[0] // grid[0], own[1] // grid[1]))


def pooling_matrix(side: int, cells: int, like: Tensor) -> Tensor:
    """Weights (side, cells) of positions in the windows of adaptive pooling, with a tensor's device and type."""
    return F.adaptive_avg_pool1d(torch.eye(side, dtype=like.dtype, device=like.device), cells)


def on_one_grid(student_BChw: Tensor, teacher_BChw: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in float32, each averaged to the smaller of the two heights and widths."""
    grid = tuple(map(min, student_BChw.shape[-2:], teacher_BChw.shape[-2:]))
    return average_to(student_BChw.float(), grid), average_to(teacher_BChw.float(), grid)


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors of length 1; one of length 0 stays 0.

    Its gradient is that of the vector, where `F.normalize` would return 1e12 times as much.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors * F.threshold(length, EPSILON, 1.0).reciprocal()  # cheaper than a division, backwards too


def resizing_convolution(channels: int, teacher_channels: int, own: Grid, other: Grid) -> tuple[nn.Module, Grid]:
    """A convolution that brings a student's map to a teacher's channels and grid, and the grid that it returns.

    1x1 where the grids are equal, 3x3 with stride 2 where the student has twice the sides, transposed 4x4 with stride 2
    where it has half, without padding and with as large a kernel as it takes where it is larger otherwise; smaller
    otherwise, 3x3 to its own grid. So are RepDistiller's connectors for hints, but for the last case, which is SimKD's.
    """
    if own == tuple(2 * side for side in other):
        return nn.Conv2d(channels, teacher_channels, kernel_size=3, stride=2, padding=1), other
    if other == tuple(2 * side for side in own):
        return nn.ConvTranspose2d(channels, teacher_channels, kernel_size=4, stride=2, padding=1), other
    if all(one >= two for one, two in zip(own, other, strict=True)):
        kernel = tuple(one - two + 1 for one, two in zip(own, other, strict=True))
        return nn.Conv2d(channels, teacher_channels, kernel_size=kernel), other
    return nn.Conv2d(channels, teacher_channels, kernel_size=3, padding=1), own
