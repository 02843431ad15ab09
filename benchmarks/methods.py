"""What every method costs: its step against one of KD, and its loss against the formula written down plainly.

    python -m benchmarks.methods                              every registered method, each transform in front of KD
    python -m benchmarks.methods PKT letKD-2+DKD              some, sums too
    python -m benchmarks.methods --only losses --alternations 40
    python -m benchmarks.methods --write                      also into benchmarks/methods.json, for docs/methods.md

ResNet-56 and ResNet-20 on random pixels of CIFAR-100's size, 64 images a step, 4096 words. All is in one process, and
what is compared takes turns there: in an alternation each works once, and which begins changes. Ratios are medians over
the alternations, and intervals those of order statistics: 95 % whatever the distribution, if the alternations were
independent of each other.

Steps: `TrainStep` and the meter, as training takes them; bfloat16 where the device computes it. Losses: forward and
backward of the weighted terms without the cross-entropy, from the signals of one batch to their gradients and those of
what trains in the loss, against `benchmarks.plain_methods`; terms and gradients of both are compared before anything is
timed. Memory is the most that tensors take during a step or a loss, beyond what is there before it. Loops: images a
second of whole loops, with their loaders, against `benchmarks.plain_loop`.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain_loop
from benchmarks.measuring import (
    how_much,
    median,
    parser_of,
    peak_memory,
    ratio,
    said,
    say_head,
    say_row,
    take_turns,
    where,
)
from benchmarks.plain_methods import PLAIN
from benchmarks.step import PRECISIONS, drawn_codebook, drawn_network, drawn_subclasses
from config.experiments import default_config
from config.options import Options, Protocol
from dataloaders import Batch, Dataset, make_train_loader
from dataloaders.dataset import ImageTensors
from distillation import build
from distillation.expressions import list_methods, summands
from distillation.losses import Loss, list_transforms
from distillation.losses.base import INTERMEDIATE, PENULTIMATE
from distillation.objective import Objective, Teacher
from distillation.prepared import PREPARED
from distillation.signals import Head, Signals, Wanted
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.numerics import computes_bfloat16
from engine.optimization import make_optimizer
from engine.step import TrainStep
from storage.state_dicts import Weights

FILE = Path(__file__).with_name("methods.json")
PAIR, NUM_CLASSES, IMAGE_SIZE = "CIFAR100.resnetv1.RN56_RN20", 100, 32
REFERENCE = "KD"
MEAN, STD = (0.5,) * 3, (0.25,) * 3
PROTOCOL = Protocol(learning_rate=1e-6)  # nothing that is trained on noise runs away
NUM_COMPONENTS = 60  # of LDA, as the paper's
LIMIT = 1.05  # of the plain form
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # of losses and their plain forms
SPREAD = 4.0  # of the logits of a sample, as trained networks have it
PARTS = ("steps", "losses", "loops")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        images: of the data set, and rows of the memories of CRD.
        words: of the codebook.
        negatives: of CRD.
        seconds: what is shorter is repeated so long within an alternation.
        loop_steps: of a loop within an alternation.
    """

    batch: int = 64
    images: int = 50_000
    words: int = 4096
    negatives: int = 16_384
    seconds: float = 0.02
    loop_steps: int = 2


QUICK = Size(batch=4, images=128, words=16, negatives=8, seconds=0.0, loop_steps=1)


# --- objectives ------------------------------------------------------------------------------------------------------


def objective_of(method: str, size: Size, device: torch.device) -> Objective:
    """As training builds it for the pair, with random weights, and supervision made of random patches.

    Raises:
        ValueError: there is no such method.
    """
    config = default_config(f"{PAIR}.{method}")
    config |= {"num_words": size.words} if "num_words" in config else {}
    torch.manual_seed(0)
    drawn = {name: SimpleNamespace(open=draw, facts=lambda options: (Path(), {})) for name, draw in DRAWN.items()}
    with patch.dict(PREPARED, drawn):
        weights = teacher_weights(config["teacher"], size)
        objective = build.build_objective(Options.of(config), random_dataset(size), weights)
    objective.on_epoch(PROTOCOL.epochs, PROTOCOL.epochs)  # behind all warm-ups
    return objective.to(device, memory_format=torch.channels_last).train()


@functools.cache
def random_dataset(size: Size) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (size.images, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    split = ImageTensors(images, torch.arange(size.images) % NUM_CLASSES)
    return Dataset("random", tuple(map(str, range(NUM_CLASSES))), IMAGE_SIZE, MEAN, STD, 4, True, train=split)


@functools.cache
def teacher_weights(name: str, size: Size) -> Weights:
    images = torch.randn(size.batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    return Weights(drawn_network(name, images).state_dict(), Path("random"))


def teacher_map(teacher: Teacher, place: str) -> Tensor:
    with torch.no_grad():
        return teacher.network.reading(Wanted(maps=(place,)))(torch.randn(64, 3, IMAGE_SIZE, IMAGE_SIZE)).maps[place]


# What files would hold, by the names that losses ask for.
DRAWN = {
    "codebook": lambda options, student, teacher: drawn_codebook(
        teacher_map(teacher, PENULTIMATE), options.words.num_words
    ),
    "decisions": lambda options, student, teacher: drawn_subclasses(
        teacher_map(teacher, INTERMEDIATE), options.subclasses.subclasses_per_class, NUM_COMPONENTS
    ),
    "means": lambda options, student, teacher: torch.rand(NUM_CLASSES, teacher.network.outline.num_features),
}


def random_batch(size: Size, device: torch.device) -> Batch:
    split = random_dataset(size).train
    images_BHWC, labels = split.images[: size.batch], split.labels[: size.batch]
    tensors = images_BHWC.permute(0, 3, 1, 2), labels, torch.arange(size.batch)
    return Batch(*(tensor.to(device) for tensor in tensors))


# --- what is measured ------------------------------------------------------------------------------------------------


def step_functions(objective: Objective, batch: Batch, precisions: tuple[str, ...]) -> dict[str, Callable[[], None]]:
    """A training step in each precision."""
    device = batch.labels.device
    optimizer = make_optimizer(objective, PROTOCOL)

    def function(precision: str) -> Callable[[], None]:
        autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")
        train = TrainStep(objective, optimizer, autocast)
        return lambda: Meter(device).add(train(batch), batch.labels)

    return {precision: function(precision) for precision in precisions}


Graded = tuple[dict[str, Tensor], tuple[Tensor | None, ...]]  # terms, and gradients of what has any


def loss_functions(objective: Objective, batch: Batch) -> dict[str, Callable[[], Graded]] | None:
    """Terms and gradients of the losses but the cross-entropy, plain and ours; None where a plain form is missing."""
    losses = {key: loss for key, loss in objective.losses.items() if key != "ce"}
    if not {plain_name(loss) for loss in losses.values()} <= set(PLAIN):
        return None
    images = objective.input(batch.images)
    with torch.no_grad():
        taught = objective.teacher and like_trained(objective.teacher(images).in_float32())
        seen, variables = leaves(like_trained(objective.network(images).in_float32()))
    variables += [parameter for loss in losses.values() for parameter in loss.parameters()]

    def graded(terms: dict[str, Tensor]) -> Graded:
        total = sum(objective.weights[name] * term for name, term in terms.items())
        return terms, torch.autograd.grad(total, variables, allow_unused=True)

    def plain() -> Graded:
        found = ((loss, PLAIN[plain_name(loss)](loss, seen, taught, batch.labels)) for loss in losses.values())
        return graded({loss.term_name(name): term for loss, terms in found for name, term in terms.items()})

    def ours() -> Graded:
        found = ((loss, loss(seen, taught, batch)) for loss in losses.values())
        return graded({loss.term_name(name): term for loss, terms in found for name, term in terms.items()})

    return {"plain": plain, "letKD": ours}


def plain_name(loss: Loss) -> str:
    """The name of its plain form: "lskd:kd"."""
    return ":".join([*getattr(loss, "transforms", ()), loss.key])


def like_trained(found: Signals) -> Signals:
    """Signals with logits and pooled vectors as far apart as those of trained networks, and no channel that is off.

    Otherwise terms are nearly 0 and differ by their rounding, and plain forms divide by 0.
    """
    logits, pooled = found.logits, found.pooled
    return replace(
        found,
        logits=None if logits is None else SPREAD * F.layer_norm(logits, logits.shape[1:]),
        pooled=None if pooled is None else torch.randn_like(pooled).abs(),
    )


def leaves(found: Signals) -> tuple[Signals, list[Tensor]]:
    """Signals with the same values, each of which has a gradient; and these tensors."""
    variables = []

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None:
            tensor = tensor.detach().requires_grad_()
            variables.append(tensor)
        return tensor

    maps = {
        kind: {name: leaf(tensor) for name, tensor in getattr(found, kind).items()}
        for kind in ("maps", "preact", "inner")
    }
    head = found.head and Head(leaf(found.head.weight), leaf(found.head.bias))
    return Signals(leaf(found.logits), leaf(found.pooled), head=head, **maps), variables


def difference(ours: Graded, plain: Graded) -> float:
    """The largest relative difference of a term.

    Raises:
        RuntimeError: a term, or a gradient, differs by more than rounding.
    """
    (terms, gradients), (expected, exact) = ours, plain
    assert list(terms) == list(expected)
    found = max(abs(terms[name].item() / term.item() - 1) for name, term in expected.items())
    zero = torch.zeros(())
    pairs = [tuple(zero if each is None else each for each in pair) for pair in zip(gradients, exact, strict=True)]
    sizes = [other.abs().max().item() for _, other in pairs]
    # One that is far smaller than the others may be nothing but rounding, as of a bias in front of a BatchNorm.
    scales = (max(size, 1e-3 * max(sizes)) or 1.0 for size in sizes)
    apart = max((one - other).abs().max().item() / scale for (one, other), scale in zip(pairs, scales, strict=True))
    if not (found <= TOLERANCE and apart <= GRADIENT_TOLERANCE):  # true of nan
        values = {name: (terms[name].item(), term.item()) for name, term in expected.items()}
        raise RuntimeError(f"{values} and gradients differ from the plain form, by {found:.1e} and {apart:.1e}")
    return found


def our_loop(objective: Objective, size: Size, device: torch.device) -> Iterator[None]:
    """Endless steps with the training loader; yields behind each."""
    loader = make_train_loader(random_dataset(size), batch_size=size.batch, device=device, seed=0)
    train = TrainStep(
        objective, make_optimizer(objective, PROTOCOL), lambda: torch.autocast(device.type, enabled=False)
    )
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        meter = Meter(device)
        for batch in loader:
            meter.add(train(batch), batch.labels)
            yield
        meter.means()


def loop_functions(size: Size, device: torch.device) -> dict[str, Callable[[], None]]:
    """Some steps of each loop."""
    dataset, config = random_dataset(size), default_config(f"{PAIR}.{REFERENCE}")
    loops: dict[str, Iterator[Any]] = {
        "letKD, KD": our_loop(objective_of(REFERENCE, size, device), size, device),
        "letKD, letKD-2": our_loop(objective_of("letKD-2", size, device), size, device),
    }
    for method in ("KD", "CRD"):
        loops[f"plain, {method}"] = plain_loop.train(
            method, (config["teacher"], config["student"]), dataset.train, MEAN, STD, num_classes=NUM_CLASSES,
            batch_size=size.batch, negatives=size.negatives, learning_rate=PROTOCOL.learning_rate, device=device,
        )  # fmt: skip
    return {name: functools.partial(take, loop, size.loop_steps) for name, loop in loops.items()}


def take(loop: Iterator[Any], steps: int) -> None:
    for _ in itertools.islice(loop, steps):
        pass


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_step(
    method: str, reference: Callable[[], None], size: Size, alternations: int, device: torch.device
) -> dict[str, Any]:
    """Milliseconds, memory, and ratios to a step of KD and between the precisions.

    Args:
        reference: the step of KD.
    """
    precisions = PRECISIONS[: 1 + computes_bfloat16(device)]
    steps = step_functions(objective_of(method, size, device), random_batch(size, device), precisions)
    turns = take_turns({"reference": reference, **steps}, alternations, device)
    found = {"ms": 1000 * median(turns, "fp32"), "MiB": peak_memory(steps["fp32"], device)}
    found |= ratio(turns, "fp32", "reference")
    if "bf16" in steps:
        found["bf16"] = {"ms": 1000 * median(turns, "bf16"), **ratio(turns, "bf16", "fp32")}
    return found


def measure_loss(method: str, size: Size, alternations: int, device: torch.device) -> dict[str, Any] | None:
    """Milliseconds and memory of both sides, their ratio, and how much the terms differ; None without a plain form.

    Raises:
        RuntimeError: as `difference`.
    """
    sides = loss_functions(objective_of(method, size, device), random_batch(size, device))
    if sides is None:
        return None
    apart = difference(sides["letKD"](), sides["plain"]())
    turns = take_turns(sides, alternations, device, at_least=size.seconds)
    found = {"difference": apart, **ratio(turns, "letKD", "plain")}
    for name, function in sides.items():
        found[name] = {"ms": 1000 * median(turns, name), "MiB": peak_memory(function, device)}
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def say_steps(methods: list[str], size: Size, alternations: int, device: torch.device) -> dict[str, Any]:
    """Prints a row a method; returns what was measured, by method."""
    say_head("method", "step", f"against {REFERENCE}", "95 %", "memory", "bf16", "bf16 / fp32", "95 %")
    reference = step_functions(objective_of(REFERENCE, size, device), random_batch(size, device), ("fp32",))["fp32"]
    rows = {}
    for method in methods:
        row = rows[method] = measure_step(method, reference, size, alternations, device)
        reduced = (f"{row['bf16']['ms']:.0f} ms", *said(row["bf16"])) if "bf16" in row else ("—",) * 3
        say_row(f"`{method}`", f"{row['ms']:.0f} ms", *said(row), f"{row['MiB']:.0f} MiB", *reduced)
    return rows


def say_losses(methods: list[str], size: Size, alternations: int, device: torch.device) -> None:
    """Prints a row a method, and those that are slower than they may be."""
    say_head("loss of", "plain", "letKD", "letKD / plain", "95 %", "plain", "letKD", "terms differ")
    slow = []
    for method in methods:
        if (row := measure_loss(method, size, alternations, device)) is None:
            say_row(f"`{method}`", "no plain form is written down", *["—"] * 6)
            continue
        times, memory = ([f"{row[name][unit]:.3g} {unit}" for name in ("plain", "letKD")] for unit in ("ms", "MiB"))
        say_row(f"`{method}`", *times, *said(row), *memory, f"{row['difference']:.0e}")
        slow += [method] * (row["ratio"] > LIMIT)
    print(f"\nabove {LIMIT} of the plain form: {', '.join(slow) or 'none'}")


def say_loops(size: Size, alternations: int, device: torch.device) -> None:
    """Prints a row a loop."""
    functions = loop_functions(size, device)
    turns = take_turns(functions, alternations, device)
    reference = next(iter(functions))
    say_head("loop", "images a second", f"time against {reference}", "95 %")
    for name in functions:
        say_row(name, f"{size.loop_steps * size.batch / median(turns, name):.0f}", *said(ratio(turns, name, reference)))


def run(args: argparse.Namespace) -> None:
    if args.write and "steps" not in args.only:
        raise ValueError("--write writes what was measured of steps, which --only leaves out")
    device = torch.device(args.device)
    keep_freed_memory(device)  # as training does
    methods = ["+".join(summands(method)) for method in args.methods] or [
        *list_methods(),
        *(f"{transform}:{REFERENCE}" for transform in list_transforms()),
    ]
    size = QUICK if args.quick else Size()
    measured = f"{where(args.device)}; {size.batch} images a step, {how_much(args)}"
    print(measured)
    if "steps" in args.only:
        rows = say_steps(methods, size, args.alternations, device)
        if args.write:
            write(args.write, measured, rows)
    if "losses" in args.only:
        say_losses(methods, size, args.alternations, device)
    if "loops" in args.only:
        say_loops(size, args.alternations, device)


def write(file: Path, measured: str, rows: Mapping[str, Any]) -> None:
    """What was measured of steps, a line a method."""
    lines = ",\n".join(f"  {json.dumps(method)}: {json.dumps(row)}" for method, row in rows.items())
    file.write_text(f'{{\n "measured": {json.dumps(measured)},\n "steps": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = parser_of("methods", __doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="as in the name of an experiment; default: all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", nargs="?", type=Path, const=FILE, metavar="FILE", help=f"steps, into {FILE.name}")
    try:
        run(parser.parse_args(argv))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
