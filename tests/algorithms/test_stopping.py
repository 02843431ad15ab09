"""A run that is told to stop finishes its step, saves its state, and goes on from there as if nothing had been."""

import json
import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from training_tools import (
    STEPS,
    THREE_EPOCHS,
    PowerFailure,
    configure,
    differences,
    outcome,
    results_of,
    stop_at,
    train,
)

from algorithms import train as training
from algorithms.train import Training
from config.options import Options
from engine.checkpoints import load_checkpoint
from engine.stopping import Stopped, StopRequest

pytestmark = pytest.mark.usefixtures("few_digits")


# --- the request -----------------------------------------------------------------------------------------------------


class Told(BaseException):
    """What the handler of these tests raises."""


@pytest.fixture
def handler():
    """SIGTERM raises `Told`."""

    def raise_told(number: int, frame: object) -> None:
        raise Told

    before = signal.signal(signal.SIGTERM, raise_told)
    yield raise_told
    signal.signal(signal.SIGTERM, before)


def test_the_item_at_hand_is_finished_and_then_the_signal_arrives(handler):
    done = []
    with pytest.raises(Told), StopRequest() as stop:
        for item in stop.between(range(5)):
            if item == 2:
                signal.raise_signal(signal.SIGTERM)
            done.append(item)
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_in_the_last_item_or_between_two_loops_is_not_lost(handler):
    with pytest.raises(Told), StopRequest() as stop:
        for _ in stop.between([0]):
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Told), StopRequest():
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_interrupts_at_once(handler):
    done = []
    with pytest.raises(Told), StopRequest() as stop:
        for item in stop.between(range(5)):
            signal.raise_signal(signal.SIGTERM)
            done.append(item)
            signal.raise_signal(signal.SIGTERM)
            done.append("not reached")
    assert done == [0]


def test_another_error_is_not_hidden_by_the_signal(handler):
    with pytest.raises(ZeroDivisionError), StopRequest():
        signal.raise_signal(signal.SIGTERM)
        _ = 1 / 0


def test_what_was_ignored_stays_ignored_and_a_handler_that_only_notes_still_stops():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert list(stop.between(range(3))) == [0, 1, 2]
        noted = []
        signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
        with pytest.raises(Stopped), StopRequest() as stop:
            for _ in stop.between(range(3)):
                signal.raise_signal(signal.SIGTERM)
        assert noted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_beside_the_main_thread_it_does_nothing():
    found = []

    def work() -> None:
        with StopRequest() as stop:
            found.extend(stop.between(range(3)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0, 1, 2]


# --- a training ------------------------------------------------------------------------------------------------------


def interrupt() -> None:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def stop_in_evaluation(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    measured, calls = training.evaluate, 0

    def evaluate(*given, **named):
        nonlocal calls
        calls += 1
        if calls == epoch:
            interrupt()
        return measured(*given, **named)

    monkeypatch.setattr(training, "evaluate", evaluate)


class Stop(NamedTuple):
    """A stop, and how many whole epochs and steps of the next it leaves."""

    set_up: Callable[[pytest.MonkeyPatch], None]
    epoch: int
    steps: int


STOPS = {
    "in the first step": Stop(lambda patch: stop_at(patch, 1, interrupt), 0, 1),
    "within epoch 2": Stop(lambda patch: stop_at(patch, STEPS + 3, interrupt), 1, 3),
    "in the last step of epoch 2": Stop(lambda patch: stop_at(patch, 2 * STEPS, interrupt), 1, 4),
    "in the evaluation of epoch 2": Stop(lambda patch: stop_in_evaluation(patch, 2), 1, 4),
}


def stopped(method: str, folder: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch, **options) -> Path:
    """Train until `stop`; returns the directory."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop.set_up(patch)
        train(method, folder, **THREE_EPOCHS | options)
    torch.manual_seed(123)  # the stopped process took its random state with it
    return Path(folder, *configure(method, folder)["config"].split("."))


@pytest.mark.parametrize(
    ("method", "name"), [("letKD-2", name) for name in STOPS] + [("QuEST", "within epoch 2")], ids=str
)
def test_a_stopped_run_goes_on_at_the_next_step(method, name, whole, folder, monkeypatch):
    directory = stopped(method, folder, STOPS[name], monkeypatch)
    content = load_checkpoint(directory / "stopped.pth")
    assert (content["epoch"], content["unfinished"]["num_steps"]) == (STOPS[name].epoch, STOPS[name].steps)
    progress = json.loads((directory / "progress.json").read_text())
    assert (progress["state"], progress["epoch"], progress["step"]) == ("stopped", *STOPS[name][1:])
    assert (directory / "last.pth").exists() == (STOPS[name].epoch > 0)
    train(method, folder, checkpoint=-1, **THREE_EPOCHS)
    assert differences(outcome(directory), whole[method]) == []
    assert {path.name for path in directory.glob("*.pth")} == {"best.pth", "last.pth", "previous.pth"}


def test_a_run_is_stopped_and_killed_as_often_as_one_likes(whole, folder, monkeypatch):
    stopped("letKD-2", folder, STOPS["in the first step"], monkeypatch)
    second = Stop(lambda patch: stop_at(patch, 2, interrupt), 0, 3)
    directory = stopped("letKD-2", folder, second, monkeypatch, checkpoint=-1)
    assert load_checkpoint(directory / "stopped.pth")["unfinished"]["num_steps"] == 3
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, STEPS)  # in epoch 2: what was stopped in epoch 1 is outdated
        train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    assert not (directory / "stopped.pth").exists()
    train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    assert differences(outcome(directory), whole["letKD-2"]) == []


def test_a_state_older_than_the_last_epoch_is_not_gone_back_to(whole, folder, monkeypatch):
    directory = stopped("letKD-2", folder, STOPS["within epoch 2"], monkeypatch)
    outdated = (directory / "stopped.pth").read_bytes()
    train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    (directory / "stopped.pth").write_bytes(outdated)  # as if killed before it was removed
    train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    assert differences(outcome(directory), whole["letKD-2"]) == []
    assert not (directory / "stopped.pth").exists()


def test_a_damaged_state_falls_back_to_the_last_whole_epoch(whole, folder, monkeypatch, logged):
    directory = stopped("letKD-2", folder, STOPS["within epoch 2"], monkeypatch)
    (directory / "stopped.pth").write_bytes(b"PK torn")
    train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    assert "stopped.pth is damaged" in logged.text and "going on from the last whole epoch" in logged.text
    assert differences(outcome(directory), whole["letKD-2"]) == []


@pytest.mark.parametrize(("key", "value"), [("batch_size", 32), ("seed", 1), ("val_split", 20)])
def test_the_rest_of_an_epoch_must_be_of_the_same_epoch(key, value, folder, monkeypatch):
    stopped("classification", folder, STOPS["within epoch 2"], monkeypatch)
    begun_with = configure("classification", folder)[key]
    with pytest.raises(
        ValueError, match=rf"an epoch of {key}={begun_with}, .* {key}={value}; .* checkpoint=1"
    ) as caught:
        train("classification", folder, checkpoint=-1, **THREE_EPOCHS | {key: value})
    assert "\n" not in str(caught.value)
    train("classification", folder, checkpoint=1, **THREE_EPOCHS | {key: value})


def test_going_back_to_a_whole_epoch_forgets_where_the_run_was_stopped(folder, monkeypatch):
    directory = stopped("classification", folder, STOPS["within epoch 2"], monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(PowerFailure):
        stop_at(patch, 1)
        train("classification", folder, checkpoint=1, **THREE_EPOCHS)
    assert not (directory / "stopped.pth").exists()


def test_a_run_that_has_diverged_leaves_no_state_when_it_is_stopped(folder, monkeypatch):
    """Nothing had been looked at since; going on from such a state would diverge for ever."""

    def spoil_and_interrupt() -> None:
        job.model.bn1.running_var.data[0] = math.nan
        interrupt()

    job = Training(Options.of(configure("classification", folder, **THREE_EPOCHS | {"disp_step": 1000})))
    stop_at(monkeypatch, STEPS + 2, spoil_and_interrupt)
    with pytest.raises(FloatingPointError, match=r"running_var became nan in epoch 2; the last good state is epoch 1"):
        job.run()
    assert not (job.directory / "stopped.pth").exists()
    assert json.loads((job.directory / "progress.json").read_text())["state"] == "diverged"


def test_a_state_within_an_epoch_outlives_damage_to_the_last_whole_one(whole, folder, monkeypatch):
    directory = stopped("letKD-2", folder, STOPS["within epoch 2"], monkeypatch)
    (directory / "last.pth").write_bytes(b"PK torn")
    train("letKD-2", folder, checkpoint=-1, **THREE_EPOCHS)
    assert differences(outcome(directory), whole["letKD-2"]) == []


def test_an_unfinished_epoch_is_not_evaluated_and_no_teacher(folder, monkeypatch):
    directory = stopped("classification", folder, STOPS["within epoch 2"], monkeypatch)
    train("classification", folder, evaluate=True)
    evaluations = results_of(directory)["evaluations"]
    assert (evaluations["last"]["epoch"], evaluations["last"]["weights"]) == (1, str(directory / "last.pth"))
    with pytest.raises(
        FileNotFoundError, match=r"stands at epoch 1 of 3; make it: .*config=digits.RN8 .*checkpoint=-1"
    ):
        train("QuEST", folder)


def test_preparing_finishes_a_teacher_that_was_stopped_in_its_first_epoch(tmp_path, monkeypatch):
    stopped("classification", tmp_path, STOPS["in the first step"], monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"stands at epoch 0 of 3; make it: .*checkpoint=-1"):
        train("QuEST", tmp_path, **THREE_EPOCHS)
    train("QuEST", tmp_path, prepare=True, **THREE_EPOCHS)
    teacher = load_checkpoint(tmp_path / "digits/RN8/last.pth")
    assert teacher["epoch"] == 3 and not (tmp_path / "digits/RN8/stopped.pth").exists()
    assert not (tmp_path / "digits/RN8/replaced").exists()
