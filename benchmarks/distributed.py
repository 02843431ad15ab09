"""What several processes cost and gain: DistributedDataParallel around one, and two with a core each against one.

    python -m benchmarks.distributed
    python -m benchmarks.distributed --alternations 41 --only one

A step of ResNet-56 to ResNet-20 as in `benchmarks.methods`, by default of letKD-2.

- one: in one process, with DistributedDataParallel in a group of one and without it, all threads; an alternation is a
  step of each, and which begins changes. Both begin with the same weights, and their first losses are compared.
- many: so many processes, each with a thread and a core of its own and its part of the batch, against one process with
  as many threads and the whole batch. On GPUs each has one, and as many images as the one process has.
- bytes: what DistributedDataParallel gives to all-reduce in a step, counted by a communication hook, against 4 bytes
  for each parameter that trains.

Ratios are medians over the alternations, with intervals of order statistics.
"""

import copy
import dataclasses
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.measuring import Turns, how_much, median, parser_of, ratio, said, say_head, say_row, take_turns, where
from benchmarks.methods import PROTOCOL, QUICK, Size, objective_of, random_batch
from benchmarks.step import is_asked
from distillation.objective import Objective
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.parallel import parallel
from engine.step import TrainStep

METHOD = "letKD-2"
PARTS = ("one", "many", "bytes")
LIMIT = 1.02  # of a step without DistributedDataParallel
EFFICIENCY = 0.95  # the goal on GPUs: images a second of N, of N times those of one
TOLERANCE = 1e-5  # of the first losses
START = "spawn"
ALONE, WRAPPED, MANY = "none", "DDP, one process", "processes"


def make_step(objective: Objective, size: Size, device: torch.device, *, is_parallel: bool) -> TrainStep:
    """The step of a training; with `is_parallel` that of one process among those of the group."""
    optimizer = make_optimizer(objective, PROTOCOL)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, enabled=False)

    wrapped = parallel(objective, random_batch(size, device), autocast()) if is_parallel else objective
    return TrainStep(wrapped, optimizer, autocast)


def taking(step: TrainStep, size: Size, device: torch.device) -> Callable[[], Tensor]:
    """A step on one batch, as training does it; returns the loss."""
    batch = random_batch(size, device)

    def take() -> Tensor:
        result = step(batch)
        Meter(device).add(result, batch.labels)
        return result.loss

    return take


@contextmanager
def group(rank: int, number: int, meeting: Path, device: torch.device) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=number)
    try:
        yield
    finally:
        dist.destroy_process_group()


# --- one process -----------------------------------------------------------------------------------------------------


def measure_one(method: str, size: Size, alternations: int, device: torch.device) -> Turns:
    """Steps with and without DistributedDataParallel.

    Raises:
        RuntimeError: their first losses differ.
    """
    with tempfile.TemporaryDirectory() as folder, group(0, 1, Path(folder, "meeting"), device):
        objective = objective_of(method, size, device)
        steps = {
            name: make_step(copy.deepcopy(objective), size, device, is_parallel=name == WRAPPED)
            for name in (ALONE, WRAPPED)
        }
        sides = {name: taking(step, size, device) for name, step in steps.items()}
        losses = {name: take().item() for name, take in sides.items()}
        if not abs(losses[WRAPPED] / losses[ALONE] - 1) <= TOLERANCE:  # true of nan
            raise RuntimeError(f"the first losses differ: {losses}")
        return take_turns(sides, alternations, device)


# --- many ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Side:
    """Processes that take steps together.

    Args:
        number: of processes.
        threads: of each.
        size: of the batch of each, and the others.
    """

    number: int
    threads: int
    size: Size
    method: str
    device: str


def work(side: Side, rank: int, meeting: Path, connection: Connection) -> None:
    """A process that first sends how many bytes a step gives to all-reduce, and 4 a parameter; then it takes a step
    whenever it is told to.
    """
    torch.set_num_threads(side.threads)
    cores = sorted(os.sched_getaffinity(0))
    if side.number > 1 and len(cores) >= side.number:
        os.sched_setaffinity(0, {cores[rank]})
    device = torch.device(side.device, rank) if side.device == "cuda" else torch.device(side.device)
    if side.device == "cuda":
        torch.cuda.set_device(device)
    keep_freed_memory(device)
    with ExitStack() as stack:
        if side.number > 1:
            stack.enter_context(group(rank, side.number, meeting, device))
        connection.send(count_bytes(side, device) if side.number > 1 else (0, 0))
        objective = objective_of(side.method, side.size, device)
        take = taking(make_step(objective, side.size, device, is_parallel=side.number > 1), side.size, device)
        while is_asked(connection):
            take()
            if side.device == "cuda":
                torch.cuda.synchronize()
            connection.send(None)


def count_bytes(side: Side, device: torch.device) -> tuple[int, int]:
    """Bytes that a step gives to all-reduce, and 4 for each parameter that has a gradient."""
    objective = objective_of(side.method, side.size, device)
    step, sent = make_step(objective, side.size, device, is_parallel=True), 0

    def count(processes: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal sent
        sent += bucket.buffer().nbytes
        return allreduce_hook(processes, bucket)

    step.objective.register_comm_hook(None, count)
    take = taking(step, side.size, device)
    take()  # in the first step the buckets are still in the order of the parameters
    sent = 0
    take()
    parameters = [each for each in step.objective.parameters() if each.requires_grad]
    return sent, 4 * sum(each.numel() for each in parameters)


@contextmanager
def started(side: Side) -> Iterator[tuple[Callable[[], None], tuple[int, int]]]:
    """What takes a step of all processes of a side, and what the first has counted.

    Raises:
        RuntimeError: a process has ended.
    """
    context = multiprocessing.get_context(START)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [context.Pipe() for _ in range(side.number)]
        processes = [
            context.Process(target=work, args=(side, rank, Path(folder, "meeting"), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        connections = [ours for ours, _ in pairs]
        for process, (_, theirs) in zip(processes, pairs, strict=True):
            process.start()
            theirs.close()

        def answers() -> list[Any]:
            try:
                return [connection.recv() for connection in connections]
            except (EOFError, ConnectionResetError) as error:
                raise RuntimeError("a process has ended; its error is above") from error

        def take() -> None:
            for connection in connections:
                connection.send(True)
            answers()

        try:
            yield take, answers()[0]
        finally:
            for connection in connections:  # all of them, before any is waited for
                with suppress(OSError):  # it has ended
                    connection.send(False)
                connection.close()
            for process in processes:
                process.join()


def say_many(method: str, size: Size, number: int, alternations: int, device: torch.device, parts: list[str]) -> None:
    """Rows of one process and many, and of the bytes of a step."""
    is_gpu = device.type == "cuda"
    part = size if is_gpu else dataclasses.replace(size, batch=size.batch // number)
    one = Side(1, torch.get_num_threads() if is_gpu else number, size, method, device.type)
    many = Side(number, 1, part, method, device.type)
    with ExitStack() as stack:
        take, (sent, expected) = stack.enter_context(started(many))
        if "bytes" in parts:
            say_head("bytes a step", "given to all-reduce", "4 a parameter", f"each of {number} sends, in a ring")
            say_row(method, f"{sent:,}", f"{expected:,}", f"{round(2 * (number - 1) / number * sent):,}")
            print("\nthey are equal" if sent == expected else "\nthey DIFFER")
        if "many" not in parts:
            return
        alone, _ = stack.enter_context(started(one))
        turns = take_turns({ALONE: alone, MANY: take}, alternations, torch.device("cpu"))
    images = {ALONE: one.size.batch, MANY: many.size.batch * number}
    rates = [{name: images[name] / seconds for name, seconds in turn.items()} for turn in turns]
    say_head("processes x threads", "time", "img/s", "img/s against one", "95 %")
    say_row(f"1 x {one.threads}", *_time_and_rate(turns, rates, ALONE), "", "")
    say_row(f"{number} x {many.threads}", *_time_and_rate(turns, rates, MANY), *said(ratio(rates, MANY, ALONE)))
    if is_gpu:
        efficiency = ratio(rates, MANY, ALONE)["ratio"] / number
        print(f"\nefficiency on {number} GPUs: {efficiency:.2f}, of a goal of {EFFICIENCY}")


def _time_and_rate(turns: Turns, rates: Turns, name: str) -> tuple[str, str]:
    return f"{1000 * median(turns, name):.0f} ms", f"{median(rates, name):.0f}"


def main(argv: list[str]) -> int:
    parser = parser_of("distributed", __doc__)
    parser.add_argument("--method", default=METHOD)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--processes", type=int, help="so many; 2, or the number of GPUs")
    args = parser.parse_args(argv)
    device, size = torch.device(args.device), QUICK if args.quick else Size()
    number = args.processes or (max(2, torch.cuda.device_count()) if device.type == "cuda" else 2)
    if number < 2 or (device.type == "cpu" and size.batch % number):
        parser.error(f"--processes={number} must be 2 or more, and divide a batch of {size.batch}")
    keep_freed_memory(device)  # as training does
    print(f"{where(args.device)}; {how_much(args)}")
    if "one" in args.only:
        turns = measure_one(args.method, size, args.alternations, device)
        say_head("a step with", "time", "against none", "95 %")
        say_row(ALONE, f"{1000 * median(turns, ALONE):.0f} ms", "", "")
        say_row(WRAPPED, f"{1000 * median(turns, WRAPPED):.0f} ms", *said(ratio(turns, WRAPPED, ALONE)))
        is_below = ratio(turns, WRAPPED, ALONE)["ratio"] < LIMIT
        print(f"\nit is {'below' if is_below else 'NOT below'} the limit of {LIMIT}")
    if device.type == "cuda" and torch.cuda.device_count() < number:
        print(f"\nseveral GPUs: not measured, there is {torch.cuda.device_count()}")
    elif {"many", "bytes"} & set(args.only):
        say_many(args.method, size, number, args.alternations, device, args.only)
    if device.type == "cpu":
        print("\nefficiency on several GPUs: not measured")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
