"""Pairs of networks of timm and torchvision, a few steps with letKD-2 and other methods: what fits, where, how fast.

    python -m benchmarks.networks                      all pairs, some minutes on one thread
    python -m benchmarks.networks swin mixer           those with such a network
    python -m benchmarks.networks --write              also into benchmarks/networks.json, for docs/networks.md

The smallest members of their families, untrained, on random pixels; codebook and decision scores are random numbers.
So this shows what goes together and says nothing of accuracies. Of each network the default places with channels, grid
and kind; of each method whether all terms stay finite, where it reads maps, and the time of a step, or the line with
which it refuses the pair. Times are of the processor, over all threads: what else runs on the machine waits or makes
wait, and counts little. The first step, which is slower, is left out.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from architectures import Outline, create_model, create_on_meta, outline
from benchmarks.against import git
from benchmarks.measuring import say_head, say_row
from benchmarks.step import describe_machine
from config.experiments import default_config
from config.options import Options, Protocol
from dataloaders import Batch, Dataset
from dataloaders.dataset import ImageTensors
from distillation.build import build_objective
from distillation.expressions import summands
from distillation.objective import Objective
from engine.host_memory import keep_freed_memory
from engine.optimization import make_optimizer
from engine.step import TrainStep
from storage.state_dicts import Weights

FILE = Path(__file__).with_name("networks.json")
EXPERIMENT = "digits.RN14_RN8"  # whose methods the pairs take, with the options that they have by default
METHODS = ("letKD-2", "KD", "ReviewKD", "RKD")
MEAN, STD = (0.5,) * 3, (0.25,) * 3
PROTOCOL = Protocol(optimizer="adamw", learning_rate=1e-4)
DEFAULT = ("penultimate", "intermediate")


@dataclass(frozen=True)
class Pair:
    """Teacher and student by name, and options of the pair."""

    teacher: str
    student: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.teacher} > {self.student}"


AT_16 = {"words_teacher_place": "stage3", "decisions_teacher_place": "layer3.0"}  # the teacher's maps of 1/16
KINDS: Mapping[str, tuple[Pair, ...]] = {
    "CNN to CNN": (
        Pair("timm/resnet18d", "timm/resnet10t"),
        Pair("timm/regnety_002", "timm/regnetx_002"),
        Pair("timm/convnext_atto", "timm/mobilenetv3_small_050"),
        Pair("timm/efficientnet_b0", "timm/efficientnet_lite0"),
        Pair("timm/densenet121", "timm/mobilenetv4_conv_small_035"),
        Pair("torchvision/densenet121", "torchvision/mobilenet_v3_small"),
    ),
    "Transformer or mixer to CNN": (
        Pair("timm/vit_tiny_patch16_224", "timm/resnet10t"),
        Pair("timm/deit_tiny_distilled_patch16_224", "timm/efficientnet_lite0"),
        Pair("timm/mixer_s32_224", "torchvision/mobilenet_v3_small"),
        Pair("torchvision/swin_t", "timm/mobilenetv4_conv_small_035"),
        Pair("torchvision/vit_b_16", "torchvision/shufflenet_v2_x0_5"),
    ),
    "CNN to transformer": (
        Pair("timm/resnet18d", "timm/vit_tiny_patch16_224", AT_16),
        Pair("timm/regnety_002", "timm/deit_tiny_patch16_224(patch_size=32)"),
        Pair("torchvision/resnet18", "timm/swin_tiny_patch4_window7_224"),
    ),
}
PAIRS = tuple(pair for pairs in KINDS.values() for pair in pairs)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        steps: of each method, without the first.
    """

    image_size: int = 64
    batch: int = 8
    classes: int = 10
    words: int = 64
    subclasses: int = 2
    steps: int = 5


QUICK = Size(image_size=32, batch=4, classes=3, words=8, steps=1)


# --- one pair --------------------------------------------------------------------------------------------------------


def options_of(pair: Pair, method: str, size: Size) -> Options:
    """As of an experiment of the method with these networks."""
    config = default_config(f"{EXPERIMENT}.{method}")
    small = {"num_words": size.words, "subclasses_per_class": size.subclasses} | pair.options
    networks = {"teacher": pair.teacher, "student": pair.student, "image_size": size.image_size}
    return Options.of(config | networks | {key: value for key, value in small.items() if key in config})


def objective_of(pair: Pair, method: str, size: Size) -> Objective:
    """As training builds it, with random weights and random supervision.

    Raises:
        ValueError: the method refuses the pair.
    """
    torch.manual_seed(0)
    teacher = create_model(pair.teacher, size.classes, image_size=size.image_size)
    weights = Weights(teacher.state_dict(), Path("random"))
    objective = build_objective(options_of(pair, method, size), random_dataset(size), weights, drawn=True)
    objective.on_epoch(PROTOCOL.epochs, PROTOCOL.epochs)  # behind all warm-ups
    return objective.to(memory_format=torch.channels_last).train()


@functools.cache
def random_dataset(size: Size) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch, size.image_size, size.image_size, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    split = ImageTensors(images, torch.arange(size.batch) % size.classes)
    return Dataset("random", tuple(map(str, range(size.classes))), size.image_size, MEAN, STD, 4, True, train=split)


def random_batch(size: Size) -> Batch:
    split = random_dataset(size).train
    return Batch(split.images.permute(0, 3, 1, 2), split.labels, torch.arange(size.batch))


def measure(pair: Pair, method: str, size: Size) -> dict[str, Any]:
    """Milliseconds, terms and places, or what the method says where it refuses the pair."""
    try:
        objective = objective_of(pair, method, size)
    except ValueError as error:
        return {"refused": str(error)}
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    train = TrainStep(objective, make_optimizer(objective, PROTOCOL), autocast)
    batch, seconds, steps = random_batch(size), [], []
    for _ in range(1 + size.steps):
        start = time.process_time()
        steps.append(train(batch))
        seconds.append(time.process_time() - start)
    terms = [{name: term.item() for name, term in step.terms.items()} for step in steps]
    return {
        "ms": 1000 * statistics.median(seconds[1:]),
        "finite": all(math.isfinite(value) for each in terms for value in each.values()),
        "terms": terms[-1],
        "places": objective.describe()["places"],
    }


def described(name: str, size: Size) -> dict[str, Any]:
    """Parameters of a network, and its places with path, channels, grid and kind."""
    network = create_on_meta(name, size.classes, image_size=size.image_size)
    found: Outline = outline(network, size.image_size, name)
    places = {
        key: {"path": place.path, "channels": place.channels, "grid": list(place.grid), "kind": place.kind}
        for key, place in found.places.items()
    }
    return {"parameters": sum(parameter.numel() for parameter in network.parameters()), "places": places}


# --- all of them -----------------------------------------------------------------------------------------------------


def chosen(words: list[str]) -> list[Pair]:
    """The pairs in which a network's name has one of the words in it; all of them for no words.

    Raises:
        ValueError: a word is in no name.
    """
    if lost := [word for word in words if not any(word in str(pair) for pair in PAIRS)]:
        raise ValueError(f"no pair has a network with {lost[0]!r} in its name; the pairs: {', '.join(map(str, PAIRS))}")
    return [pair for pair in PAIRS if not words or any(word in str(pair) for word in words)]


def say_networks(pairs: list[Pair], size: Size) -> dict[str, Any]:
    """Prints a row a network; returns what was found, by name."""
    say_head("network", "parameters", *DEFAULT)
    found = {}
    for name in dict.fromkeys(name for pair in pairs for name in (pair.teacher, pair.student)):
        found[name] = described(name, size)
        places = found[name]["places"]
        say_row(f"`{name}`", f"{found[name]['parameters']:,}", *(told(places[key]) for key in DEFAULT))
    return found


def told(place: Mapping[str, Any]) -> str:
    """A place in words."""
    kind = "" if place["kind"] == "map" else f", {place['kind']}"
    return f"`{place['path']}`: {place['channels']} channels, {' x '.join(map(str, place['grid']))}{kind}"


def say_pairs(pairs: list[Pair], methods: list[str], size: Size) -> Iterator[dict[str, Any]]:
    """Prints a row a pair, and what was refused; yields what was measured of each."""
    say_head("teacher", "student", *methods)
    refused = []
    for pair in pairs:
        rows = {method: measure(pair, method, size) for method in methods}
        say_row(f"`{pair.teacher}`", f"`{pair.student}`", *map(cell, rows.values()))
        refused += [row["refused"] for row in rows.values() if "refused" in row]
        yield asdict(pair) | {"methods": rows}
    print("\n" + "\n".join(dict.fromkeys(refused)))


def cell(row: Mapping[str, Any]) -> str:
    """What was measured of a method, in a word."""
    if "refused" in row:
        return "refused"
    return f"{row['ms']:.0f} ms" if row["finite"] else "**not finite**"


def run(args: argparse.Namespace) -> int:
    pairs, methods = chosen(args.pairs), ["+".join(summands(method)) for method in args.methods]
    keep_freed_memory(torch.device("cpu"))  # as training does
    size = QUICK if args.quick else Size()
    commit = git("describe", "--always", "--dirty", "--exclude=*")
    measured = f"{describe_machine('cpu', torch.get_num_threads())}, {libraries()}; commit {commit}; {size.batch} "
    measured += f"images of {size.image_size} x {size.image_size} a step, {size.steps} steps{', --quick' * args.quick}"
    print(measured)
    networks = say_networks(pairs, size)
    rows = []
    for row in say_pairs(pairs, methods, size):
        rows.append(row)
        if args.write:  # after each, in case that it is stopped
            write(args.write, measured, networks, rows)
    return int(any(not row.get("finite", True) for pair in rows for row in pair["methods"].values()))


def libraries() -> str:
    """Their versions."""
    import timm
    import torchvision

    return f"torchvision {torchvision.__version__}, timm {timm.__version__}"


def write(file: Path, measured: str, networks: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """What was measured, a line a network and a line a pair."""
    networks_ = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in networks.items())
    rows_ = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = (
        f'{{\n "measured": {json.dumps(measured)},\n "networks": {{\n{networks_}\n }},\n "pairs": [\n{rows_}\n ]\n}}\n'
    )
    file.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", metavar="WORD", help="those with a network that has it in its name")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=METHODS, help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works")
    parser.add_argument("--write", nargs="?", type=Path, const=FILE, metavar="FILE", help=f"default: {FILE.name}")
    try:
        return run(parser.parse_args(argv))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
