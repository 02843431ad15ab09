"""Some processes on one machine, for tests of what they sum up together."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import main_classification
from dataloaders import loaders

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


def started(number: int, argv: list[str], **environment: str) -> list[multiprocessing.Process]:
    """A command as torchrun starts it, but for the forks, which have torch loaded already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known = {name: str(value) for name, value in known.items()} | environment
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_main, args=(argv, known, rank)) for rank in range(number)]
    for process in processes:
        process.start()
    return processes


def _main(argv: list[str], environment: dict[str, str], rank: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment
    status = main_classification.main(argv)
    loaders._end_all_workers()  # as at the exit of a process that is no fork
    sys.exit(status)


def under_torchrun(
    number: int, argv: list[str], *, max_restarts: int = 0, nodes: int = 1, port: int = 0
) -> multiprocessing.Process:
    """A command as torchrun's own agent on one of several machines starts it, watches it and starts it again; forks."""
    options = {"max_restarts": max_restarts, "rdzv_endpoint": f"localhost:{port}"}
    process = multiprocessing.get_context("fork").Process(target=_launch, args=(number, nodes, argv, options))
    process.start()
    return process


def _launch(number: int, nodes: int, argv: list[str], options: dict[str, Any]) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options |= {"start_method": "fork", "signals_to_handle": "SIGTERM,SIGUSR1"}
    config = LaunchConfig(nodes, nodes, number, rdzv_backend="c10d", run_id="test", **options)
    try:
        elastic_launch(config, _run_command)(argv)
    except ChildFailedError:
        sys.exit(1)


def _run_command(argv: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main_classification.main(argv))


def ended(processes: list[multiprocessing.Process], seconds: float = 60) -> list[int]:
    """The exit statuses of processes that end by themselves; all are killed where one does not."""
    try:
        for process in processes:
            process.join(seconds)
        assert [process.exitcode for process in processes if process.exitcode is None] == []
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes]
