"""What a cache of the teacher saves: steps that run the teacher, keep what it says, and read it.

    python -m benchmarks.teacher_cache
    python -m benchmarks.teacher_cache --alternations 41

KD with its logits and letKD-2 with its two maps, ResNet-56 to ResNet-20 on random pixels of CIFAR-100's size as in
`benchmarks.methods`, with the training loader, in one process: in an alternation each loop takes a step, and which
begins changes. An epoch is of few steps, so that files are read and written more often than in a training. Ratios are
medians over the alternations, with intervals of order statistics.
"""

import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import how_much, median, parser_of, ratio, said, say_head, say_row, take_turns, where
from benchmarks.methods import PROTOCOL, QUICK, REFERENCE, Size, objective_of, our_loop, random_dataset, take
from dataloaders import make_train_loader
from distillation.cache_options import LOGITS
from distillation.cached_signals import Shortened
from distillation.teacher_cache import TeacherCache, in_bytes, whole_forms
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.step import TrainStep

STEPS = 32  # of an epoch
TOP = 20
LAYERS = "letKD-2"
RUNS, WRITES = f"{REFERENCE}: the teacher runs", "it runs, and its logits are kept"
READS, READS_TOP = "they are read", f"{TOP} are read"
RUNS_WHOLE, WRITES_WHOLE = f"{LAYERS}: the teacher runs", "it runs, and its maps are kept"
READS_WHOLE = "the maps are read"
AGAINST = {
    WRITES: RUNS, READS: RUNS, READS_TOP: RUNS, WRITES_WHOLE: RUNS_WHOLE, READS_WHOLE: RUNS_WHOLE,
}  # fmt: skip


def cached_loop(
    method: str,
    folder: Path,
    size: Size,
    device: torch.device,
    *,
    is_new: bool,
    is_whole: bool = False,
    top: int | None = None,
) -> Iterator[None]:
    """Endless steps of a method; yields behind each.

    Args:
        is_new: whether every epoch is another one, and is written; else there is one, which is made first.
        is_whole: whether all signals are kept as they are; else logits alone, `top` of them.
    """
    autocast = functools.partial(torch.autocast, device.type, enabled=False)
    objective, dataset = objective_of(method, size, device), random_dataset(size)
    teacher = objective.without_teacher()
    num_classes = len(dataset.classes)
    forms = whole_forms(teacher.network, num_classes, 4) if is_whole else {LOGITS: Shortened(num_classes, top)}
    cache = TeacherCache(
        teacher, dataset, forms, {name: {"format": "of a benchmark", "signal": name, "top": top} for name in forms},
        folder=folder, batch_size=size.batch, parts=1, device=device, autocast=autocast,
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

    def cached(method: str, place: str, **how: Any) -> Iterator[None]:
        return cached_loop(method, folder / place, size, device, **how)

    loops = {
        RUNS: our_loop(objective_of(REFERENCE, size, device), size, device),
        WRITES: cached(REFERENCE, "written", is_new=True),
        READS: cached(REFERENCE, "read", is_new=False),
        READS_TOP: cached(REFERENCE, "read", is_new=False, top=TOP),
        RUNS_WHOLE: our_loop(objective_of(LAYERS, size, device), size, device),
        WRITES_WHOLE: cached(LAYERS, "written", is_new=True, is_whole=True),
        READS_WHOLE: cached(LAYERS, "read", is_new=False, is_whole=True),
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
    say_head("a step", "time", "against one that runs the teacher", "95 %")
    for name in turns[0]:
        compared = said(ratio(turns, name, AGAINST[name])) if name in AGAINST else ("", "")
        say_row(name, f"{1000 * median(turns, name):.0f} ms", *compared)
    kept = {f"{top} of 100" if top else "all": Shortened(100, top).bytes_of_row for top in (None, TOP)}
    sizes = (f"{in_bytes(240 * 50_000 * row)} ({name} logits)" for name, row in kept.items())
    print(f"\n240 epochs of CIFAR-100 are {', '.join(sizes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
