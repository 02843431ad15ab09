"""Files of reference values, and what the registered losses make of them: loading, comparing, printing.

An array of a file is called KIND/NAME. What is given are `input`, `param`, `draw` and `const`; results are `loss/L`,
`grad/L/V` (of the loss L with respect to the input or parameter V), `out/X` (something between) and `after/X` (a state
behind the forward pass). The adapter of a method, a file in `adapters/`, builds the registered loss from what is given,
with the shapes that it finds there, and compares results. Every array is either used, compared, or left out with a
reason: one that is none of these is unknown, and an error.
"""

import fnmatch
import importlib
import pkgutil
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

GIVEN, RESULTS = ("input", "param", "draw", "const"), ("loss", "grad", "out", "after")
RTOL, GRADIENT_RTOL = 1e-4, 1e-3
ATOL = 1e-6  # of arrays, times their largest entry
ROUNDING = 1e-5  # of a gradient that is zero but for rounding, of the largest entry of all gradients of its loss


class Row(NamedTuple):
    """A result that has been compared.

    Attributes:
        value: ours, the largest entry of an array.
        difference: the largest one, over the largest entry that is expected; itself where nothing but 0 is expected.
    """

    name: str
    value: float
    difference: float
    agrees: bool


class Golden:
    """The arrays of a file, and what has become of each.

    Args:
        arrays: by name.

    Attributes:
        rows: results that have been compared, by name.
        left_out: why others are not, by name.
    """

    def __init__(self, arrays: Mapping[str, Tensor]):
        self.arrays = dict(arrays)
        self.rows: dict[str, Row] = {}
        self.left_out: dict[str, str] = {}
        self._used: set[str] = set()

    # --- what is given ---

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.arrays:
            near = [other for other in self.arrays if other.startswith(name.partition("/")[0])]
            raise ValueError(f"there is no array {name!r}; there are {', '.join(near) or 'none of that kind'}")
        self._used.add(name)
        return self.arrays[name].clone()

    def variable(self, name: str) -> Tensor:
        """A tensor of the file that gets gradients."""
        return self[name].requires_grad_()

    def number(self, name: str) -> float | int:
        """A constant."""
        return self[name].item()

    def find(self, pattern: str) -> Iterator[tuple[str, ...]]:
        """Of all names that a pattern describes, in the order of the file, what is in its parentheses.

        `find("loss/kd_T(.+)")` is ("2",), ("8",) where there are loss/kd_T2 and loss/kd_T8.
        """
        return (found.groups() for name in list(self.arrays) if (found := re.fullmatch(pattern, name)))

    def load(self, module: nn.Module, prefix: str, rename: Callable[[str], str] = str) -> dict[str, Tensor]:
        """Fill a module from `param/<prefix>...`; returns its parameters by their names in the file, for gradients.

        Args:
            prefix: in front of the names of what the module holds.
            rename: from the rest of a name to the one that the module has for it.

        Raises:
            ValueError: the file lacks a parameter of the module, or has what the module does not.
        """
        start = f"param/{prefix}"
        names = {rename(name.removeprefix(start)): name for name in self.arrays if name.startswith(start)}
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        if unknown := sorted(set(names) - set(own)):
            raise ValueError(f"{names[unknown[0]]} is {unknown[0]!r}, and the loss has only {', '.join(own)}")
        if missing := sorted({name for name, _ in module.named_parameters()} - set(names)):
            raise ValueError(f"there is no array below {start!r} for the parameter {missing[0]!r} of the loss")
        with torch.no_grad():
            for name, called in names.items():
                self._check_shape(called, own[name])
                own[name].copy_(self[called].view_as(own[name]))
        return {
            called.removeprefix("param/"): own[name]
            for name, called in names.items()
            if isinstance(own[name], nn.Parameter)
        }

    # --- results ---

    def compare_loss(
        self,
        name: str,
        value: Tensor,
        variables: Mapping[str, Tensor] | None = None,
        *,
        rounding: Collection[str] = (),
    ) -> None:
        """Compare `loss/NAME` and its gradients, as far as the file has them.

        Args:
            value: the loss, with its graph.
            variables: by their names in the file; those that have no gradient there are passed over.
            rounding: patterns of variables whose gradients are zero but for rounding, as that of a bias in front of a
                BatchNorm: they are held against the largest entry of all gradients of this loss.
        """
        if f"loss/{name}" in self:
            self._compare(f"loss/{name}", value, rtol=RTOL)
        names = {variable: f"grad/{name}/{variable}" for variable in variables or {}}
        names = {variable: called for variable, called in names.items() if called in self}
        if not names:
            return
        found = torch.autograd.grad(
            value,
            [variables[variable] for variable in names],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        finite = [self.arrays[called].abs().nan_to_num(0.0, 0.0).max().item() for called in names.values()]
        for (variable, called), gradient in zip(names.items(), found, strict=True):
            is_rounding = any(fnmatch.fnmatchcase(variable, pattern) for pattern in rounding)
            atol = ROUNDING * max(finite) if is_rounding else None
            self._compare(called, gradient, rtol=GRADIENT_RTOL, atol=atol)

    def compare(self, name: str, value: Tensor) -> None:
        """Compare an `out/` or `after/`, where the file has it."""
        if name in self:
            self._compare(name, value, rtol=RTOL)

    def compare_state(self, module: nn.Module, prefix: str, rename: Callable[[str], str] = str) -> None:
        """Compare all `after/<prefix>...` with the buffers and parameters of a module; arguments as those of `load`."""
        start = f"after/{prefix}"
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name in [name for name in self.arrays if name.startswith(start)]:
            if (called := rename(name.removeprefix(start))) in own:
                self._compare(name, own[called], rtol=RTOL)

    def leave_out(self, pattern: str, reason: str) -> None:
        """Say why arrays are not compared, or not used.

        Args:
            pattern: of whole names, with * for anything.
        """
        for name in self.arrays:
            if fnmatch.fnmatchcase(name, pattern):
                self.left_out[name] = reason

    # --- what has become of them ---

    @property
    def results(self) -> list[str]:
        """Names of all results of the file."""
        return [name for name in self.arrays if name.partition("/")[0] in RESULTS]

    @property
    def unknown(self) -> list[str]:
        """Arrays that are neither used nor compared nor left out."""
        return [
            name
            for name in self.arrays
            if name not in self.rows
            and name not in self.left_out
            and not (name in self._used and name.partition("/")[0] in GIVEN)
        ]

    def _check_shape(self, name: str, value: Tensor) -> None:
        expected = self.arrays[name].shape
        if value.shape != expected and not value.numel() == expected.numel() == 1:
            raise ValueError(f"{name} has the shape {tuple(expected)}, and ours {tuple(value.shape)}")

    def _compare(self, name: str, value: Tensor, *, rtol: float, atol: float | None = None) -> None:
        """Elementwise, where the reference is finite; what is ours is finite everywhere."""
        if name in self.rows:
            raise ValueError(f"{name} is compared twice")
        self._check_shape(name, value)
        expected = self.arrays[name]
        is_exact = not expected.dtype.is_floating_point
        ours, theirs = value.detach().double().flatten(), expected.double().flatten()
        finite = theirs.isfinite()
        if ours.isfinite().all() and not finite.any():
            self.left_out[name] = "it is not finite in the reference, and ours is"
            return
        if is_exact:
            rtol = atol = 0.0
        largest = theirs[finite].abs().max().item() if finite.any() else 0.0
        if atol is None:
            atol = ATOL * largest if expected.ndim else ATOL
        distance = (ours - theirs)[finite].abs()
        agrees = ours.isfinite().all() and (distance <= atol + rtol * theirs[finite].abs()).all()
        difference = distance.max().item() if finite.any() else float("nan")
        size = ours[ours.abs().argmax()].item() if len(ours) else float("nan")
        self.rows[name] = Row(name, size, difference / (largest or 1.0), bool(agrees))


# --- files and methods ------------------------------------------------------------------------------------------------


def list_adapters() -> list[str]:
    """Methods that have an adapter."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "adapters")]))


def find_adapter(method: str) -> ModuleType:
    """What says how the arrays of a method are compared.

    Raises:
        ValueError: there is none.
    """
    if method not in (known := list_adapters()):
        raise ValueError(f"unknown method {method!r}; known: {', '.join(known)}")
    return importlib.import_module(f"{__package__}.adapters.{method}")


def method_of(path: Path) -> str:
    """The method that a file is of: kd of kd.npz, and of kd_seed1.npz."""
    return re.match(r"[a-z0-9]*", path.name.lower()).group()


def load_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no arrays.
    """
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, AttributeError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"it is no file of arrays: {error}") from error


def check(path: Path) -> Golden:
    """Compare a file.

    Raises:
        FileNotFoundError, ValueError: as `load_arrays` and `find_adapter`, or something that is given is missing or
            does not fit.
    """
    adapter = find_adapter(method_of(path))
    golden = Golden(load_arrays(path))
    adapter.compare(golden)
    return golden


def report(path: Path) -> tuple[int, int, bool]:
    """Compare a file and print what comes of it: how many results agree, how many there are, whether all is well."""
    try:
        golden = check(path)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {path}: {error}")
        return 0, 0, False
    except (LookupError, RuntimeError) as error:  # arrays that do not fit together
        print(f"error: {path}: {type(error).__name__}: {error}")
        return 0, 0, False
    method = method_of(path)
    for row in golden.rows.values():
        verdict = "" if row.agrees else "  DIFFERS"
        print(f"{method:9} {row.name:55} {row.value:13.6g}  relative difference {row.difference:8.1e}{verdict}")
    for name, reason in golden.left_out.items():
        print(f"{method:9} {name:55} not compared: {reason}")
    for name in golden.unknown:
        print(f"error: {path}: unknown array {name!r}: the adapter of {method} does not know it")
    if not golden.rows:
        print(f"error: {path}: nothing was compared")
    agreeing = [row for row in golden.rows.values() if row.agrees]
    is_well = bool(golden.rows) and len(agreeing) == len(golden.rows) and not golden.unknown
    return len(agreeing), len(golden.results), is_well


def main(paths: Collection[str]) -> int:
    """Compare files; returns the exit code. The last line ends with how many results agree, of how many there are."""
    found = [report(Path(path)) for path in paths]
    if not found:
        print("error: nothing was compared: name one file or more")
    print(f"compared, and within the tolerance: {sum(n for n, _, _ in found)} of {sum(m for _, m, _ in found)}")
    return int(not found or not all(is_well for _, _, is_well in found))
