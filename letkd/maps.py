"""Maps of any torch network at module paths, as (B, C, H, W).

Convolutional networks have such maps; some others, like Swin, have (B, H, W, C). The tokens (B, N, C) of a vision
transformer become one: the leading tokens that are no patches (class token, registers) are left out, and the others are
a square grid, row by row.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from letkd.checks import by_path, truth, whole_number
from letkd.taps import recording, submodule

# Modules that return what their documentation says, (batch, channels, height, width).
CHANNELS_FIRST = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.PixelShuffle,
)  # fmt: skip
ELEMENTWISE = (nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
LARGER, LARGER_SIDE = 2, 128  # the larger image: its sides in parts of the usual ones, and at least


@dataclass(frozen=True)
class Layout:
    """What a module returns.

    Channels, grid (height, width), for tokens how many of them precede the patches, and whether a map has its channels
    last.
    """

    channels: int
    grid: tuple[int, int]
    prefix: int | None = None  # None: a map
    channels_last: bool = False


def as_map(output: Tensor, prefix: int | None, channels_last: bool = False) -> Tensor:
    """The map (B, C, H, W) in what a module of this `Layout` returned; a view."""
    if channels_last:
        return output.permute(0, 3, 1, 2)
    if prefix is None:
        return output
    patches_BNC = output[:, prefix:]
    side = math.isqrt(patches_BNC.shape[1])
    return patches_BNC.mT.unflatten(2, (side, side))


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel: the same weights, called directly."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif isinstance(original := getattr(network, "_orig_mod", None), nn.Module):  # of torch.compile
            network = original
        else:
            return network


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode within the block; every module gets back the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def layouts(
    network: nn.Module,
    paths: Iterable[str],
    image_shape: Sequence[int],
    *,
    channels_last: bool | Mapping[str, bool] | None = None,
    num_prefix_tokens: int | Mapping[str, int] | None = None,
) -> dict[str, Layout]:
    """Layouts by module path, seen by showing the network one black image.

    Which axis of a map has the channels is never told from its size. Known is what an argument says; else what does not
    grow when the network is shown a larger image; else what the type of the module says, or the network's `output_fmt`.

    Args:
        image_shape: (channels, height, width).
        channels_last: whether maps are (B, H, W, C), for all or by path.
        num_prefix_tokens: how many tokens precede the patches, for all or by path.

    Raises:
        ValueError: there is no such module, it does not run exactly once, returns neither a map nor tokens, or one
            whose axes are not known.
    """
    paths = list(paths)
    orders = by_path(channels_last, paths, default=None, name="channels_last")
    prefixes = by_path(num_prefix_tokens, paths, default=None, name="num_prefix_tokens")
    for path in paths:
        if orders[path] is not None:
            orders[path] = truth(f"channels_last of {path!r}", orders[path])
        if prefixes[path] is not None:
            prefixes[path] = whole_number(f"num_prefix_tokens of {path!r}", prefixes[path], least=0)
    try:
        outputs = shapes_returned(network, paths, image_shape)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the network does not take a black image {(1, *image_shape)}: {reason}") from error
    for path, calls in outputs.items():
        check_runs_once(path, len(calls))
    channels, *sides = image_shape
    # The network may refuse this size in any way, and modules that ran before have been seen.
    larger = shapes_returned(network, paths, (channels, *larger_sides(sides)), Exception)
    is_square = image_shape[1] == image_shape[2]
    return {
        path: layout_of(
            network, path, shape, larger[path][0] if len(larger[path]) == 1 else None,
            is_square=is_square, channels_last=orders[path], num_prefix_tokens=prefixes[path],
        )
        for path, (shape,) in outputs.items()
    }  # fmt: skip


def layout_of(
    network: nn.Module,
    path: str,
    shape: tuple[int, ...] | str,
    larger: tuple[int, ...] | str | None = None,
    *,
    is_square: bool = True,
    channels_last: bool | None = None,
    num_prefix_tokens: int | None = None,
    infer: bool = False,
) -> Layout:
    """The layout of what a module returned for a batch of one image.

    Args:
        shape: of that, or the name of its type where it is no tensor.
        larger: likewise for a larger image, where that is known (`larger_sides`).
        is_square: the image.
        channels_last, num_prefix_tokens: what the caller knows of them.
        infer: what nothing says follows from the sides, where one answer alone makes the grid of a square image square.

    Raises:
        ValueError: it is neither a map nor tokens, or one whose axes are not known.
    """
    grows = _growing_axes(shape, larger)
    if len(shape) == 4 and shape[0] == 1:
        order = _is_channels_last(network, path, shape, grows, infer=infer) if channels_last is None else channels_last
        return _map_layout(path, shape, order, is_square=is_square)
    if len(shape) == 3 and shape[0] == 1:
        prefix = getattr(network, "num_prefix_tokens", None) if num_prefix_tokens is None else num_prefix_tokens
        if infer and prefix and shape[1] > prefix and not _is_square(shape[1] - prefix) and _is_square(shape[1]):
            prefix = 0  # the class token comes later
        return _token_layout(path, shape, prefix, grows, is_square=is_square)
    raise ValueError(
        f"module {path!r} returns {shape}; a KD layer needs a map (batch, channels, height, width) or (batch, "
        "height, width, channels), or tokens (batch, tokens, channels), and the black image was a batch of one"
    )


def larger_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Sides of the larger image that shows which axes of a map grow."""
    factor = max(LARGER, math.ceil(LARGER_SIDE / min(sides)))
    return tuple(factor * side for side in sides)


def check_runs_once(path: str, number: int) -> None:
    """Refuse a module that was called so many times for one image: of several maps none is the one."""
    if number != 1:
        raise ValueError(f"module {path!r} runs {number} times for one image; choose one that runs once")


def shapes_returned(
    network: nn.Module, paths: Iterable[str], image_shape: Sequence[int], *refusals: type
) -> dict[str, list[Any]]:
    """What the calls of the modules return for a black image: shapes, or the type's name of what is no tensor."""
    parameter = next(network.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    with evaluating(network), recording(network, paths) as outputs, torch.no_grad(), suppress(*refusals):
        network(image)
    return {path: [_shape(output) for output in calls] for path, calls in outputs.items()}


def _shape(output: Any) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__


def _growing_axes(shape: tuple[int, ...] | str, larger: tuple[int, ...] | str | None) -> list[bool]:
    """Which axes behind the batch are longer for a larger image; none where that is not known."""
    if larger is None or isinstance(shape, str) or len(larger) != len(shape):
        return [False] * len(shape[1:])
    return [size != other for size, other in zip(shape[1:], larger[1:], strict=True)]


def _is_channels_last(network: nn.Module, path: str, shape: tuple[int, ...], grows: list[bool], *, infer: bool) -> bool:
    if grows == [False, True, True]:
        return False
    if grows == [True, True, False]:
        return True
    if not any(grows):
        module = _last_that_orders(submodule(network, path))
        if isinstance(module, CHANNELS_FIRST):
            return False
        said = getattr(module, "output_fmt", getattr(network, "output_fmt", None))  # timm's networks
        if said in ("NHWC", "NCHW"):
            return said == "NHWC"
        _, first, second, third = shape
        if infer and (first == second) != (second == third):
            return first == second
    raise ValueError(
        f"module {path!r} returns {shape}, and nothing says which axis has the channels: "
        f"channels_last={{{path!r}: True}} says (batch, height, width, channels), False (batch, channels, height, "
        "width)"
    )


def _last_that_orders(module: nn.Module) -> nn.Module:
    """Of a Sequential the last module that is no elementwise function."""
    while isinstance(module, nn.Sequential):
        module = next((child for child in reversed(module) if not isinstance(child, ELEMENTWISE)), nn.Identity())
    return module


def _map_layout(path: str, shape: tuple[int, ...], channels_last: bool, *, is_square: bool) -> Layout:
    _, *sides = shape
    channels = sides.pop(-1 if channels_last else 0)
    if is_square and sides[0] != sides[1]:
        order = "height, width, channels" if channels_last else "channels, height, width"
        raise ValueError(
            f"module {path!r} returns {shape} for a square image, no (batch, {order}); "
            f"channels_last={{{path!r}: {not channels_last}}} says the other order"
        )
    return Layout(channels, (sides[0], sides[1]), channels_last=channels_last)


def _token_layout(
    path: str, shape: tuple[int, ...], prefix: int | None, grows: list[bool], *, is_square: bool
) -> Layout:
    _, num_tokens, channels = shape
    if not is_square:
        raise ValueError(
            f"module {path!r} returns {num_tokens} tokens of an image that is not square, and nothing says how many of "
            "them are a row; take square images, or a module that returns a map"
        )
    side = math.isqrt(num_tokens)
    if prefix is None:  # without a word of the network: a class token, or none
        prefix = int(num_tokens > 1 and _is_square(num_tokens - 1))
    num_patches = max(num_tokens - prefix, 0)
    if not num_patches or not _is_square(num_patches):
        raise ValueError(
            f"module {path!r} returns {num_tokens} tokens, {prefix} of them before the patches: no square grid of a "
            "square image; how many tokens are no patches, which the network's `num_prefix_tokens` says otherwise, is "
            f"said by num_prefix_tokens={{{path!r}: {num_tokens - side**2}}}"
        )
    if grows == [False, True]:
        raise ValueError(f"module {path!r} returns {shape}, (batch, channels, positions); take the map before it")
    return Layout(channels, (math.isqrt(num_patches),) * 2, prefix)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
