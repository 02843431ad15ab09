"""Time of a training step against the plain formulation, on random pixels of CIFAR-100's size.

    python -m benchmarks.step                                    all rows
    python -m benchmarks.step --pairs RN56_RN20 --precisions fp32 --repeats 20

Each row compares two processes that begin with the same weights and take turns, one step each: `plain.PlainStep`, and
the step that training runs. The losses of their first steps are compared before anything is timed.

The limit of a row is the time that the matrix products and convolutions of our step alone would take at the rate of a
large product in the row's precision, measured right before it: counted operations / measured rate.
"""

import argparse
import datetime
import functools
import itertools
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import Input, create_model
from benchmarks.plain import PlainKDLayer, PlainStep
from config.options import Options
from config.recipes import letkd1, letkd2
from dataloaders import Batch, Dataset, make_train_loader
from dataloaders.dataset import ImageTensors
from distillation.build import build_network, fold_teacher_
from distillation.losses import Data, Loss
from distillation.losses.ce import CrossEntropy
from distillation.losses.decisions import Decisions
from distillation.losses.words import Words
from distillation.objective import Objective, Teacher
from distillation.signals import Network, Wanted, measured
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.numerics import computes_bfloat16
from engine.optimization import make_optimizer
from engine.step import GraphedStep, TrainStep
from letkd import Codebook, Student, SubclassTargets, pool_map, to_patches

PAIRS = {
    "RN56_RN20": ("resnet56", "resnet20"),
    "RN32x4_RN8x4": ("resnet32x4", "resnet8x4"),
    "WRN40w2_SNv1": ("wrn_40_2", "shufflenetv1"),
}
METHODS = ("letKD-1", "letKD-2")
PRECISIONS = ("fp32", "bf16")
NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES, NUM_COMPONENTS = 100, 4096, 8, 60  # the paper's
BATCH, IMAGE_SIZE = 64, 32
MEAN, STD = (0.5,) * 3, (0.25,) * 3
LEARNING_RATE = 0.01
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = (
    "pair", "method", "precision", "plain", "letKD", "ratio", "img/s", "matrix work", "large product", "copy", "limit",
    "share of the limit", "losses differ",
)  # fmt: skip
LOSSES = ("ce", "words", "decisions")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    pair: str
    method: str
    precision: str
    device: str

    @property
    def options(self) -> Options:
        """Those of an experiment of its pair and method."""
        teacher, student = PAIRS[self.pair]
        recipe, sizes = {
            "letKD-1": (letkd1, {"num_words": NUM_WORDS}),
            "letKD-2": (letkd2, {"num_words": NUM_WORDS, "subclasses_per_class": NUM_SUBCLASSES}),
        }[self.method]
        own = recipe(dataset="CIFAR100", teacher=teacher, student=student, learning_rate=LEARNING_RATE, **sizes)
        return Options.of(own)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def build_objective(case: Case) -> Objective:
    """An objective with random weights and supervision made of random patches; the same for the same case."""
    torch.manual_seed(0)
    student = build_network(case.options, NUM_CLASSES, IMAGE_SIZE)
    images = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    network = drawn_network(PAIRS[case.pair][0], images)
    input_ = Input(MEAN, STD)
    teacher = Teacher(measured(network, IMAGE_SIZE).reading(Wanted(maps=tuple(student.layers))), input_, "random")
    maps = pooled_maps(student, teacher, images)
    data = Data(num_images=BATCH, num_classes=NUM_CLASSES)
    losses: dict[str, Loss] = {"ce": CrossEntropy()}
    decisions = None
    if "intermediate" in maps:
        decisions = drawn_subclasses(maps["intermediate"], NUM_SUBCLASSES, NUM_COMPONENTS)
    codebook = drawn_codebook(maps["penultimate"], NUM_WORDS)
    losses["words"] = Words.build(student, teacher.network, data, codebook=codebook)
    if decisions is not None:
        losses["decisions"] = Decisions.build(student, teacher.network, data, decisions=decisions)
    return Objective(student, input_, losses, dict.fromkeys(losses, 1.0), teacher)


def pooled_maps(student: Network, teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """The maps that the teacher returns, by place, at the student's grid."""
    maps = teacher(images).maps
    return {place: pool_map(found, student.pooling_of(teacher.network, place)) for place, found in maps.items()}


def drawn_network(name: str, images: Tensor) -> nn.Module:
    """Random weights, and BatchNorms that have learnt the scale of the maps."""
    network = create_model(name, num_classes=NUM_CLASSES).train()
    with torch.no_grad():
        for _ in range(10):
            network(images)
    return network


def drawn_codebook(map_BCHW: Tensor, num_words: int) -> Codebook:
    """Words that are random patches of a map."""
    return Codebook(_some_patches(map_BCHW, num_words))


def drawn_subclasses(map_BCHW: Tensor, num_subclasses: int, num_components: int) -> SubclassTargets:
    """Sub-classes whose centres are random patches of a map."""
    num_targets, channels = NUM_CLASSES * num_subclasses, map_BCHW.shape[1]
    scalings = torch.randn(channels, num_components) / channels**0.5
    return SubclassTargets(
        scalings_CL=scalings,
        xbar_C=to_patches(map_BCHW).mean(dim=0),
        centers_ML=_some_patches(map_BCHW, num_targets) @ scalings,
        decisions_MM=torch.randn(num_targets, num_targets).mul(2).softmax(dim=1),
        num_subclasses=num_subclasses,
    )


def _some_patches(map_BCHW: Tensor, number: int) -> Tensor:
    patches_PC = to_patches(map_BCHW)
    chosen = patches_PC[torch.randint(len(patches_PC), (number,))]
    return chosen + 0.1 * chosen.std() * torch.randn_like(chosen)


# A step returns how to read its figures, so that reading them is timed only where the step itself does it.
StepFunction = Callable[[Batch], Callable[[], dict[str, float]]]


def make_plain_step(case: Case) -> StepFunction:
    objective = build_objective(case)
    layers = {name: PlainKDLayer(layer) for name, layer in objective.student.layers.items()}
    backbone = create_model(PAIRS[case.pair][1], num_classes=NUM_CLASSES)
    backbone.load_state_dict(objective.student.backbone.state_dict())
    student = Student(backbone, layers, {name: getattr(backbone, name).path for name in layers}).to(case.device)
    objective.to(case.device)
    supervision = {"penultimate": {"centroids_KC": objective.losses["words"].codebook.centroids}}
    if "decisions" in objective.losses:
        subclasses = objective.losses["decisions"].subclasses
        supervision["intermediate"] = {
            "weight_LC": subclasses.weight,
            "offset_L": subclasses.offset,
            "centers_NSL": subclasses.centers,
            "decisions_MM": subclasses.decisions,
        }
    teacher = functools.partial(pooled_maps, objective.network, objective.teacher)
    plain = PlainStep(student, teacher, supervision, make_optimizer(student, case.options.protocol), case.autocast())

    def step(batch: Batch) -> Callable[[], dict[str, float]]:
        figures = plain(objective.input(batch.images).contiguous(), batch.labels)
        return lambda: figures

    return step


def make_our_step(case: Case) -> StepFunction:
    """The step of `algorithms.train.Training`, which reads its meter at the end of a log interval."""
    device = torch.device(case.device)
    objective = build_objective(case)
    fold_teacher_(objective.teacher)
    objective = objective.to(device, memory_format=torch.channels_last).train()
    kind = GraphedStep if case.device == "cuda" else TrainStep
    train = kind(objective, make_optimizer(objective, case.options.protocol), case.autocast)

    def step(batch: Batch) -> Callable[[], dict[str, float]]:
        meter = Meter(device)
        meter.add(train(batch), batch.labels)
        return meter.means

    return step


def count_operations(function: Callable[[], Any]) -> int:
    """Multiplications and additions of the matrix products and convolutions that it runs, forwards and backwards."""
    mapping = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:  # which knows `addmm` alone
        function()
    return counter.get_total_flops()


def work(side: str, case: Case, threads: int, connection: Connection) -> None:
    """A process that builds one side and takes a step whenever it is told to; answers with seconds and figures."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    pixels_BHWC = torch.randint(256, (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
    tensors = (pixels_BHWC.permute(0, 3, 1, 2), labels, torch.arange(BATCH))
    batch = Batch(*(values.to(case.device) for values in tensors))
    make = {"plain": make_plain_step, "ours": make_our_step}[side]
    if side == "ours":
        keep_freed_memory(batch.labels.device)  # as training does
        counted = make(case)  # thrown away afterwards: the timed steps begin where the plain ones do
        connection.send(count_operations(lambda: counted(batch)))
    step = make(case)
    while is_asked(connection):
        start = time.perf_counter()
        read = step(batch)
        if case.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        connection.send((seconds, read()))


def is_asked(connection: Connection) -> bool:
    """Wait for the next question; False when nobody is there any more to ask."""
    try:
        return bool(connection.recv())
    except EOFError:
        return False


def measure(case: Case, *, threads: int, repeats: int, warm_up: int) -> dict[str, Any]:
    """Median seconds of both sides, the counted operations, and the losses of the first step.

    Raises:
        RuntimeError: the losses differ, or a process has ended.
    """
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for side in ("plain", "ours"):
        connections[side], theirs = context.Pipe()
        process = context.Process(target=work, args=(side, case, threads, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)

    def take_turns() -> dict[str, tuple[float, dict[str, float]]]:
        answers = {}
        for side, connection in connections.items():
            connection.send("step")
            answers[side] = connection.recv()
        return answers

    try:
        operations = connections["ours"].recv()
        difference = _compare(case, {side: figures for side, (_, figures) in take_turns().items()})
        turns = [take_turns() for _ in range(warm_up + repeats)][warm_up:]
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise RuntimeError(f"{case}: a process has ended; its error is above") from error
    finally:
        for connection, process in zip(connections.values(), processes, strict=True):
            connection.close()
            process.join()
    medians = {side: statistics.median(turn[side][0] for turn in turns) for side in connections}
    return {"operations": operations, "difference": difference, **medians}


def _compare(case: Case, figures: dict[str, dict[str, float]]) -> float:
    """The largest relative difference between the losses of both sides."""
    ours, plain = figures["ours"], figures["plain"]
    difference = max(abs(ours[name] / plain[name] - 1) for name in LOSSES if name in plain)
    if not difference <= LOSS_TOLERANCE[case.precision]:  # true of nan
        raise RuntimeError(f"{case}: losses differ by {difference:.1e}: {figures}")
    return difference


def machine_rates(device: str, dtype: torch.dtype = torch.float32, repeats: int = 15) -> tuple[float, float]:
    """Operations a second of a large product, and bytes a second that a copy reads and writes."""
    left, right, product = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(3))
    source, target = (torch.ones(2**26, device=device) for _ in range(2))
    product_seconds = _median_seconds(lambda: torch.mm(left, right, out=product), device, repeats)
    copy_seconds = _median_seconds(lambda: target.copy_(source), device, repeats)
    return 2 * 2048**3 / product_seconds, 2 * source.nbytes / copy_seconds


def _median_seconds(function: Callable[[], Any], device: str, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def input_seconds(device: str) -> float:
    """Median seconds that the training loader and the input take for a batch of a resident CIFAR-100."""
    images = torch.randint(256, (50_000, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    split = ImageTensors(images, torch.randint(NUM_CLASSES, (len(images),)))
    classes = tuple(map(str, range(NUM_CLASSES)))
    dataset = Dataset("random", classes, IMAGE_SIZE, (0.5,) * 3, (0.25,) * 3, padding=4, flip=True, train=split)
    batches = iter(make_train_loader(dataset, batch_size=BATCH, device=device, seed=0))
    network_input = Input(dataset.mean, dataset.std).to(device)
    next(batches)  # draws the epoch
    return _median_seconds(lambda: network_input(next(batches).images), device, 200)


def describe_machine(device: str, threads: int) -> str:
    """The line above the table."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        models = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        ]
        name = f"{models[0] if models else platform.machine()}, {threads} threads"
    return f"{name}; {datetime.date.today()}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: those that the device computes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=3, help="turns that are not timed, after the one compared")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    precisions = args.precisions or PRECISIONS[: 1 + computes_bfloat16(torch.device(args.device))]

    torch.set_num_threads(args.threads)
    print(describe_machine(args.device, args.threads))
    print(f"one training step of {BATCH} images, median of {args.repeats}\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    fastest = math.inf
    for pair, method, precision in itertools.product(args.pairs, args.methods, precisions):
        case = Case(pair, method, precision, args.device)
        product_rate, copy_rate = machine_rates(args.device, DTYPES[precision])
        row = measure(case, threads=args.threads, repeats=args.repeats, warm_up=args.warm_up)
        limit = row["operations"] / product_rate
        fastest = min(fastest, row["ours"])
        print(
            f"| {pair} | {method} | {precision} | {1000 * row['plain']:.0f} ms | {1000 * row['ours']:.0f} ms "
            f"| {row['plain'] / row['ours']:.2f} | {BATCH / row['ours']:.0f} | {row['operations'] / 1e9:.1f} GFLOP "
            f"| {product_rate / 1e9:.0f} GFLOP/s | {copy_rate / 1e9:.0f} GB/s | {1000 * limit:.0f} ms "
            f"| {100 * limit / row['ours']:.0f} % | {row['difference']:.0e} |",
            flush=True,
        )
    seconds = input_seconds(args.device)
    print(
        f"\nInput: {1000 * seconds:.2f} ms a batch (reflect-crop and flip of every image, normalisation), "
        f"{100 * seconds / fastest:.1f} % of the fastest step above"
    )


if __name__ == "__main__":
    main()
