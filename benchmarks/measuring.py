"""How the benchmarks of steps measure: functions of one process that take turns, ratios, and the rows of tables.

In an alternation each function works once, and which begins changes. A ratio is the median over the alternations, and
its interval that of order statistics: 95 % whatever the distribution, if the alternations were independent of each
other.
"""

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.against import git, median_interval, number_of_alternations
from benchmarks.step import describe_machine

MIB = 2**20

Turns = list[dict[str, float]]  # seconds by what was measured, an alternation each


# --- the command line ------------------------------------------------------------------------------------------------


def parser_of(module: str, about: str) -> argparse.ArgumentParser:
    """The options that these benchmarks share.

    Args:
        module: the benchmark, by its name in `benchmarks`.
        about: its docstring, of which --help shows the first line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about.splitlines()[0])
    parser.add_argument("--alternations", type=number_of_alternations, default=21)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works")
    return parser


def where(device: str) -> str:
    """The machine and the commit, for the line above a table."""
    commit = git("describe", "--always", "--dirty", "--exclude=*")
    return f"{describe_machine(device, torch.get_num_threads())}; commit {commit}"


def how_much(args: argparse.Namespace) -> str:
    """What was said of it on the command line."""
    return f"{args.alternations} alternations{', --quick' * args.quick}"


# --- turns -----------------------------------------------------------------------------------------------------------


def seconds_of(function: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Seconds of a call, over several."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def take_turns(
    functions: Mapping[str, Callable[[], Any]], alternations: int, device: torch.device, *, at_least: float = 0.0
) -> Turns:
    """Seconds of each function in every alternation; one goes before them that is not counted.

    Args:
        at_least: seconds for which what is shorter is repeated.
    """
    seconds_of(lambda: [function() for function in functions.values()], 1, device)
    fastest = min(seconds_of(function, 1, device) for function in functions.values())
    calls = max(1, math.ceil(at_least / fastest))
    turns = []
    for number in range(alternations):
        order = list(functions.items())[:: -1 if number % 2 else 1]
        turns.append({name: seconds_of(function, calls, device) for name, function in order})
    return turns


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """The most MiB that tensors take which it makes; on a GPU less what it frees of those that were there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would say on stderr when it starts and ends
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    events = (event for event in profile.kineto_results.events() if event.name() == "[memory]")
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0)) / MIB


def median(turns: Turns, name: str) -> float:
    return statistics.median(turn[name] for turn in turns)


def ratio(turns: Turns, one: str, other: str) -> dict[str, Any]:
    """The median of one / other over the alternations, and its interval; None for fewer than six."""
    ratios = [turn[one] / turn[other] for turn in turns]
    return {"ratio": statistics.median(ratios), "interval": median_interval(ratios)}


# --- tables ----------------------------------------------------------------------------------------------------------


def say_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def say_head(*columns: str) -> None:
    print()
    say_row(*columns)
    print("|---" * len(columns) + "|")


def said(found: Mapping[str, Any]) -> tuple[str, str]:
    """A ratio and its interval."""
    bounds = "{:.2f} to {:.2f}".format(*found["interval"]) if found["interval"] else "needs six alternations"
    return f"{found['ratio']:.2f}", bounds
