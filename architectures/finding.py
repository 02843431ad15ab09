"""Default places in any network, found in what its modules returned for one image.

    head           the Linear whose output are the logits
    penultimate    the outermost module that returns the last map before pooling and head: what `forward_features`
                   returns, where a network has that (timm). Where the logits do not depend on its patches, as where the
                   head reads a class token, the last block of which they do: blocks.10 of 12 in a transformer
    intermediate   the first block at the final resolution; of a network whose blocks all have one resolution, like a
                   plain vision transformer, the first block of the last quarter: blocks.9 of 12. Before the penultimate
                   map, where there is such a block
    stages         the stem, and the last block of every resolution; of one resolution the ends of the quarters. Where
                   nothing is before the blocks, the first of these stands for the stem

A block is what containers (Sequential, ModuleList, and modules that pass a map through one) hold in the end, a module
with parameters in modules of its own. Of several kinds at one resolution, like blocks and the layer that halves it, it
is the kind with the most parameters. A network that is one chain of layers, like VGG, has its activations for blocks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from letkd.maps import Layout

CONTAINERS = (nn.Sequential, nn.ModuleList)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOLED = (1, 1)
QUARTERS = 4  # of the depth, where no resolution tells the stages apart


@dataclass(frozen=True)
class Seen:
    """What the modules of a network returned, by path in the order in which their last calls ended.

    Args:
        outputs: the tensors, each with the number of changes in place so far.
        layouts: of those that are maps or tokens, of modules that ran once.
        grids: their grids for a larger image, where these are known: there small ones are not yet equal.
        features: what `forward_features` returned, if there is one.
        logits: what the network returned.
        reaches: whether the logits depend on the patches that a module returned; measured when it is asked.
    """

    outputs: Mapping[str, tuple[Tensor, int]]
    layouts: Mapping[str, Layout]
    grids: Mapping[str, tuple[int, int]]
    features: Tensor | None
    logits: Tensor
    reaches: Callable[[str], bool]

    def returns(self, path: str, other: str) -> bool:
        """Whether a module returns what another one has returned, unchanged."""
        if path not in self.outputs or other not in self.outputs:
            return False
        (tensor, version), (returned, then) = self.outputs[path], self.outputs[other]
        return tensor is returned and version == then


@dataclass(frozen=True)
class Found:
    """Paths of places. `activations` are those whose outputs are the maps of stages, by stage."""

    head: str | None
    penultimate: str | None
    intermediate: str | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)


def find_places(network: nn.Module, seen: Seen) -> Found:
    """The default places of a network; None and left out is what it does not have."""
    linears = [path for path in seen.outputs if isinstance(network.get_submodule(path), nn.Linear)]
    head = next((path for path in reversed(linears) if seen.outputs[path][0] is seen.logits), None)
    last = _last_map(seen, head)
    if last is None:
        return Found(head, None)
    order = {path: number for number, path in enumerate(seen.outputs)}
    units, blocks = _units_and_blocks(network, seen, {path for path in seen.layouts if order[path] <= order[last]})
    all_blocks = sorted((path for paths in blocks.values() for path in paths), key=order.__getitem__)
    penultimate = next((path for path in [last, *reversed(all_blocks or units)] if seen.reaches(path)), None)
    if penultimate is None or not blocks:
        return Found(head, penultimate)
    if len(blocks) == 1:
        count, candidates = len(all_blocks), all_blocks
        ends = sorted({count * quarter // QUARTERS - 1 for quarter in range(1, QUARTERS + 1)} - {-1})
        first, stages = count * (QUARTERS - 1) // QUARTERS, [all_blocks[end] for end in ends]
    else:
        last_blocks = next(reversed(blocks.values()))
        first, candidates = 0, blocks.get(seen.grids.get(penultimate), last_blocks)
        stages = [paths[-1] for paths in blocks.values()]
    # The penultimate map itself only where no other block is before it.
    before = [path for path in candidates if order[path] < order[penultimate]]
    before = before or [path for path in candidates if path == penultimate]
    intermediate = before[min(first, len(before) - 1)] if before else None
    stem = _stem(network, units, all_blocks[0])
    ends = [stem, *stages] if stem else stages
    named = {f"stage{number}" if number else "stem": path for number, path in enumerate(ends)}
    return Found(head, penultimate, intermediate, named, _activations(network, named, seen))


def _last_map(seen: Seen, head: str | None) -> str | None:
    """The outermost module that returned the features, or else the last map that is not pooled.

    Without a linear head a map with a channel for every class is the head's.
    """
    num_classes = seen.logits.shape[1] if head is None else None
    maps = [path for path in seen.layouts if seen.outputs[path][0] is seen.features] or [
        path
        for path, layout in seen.layouts.items()
        if seen.grids.get(path, POOLED) != POOLED and layout.channels != num_classes
    ]
    same = [path for path in seen.layouts if maps and seen.returns(path, maps[-1])]
    return min(same, key=lambda path: path.count("."), default=None)


def _units_and_blocks(
    network: nn.Module, seen: Seen, reached: set[str]
) -> tuple[list[str], dict[tuple[int, int], list[str]]]:
    """The modules that pass the maps on, and the blocks of every resolution among them."""
    opened, closed = (
        [path for path in _units(network, seen, plain=plain) if path in reached] for plain in (False, True)
    )
    for units, candidates in (
        (opened, _composite(network, opened, seen)),
        (closed, _composite(network, closed, seen)),
        (opened, [path for path in opened if isinstance(network.get_submodule(path), ACTIVATIONS)]),
    ):
        if blocks := _blocks(network, candidates, seen):
            return units, blocks
    return opened, {}


def _units(network: nn.Module, seen: Seen, *, plain: bool) -> list[str]:
    """Paths of the modules that pass the maps on, containers opened, in the order of their calls.

    Args:
        plain: the innermost containers stay closed: the blocks of a network that has no other.
    """
    parts = {path: module for path, module in network.named_modules() if path in seen.outputs}
    closed = {type(part) for path, part in parts.items() if not _passes_through(path, part, seen)}

    def opened(path: str, module: nn.Module) -> Iterator[str]:
        is_container = isinstance(module, CONTAINERS)
        is_open = not path or is_container or (path in parts and type(module) not in closed)
        is_innermost = path and is_container and not any(map(_is_composite, module.children()))
        if not is_open or (plain and is_innermost):
            yield from [path] if path in parts else ()
            return
        for name, child in module.named_children():
            yield from opened(f"{path}.{name}" if path else name, child)

    order = {path: number for number, path in enumerate(seen.outputs)}
    return sorted(opened("", network), key=order.__getitem__)


def _passes_through(path: str, module: nn.Module, seen: Seen) -> bool:
    """Whether it returns what a module in it returns, and most of it is in modules that are composed: a stage.

    A residual block returns a sum, or an activation.
    """
    children = [(f"{path}.{name}", child) for name, child in module.named_children()]
    inner = [each for _, child in children if isinstance(child, nn.ModuleList) for each in child.children()]
    inside = [child for _, child in children] + inner
    composed = sum(_size(child) for _, child in children if _is_composite(child))
    if not 2 * composed >= _size(module) > 0:
        return False
    return any(
        seen.returns(path, other)
        for other, part in module.named_modules(prefix=path)
        if part in inside and not isinstance(part, ACTIVATIONS)
    )


def _is_composite(module: nn.Module) -> bool:
    return any(_size(child) for child in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _composite(network: nn.Module, units: list[str], seen: Seen) -> list[str]:
    """Those that have parameters in modules of their own."""
    composite = [path for path in units if path in seen.grids and _is_composite(network.get_submodule(path))]
    inside = [path for path in composite if "." in path]  # a child of the network is its stem
    return inside or composite


def _blocks(network: nn.Module, candidates: list[str], seen: Seen) -> dict[tuple[int, int], list[str]]:
    """Blocks of every resolution that has some, in the order of their calls; none where there is only one at all."""
    by_grid: dict[tuple[int, int], list[str]] = {}
    for path in candidates:
        if path in seen.grids:
            by_grid.setdefault(seen.grids[path], []).append(path)
    found = {}
    for grid, paths in by_grid.items():
        sizes: Counter[type] = Counter()
        for path in paths:
            sizes[type(network.get_submodule(path))] += _size(network.get_submodule(path))
        kind = max(sizes, key=sizes.__getitem__)
        found[grid] = [path for path in paths if type(network.get_submodule(path)) is kind]
    return found if sum(map(len, found.values())) > 1 else {}


def _stem(network: nn.Module, units: list[str], first_block: str) -> str | None:
    """What comes before the first block, before pooling; nothing in a chain of layers."""
    if isinstance(network.get_submodule(first_block), ACTIVATIONS):
        return None
    before = units[: units.index(first_block)]
    return next((path for path in reversed(before) if not isinstance(network.get_submodule(path), POOLINGS)), None)


def _activations(network: nn.Module, stages: Mapping[str, str], seen: Seen) -> dict[str, str]:
    found = {}
    for stage, path in stages.items():
        ends = [other for other in seen.outputs if f"{other}.".startswith(f"{path}.") and seen.returns(path, other)]
        if last := [other for other in ends if isinstance(network.get_submodule(other), ACTIVATIONS)]:
            found[stage] = last[-1]
    return found
