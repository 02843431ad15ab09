"""Whether the working tree computes what an older revision computes, bit for bit, and as fast.

    python -m benchmarks.against d8ec9c1                 all rows
    python -m benchmarks.against HEAD --only bits        without the times
    python -m benchmarks.against HEAD --only speed --alternations 40
    python -m benchmarks.against HEAD --only speed --of LDA "letKD-1 bf16"

The older revision is checked out into a temporary worktree. Both run in the same Python environment, on the CPU, in
processes of their own and in turns, and are driven through what stays between revisions: the command line, the places
of the files, and the steps of torch's optimizers.

Bits: SHA-256 of the values of all tensors, of training on the digits and of codebook and decision scores. Each revision
makes its own teacher and supervision with its own commands. Names and order of the tensors are free to change.

Speed: ResNet-56 to ResNet-20 on made-up images of CIFAR-100's size, 4096 words. A process of either revision does the
same job, one waits while the other works, and which begins changes with every alternation; after four alternations two
new processes take over. A ratio is the median over the alternations of this / older, and its interval that of order
statistics: 95 % whatever the distribution, if the alternations were independent of each other. Those of two processes
are less so than those of several. Starts are counted once a process, those of all trainings together.

The exit status is 0, 1 where bits differ, 2 after an error, and 130 after Ctrl-C.
"""

import argparse
import hashlib
import math
import pickle
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("marked_commands.py")
CONFIDENCE = 0.95
SHOWN_DIGITS = 16  # of a SHA-256
IMAGE_SIZE, NUM_CLASSES = 32, 100

PRECISIONS = ("fp32", "bf16")
DIGITS_TEACHER = "digits.RN14"
DIGITS_EXPERIMENTS = ("digits.RN8", "digits.RN14_RN8.letKD-1", "digits.RN14_RN8.letKD-2")
TEACHER, TEACHER_WEIGHTS = "CIFAR100.resnetv1.RN56", "saved_models/resnet56_vanilla/ckpt_epoch_240.pth"
PAIR, METHODS = "CIFAR100.resnetv1.RN56_RN20", ("letKD-1", "letKD-2")
JOBS = ("kmeans", "LDA")
TRAININGS = {f"{method} {precision}": (method, precision) for method in METHODS for precision in PRECISIONS}


@dataclass(frozen=True)
class Size:
    """How much is computed. A training must not come to the end of its first epoch of images / 64 steps."""

    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 2
    images: int = 960
    words: int = 4096
    turns: int = 4  # of two processes, behind one that is not timed


QUICK = Size(seeds=(0,), epochs=1, images=640, words=64, turns=1)


@dataclass(frozen=True)
class Side:
    """A revision: how the table calls it, where its code is, and where its outputs go."""

    name: str
    root: Path
    outputs: Path


Row = tuple[str, str, str, str, str]
Pair = dict[str, float]  # what was measured of either side, by its name
Figures = dict[str, list[Pair]]  # an entry an alternation, by what was measured


# --- the processes ---------------------------------------------------------------------------------------------------


class Commands:
    """A process that runs commands of a side (`marked_commands`), and is killed where it has not ended.

    Args:
        commands: options of `main_classification.py with`; where images and outputs are is added.
        steps: between marks in training; 0 for none.
        place: the working directory, where `data/` and `saved_models/` are.
    """

    def __init__(self, side: Side, commands: Iterable[str], *, steps: int = 0, place: Path):
        self.side = side
        where = f"cuda=False localpath={shlex.quote(str(side.outputs))}"
        self.log = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 (closed in __exit__)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, WORKER, side.root, str(steps), *(f"{command} {where}" for command in commands)],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for this process alone, which ends the others
        )

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def reach_mark(self) -> int:
        """Wait for the next mark.

        Returns:
            Peak memory in KiB.

        Raises:
            RuntimeError: the process has ended; names the side and the last line it wrote.
        """
        answer = self.process.stdout.readline()
        if answer:
            return int(answer)
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        raise RuntimeError(f"{self.side.name} ended with {self.process.wait()}: {last}")

    def go_on(self) -> int:
        """From a mark to the next; returns as `reach_mark`."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.reach_mark()


# --- bits ------------------------------------------------------------------------------------------------------------


def value_digests(tensors: Iterable[Tensor]) -> list[str]:
    """SHA-256 of the bytes of each tensor, sorted: neither names nor shapes nor order of the tensors play a part.

    So tensors that have changed places with each other are not seen.
    """
    return sorted(
        hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for tensor in tensors
    )


def compare_digests(name: str, this: list[str], older: list[str]) -> tuple[Row, bool]:
    """A row of the table, and whether both are equal."""
    whole = [hashlib.sha256("".join(digests).encode()).hexdigest()[:SHOWN_DIGITS] for digests in (this, older)]
    differing = max((Counter(this) - Counter(older)).total(), (Counter(older) - Counter(this)).total())
    verdict = f"different ({differing} of {max(len(this), len(older))} tensors)" if differing else "equal"
    return (name, *whole, verdict, ""), not differing


def read_tensors(folder: Path, pattern: str, entry: str | None = None) -> list[Tensor]:
    """The tensors of a torch file, or of one of its entries; of supervision, those of all maps.

    Raises:
        RuntimeError: there is not one such file, or it holds no tensors there.
    """
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise RuntimeError(f"{len(files)} files instead of one are {folder / pattern}")
    content = torch.load(files[0], map_location="cpu", weights_only=True)
    values = [*(content if entry is None else content.get(entry, {})).values()]
    if entry is None:  # files of one map had its tensors beside their format before
        values += [value for found in content.get("maps", {}).values() for value in found["tensors"].values()]
    found = [value for value in values if isinstance(value, Tensor)]
    if not found:
        where = f" under {entry!r}" if entry else ""
        raise RuntimeError(f"{files[0]} holds no tensors{where}; it has {', '.join(content)}")
    return found


def digit_runs(side: Side, experiments: list[str], size: Size, place: Path) -> Iterator[tuple[str, list[str]]]:
    """What each command of the digits has computed: its name in the table, and digests."""
    schedule = f"epochs={size.epochs} milestones=[1]"  # the learning rate falls behind the first epoch
    runs = [
        (f"teacher {DIGITS_TEACHER}", f"config={DIGITS_TEACHER} {schedule}", DIGITS_TEACHER, "last.pth", "model"),
        ("codebook", f"config={DIGITS_TEACHER} kmeans=128", f"VQ.{DIGITS_TEACHER}", "*.pth", None),
        ("decisions", f"config={DIGITS_TEACHER} LDA=5", f"LDA.{DIGITS_TEACHER}", "*.pth", None),
    ]
    for experiment in experiments:
        for precision in PRECISIONS:
            for seed in size.seeds:
                options = f"{schedule} precision={precision} seed={seed}"
                name = f"{experiment}, {precision}, seed {seed}"
                runs.append((name, f"config={experiment} {options}", experiment, "last.pth", "model"))
    with Commands(side, [command for _, command, *_ in runs], place=place) as process:
        process.reach_mark()
        for name, _, experiment, pattern, entry in runs:
            say(f"bits, {side.name}: {name}")
            process.go_on()
            yield name, value_digests(read_tensors(side.outputs.joinpath(*experiment.split(".")), pattern, entry))


def compare_bits(sides: tuple[Side, Side], experiments: list[str], size: Size, place: Path) -> tuple[list[Row], bool]:
    """Rows of the table, and whether all bits are equal."""
    this, older = (dict(digit_runs(side, experiments, size, place)) for side in sides)
    compared = [compare_digests(name, this[name], older[name]) for name in this]
    return [row for row, _ in compared], all(equal for _, equal in compared)


# --- speed -----------------------------------------------------------------------------------------------------------


def make_inputs(place: Path, num_images: int) -> None:
    """Images in CIFAR-100's files, and a teacher where the published one would be: the same for both sides.

    An image is the coarse pattern of its class and noise. The teacher has random weights, BatchNorms that have learnt
    the scale of its maps, and a classifier of least squares: a teacher that guesses is refused.
    """
    from architectures import Input, create_model
    from dataloaders.cifar import CIFAR100_MEAN, CIFAR100_STD

    random = np.random.default_rng(0)
    patterns = random.integers(256, size=(NUM_CLASSES, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    folder = place / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, number in (("train", num_images), ("test", NUM_CLASSES)):
        labels = np.arange(number) % NUM_CLASSES
        noisy = patterns[labels] + 40 * random.standard_normal((number, 3, IMAGE_SIZE, IMAGE_SIZE))
        pixels = noisy.clip(0, 255).astype(np.uint8)
        content = {"data": pixels.reshape(number, -1), "fine_labels": labels.tolist()}
        folder.joinpath(split).write_bytes(pickle.dumps(content))
        if split == "train":
            prepared, targets = Input(CIFAR100_MEAN, CIFAR100_STD)(torch.from_numpy(pixels)), torch.from_numpy(labels)
    folder.joinpath("meta").write_bytes(pickle.dumps({"fine_label_names": [str(n) for n in range(NUM_CLASSES)]}))

    torch.manual_seed(0)
    network = create_model("resnet56", num_classes=NUM_CLASSES).train()
    with torch.no_grad():
        for images in prepared.split(64):
            network(images)
        pooled = [network.eval().forward_features(images).mean(dim=(2, 3)) for images in prepared.split(64)]
        inputs = F.pad(torch.cat(pooled), (0, 1), value=1.0)  # the last of them is the bias's
        solved = torch.linalg.lstsq(inputs.double(), F.one_hot(targets, NUM_CLASSES).double()).solution.float()
        network.fc.weight.copy_(solved[:-1].T)
        network.fc.bias.copy_(solved[-1])
    weights = place / TEACHER_WEIGHTS
    weights.parent.mkdir(parents=True)
    torch.save({"model": network.state_dict()}, weights)


def take_turns(processes: dict[str, Commands], num_turns: int, *, first: int) -> tuple[list[Pair], list[Pair]]:
    """Seconds from mark to mark and peak memory in MiB, a pair a turn; one turn goes before them that is not timed.

    Args:
        processes: by side, each at a mark.
        first: the number of the first turn; the side that begins changes with it.
    """
    seconds, memory = [], []
    for turn in range(first - 1, first + num_turns):
        seconds.append({})
        memory.append({})
        for name, process in list(processes.items())[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            memory[-1][name] = process.go_on() / 1024
            seconds[-1][name] = time.perf_counter() - start
    return seconds[1:], memory[1:]


def measure_job(sides: Iterable[Side], option: str, size: Size, place: Path, *, first: int = 0) -> Figures:
    """Seconds of an offline job, without the start of Python and torch, and its peak memory in MiB."""
    with ExitStack() as stack:
        processes = {}
        for side in sides:
            commands = [f"config={TEACHER} {option}"] * (1 + size.turns)
            processes[side.name] = stack.enter_context(Commands(side, commands, place=place))
            processes[side.name].reach_mark()
        seconds, memory = take_turns(processes, size.turns, first=first)
    return {f"{option}, s": seconds, f"{option}, peak MiB": memory}


def measure_training(sides: Iterable[Side], command: str, size: Size, place: Path, *, first: int = 0) -> Figures:
    """Seconds from the start of the process to its first step, milliseconds of a step, and peak memory in MiB."""
    started: Pair = {}
    with ExitStack() as stack:
        processes = {}
        for side in sides:  # each while the other is not there, or waits
            process = processes[side.name] = stack.enter_context(Commands(side, [command], steps=1, place=place))
            process.reach_mark()
            process.go_on()
            started[side.name] = time.perf_counter() - process.started
        seconds, memory = take_turns(processes, size.turns, first=first)
    steps = [{name: 1000 * value for name, value in pair.items()} for pair in seconds]
    return {"start to first step, s": [started], "step, ms": steps, "peak MiB": memory}


def measure_speed(sides: tuple[Side, Side], alternations: int, size: Size, place: Path, measured: list[str]) -> Figures:
    """What every alternation has measured. The jobs go before them once: Python compiles modules in it.

    Args:
        measured: those of JOBS and TRAININGS.
    """
    make_inputs(place, size.images)
    figures: Figures = defaultdict(list)
    options = {"kmeans": f"kmeans={size.words}", "LDA": "LDA=5"}
    for option in options.values():  # which the trainings need
        say(f"speed: a first {option} that is not counted")
        measure_job(sides, option, replace(size, turns=0), place)
    for first in range(0, alternations, size.turns):
        part = replace(size, turns=min(size.turns, alternations - first))
        say(f"speed: alternations {first + 1} to {first + part.turns} of {alternations}")
        order = sides if first // size.turns % 2 else sides[::-1]
        for job in (job for job in JOBS if job in measured):
            for name, pairs in measure_job(order, options[job], part, place, first=first).items():
                figures[name] += pairs
        for training in (training for training in TRAININGS if training in measured):
            method, precision = TRAININGS[training]
            command = f"config={PAIR}.{method} num_words={size.words} precision={precision}"
            for name, pairs in measure_training(order, command, part, place, first=first).items():
                of_all = name.startswith("start")  # there is one a process
                figures[f"all trainings: {name}" if of_all else f"{training}: {name}"] += pairs
    return figures


def median_interval(values: list[float]) -> tuple[float, float] | None:
    """The order statistics that enclose the median of the distribution with at least 95 %; None for fewer than six.

    That the median lies below the k-th smallest of n values has the probability of fewer than k heads in n throws.
    """
    number, rank, tail = len(values), 0, 0.5 ** len(values)
    while tail <= (1 - CONFIDENCE) / 2:
        rank += 1
        tail += math.comb(number, rank) * 0.5**number
    ordered = sorted(values)
    return (ordered[rank - 1], ordered[number - rank]) if rank else None


def speed_row(name: str, pairs: list[Pair], sides: tuple[Side, Side]) -> Row:
    """Medians of both sides, the median ratio this / older, and its interval."""
    this, older = ([pair[side.name] for pair in pairs] for side in sides)
    ratios = [a / b for a, b in zip(this, older, strict=True)]
    interval = median_interval(ratios)
    bounds = "{:.3f} to {:.3f}".format(*interval) if interval else "needs six alternations"
    medians = (f"{statistics.median(values):.4g}" for values in (this, older))
    return name, *medians, f"{statistics.median(ratios):.3f}", bounds


# --- the revisions ---------------------------------------------------------------------------------------------------


def git(*words: str) -> str:
    """What a git command prints.

    Raises:
        ValueError: it fails; says why.
    """
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {words[0]}: {'; '.join(done.stderr.splitlines())}")
    return done.stdout.strip()


def find_commit(revision: str) -> str:
    """The full name of a commit.

    Raises:
        ValueError: this is no git repository, or there is no such commit in it.
    """
    git("rev-parse", "--show-toplevel")
    try:
        return git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    except ValueError as error:
        raise ValueError(f"unknown revision {revision!r}; `git log --oneline` shows what there is") from error


@contextmanager
def both_sides(revision: str) -> Iterator[tuple[tuple[Side, Side], Path]]:
    """The working tree and the older revision in a worktree of its own, and a working directory; all of it goes again.

    Raises:
        ValueError: as `find_commit`, or the revision has no `main_classification.py`.
    """
    commit = find_commit(revision)
    names = git("describe", "--always", "--dirty", "--exclude=*"), git("rev-parse", "--short", commit)
    prefix = git("rev-parse", "--show-prefix")  # where the project is only a part of its repository
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        tree, place = Path(folder, "tree"), Path(folder, "place")
        place.mkdir()
        try:
            git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            if not (tree / prefix / "main_classification.py").is_file():
                raise ValueError(f"{revision} has no main_classification.py")
            this = Side(f"this ({names[0]})", ROOT, place / "this")
            older = Side(f"older ({names[1]})", tree / prefix, place / "older")
            yield (this, older), place
        finally:
            if tree.exists():
                git("worktree", "remove", "--force", str(tree))


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def markdown(rows: list[Row], sides: tuple[Side, Side]) -> str:
    head = ("what", *(side.name for side in sides), "verdict, or ratio this / older", "95 % interval")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def run(args: argparse.Namespace) -> int:
    size = QUICK if args.quick else Size()
    with both_sides(args.revision) as (sides, place):
        equal, rows = True, []
        if args.only != "speed":
            rows, equal = compare_bits(sides, args.experiments, size, place)
        if args.only != "bits":
            figures = measure_speed(sides, args.alternations, size, place, args.of)
            rows += [speed_row(name, pairs, sides) for name, pairs in figures.items()]
    from benchmarks.step import describe_machine  # a mistake should not wait for it

    kinds = [f"bits with epochs={size.epochs} (the first {SHOWN_DIGITS} digits of SHA-256)"] * (args.only != "speed")
    kinds += [f"medians of {args.alternations} alternations, intervals of order statistics"] * (args.only != "bits")
    print(f"{describe_machine('cpu', torch.get_num_threads())}; {'; '.join(kinds)}{', --quick' * args.quick}\n")
    print(markdown(rows, sides))
    return 0 if equal else 1


def number_of_alternations(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the older one, as git knows it")
    parser.add_argument("--only", choices=("bits", "speed"))
    parser.add_argument("--alternations", type=number_of_alternations, default=20)
    parser.add_argument("--experiments", nargs="+", default=list(DIGITS_EXPERIMENTS), help="whose bits are compared")
    names = [*JOBS, *TRAININGS]
    parser.add_argument(
        "--of", nargs="+", default=names, choices=names, metavar="JOB", help="what is timed: %(choices)s"
    )
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is temporary goes then too
    try:
        return run(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
