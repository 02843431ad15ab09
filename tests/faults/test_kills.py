"""A run that is killed, at any moment and as often as one likes, ends as the run that was not.

SIGKILL leaves a process no time for anything. The short form kills forked children before chosen operations on files
or between training steps; the long form also kills whole commands after random times.
"""

import functools
import http.server
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_tools import (
    CODEBOOK,
    DECISIONS,
    MEANS,
    PAIR,
    RUN,
    SMALL,
    TEACHER,
    differences,
    end,
    fork,
    kill_at,
    outcome,
    run_here,
    short_and_long,
    start,
)

import download_cifar100_teacher as zoo
import main_classification
from algorithms import export
from architectures import create_model
from storage.tensor_files import load_json, load_tensors

NEVER = -1
FILE_OPERATIONS = [(os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "hardlink_to"), (Path, "unlink")]
MOMENTS = [*FILE_OPERATIONS, (torch.optim.SGD, "step")]
EPOCHS = ("epochs=3", "milestones=[2]", "disp_step=3")
CONTINUE = (*PAIR, *EPOCHS, "checkpoint=-1")


def run_until(event: int, work: Callable[[], Any], places: list[tuple[Any, str]]) -> tuple[bool, int]:
    """Do `work` in a child that is killed at an event; whether it was, and how many events it saw."""
    counter = multiprocessing.Value("i", 0)

    def child() -> None:
        kill_at(event, counter, places)
        work()

    status = end(fork(child))
    assert status in (0, -signal.SIGKILL), status
    return status != 0, counter.value


def command(words: tuple[str, ...], localpath: Path) -> Callable[[], Any]:
    return functools.partial(run_here, *words, localpath=localpath)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(
    few_digits: None, supervision: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], int]:
    """What the run leaves that nobody kills, and the number of its moments."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    killed, number = run_until(NEVER, command((*PAIR, *EPOCHS), folder), MOMENTS)
    assert not killed
    return outcome(folder / RUN), number


def assert_whole(folder: Path, but: bytes | None = None) -> None:
    """Every file that a reader could find is complete, except one with that content."""
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes() == but:
            continue
        if path.suffix == ".pth":
            load_tensors(path)
        elif path.suffix == ".json" and "sacred" not in path.parts:
            load_json(path)


@short_and_long("number", 3, 20)
def test_a_run_that_is_killed_again_and_again_ends_as_the_one_that_was_not(
    number, uninterrupted, supervision, tmp_path
):
    """So many kills of runs that have not finished; a run that comes to its end before that is followed by another."""
    expected, moments = uninterrupted
    draw, kills, runs = random.Random(number), 0, 0
    while kills < number:
        folder, runs = tmp_path / str(runs), runs + 1
        shutil.copytree(supervision, folder)
        while run_until(draw.randrange(moments), command(CONTINUE, folder), MOMENTS)[0]:
            kills += not (folder / RUN / "results.json").exists()
            assert_whole(folder)
        assert differences(outcome(folder / RUN), expected) == []


# What a kill may interrupt besides a run from scratch: what goes before it, and the command that is killed.
KEEPING = ("keep_every=1",)


def nothing(folder: Path) -> None:
    pass


def stopped(folder: Path) -> None:
    """Ctrl-C has stopped the run within its second epoch."""
    interrupt_at(STOP_STEP, (*PAIR, *EPOCHS), folder)


def damaged(folder: Path) -> None:
    """The last epoch is damaged, in a run that was stopped behind it and has its best epoch there."""
    interrupt_at(2 * STEPS + 1, (*PAIR, *EPOCHS), folder)
    (folder / RUN / "stopped.pth").unlink()
    last = folder / RUN / "last.pth"
    last.write_bytes(last.read_bytes()[:-1])


def kept(folder: Path) -> None:
    """The run has finished, and kept every epoch."""
    run_here(*PAIR, *EPOCHS, *KEEPING, localpath=folder)


def interrupt_at(step: int, words: tuple[str, ...], folder: Path) -> None:
    """Run a command that a Ctrl-C stops in its n-th step, from 1."""
    optimize, steps = torch.optim.SGD.step, itertools.count(1)

    def watched(*arguments: Any, **options: Any) -> Any:
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return optimize(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watched)
        argv = ["main_classification.py", "with", *words, f"localpath={folder}"]
        assert main_classification.main(argv) == INTERRUPTED


STEPS = 4  # of an epoch
STOP_STEP = STEPS + 2
INTERRUPTED = 130
SCENES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Callable[[], Any]]]] = {
    "from scratch": (nothing, functools.partial(command, (*PAIR, *EPOCHS))),
    "being stopped": (nothing, lambda folder: functools.partial(interrupt_at, STOP_STEP, (*PAIR, *EPOCHS), folder)),
    "going on within an epoch": (stopped, functools.partial(command, CONTINUE)),
    "going on behind a damaged epoch": (damaged, functools.partial(command, CONTINUE)),
    "going back": (kept, functools.partial(command, (*PAIR, *EPOCHS, *KEEPING, "checkpoint=1"))),
}


@short_and_long("number", 1, None)
@pytest.mark.parametrize("scene", SCENES)
def test_there_is_no_moment_at_which_a_kill_changes_the_result(scene, number, uninterrupted, supervision, tmp_path):
    """Every step and every operation on a file, one run each; the short form draws one of them."""
    expected, moments = uninterrupted
    prepare, work = SCENES[scene]
    shutil.copytree(supervision, tmp_path / "start")
    prepare(tmp_path / "start")
    damage = (tmp_path / "start" / RUN / "last.pth").read_bytes() if prepare is damaged else None
    if scene != "from scratch":  # which is the uninterrupted run
        shutil.copytree(tmp_path / "start", tmp_path / "whole")
        killed, moments = run_until(NEVER, work(tmp_path / "whole"), MOMENTS)
        assert not killed
    assert moments > 10
    drawn = range(moments) if number is None else random.Random(scene).sample(range(moments), number)
    for moment in drawn:
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "start", folder)
        assert run_until(moment, work(folder), MOMENTS)[0]
        assert_whole(folder, but=damage)
        run_until(NEVER, command(CONTINUE, folder), MOMENTS)
        assert differences(outcome(folder / RUN), expected) == [], moment
        shutil.rmtree(folder)


@pytest.mark.slow
def test_trials_that_are_killed_end_as_those_that_were_not(few_digits, supervision, tmp_path):
    """The same command does the rest, whatever the moment."""
    work = functools.partial(command, (*PAIR, "epochs=2", "milestones=[1]", "trials=2"))
    shutil.copytree(supervision, tmp_path / "whole")
    _, moments = run_until(NEVER, work(tmp_path / "whole"), MOMENTS)
    trials = [f"{RUN}/seed{seed}" for seed in range(2)]
    expected = [outcome(tmp_path / "whole" / trial) for trial in trials]
    for moment in range(moments):
        folder = tmp_path / str(moment)
        shutil.copytree(supervision, folder)
        assert run_until(moment, work(folder), MOMENTS)[0]
        assert_whole(folder)
        run_until(NEVER, work(folder), MOMENTS)
        assert differences([outcome(folder / trial) for trial in trials], expected) == [], moment
        assert load_json(folder / RUN / "trials.json")["seeds"] == [0, 1]
        shutil.rmtree(folder)


@short_and_long("number", 1, None)
def test_a_start_from_scratch_that_is_killed_loses_nothing_of_the_earlier_run(number, few_digits, finished, tmp_path):
    """Its files are where they were, and the same command begins anew; or on the way to `replaced/`, or there."""

    def files(directory: Path) -> dict[str, bytes]:
        places = (path for kind in ("*.pth", "results.json", "tensorboard/*") for path in directory.glob(kind))
        return {str(path.relative_to(directory)): path.read_bytes() for path in places}

    earlier, words = files(finished / RUN), (*PAIR, *EPOCHS, "seed=1")
    assert len(earlier) == 5
    for moment in random.Random(0).sample(range(20), number or 20):
        folder = tmp_path / str(moment)
        shutil.copytree(finished, folder)
        assert run_until(moment, command(words, folder), FILE_OPERATIONS)[0]
        go_on = words if files(folder / RUN) == earlier else (*words, "checkpoint=-1")
        run_until(NEVER, command(go_on, folder), FILE_OPERATIONS)
        assert files(folder / RUN / "replaced" / "1") == earlier, moment
        assert load_json(folder / RUN / "results.json")["seed"] == 1
        shutil.rmtree(folder)


@pytest.mark.slow
def test_commands_that_are_killed_at_random_times_end_as_the_one_that_was_not(supervision_of_all_digits, tmp_path):
    """Twenty kills of an experiment that has not finished, during start-up too."""
    words = (*PAIR, "epochs=40", "milestones=[30]")

    def finish(place: Path) -> dict[str, Any]:
        last = start(*words, "checkpoint=-1", localpath=place)
        _, error = last.communicate(timeout=600)
        assert last.returncode == 0, error
        return outcome(place / RUN)

    shutil.copytree(supervision_of_all_digits, tmp_path / "whole")
    expected = finish(tmp_path / "whole")
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 20:
        folder, runs = tmp_path / str(runs), runs + 1
        shutil.copytree(supervision_of_all_digits, folder)
        while kills < 20 and not (folder / RUN / "results.json").exists():
            process = start(*words, "checkpoint=-1", localpath=folder)
            if kills % 4:  # the others are killed before they have begun, most of them
                next(line for line in process.stdout if line.startswith(("epoch", "done")))
            time.sleep(draw.uniform(0, 1.5))
            process.kill()
            process.communicate(timeout=60)
            kills += not (folder / RUN / "results.json").exists()
            assert_whole(folder)
        assert differences(finish(folder), expected) == []


# --- codebooks and decision scores -----------------------------------------------------------------------------------

JOBS = {CODEBOOK: ("kmeans=16",), DECISIONS: ("LDA=5", SMALL[1]), MEANS: ("class_means=True",)}


@short_and_long("number", 1, 40)
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("extra", [(), pytest.param(("memmap=True",), marks=pytest.mark.slow)], ids=["", "memmap"])
def test_a_killed_job_leaves_the_earlier_file_or_the_new_one(extra, name, number, few_digits, supervision, tmp_path):
    """And no file of patches, whose size may be that of the disk."""
    path = tmp_path / name
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    words = (*TEACHER, *JOBS[name], *extra, "seed=3")
    earlier = path.read_bytes()
    killed, moments = run_until(NEVER, command(words, tmp_path), FILE_OPERATIONS)
    new, names = load_tensors(path), {found.name for found in path.parent.iterdir()}
    for moment in random.Random(0).sample(range(moments), min(number, moments)):
        path.write_bytes(earlier)
        killed, _ = run_until(moment, command(words, tmp_path), FILE_OPERATIONS)
        assert killed
        assert path.read_bytes() == earlier or differences(load_tensors(path), new) == []
        assert {found.name for found in path.parent.iterdir() if found.suffix != ".part"} == names
        assert_whole(tmp_path)
    run_until(NEVER, command(words, tmp_path), FILE_OPERATIONS)
    assert differences(load_tensors(path), new) == []


# --- exports ---------------------------------------------------------------------------------------------------------


def test_a_killed_export_leaves_no_record_of_another_file(few_digits, supervision, tmp_path):
    """With the record of the file before it, the new one would be refused as damaged."""
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "digits/RN8/export/digits.RN8-last.pt2"
    record = path.with_name(f"{path.name}.json")
    path.parent.mkdir()
    record.write_text('{"file_sha256": "of the file before it"}')
    killed, _ = run_until(0, command((*TEACHER, "export=pt2"), tmp_path), [(export, "save_json")])
    assert killed and path.is_file() and not record.exists()


# --- downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, bytes]]:
    """The address and the content of a teacher, sent in small pieces, from any byte on."""
    monkeypatch.setenv("no_proxy", "*")
    written = io.BytesIO()
    torch.save({"model": create_model("resnet8", num_classes=100).state_dict()}, written)
    content = written.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[first:])

        def log_message(self, *_: object) -> None:
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{site.server_port}/{{directory}}", content
    site.shutdown()
    site.server_close()
    thread.join()


@short_and_long("number", 3, 40)
def test_a_killed_download_goes_on_and_never_shows_half_a_teacher(number, server, tmp_path, monkeypatch):
    address, content = server
    monkeypatch.setattr(zoo, "TEACHERS", (zoo.Teacher("resnet8_vanilla", "resnet8", 60.0, 83_892),))
    monkeypatch.setattr(zoo, "CHUNK_BYTES", len(content) // 10)
    path = tmp_path / "resnet8_vanilla" / "ckpt_epoch_240.pth"

    def download() -> None:
        assert zoo.main(["resnet8", "--directory", str(tmp_path), "--primary", address, "--timeout", "5"]) == 0

    moments = [*FILE_OPERATIONS, (zoo, "read_chunk")]
    _, total = run_until(NEVER, download, moments)
    assert path.read_bytes() == content
    draw, kills = random.Random(0), 0
    path.unlink()
    while kills < number:
        kills += run_until(draw.randrange(total), download, moments)[0]
        if path.exists():
            assert path.read_bytes() == content
            path.unlink()
    run_until(NEVER, download, moments)
    assert path.read_bytes() == content


def test_the_events_are_those_of_a_run(uninterrupted):
    """The kills above mean something: twelve steps, and in each epoch several files."""
    assert uninterrupted[1] > 12 + 3 * 6
