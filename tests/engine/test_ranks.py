"""Commands in several processes: one record, one message and one exit status, and runs that go on."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rank_tools import ended, started, under_torchrun
from training_tools import differences, outcome, stop_at

import engine.ranks
import main_classification
from engine.checkpoints import load_checkpoint
from engine.step import descend
from storage.tensor_files import load_json

pytestmark = pytest.mark.usefixtures("few_digits")
ALONE = ["main_classification.py", "with", "config=digits.RN8", "image_size=8", "cuda=False", "milestones=[1]"]
PAIR = [
    "main_classification.py", "with", "config=digits.RN14_RN8.letKD-2", "teacher=resnet8", "image_size=8", "cuda=False",
    "teacher_experiment=digits.RN8", "supervision=digits.RN8", "num_words=16", "subclasses_per_class=2",
    "allow_poor_teacher=True",
]  # fmt: skip


AVERAGED = {
    "beside": ["config=digits.RN8", "average=True"],
    "as the teacher": ["config=digits.RN14_RN8.KD", "teacher=ema"],
}


def run(number: int, argv: list[str], **environment: str) -> list[int]:
    return ended(started(number, argv, **environment))


def near(first: Path, second: Path) -> None:
    """Two runs have the same figures and weights but for rounding."""
    one, other = (load_json(path / "results.json") for path in (first, second))
    for done, same in zip(one["history"], other["history"], strict=True):
        assert done["train"] == pytest.approx(same["train"], rel=1e-3, abs=1)  # per cent: two of 240 images
        assert done["train"]["loss"] == pytest.approx(same["train"]["loss"], rel=1e-3)
        assert done["eval"]["top1"] == pytest.approx(same["eval"]["top1"], abs=1.6)  # two of 128 images
    models = (load_checkpoint(path / "last.pth")["model"] for path in (first, second))
    torch.testing.assert_close(*models, rtol=1e-2, atol=1e-2)


# --- records ---------------------------------------------------------------------------------------------------------


def test_two_processes_leave_what_one_does(folder, capfd):
    """The same files and lines, each once; with BatchNorm of the whole batch the same figures."""
    argv = [*PAIR, "epochs=1", "milestones=[]", "sync_bn=True", "disp_step=1"]
    assert run(2, [*argv, f"localpath={folder}", "name=two.processes"]) == [0, 0]
    many = capfd.readouterr()
    assert main_classification.main([*argv, f"localpath={folder}", "name=one.process"]) == 0
    one = capfd.readouterr()
    assert many.err == one.err == "" and len(many.out.splitlines()) == len(one.out.splitlines())
    directories = folder / "two/processes", folder / "one/process"
    names = [sorted(path.name for path in directory.iterdir()) for directory in directories]
    assert names[0] == names[1]
    assert (directories[0] / "log.txt").read_text().count("$ ") == 1
    assert sorted(path.name for path in (folder / "sacred").iterdir() if path.name.isdigit()) == ["1", "2"]
    assert load_json(directories[0] / "results.json")["processes"] == 2
    near(*directories)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(tmp_path, monkeypatch):
    """2, 3 and 1 processes one after the other, which stop within epochs; in the end they have what one process has."""
    argv = [*ALONE, "batch_size=48", "sync_bn=True", "epochs=3"]
    many, one = f"localpath={tmp_path}", f"localpath={tmp_path / 'one'}"
    for number, go_on in ((2, []), (3, ["checkpoint=-1"])):
        with monkeypatch.context() as patch:
            stop_at(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))  # of 5 an epoch
            assert run(number, [*argv, many, *go_on]) == [143] * number
        assert load_checkpoint(tmp_path / "digits/RN8/stopped.pth")["unfinished"]["num_images"] % 48 == 0
    assert main_classification.main([*argv, many, "checkpoint=-1"]) == 0
    assert main_classification.main([*argv, one]) == 0
    near(tmp_path / "digits/RN8", tmp_path / "one/digits/RN8")


@pytest.mark.slow
@pytest.mark.parametrize("words", AVERAGED.values(), ids=AVERAGED)
def test_the_average_of_weights_is_that_of_one_process(words, tmp_path):
    short = ["image_size=8", "cuda=False", "epochs=1", "milestones=[]", "sync_bn=True", f"localpath={tmp_path}"]
    argv = ["main_classification.py", "with", *words, *short]
    assert run(2, [*argv, "name=mine.many"]) == [0, 0]
    assert main_classification.main([*argv, "name=mine.one"]) == 0
    directories = tmp_path / "mine/many", tmp_path / "mine/one"
    near(*directories)
    averages = (load_checkpoint(path / "last.pth")["average"] for path in directories)
    torch.testing.assert_close(*averages, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_images_that_workers_read_are_shared_too(tmp_path):
    """Photographs of 120 x 110 at image size 100, more than what is held; those to evaluate are 7 batches."""
    for split, number in (("train", 24), ("val", 13)):
        for index in range(number):
            path = tmp_path / "images" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(index).integers(0, 256, (11, 12, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((120, 110)).save(path)
    words = [
        "config=ImageFolder.RN8",
        f"data_dir={tmp_path / 'images'}",
        "image_size=100",
        "cuda=False",
        "num_workers=1",
    ]
    words += ["epochs=2", "milestones=[1]", "batch_size=6", "test_batch_size=2", "sync_bn=True"]
    argv = ["main_classification.py", "with", *words, f"localpath={tmp_path}"]
    assert run(2, [*argv, "name=mine.many"]) == [0, 0]
    assert main_classification.main([*argv, "name=mine.one"]) == 0
    many, one = (load_checkpoint(tmp_path / "mine" / name / "last.pth") for name in ("many", "one"))
    torch.testing.assert_close(many["model"], one["model"], rtol=1e-2, atol=1e-2)
    for done, same in zip(many["history"], one["history"], strict=True):
        assert done["train"]["loss"] == pytest.approx(same["train"]["loss"], rel=1e-3)
        assert done["eval"]["loss"] == pytest.approx(same["eval"]["loss"], rel=1e-3)


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "a batch that they cannot share": (3, [], "batch_size=64 cannot be shared equally by 3 processes"),
    "a recorded step": (2, ["cuda_graph=True", "cuda=True"], "cuda_graph=True is for one process"),
    "several runs": (2, ["trials=2"], "trials=2 is for one process"),
    "another job": (2, ["probe=True"], "probe is for one process"),
}


@pytest.mark.parametrize(
    ("number", "words", "message"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (case[0] == 2)) for name, case in MISTAKES.items()],
)
def test_a_mistake_is_one_line_of_the_first(number, words, message, tmp_path, capfd):
    assert run(number, [*ALONE, *words, f"localpath={tmp_path}"]) == [1] * number
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message}") and len(error.splitlines()) == 1
    assert not (tmp_path / "digits").exists()


def test_options_that_differ_are_named(tmp_path, capfd, monkeypatch):
    whole = main_classification.main
    monkeypatch.setattr(main_classification, "main", lambda argv: whole([*argv, f"seed={os.environ['RANK']}"]))
    assert run(2, [*ALONE, f"localpath={tmp_path}"]) == [1, 1]
    error = capfd.readouterr().err
    assert error == "error: the options must be the same for all processes: rank 0 has seed=0, rank 1 has 1\n"


def test_a_mistake_of_one_is_told_by_the_first(tmp_path, capfd, monkeypatch):
    whole, wrong = main_classification.main, {"0": [], "1": ["seed=-1"]}
    monkeypatch.setattr(main_classification, "main", lambda argv: whole([*argv, *wrong[os.environ["RANK"]]]))
    assert run(2, [*ALONE, f"localpath={tmp_path}"]) == [1, 1]
    assert capfd.readouterr().err == "error: rank 1: seed=-1 must be at least 0\n"


def test_an_environment_that_lacks_something_is_named(monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main_classification.main([*ALONE]) == 1
    error = capfd.readouterr().err
    assert error.startswith(
        "error: WORLD_SIZE=2 says that this is one of 2 processes, and LOCAL_RANK, LOCAL_WORLD_SIZE,"
    )
    monkeypatch.setenv("RANK", "1")
    assert main_classification.main([*ALONE]) == 1 and capfd.readouterr().err == ""


def test_more_processes_than_gpus_are_refused(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    argv = [word for word in ALONE if not word.startswith("cuda")]
    assert run(2, [*argv, f"localpath={tmp_path}"]) == [1, 1]
    error = capfd.readouterr().err
    assert error.startswith("error: 2 processes on this machine need as many GPUs, and it has 1; ")
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_process_that_does_not_come_is_missed(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(engine.ranks, "MEETING_SECONDS", 2)
    first, second = started(2, [*ALONE, f"localpath={tmp_path}"])
    second.kill()
    assert ended([first]) == [1]
    assert capfd.readouterr().err.startswith("error: ")


ADDRESS = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}  # nobody there


def test_one_alone_says_that_the_first_does_not_answer(capfd, monkeypatch):
    monkeypatch.setattr(engine.ranks, "MEETING_SECONDS", 0.2)
    said = {}
    for rank in ("1", "2"):
        for name, value in (ADDRESS | {"RANK": rank, "LOCAL_RANK": rank}).items():
            monkeypatch.setenv(name, value)
        assert main_classification.main([*ALONE]) == 1
        said[rank] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said["1"][0].startswith("error: no process answers at 127.0.0.1:9 (") and len(said["1"]) == 1
    assert said["2"] == []


def test_one_alone_says_that_the_first_does_not_come(tmp_path, capfd, monkeypatch):
    """Where torchrun keeps the store."""
    whole = main_classification.main
    monkeypatch.setattr(engine.ranks, "MEETING_SECONDS", 0.5)
    monkeypatch.setattr(engine.ranks, "LINGERING_SECONDS", 0.2)
    monkeypatch.setattr(main_classification, "main", lambda argv: 0 if os.environ["RANK"] == "0" else whole(argv))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert run(3, [*ALONE, f"localpath={tmp_path}"], **agent) == [0, 1, 1]
    error = capfd.readouterr().err
    assert "2 of 3 processes have come in 0.5 seconds; start as many as WORLD_SIZE says" in error
    assert error.startswith("error: rank ") and len(error.splitlines()) == 1


def test_a_warning_comes_once(capfd, monkeypatch):
    def warn(argv: list[str], end: Callable[..., int]) -> int:
        warnings.warn("what all notice", stacklevel=1)
        return end(0)

    monkeypatch.setattr(main_classification, "_run_command", warn)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(3, ALONE) == [0, 0, 0]
    assert capfd.readouterr().err == "what all notice\n"


# --- stops and faults ------------------------------------------------------------------------------------------------


def wait_for_epoch(directory: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not (directory / "last.pth").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("whom", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)], ids=str
)
def test_a_signal_stops_all_behind_the_same_step(number, status, whom, tmp_path, capfd):
    argv = [*ALONE, f"localpath={tmp_path}", "epochs=1000"]
    processes = started(2, argv)
    wait_for_epoch(tmp_path / "digits/RN8")
    for rank in whom:
        os.kill(processes[rank].pid, number)
    assert ended(processes) == [status, status]
    error = capfd.readouterr().err
    assert error == f"stopped; go on with: torchrun --nproc-per-node=2 {' '.join(argv)} checkpoint=-1\n".replace(
        "milestones=[1]", "'milestones=[1]'"
    )
    assert load_checkpoint(tmp_path / "digits/RN8/stopped.pth")["unfinished"]["num_steps"] > 0


@pytest.mark.slow
def test_what_was_stopped_and_goes_on_ends_as_if_nothing_had_been(tmp_path):
    """In as many processes, with BatchNorm of the whole batch, bit for bit."""
    argv = [*ALONE, "sync_bn=True"]
    processes = started(2, [*argv, f"localpath={tmp_path}", "epochs=1000"])
    wait_for_epoch(tmp_path / "digits/RN8")
    os.kill(processes[1].pid, signal.SIGTERM)
    assert ended(processes) == [143, 143]
    epochs = f"epochs={load_checkpoint(tmp_path / 'digits/RN8/stopped.pth')['epoch'] + 1}"
    assert run(2, [*argv, f"localpath={tmp_path}", epochs, "checkpoint=-1"]) == [0, 0]
    assert run(2, [*argv, f"localpath={tmp_path / 'whole'}", epochs]) == [0, 0]
    assert differences(outcome(tmp_path / "digits/RN8"), outcome(tmp_path / "whole/digits/RN8")) == []


def fail_in(rank: int, error: Exception) -> None:
    if int(os.environ["RANK"]) == rank:
        raise error


FAILURES = {
    "a full disk": (OSError(28, "No space left on device", "last.pth"), "No space left on device"),
    "memory": (MemoryError("out of memory"), "memory does not suffice"),
    "a mistake of the program's": (LookupError("what nobody expected"), "LookupError: what nobody expected"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("error", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_of_one_ends_all_within_seconds(error, message, rank, tmp_path, capfd, monkeypatch):
    stop_at(monkeypatch, 6, lambda: fail_in(rank, error))
    start = time.monotonic()
    assert run(2, [*ALONE, f"localpath={tmp_path}", "epochs=1000"]) == [1, 1]
    assert time.monotonic() - start < 20
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error:", "LookupError"))]
    assert message in said[0] and len(said) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_numbers_that_are_not_finite_in_one_end_all_with_one_message(rank, tmp_path, capfd, monkeypatch):
    def put_nan(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        descend(optimizer, loss)
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    def poison(rank: int) -> None:
        if int(os.environ["RANK"]) == rank:
            monkeypatch.setattr("engine.step.descend", put_nan)

    stop_at(monkeypatch, 6, lambda: poison(rank))
    assert run(2, [*ALONE, f"localpath={tmp_path}", "epochs=1000"]) == [1, 1]
    error = capfd.readouterr().err
    assert error.startswith("error: ") and "became nan in" in error and len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_answer_ends_all(rank, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(engine.ranks, "WAITING_SECONDS", 3)
    monkeypatch.setattr(engine.ranks, "ENDING_SECONDS", 1)
    stop_at(monkeypatch, 6, lambda: time.sleep(60 if int(os.environ["RANK"]) == rank else 0))
    assert run(2, [*ALONE, f"localpath={tmp_path}", "epochs=1000"]) == [1, 1]
    error = capfd.readouterr().err
    assert error.count("another process of the run has ended, or does not answer") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(rank, tmp_path, capfd):
    argv = [*ALONE, f"localpath={tmp_path}", "sync_bn=True"]
    processes = started(2, [*argv, "epochs=1000"])
    wait_for_epoch(tmp_path / "digits/RN8")
    processes[rank].kill()
    assert ended(processes)[1 - rank] == 1
    error = capfd.readouterr().err
    assert error.count("another process of the run has ended") == 1
    epochs = load_checkpoint(tmp_path / "digits/RN8/last.pth")["epoch"] + 1
    assert run(2, [*argv, f"epochs={epochs}", "checkpoint=-1"]) == [0, 0]


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_again_and_again_ends_as_the_one_that_was_not(tmp_path, monkeypatch):
    """Twenty kills, at random times, of either process; also with BatchNorm of the parts, bit for bit."""
    monkeypatch.setattr(engine.ranks, "MEETING_SECONDS", 3)
    argv, draw = [*ALONE, "epochs=100", "checkpoint=-1"], random.Random(0)
    assert run(2, [*argv, f"localpath={tmp_path / 'whole'}"]) == [0, 0]
    for _ in range(20):
        processes = started(2, [*argv, f"localpath={tmp_path}"])
        time.sleep(draw.uniform(0, 2))
        processes[draw.randrange(2)].kill()
        ended(processes)
    assert run(2, [*argv, f"localpath={tmp_path}"]) == [0, 0]
    assert differences(outcome(tmp_path / "digits/RN8"), outcome(tmp_path / "whole/digits/RN8")) == []


# --- torchrun --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_starts_it_again_after_a_kill(tmp_path, monkeypatch, capfd):
    """With checkpoint=-1 it ends as one that was not killed, bit for bit."""

    def die() -> None:
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    argv = [*ALONE, "sync_bn=True", "epochs=3", "checkpoint=-1"]
    assert run(2, [*argv, f"localpath={tmp_path / 'whole'}"]) == [0, 0]
    stop_at(monkeypatch, 6, die)
    assert ended([under_torchrun(2, [*argv, f"localpath={tmp_path}"], max_restarts=1)], seconds=120) == [0]
    assert differences(outcome(tmp_path / "digits/RN8"), outcome(tmp_path / "whole/digits/RN8")) == []


@pytest.mark.slow
def test_several_machines_leave_one_record(tmp_path, capfd):
    """Two agents, each with a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [*ALONE, f"localpath={tmp_path}", "epochs=1", "milestones=[]"]
    agents = [under_torchrun(1, argv, nodes=2, port=port) for _ in range(2)]
    assert ended(agents, seconds=120) == [0, 0]
    assert load_json(tmp_path / "digits/RN8/results.json")["processes"] == 2
    assert capfd.readouterr().out.count("done: last epoch 1") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=str)
def test_torchrun_is_told_to_stop(number, tmp_path, capfd):
    """Also where its processes are told too, as Slurm does it."""
    agent = under_torchrun(2, [*ALONE, f"localpath={tmp_path}", "epochs=1000"])
    wait_for_epoch(tmp_path / "digits/RN8")
    for process in (agent.pid, *map(int, Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split())):
        os.kill(process, number)
    ended([agent])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("stopped", "error"))]
    assert len(said) == 1 and said[0].startswith("stopped; go on with: torchrun --nproc-per-node=2 ")
    assert (tmp_path / "digits/RN8/stopped.pth").is_file()


@pytest.mark.slow
def test_the_exit_status_of_torchrun_itself_is_1_after_a_stop(tmp_path):
    """It hands the signal on, and its own end is an exception whatever its processes say."""
    program = Path(main_classification.__file__)
    words = [*ALONE[1:], f"localpath={tmp_path}", "epochs=1000"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(program), *words]
    agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_epoch(tmp_path / "digits/RN8", 240)
        agent.terminate()
        _, error = agent.communicate(timeout=120)
    finally:
        agent.kill()
    assert agent.returncode == 1
    assert [line for line in error.splitlines() if line.startswith("stopped; go on with: torchrun ")]
    assert (tmp_path / "digits/RN8/stopped.pth").is_file()
