"""What shows without a device that it would hold everything and that nothing would wait for it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import _getframe
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.step import GraphedStep

ROOMS = {path.parent.name for path in Path(__file__).parents[1].glob("*/__init__.py")}


class Exempt(NamedTuple):
    """An operation that reads a value by design, or has no kernel on `meta`.

    Attributes:
        place: module and function that call it.
        operation: as torch calls it.
        reason: why it may be there.
        answer: what it returns instead, from its arguments; None where it only brings a tensor to the device.
    """

    place: str
    operation: str
    reason: str
    answer: Callable[..., Any] | None = None


class OnMeta(TorchDispatchMode):
    """The context in which tensors of two devices in one operation raise, as reading from `meta` does.

    Torch itself is not enough: for some operations, like products, it takes a tensor of the CPU with one on `meta`.

    Attributes:
        used: which of the exemptions were needed.
    """

    def __init__(self, exempt: Iterable[Exempt] = ()):
        super().__init__()
        self.exempt = {(each.place, each.operation): each for each in exempt}
        self.used: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        name = {"to": "_to_copy"}.get(name, name)  # what it is called where no gradients are recorded
        try:
            result = func(*args, **kwargs)
            devices = _devices(*args, *kwargs.values(), result)
            if len(devices) > 1:
                raise RuntimeError(f"tensors on {' and '.join(sorted(devices))}")
            if _looks_for_places(name, args):
                raise RuntimeError("a mask as index: the places where it is true are looked for")
        except (RuntimeError, NotImplementedError) as error:
            place = _place()
            exempt = self.exempt.get((place, name))
            if exempt is None:
                raise AssertionError(f"{name} in {place}: {error}") from error
            self.used.add((place, name))
            return func(*args, **kwargs) if exempt.answer is None else exempt.answer(*args, **kwargs)
        return result


def _devices(*values: Any) -> set[str]:
    """The kinds of devices of the tensors in these values and in sequences among them."""
    found = set()
    for value in values:
        if isinstance(value, Tensor):
            found.add(value.device.type)
        elif isinstance(value, (tuple, list)):
            found |= _devices(*value)
    return found


def _place() -> str:
    """The innermost function of the project that is running."""
    frame = _getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ROOMS:
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "a test"


def _looks_for_places(name: str, args: tuple) -> bool:
    """Whether an operation indexes by a mask."""
    indices = tree_leaves(args[1]) if name in {"index", "index_put", "index_put_"} else []
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)


class Operations(TorchDispatchMode):
    """Counts the operations that wait for the device: reading a value, or a result whose shape depends on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "is_nonzero", "equal")

    def __init__(self, counts: Counter):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING or _looks_for_places(name, args):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Counts what takes a tensor to the host as a whole or makes one of numbers there: no operations on a CPU."""

    WAITING = ("tolist", "cpu", "numpy", "tensor", "as_tensor", "from_numpy")

    def __init__(self, counts: Counter):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) in self.WAITING:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[Counter]:
    """How often the host would wait for a device in the block, by operation."""
    counts: Counter = Counter()
    with Operations(counts), Methods(counts):
        yield counts


@contextmanager
def never_waiting(device: str, *, free: int = 0) -> Iterator[None]:
    """The context in which the host may not wait for the device.

    Args:
        free: how many values are read on a CPU, where that is free.
    """
    if device == "cpu":
        with host_reads() as reads:
            yield
        assert reads == Counter(_local_scalar_dense=free), f"the host reads {dict(reads)}"
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Replaying(GraphedStep):
    """A graph as far as the CPU has one: replaying is running again."""

    def __init__(self, *args):
        super().__init__(*args)
        self.num_recorded = 0

    def _beside(self, function):
        return function()

    def _record(self, function):
        self.num_recorded += 1
        return function
