"""What the fault tests share: commands as processes, children that are killed, damaged bytes, and what must agree."""

import functools
import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import main_classification
from storage.tensor_files import load_tensors

ROOT = Path(main_classification.__file__).parent
FAST = ("image_size=8", "cuda=False")
TEACHER = ("config=digits.RN8", *FAST)
SUPERVISION = (
    "teacher=resnet8", "teacher_experiment=digits.RN8", "supervision=digits.RN8", "allow_poor_teacher=True",
)  # fmt: skip
SMALL = ("num_words=16", "subclasses_per_class=2")
PAIR = ("config=digits.RN14_RN8.letKD-2", "name=mine.RN8_RN8.letKD-2", *SUPERVISION, *SMALL, *FAST)

CODEBOOK = "VQ/digits/RN8/codebook_K16.pth"
DECISIONS = "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth"
MEANS = "class_means/digits/RN8/class_means.pth"
RUN = "mine/RN8_RN8/letKD-2"

TIMED = ("seconds", "images_per_second")  # what two equal runs measure differently


def short_and_long(name: str, short: Any, long: Any) -> pytest.MarkDecorator:
    """Two sizes of one test: the short one belongs to `make test`, the long one to `make test-all`."""
    sizes = [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.slow)]
    return pytest.mark.parametrize(name, sizes)


# --- commands --------------------------------------------------------------------------------------------------------


def run_here(*words: str, localpath: Path) -> None:
    """A command that succeeds, in this process."""
    argv = ["main_classification.py", "with", *words, f"localpath={localpath}"]
    assert main_classification.main(argv) == 0


def start(*words: str, localpath: Path, output: int = subprocess.PIPE) -> subprocess.Popen:
    """A command as a process of its own, with one thread."""
    command = [sys.executable, "main_classification.py", "with", *words, f"localpath={localpath}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, text=True)


def end(process: multiprocessing.Process, seconds: float = 120) -> int:
    """The exit status of a child that ends by itself; one that does not is killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"a child did not end within {seconds} seconds")
    return process.exitcode


def fork(work: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """A child of this process that does `work`: it begins where this one is, with torch loaded, and takes no time."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def kill_at(event: int, counter: Any, places: Iterable[tuple[Any, str]]) -> None:
    """From now on, kill this process when it is about to call one of `places` for the `event`-th time, from 0.

    Nothing of the process runs afterwards, as when memory is short or an administrator loses patience. `counter`, a
    shared value, holds the number of calls.
    """

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def count(*arguments: Any, **options: Any) -> Any:
            if counter.value == event:
                os.kill(os.getpid(), signal.SIGKILL)
            counter.value += 1
            return call(*arguments, **options)

        return count

    for owner, name in places:
        setattr(owner, name, watched(getattr(owner, name)))


# --- damage ----------------------------------------------------------------------------------------------------------


def damages(whole: bytes, number: int, seed: int) -> Iterator[bytes]:
    """`number` random damages in turn: a flipped bit, a lost end, a block of zeros as a lost sector leaves it."""
    draw = random.Random(seed)
    made = 0
    while made < number:
        damaged = bytearray(whole)
        place = draw.randrange(len(whole))
        kind = made % 3
        if kind == 0:
            damaged[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del damaged[place:]
        else:
            damaged[place : place + 512] = bytes(len(damaged[place : place + 512]))
        if damaged != whole:  # zeros may have been there before
            made += 1
            yield bytes(damaged)


# --- what two equal runs leave ---------------------------------------------------------------------------------------


def outcome(directory: Path) -> dict[str, Any]:
    """Everything that two equal runs have in common: weights, optimizer, random states, accuracies, curves."""
    found: dict[str, Any] = {"curves": curves(directory), "results": results(directory)}
    for name in ("last.pth", "best.pth"):
        content = load_tensors(directory / name)
        found[name] = {key: content[key] for key in ("model", "losses", "optimizer", "random", "epoch", "best")}
    return found


def results(directory: Path) -> dict[str, Any]:
    """Accuracies and history of `results.json`, without times."""
    content = json.loads((directory / "results.json").read_text())
    keys = ("epochs", "top1", "top5", "best_top1", "best_epoch", "history")
    return {key: without_times(content[key]) for key in keys if key in content}


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMED}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Paths of everything that is not bit for bit the same in two nests of dictionaries, lists and tensors."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    if isinstance(first, dict):
        changed = [f"{name}.{key}" for key in set(first) ^ set(second)]
        return changed + [
            path for key in set(first) & set(second) for path in differences(first[key], second[key], f"{name}.{key}")
        ]
    if isinstance(first, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [path for number, pair in pairs for path in differences(*pair, f"{name}.{number}")]
    return [] if first == second else [name]


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of every TensorBoard curve but the timed ones, as TensorBoard shows them.

    A file that begins with a step lets TensorBoard drop what earlier files have from that step on.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    points = defaultdict(list)
    for path in sorted((directory / "tensorboard").glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                for name in points:
                    points[name] = [(step, value) for step, value in points[name] if step < event.step]
            for value in event.summary.value:
                if value.tag.split("/")[-1] not in TIMED and value.HasField("simple_value"):
                    points[value.tag].append((event.step, value.simple_value))
    return dict(points)


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a TFRecord file: length, its checksum, content, its checksum."""
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if place + 16 + length > len(data):  # a killed process leaves a record unfinished; TensorBoard skips it
            return
        yield data[place + 12 : place + 12 + length]
        place += 16 + length
