"""Losses compose: one that this file alone knows goes through all that a run does, beside letKD-2; and sums keep apart.

`Mine` has one of everything that a loss may have. No other file names it.
"""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import test_on_meta
import torch
import torch.nn.functional as F
from sacred.arg_parser import get_config_updates
from torch import Tensor, nn
from training_tools import STEPS, differences, outcome, results_of, stop_at

import main_classification
from algorithms import export
from algorithms.teaching import open_objective
from config.options import Options
from config.updates import check_updates
from dataloaders import Batch, load_dataset
from distillation.expressions import canonical
from distillation.losses import Connector, Data, Loss, Needs, base, list_losses, option, register_loss, warm_up
from distillation.objective import Objective
from distillation.signals import Network, Signals, Wanted
from engine.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("few_digits")

EPOCHS, NUM_IMAGES = 2, 256
PAIR = "digits.RN14_RN8"
SMALL = [
    "image_size=8", "cuda=False", "teacher=resnet8", "teacher_experiment=digits.RN8", "milestones=[]",
    "disp_step=2",
]  # fmt: skip
WORDS = ["num_words=16", "supervision=digits.RN8", "subclasses_per_class=2"]
MINE = ["mine.memory=0.3", "mine.warmup=4"]
STOP = STEPS + 2  # a step within the second epoch


class Mine(Loss):
    """What the last two stages are before their activations, and what the student was when it last saw the images.

        mine   = sum over stages of mse(R * f, t)
        memory = c mean_B |e - m|^2,  c = min(epoch / warmup, 1)

    f, t: the student's and the teacher's maps; R: 1x1 convolutions; e (B, C): the deepest R * f, averaged over its grid
    and normalised; m: the rows of the bank, which then move towards e, the more slowly the more steps there were.
    """

    terms: ClassVar = {"mine": 0.5, "memory": 0.1}

    @dataclass(frozen=True)
    class Options:
        momentum: float = option(0.9, "what a row of the bank keeps at most", at_least=0.0)
        warmup: float | None = option(None, "epochs over which the memory is raised", at_least=0.0)

    def __init__(self, channels: dict[str, tuple[int, int]], num_images: int, *, momentum: float, warmup: float | None):
        super().__init__()
        self.momentum, self.warmup = momentum, warmup
        self.connectors = nn.ModuleDict({stage: Connector(nn.Conv2d(*pair, 1)) for stage, pair in channels.items()})
        *_, (_, width) = channels.values()
        self.register_buffer("bank", torch.zeros(num_images, width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("factor", torch.ones(()))
        self.needs = Needs(student=Wanted(preact=tuple(channels)), teacher=Wanted(preact=tuple(channels)))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data, **options: Any) -> "Mine":
        sides = [network.outline for network in (student, teacher)]
        channels = {stage: tuple(side.before(stage).channels for side in sides) for stage in ("stage2", "stage3")}
        return cls(channels, data.num_images, **options)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.factor.fill_(warm_up(epoch, epochs, self.warmup))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        maps = {stage: connector(student.preact[stage]).float() for stage, connector in self.connectors.items()}
        error = sum(F.mse_loss(features, teacher.preact[stage].float()) for stage, features in maps.items())
        embedding_BC = F.normalize(maps["stage3"].mean(dim=(2, 3)), dim=1)
        known_BC = self.bank[batch.index]
        memory = self.factor * (embedding_BC - known_BC).square().sum(dim=1).mean()
        self.remember(batch.index, known_BC, embedding_BC)
        return {"mine": error, "memory": memory}

    @torch.no_grad()
    def remember(self, index_B: Tensor, known_BC: Tensor, embedding_BC: Tensor) -> None:
        keep = (self.steps / (self.steps + 5)).clamp(max=self.momentum)
        self.bank.index_copy_(0, index_B, torch.lerp(embedding_BC, known_BC, keep))
        self.steps.add_(1)

    def statistics(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"mine_rows/mean": self.bank.square().sum(dim=1).mean()}


def only(patch: pytest.MonkeyPatch, keys: list[str]) -> None:
    """No losses are registered but these and `Mine`."""
    patch.setattr(base, "_LOSSES", {key: base._LOSSES[key] for key in keys})
    register_loss("Mine")(Mine)


def run(*words: str, localpath: Path) -> int:
    """A command line; its exit status."""
    return main_classification.main(["main.py", *words, f"localpath={localpath}"])


def command(method: str, localpath: Path, *words: str, epochs: int = EPOCHS) -> int:
    name = f"name=mine.RN8_RN8.{canonical(method)}"  # a sum has one directory, however it is written
    return run("with", f"config={PAIR}.{method}", name, *SMALL, f"epochs={epochs}", *words, localpath=localpath)


# --- a loss of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def mine(monkeypatch) -> None:
    """`Mine` and what letKD-2 is made of are all that there is."""
    only(monkeypatch, ["ce", "words", "decisions"])


@pytest.fixture(scope="module")
def whole(few_digits, supervision, tmp_path_factory) -> Path:
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        only(patch, ["ce", "words", "decisions"])
        assert command("letKD-2+Mine", folder, *WORDS, *MINE) == 0
    return folder


def directory(folder: Path, method: str = "letKD-2+Mine") -> Path:
    return folder.joinpath("mine", "RN8_RN8", method)


def test_a_loss_of_ones_own_is_trained_and_recorded(mine, whole):
    assert list_losses() == ["ce", "words", "decisions", "mine"]
    results = results_of(directory(whole))
    weights = {"ce": 1.0, "words": 1.0, "decisions": 1.0, "mine": 0.5, "mine.memory": 0.3}
    assert results["objective"]["weights"] == weights
    assert results["objective"]["places"]["mine"]["student"]["before stage3"]["channels"] == 64
    for epoch in results["history"]:
        assert set(weights) < set(epoch["train"]) and epoch["statistics"]["mine_rows"] > 0
        total = sum(weight * epoch["train"][name] for name, weight in weights.items())
        assert epoch["train"]["loss"] == pytest.approx(total, rel=1e-5)
    first, last = (results["history"][number]["train"] for number in (0, -1))
    assert last["mine"] < first["mine"]  # the connectors learn

    losses = load_checkpoint(directory(whole) / "last.pth")["losses"]
    assert losses["mine.bank"].shape == (NUM_IMAGES, 64) and losses["mine.bank"].any(dim=1).all()
    assert losses["mine.steps"] == EPOCHS * STEPS and losses["mine.factor"] == EPOCHS / 4


def test_its_step_leaves_nothing_on_the_cpu_and_reads_nothing(mine):
    """What is asked of every registered method."""
    test_on_meta.test_a_step_of_every_method("letKD-2+Mine")


def terminate() -> None:
    """What a machine does that shuts down: the step is finished, and the state saved."""
    signal.raise_signal(signal.SIGTERM)


def kill() -> None:
    """What leaves no time for anything: a run goes on behind its last whole epoch."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], Any]) -> int:
    """The exit status of a process of its own that begins where this one is; negative where a signal has ended it."""
    if not (child := os.fork()):
        try:
            status = work()
        except BaseException:
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("how", "status", "left", "steps"),
    [(terminate, 143, "stopped.pth", STOP), (kill, -signal.SIGKILL, "last.pth", STEPS)],
    ids=["stopped", "killed"],
)
def test_a_run_that_ends_within_an_epoch_goes_on_bit_for_bit(how, status, left, steps, mine, whole, folder):
    def until_the_end() -> int:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, STOP, how)
            return command("Mine+letKD-2", folder, *WORDS, *MINE)

    assert in_a_child(until_the_end) == status
    assert load_checkpoint(directory(folder) / left)["losses"]["mine.steps"] == steps
    assert command("letKD-2+Mine", folder, *WORDS, *MINE, "checkpoint=-1") == 0
    assert differences(outcome(directory(folder)), outcome(directory(whole))) == []


def test_the_student_needs_neither_teacher_nor_loss_afterwards(mine, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TIMED_SECONDS", 0)
    shutil.copytree(directory(whole), directory(tmp_path))  # without the teacher and what was made from it
    assert command("letKD-2+Mine", tmp_path, *WORDS, *MINE, "evaluate=True") == 0
    assert command("letKD-2+Mine", tmp_path, *WORDS, *MINE, "export=pt2") == 0
    assert run("report", "with", localpath=tmp_path) == 0
    results = results_of(directory(tmp_path))
    (measured,) = results["evaluations"].values()
    assert measured["top1"] == results["top1"]
    (file,) = (directory(tmp_path) / "export").glob("*.pt2")
    assert not any("bank" in name or "connectors" in name for name in torch.export.load(file).state_dict)
    report = (tmp_path / "report/report.md").read_text()
    assert "letKD-2+Mine" in report and f"{results['top1']:.2f}" in report


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_losses(monkeypatch) -> None:
    """`Mine` beside all others."""
    only(monkeypatch, list_losses())


def test_the_order_of_a_sum_is_the_same_run(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    for method, place in (("FitNet+letKD-2", folder), ("letKD-2+FitNet", other)):
        assert command(method, place, *WORDS, epochs=1) == 0
    first, second = (directory(each, "letKD-2+FitNet") for each in (folder, other))
    assert differences(outcome(first), outcome(second)) == []


def test_a_run_of_another_sum_is_not_gone_on_with(folder, capsys):
    """Also where no loss of either has a tensor that would tell."""
    assert command("KD", folder, epochs=1) == 0
    directory(folder, "KD").rename(directory(folder, "AT"))
    capsys.readouterr()
    assert command("AT", folder, "checkpoint=-1") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "last.pth is of a run of KD, and this is one of AT; choose its experiment" in error


@pytest.fixture
def drawn(all_losses, folder) -> Callable[[str], Objective]:
    """The objective of a sum before its first step."""

    def drawn(method: str) -> Objective:
        defaults = main_classification.default_config(f"{PAIR}.{method}")
        words, _ = get_config_updates([*SMALL, *(WORDS if "letKD" in method else [])])
        config = defaults | check_updates(words, defaults) | {"localpath": str(folder)}
        torch.manual_seed(config["seed"])
        return open_objective(Options.of(config), load_dataset("digits", splits=("train", "eval"), image_size=8))

    return drawn


def test_another_loss_changes_nothing_that_was_drawn(drawn):
    """Neither the student nor the connectors of others; and `Mine` draws under its own name, whatever stands beside."""
    largest = drawn("letKD-2+FitNet+Mine").state_dict()
    assert any(name.startswith("losses.fitnet.") for name in largest)
    for method in ("letKD-2", "letKD-2+FitNet", "letKD-2+Mine"):
        found = drawn(method).state_dict()
        assert set(found) < set(largest)
        assert differences(found, {name: largest[name] for name in found}) == []
    alone = drawn("FitNet+Mine").losses.state_dict()
    assert differences(alone, {name: largest[f"losses.{name}"] for name in alone}) == []
