"""Files are whole or absent, damage is noticed, and two jobs do not share a directory."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoints import (
    NEWEST,
    find_checkpoint,
    find_state,
    load_checkpoint,
    save_checkpoint,
    save_last,
    set_aside,
)
from engine.records import Curves, exclusive, log, log_file, save_results, set_up_console, update_results
from engine.weights import read_published
from storage.tensor_files import load_json, load_tensors, save_json, save_tensors

CONTENT = {"format": "letkd-test-1", "weights": torch.arange(300.0), "names": ["a", "b"], "epoch": 3}
NUM_DAMAGES = 200


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "file.pth"
    save_tensors(path, CONTENT)
    return path


def test_a_saved_file_is_read_back_by_us_and_by_any_torch(saved):
    for content in (load_tensors(saved), torch.load(saved, weights_only=True)):
        torch.testing.assert_close(content.pop("weights"), CONTENT["weights"])
        assert content == {key: CONTENT[key] for key in content}


def test_every_flipped_bit_is_noticed(saved):
    whole, draw = saved.read_bytes(), random.Random(0)
    for _ in range(NUM_DAMAGES):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file\.pth (is damaged|is refused)"):
            load_tensors(saved)


def test_every_truncation_is_noticed(saved):
    whole, draw = saved.read_bytes(), random.Random(1)
    for _ in range(NUM_DAMAGES):
        saved.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(ValueError, match=r"file\.pth (is damaged|is refused)"):
            load_tensors(saved)


RESULTS = {
    "config": "A.B",
    "top1": 71.25,
    "mean": (0.5, 0.25),
    "fingerprint": "5e" * 32,  # not its checksum
    "options": {"epochs": 8, "note": "gr\u00fcn"},
    "loss": None,
}


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    save_json(path, RESULTS)
    return path


def test_a_json_document_is_read_back_without_its_checksum(results):
    expected = RESULTS | {"mean": [0.5, 0.25]}
    assert load_json(results) == expected
    assert list(json.loads(results.read_text())) == [*RESULTS, "sha256"]
    save_json(results, json.loads(results.read_text()) | {"top1": 72.0})  # its checksum is made anew
    assert load_json(results) == expected | {"top1": 72.0}


def test_damage_to_a_json_document_is_noticed_or_changes_nothing(results):
    whole, draw = results.read_bytes(), random.Random(2)
    expected, noticed = load_json(results), 0
    for number in range(2 * NUM_DAMAGES):
        damaged = bytearray(whole)
        if number % 2:
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(whole)) :]
        results.write_bytes(damaged)
        try:
            assert load_json(results) == expected  # the newline at the end is gone, say
        except ValueError as error:
            assert re.match(r"\A\S*results\.json is damaged: [^\n]*\Z", str(error))
            noticed += 1
    assert noticed > 2 * NUM_DAMAGES - 10


def test_an_edited_number_is_noticed_and_a_document_that_never_had_a_checksum_is_mentioned(results, logged):
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content | {"top1": 99.0}))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        load_json(results)
    assert not logged.text
    del content["sha256"]
    results.write_text(json.dumps(content))
    assert load_json(results) == content
    assert "results.json has no checksum" in logged.text


def test_a_file_without_checksum_is_read_if_it_is_not_ours(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "published.pth")
    assert list(load_tensors(tmp_path / "published.pth")) == ["model"]
    torch.save(CONTENT, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match="has lost its checksum"):
        load_tensors(tmp_path / "ours.pth")


def test_weights_are_read_from_files_of_safetensors(tmp_path, monkeypatch):
    path, state = tmp_path / "weights.safetensors", {"fc.weight": torch.rand(2, 3), "fc.bias": torch.ones(2).half()}
    with pytest.raises(FileNotFoundError, match=f"no file {path}"):
        read_published(path)
    save_file(state, path)
    found = read_published(path)
    assert found.source == path and found.data is None
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    content = path.read_bytes()
    for damaged in (b"", content[:-1], b"PK" + content[2:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights.safetensors is damaged, or no file of safetensors: "):
            read_published(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"needs safetensors; install it: .* -r requirements-networks"):
        read_published(path)


def test_a_full_disk_is_an_error_and_the_earlier_file_survives(saved, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    for save, content in ((save_tensors, CONTENT | {"epoch": 4}), (save_json, {"epoch": 4})):
        with pytest.raises(OSError, match=r"cannot write .*file\.pth: No space left on device"):
            save(saved, content)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["file.pth"]


def test_names_are_flushed_too_where_the_file_system_knows_how_to(tmp_path, monkeypatch):
    """A rename that is not in its directory on the disk would be gone after a power failure."""
    flushed = []

    def fsync(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append(place)
        if place.is_dir():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    number = errno.EINVAL
    save_json(tmp_path / "file.json", {"epoch": 4})
    assert flushed[0].name.startswith(".file.json.") and flushed[1:] == [tmp_path]
    number = errno.EIO
    with pytest.raises(OSError, match=r"cannot write .*file\.json: Input/output error"):
        save_json(tmp_path / "file.json", {"epoch": 5})


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, logged):
    for epoch in (1, 2, 3):
        save_last(tmp_path, {"epoch": epoch})
    assert load_checkpoint(find_checkpoint(tmp_path, NEWEST))["epoch"] == 3
    (tmp_path / "last.pth").write_bytes(b"PK torn")
    assert load_checkpoint(find_checkpoint(tmp_path, NEWEST))["epoch"] == 2
    assert "last.pth is damaged" in logged.text and "previous.pth" in logged.text


@pytest.mark.parametrize(
    ("epochs", "newest"),
    [
        ({"last.pth": 2, "stopped.pth": 2}, "stopped.pth"),
        ({"last.pth": 2, "stopped.pth": 1}, "last.pth"),  # killed when it had just saved the epoch
        ({"last.pth": 2, "stopped.pth": 4}, "last.pth"),  # killed while it was going back
        ({"last.pth": None, "previous.pth": 1, "stopped.pth": 2}, "stopped.pth"),
        ({"last.pth": None, "previous.pth": 1, "stopped.pth": 0}, "previous.pth"),
        ({"last.pth": None, "stopped.pth": 2}, "stopped.pth"),
        ({"last.pth": 2, "stopped.pth": None}, "last.pth"),
        ({"stopped.pth": 0}, "stopped.pth"),
    ],
)
def test_the_newest_state_is_the_one_that_counts(epochs, newest, tmp_path):
    for name, epoch in epochs.items():
        save_checkpoint(tmp_path / name, {"epoch": epoch})
        if epoch is None:
            (tmp_path / name).write_bytes(b"PK torn")
    assert find_state(tmp_path, NEWEST) == tmp_path / newest


def test_an_epoch_is_found_beside_damaged_files(tmp_path):
    for epoch, name in enumerate(("best.pth", "previous.pth", "last.pth")):
        save_checkpoint(tmp_path / name, {"epoch": epoch})
    (tmp_path / "last.pth").write_bytes(b"PK torn")
    assert find_checkpoint(tmp_path, 1) == tmp_path / "previous.pth"
    there_are = r"there are: 0 \(best.pth\), 1 \(previous.pth\), last.pth cannot be read"
    with pytest.raises(FileNotFoundError, match=there_are):
        find_checkpoint(tmp_path, 2)


def test_no_piece_stays_where_a_run_was_killed_between_two_names_of_one_file(tmp_path):
    save_last(tmp_path, {"epoch": 1})
    (tmp_path / "previous.pth").hardlink_to(tmp_path / "last.pth")
    save_last(tmp_path, {"epoch": 2})
    assert {path.name: load_checkpoint(path)["epoch"] for path in tmp_path.iterdir()} == {
        "previous.pth": 1,
        "last.pth": 2,
    }


def test_a_file_system_without_hard_links_keeps_two_epochs_too(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for epoch in (1, 2, 3):
        save_last(tmp_path, {"epoch": epoch})
    assert {path.name: load_checkpoint(path)["epoch"] for path in tmp_path.iterdir()} == {
        "previous.pth": 2,
        "last.pth": 3,
    }


def test_setting_aside_keeps_every_earlier_run(tmp_path):
    assert set_aside(tmp_path) is None
    for number in (1, 2, 10):
        (tmp_path / "tensorboard").mkdir()
        for name in ("last.pth", "results.json", "tensorboard/events"):
            (tmp_path / name).write_text(str(number))
        assert set_aside(tmp_path) == tmp_path / f"replaced/{number}"
        assert [path.name for path in tmp_path.iterdir()] == ["replaced"]
        if number == 2:
            (tmp_path / "replaced/9").mkdir()  # the user's
    for number in (1, 2, 10):
        backup = tmp_path / f"replaced/{number}"
        for name in ("last.pth", "results.json", "tensorboard/events"):
            assert (backup / name).read_text() == str(number)
    assert set_aside(tmp_path) is None


def test_a_directory_in_use_is_refused_with_its_process(tmp_path):
    refused = pytest.raises(ValueError, match=rf"in use by process {os.getpid()}, started 20")
    with exclusive(tmp_path), refused, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def start_program() -> int:
    return subprocess.Popen(["sleep", "600"], close_fds=False).pid


@pytest.mark.parametrize("start_worker", [os.fork, start_program])
def test_a_worker_that_outlives_its_killed_parent_holds_no_lock(start_worker, tmp_path):
    """And a worker that there is does not take the directory from its parent."""
    fork = multiprocessing.get_context("fork")
    told, tell = fork.Pipe(duplex=False)

    def hold() -> None:
        with exclusive(tmp_path):
            worker = start_worker()
            if worker:
                tell.send(worker)
            time.sleep(600)

    process = fork.Process(target=hold)
    process.start()
    worker = told.recv()
    try:
        with pytest.raises(ValueError, match=f"in use by process {process.pid}"), exclusive(tmp_path):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # `join` would wait for the worker too
        os.kill(worker, 0)  # it lives
        with exclusive(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_a_child_that_ends_its_part_of_a_job_leaves_the_directory_to_its_parent(tmp_path):
    with ExitStack() as job:
        job.enter_context(exclusive(tmp_path))
        child = multiprocessing.get_context("fork").Process(target=job.close)
        child.start()
        child.join(timeout=60)
        assert child.exitcode == 0
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), exclusive(tmp_path):
            pass


def test_two_threads_do_not_share_a_directory(tmp_path):
    def work() -> None:
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), exclusive(tmp_path):
            pass

    with exclusive(tmp_path), ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(timeout=60)


def test_a_lock_that_cannot_be_written_is_named_and_held_by_nobody(tmp_path, monkeypatch):
    def full(descriptor: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    named = pytest.raises(OSError, match=rf"cannot write {tmp_path}/\.lock: No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", full)
        with named, exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        pass


def work_alone(directory: Path) -> None:
    with exclusive(directory):
        pass


def add_nothing(directory: Path) -> None:
    update_results(directory, lambda results: results)


every_lock = pytest.mark.parametrize(("name", "use"), [(".lock", work_alone), (".results.lock", add_nothing)])


@every_lock
def test_a_lock_that_cannot_be_opened_is_named(name, use, tmp_path):
    (tmp_path / name).symlink_to(tmp_path / "another")  # it would be written through the link
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/{re.escape(name)}: "):
        use(tmp_path)
    assert not (tmp_path / "another").exists()


@every_lock
def test_a_file_system_without_locks_is_an_error_and_gets_no_marker_file(name, use, tmp_path, monkeypatch):
    def missing(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", missing)
        with pytest.raises(OSError, match=rf"cannot write {tmp_path}/{re.escape(name)}: Function not implemented"):
            use(tmp_path)
    use(tmp_path)


# --- records ---------------------------------------------------------------------------------------------------------


def test_nobody_loses_what_another_process_adds_to_the_results(tmp_path):
    number = 40

    def add(first: int) -> None:
        for index in range(first, number, 2):
            update_results(tmp_path, lambda results, index=index: results | {str(index): index})

    processes = [multiprocessing.get_context("fork").Process(target=add, args=(first,)) for first in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {str(index) for index in range(number)} <= load_json(tmp_path / "results.json").keys()


def test_the_results_of_a_finished_run_wait_for_an_evaluation_that_is_being_added(tmp_path):
    saving = multiprocessing.get_context("fork").Process(target=save_results, args=(tmp_path, {"top1": 90}))

    def add(results: dict) -> dict:
        saving.start()
        saving.join(timeout=0.5)
        assert saving.is_alive()
        return results | {"evaluations": {}}

    update_results(tmp_path, add)
    saving.join(timeout=60)
    assert load_json(tmp_path / "results.json")["top1"] == 90


def test_a_log_that_cannot_be_written_is_one_line_and_hides_no_stop(tmp_path, capsys):
    set_up_console()
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(KeyboardInterrupt), log_file(tmp_path):
        for number in range(3):
            log.info("line %d", number)
        raise KeyboardInterrupt
    printed = capsys.readouterr()
    warning = f"warning: cannot write {tmp_path / 'log.txt'}: No space left on device"
    assert printed.out.splitlines() == [warning, "line 0", "line 1", "line 2"]
    assert printed.err == ""


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """TensorBoard's file cannot be flushed."""

    def flush(writer: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", flush)


@pytest.mark.parametrize("work", [Curves.flush, lambda curves: None], ids=["within", "at the end"])
def test_curves_that_cannot_be_written_are_named(work, tmp_path, full_disk):
    named = rf"cannot write {tmp_path}/tensorboard: No space left on device"
    with pytest.raises(OSError, match=named), Curves(tmp_path, first_step=1) as curves:
        work(curves)


def test_curves_that_cannot_be_written_hide_no_stop(tmp_path, full_disk):
    with pytest.raises(KeyboardInterrupt), Curves(tmp_path, first_step=1):
        raise KeyboardInterrupt
