"""Some processes on one machine, for tests of what they sum up together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A fork has torch loaded already. Where there is a GPU, autograd has threads that do not live on in a fork.
START = "spawn" if torch.cuda.is_available() else "fork"


def on_ranks(number: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What `function(rank, *args)`, a function of a module, returns on each of so many ranks."""
    mp.start_processes(_run, (number, function, str(folder), args), nprocs=number, start_method=START)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(number)]


def _run(rank: int, number: int, function: Callable[..., Any], folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=number)
    try:
        torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
