"""A run that is killed, at any moment and as often as one likes, ends as the run that was not.

SIGKILL leaves a process no time for anything. The short form kills forked children before chosen operations on files
or between training steps; the long form also kills whole commands after random times.
"""

import functools
import http.server
import io
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
    PAIR,
    RUN,
    SMALL,
    TEACHER,
    differences,
    fork,
    kill_at,
    outcome,
    run_here,
    short_and_long,
    start,
)

import download_cifar100_teacher as zoo
from algorithms.files import load_json, load_tensors
from architectures import create_model

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

    process = fork(child)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0, counter.value


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


def assert_whole(folder: Path) -> None:
    """Every file that a reader could find is complete."""
    for path in folder.rglob("*"):
        if path.suffix == ".pth":
            load_tensors(path)
        elif path.suffix == ".json" and "sacred" not in path.parts:
            load_json(path)


@short_and_long("number", 2, 20)
def test_a_run_that_is_killed_again_and_again_ends_as_the_one_that_was_not(
    number, uninterrupted, supervision, tmp_path
):
    expected, moments = uninterrupted
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    draw = random.Random(number)
    for _ in range(number):
        run_until(draw.randrange(moments // 2), command(CONTINUE, tmp_path), MOMENTS)
        assert_whole(tmp_path)
    assert run_until(NEVER, command(CONTINUE, tmp_path), MOMENTS)[0] is False
    assert differences(outcome(tmp_path / RUN), expected) == []


@pytest.mark.faults
def test_there_is_no_moment_at_which_a_kill_changes_the_result(uninterrupted, supervision, tmp_path):
    """Every step and every operation on a file, one run each."""
    expected, moments = uninterrupted
    for moment in range(moments):
        folder = tmp_path / str(moment)
        shutil.copytree(supervision, folder)
        killed, _ = run_until(moment, command((*PAIR, *EPOCHS), folder), MOMENTS)
        assert killed
        assert_whole(folder)
        run_until(NEVER, command(CONTINUE, folder), MOMENTS)
        assert differences(outcome(folder / RUN), expected) == [], moment
        shutil.rmtree(folder)


@pytest.mark.faults
def test_a_start_from_scratch_that_is_killed_loses_nothing_of_the_earlier_run(few_digits, finished, tmp_path):
    """Its files are where they were, or in `replaced/`, or on the way there."""
    earlier = {path.name: path.read_bytes() for path in (finished / RUN).glob("*.pth")}
    assert len(earlier) == 3
    for moment in range(20):
        folder = tmp_path / str(moment)
        shutil.copytree(finished, folder)
        run_until(moment, command((*PAIR, *EPOCHS, "seed=1"), folder), FILE_OPERATIONS)
        run_until(NEVER, command((*CONTINUE, "seed=1"), folder), FILE_OPERATIONS)
        kept = {
            path.name: path.read_bytes() for path in (folder / RUN).rglob("*.pth") if path.parent.name == "replaced"
        }
        assert kept in ({}, earlier) and (kept or moment < 5), moment
        shutil.rmtree(folder)


@pytest.mark.faults
def test_commands_that_are_killed_at_random_times_end_as_the_one_that_was_not(supervision_of_all_digits, tmp_path):
    """Twenty kills of one experiment, during start-up too."""
    words = (*PAIR, "epochs=40", "milestones=[30]")
    expected, folder = tmp_path / "expected", tmp_path / "killed"
    for place in (expected, folder):
        shutil.copytree(supervision_of_all_digits, place)
    whole = start(*words, localpath=expected)
    _, error = whole.communicate()
    assert whole.returncode == 0, error
    draw = random.Random(0)
    for number in range(20):
        process = start(*words, "checkpoint=-1", localpath=folder)
        if number % 4:  # the others are killed before they have begun, most of them
            for line in process.stdout:
                if line.startswith(("epoch", "done")):
                    break
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        process.communicate()
        assert_whole(folder)
    last = start(*words, "checkpoint=-1", localpath=folder)
    _, error = last.communicate()
    assert last.returncode == 0, error
    assert differences(outcome(folder / RUN), outcome(expected / RUN)) == []


# --- codebooks and decision scores -----------------------------------------------------------------------------------

JOBS = {CODEBOOK: ("kmeans=16",), DECISIONS: ("LDA=5", SMALL[1])}


@short_and_long("number", 1, 40)
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("extra", [(), pytest.param(("memmap=True",), marks=pytest.mark.faults)], ids=["", "memmap"])
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
