"""What a cache of the teacher's logits saves: steps of KD that run the teacher, keep its logits, and read them.

    python -m benchmarks.teacher_cache
    python -m benchmarks.teacher_cache --alternations 41

ResNet-56 to ResNet-20 on random pixels of CIFAR-100's size as in `benchmarks.methods`, with the training loader, in one
process: in an alternation each loop takes a step, and which begins changes. An epoch is of few steps, so that files are
read and written more often than in a training. Ratios are medians over the alternations, with intervals of order
statistics.
"""

import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import how_much, median, parser_of, ratio, said, say_head, say_row, take_turns, where
from benchmarks.methods import PROTOCOL, QUICK, REFERENCE, Size, objective_of, our_loop, random_dataset, take
from dataloaders import make_train_loader
from distillation.teacher_cache import TeacherCache, bytes_of_row, in_bytes
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.step import TrainStep

STEPS = 32  # of an epoch
TOP = 20
RUNS, WRITES = "the teacher runs", "it runs, and its logits are kept"
READS, READS_TOP = "they are read", f"{TOP} are read"


def cached_loop(folder: Path, size: Size, device: torch.device, *, top: int | None, is_new: bool) -> Iterator[None]:
    """Endless steps of KD; yields behind each.

    Args:
        is_new: whether every epoch is another one, and is written; else there is one, which is made first.
    """
    autocast = functools.partial(torch.autocast, device.type, enabled=False)
    objective, dataset = objective_of(REFERENCE, size, device), random_dataset(size)
    cache = TeacherCache(
        objective.without_teacher(), dataset, {"top": top}, folder=folder, batch_size=size.batch, parts=1,
        device=device, autocast=autocast,
    )  # fmt: skip
    loader = make_train_loader(dataset, batch_size=size.batch, device=device, seed=0)
    if not is_new:
        for _ in cache.over(loader, 1, skip=0):
            pass
    train = TrainStep(objective, make_optimizer(objective, PROTOCOL), autocast)
    for epoch in itertools.count(1):
        meter = Meter(device)
        for batch in cache.over(loader, epoch if is_new else 1, skip=0):
            meter.add(train(batch), batch.labels)
            yield
        meter.means()


def step_functions(folder: Path, size: Size, device: torch.device) -> dict[str, Callable[[], None]]:
    """A step of each loop by its name."""
    loops = {
        RUNS: our_loop(objective_of(REFERENCE, size, device), size, device),
        WRITES: cached_loop(folder / "written", size, device, top=None, is_new=True),
        READS: cached_loop(folder / "read", size, device, top=None, is_new=False),
        READS_TOP: cached_loop(folder / "read", size, device, top=TOP, is_new=False),
    }
    return {name: functools.partial(take, loop, 1) for name, loop in loops.items()}


def main(argv: list[str]) -> int:
    parser = parser_of("teacher_cache", __doc__)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    keep_freed_memory(device)  # as training does
    size = QUICK if args.quick else replace(Size(), images=STEPS * Size.batch)
    print(f"{where(args.device)}; {how_much(args)}")
    with tempfile.TemporaryDirectory() as folder:
        turns = take_turns(step_functions(Path(folder), size, device), args.alternations, device)
    say_head("a step of KD", "time", "against one that runs the teacher", "95 %")
    say_row(RUNS, f"{1000 * median(turns, RUNS):.0f} ms", "", "")
    for name in (WRITES, READS, READS_TOP):
        say_row(name, f"{1000 * median(turns, name):.0f} ms", *said(ratio(turns, name, RUNS)))
    rows = {f"{top} of 100" if top else "all": in_bytes(240 * 50_000 * bytes_of_row(100, top)) for top in (None, TOP)}
    print(f"\n240 epochs of CIFAR-100 are {', '.join(f'{size} ({kept} logits)' for kept, size in rows.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
