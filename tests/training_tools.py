"""What the tests of training runs share: short runs, a power failure, and what must agree between equal runs."""

import json
import struct
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

import main_classification
from algorithms import run_config
from engine.step import descend
from storage.tensor_files import load_tensors

FAST = {"image_size": 8, "cuda": False}
PAIR = {
    "teacher": "resnet8",
    "teacher_experiment": "digits.RN8",
    "supervision": "digits.RN8",
    "num_words": 16,
    "allow_poor_teacher": True,  # it has had four steps
}
METHODS = ["classification", "QuEST", "letKD-1", "letKD-2"]
STEPS = 4  # of an epoch: 256 images in batches of 64
THREE_EPOCHS = {"epochs": 3, "milestones": [1], "disp_step": 2}
TIMED = {"seconds", "images_per_second"}  # what equal runs measure differently


def configure(method: str, localpath: Path, **updates: Any) -> dict[str, Any]:
    name = "digits.RN8" if method == "classification" else f"digits.RN14_RN8.{method}"
    config = main_classification.default_config(name) | FAST | {"localpath": str(localpath)}
    if method != "classification":
        config |= PAIR
    if method == "letKD-2":
        config |= {"subclasses_per_class": 2}
    assert set(updates) <= set(config)
    return config | updates


def train(method: str, localpath: Path, **updates: Any) -> Path:
    """Train; returns the experiment's directory."""
    config = configure(method, localpath, **updates)
    run_config(config)
    return Path(localpath, *config["config"].split("."))


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Paths of everything that is not bit for bit the same in two nests of dictionaries, lists and tensors."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    if isinstance(first, dict):
        assert set(first) == set(second), name
        return [path for key in first for path in differences(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        return [
            path
            for number, pair in enumerate(zip(first, second, strict=True))
            for path in differences(*pair, f"{name}.{number}")
        ]
    return [] if first == second else [name]


def state(path: Path) -> dict[str, Any]:
    """What must be the same in equal runs."""
    content = load_tensors(path)
    same = {key: content[key] for key in ("model", "losses", "optimizer", "random", "epoch", "best")}
    return same | ({"average": content["average"]} if "average" in content else {})


def results_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


def accuracies(directory: Path) -> dict[str, Any]:
    results = results_of(directory)
    return {key: results[key] for key in ("epochs", "top1", "top5", "best_top1", "best_epoch")}


def outcome(directory: Path) -> dict[str, Any]:
    """Everything that equal runs have in common, in the form that `differences` compares."""
    results = results_of(directory)
    curves = {name: points for name, points in read_curves(directory).items() if name.split("/")[1] not in TIMED}
    history = [{key: value for key, value in done.items() if key not in TIMED} for done in results["history"]]
    checkpoints = {name: state(directory / name) for name in ("last.pth", "best.pth")}
    return checkpoints | {"accuracies": accuracies(directory), "curves": curves, "history": history}


class PowerFailure(Exception):
    """Stands for the power that fails."""


def fail() -> None:
    raise PowerFailure


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None] = fail) -> None:
    """Call `how` in the run's `step`-th step, counted from 1, before it changes the weights."""
    taken = 0

    def watched(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            how()
        descend(optimizer, loss)

    monkeypatch.setattr("engine.step.descend", watched)


def read_curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars (step, value) by tag, as TensorBoard shows them.

    Files in the order of their names; the start of a session discards what came before it with its step or a later one.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for path in sorted((directory / "tensorboard").iterdir()):
        for event in read_events(path):
            if event.session_log.status:
                for tag, known in points.items():
                    points[tag] = [(step, value) for step, value in known if step < event.step]
            for value in event.summary.value:
                points[value.tag].append((event.step, value.simple_value))
    return {tag: known for tag, known in points.items() if known}


def read_events(path: Path) -> list[Event]:
    """Records of a TFRecord file: length (8 bytes), its checksum (4), data, its checksum (4)."""
    content, events, position = path.read_bytes(), [], 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        events.append(Event.FromString(content[position + 12 : position + 12 + length]))
        position += 16 + length
    return events
