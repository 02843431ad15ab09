"""Where tensors are, how float32 is computed there, and which numbers are not finite."""

import functools
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from storage.documents import log

PRECISIONS = ("fp32", "tf32", "bf16")
CUBLAS_VARIABLE, CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # as cuBLAS documents it


def choose_device(cuda: bool) -> torch.device:
    """The GPU where one is wanted and present, else the CPU; says so when a wanted one is missing."""
    if cuda and not torch.cuda.is_available():
        _say_no_gpu()
        cuda = False
    return torch.device("cuda" if cuda else "cpu")


@functools.cache
def _say_no_gpu() -> None:
    """Once a process: a command may have many jobs."""
    log.info("no GPU here: running on the CPU (cuda=False says so beforehand)")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without instructions for it imitates it, far more slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()  # there is no public question of all versions that letKD runs on


@contextmanager
def set_numerics(precision: str, *, deterministic: bool) -> Iterator[None]:
    """How float32 is computed as long as the context is open; what was set before comes back.

    Args:
        precision: of matrix products and convolutions; bf16 is applied where a step runs.
        deterministic: a GPU repeats its results bit for bit too, more slowly; an operation that cannot is an error.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    reduced = precision != "fp32"
    with ExitStack() as stack:
        stack.enter_context(_changed(torch.backends.cuda.matmul, allow_tf32=reduced))
        stack.enter_context(_changed(torch.backends.cudnn, allow_tf32=reduced))
        if deterministic:
            stack.enter_context(_changed(torch.backends.cudnn, benchmark=False, deterministic=True))
            stack.enter_context(_deterministic_algorithms())
        yield


@contextmanager
def _changed(owner: Any, **settings: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """cuBLAS reads its variable when it starts, which is after this."""
    before, variable = torch.get_deterministic_debug_mode(), os.environ.get(CUBLAS_VARIABLE)
    torch.use_deterministic_algorithms(True)
    os.environ[CUBLAS_VARIABLE] = CUBLAS_DETERMINISTIC
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        if variable is None:
            del os.environ[CUBLAS_VARIABLE]
        else:
            os.environ[CUBLAS_VARIABLE] = variable


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, float] | None:
    """Name of the first tensor with a value that is not finite, and that value; one read where all are finite."""
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    largest = torch.nn.utils.get_total_norm(floating.values(), norm_type=math.inf)
    if largest.isfinite():
        return None
    name = next(name for name, tensor in floating.items() if not tensor.isfinite().all())
    values = floating[name].flatten()
    return name, values[~values.isfinite()][0].item()


def device_name(device: torch.device) -> str:
    """What a result was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
