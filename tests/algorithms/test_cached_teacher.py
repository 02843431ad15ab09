"""Runs that keep what their teacher says in files: those that read train as the one that wrote, bit for bit."""

import errno
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_tools import fewer_digits
from rank_tools import on_ranks
from training_tools import STEPS, PowerFailure, configure, differences, fail, outcome, results_of, stop_at

from algorithms import run_config, set_up_console
from algorithms.jobs import make_algorithm
from algorithms.prepare import step_seconds
from distillation import cached_signals, teacher_cache
from distillation.objective import Teacher
from engine.checkpoints import load_checkpoint, save_checkpoint
from storage.tensor_files import load_tensors

pytestmark = pytest.mark.usefixtures("few_digits")
TWO_EPOCHS = {"epochs": 2, "milestones": [1], "disp_step": 2}
CACHED = {"teacher_cache": "logits", "view_seed": 0}
THREE_STEPS = 3 * 64 * 20  # bytes: of the four steps of an epoch three are in a file


def run(folder: Path, name: str, method: str = "KD", **updates: Any) -> Path:
    """Train; returns the directory of the run."""
    config = configure(method, folder, **TWO_EPOCHS | updates) | {"name": f"mine.{name}.run"}
    run_config(config)
    return folder / "mine" / name / "run"


def caches(folder: Path) -> list[Path]:
    return sorted((folder / "teacher_cache" / "digits").glob("*"))


def files(folder: Path) -> list[str]:
    """Names of the files with logits, of one cache."""
    (cache,) = caches(folder)
    return sorted(path.name for path in cache.glob("epoch_*"))


def recorded(directory: Path) -> dict[str, Any]:
    return results_of(directory)["teacher_cache"]


@pytest.fixture
def no_teacher(monkeypatch):
    """From the call of it on no teacher runs."""

    def never(self: Teacher, images: torch.Tensor) -> None:
        raise AssertionError("the teacher runs")

    return lambda: monkeypatch.setattr(Teacher, "__call__", never)


@pytest.mark.parametrize(("method", "updates"), [
    ("KD", {}),
    ("lskd:DKD", {"teacher_cache_top": 3, "accumulate": 2}),
    ("KD", {"mixup": 0.4, "cutmix": 1.0}),
    ("KD", {"teacher_cache": "all"}),
])  # fmt: skip
def test_runs_that_read_train_as_the_one_that_wrote(method, updates, folder, no_teacher):
    """Also with another student, another seed and another method: the first alone has run the teacher."""
    updates = CACHED | updates
    wrote = run(folder, "writer", method, **updates)
    assert files(folder) == ["epoch_1.pth", "epoch_2.pth"]
    no_teacher()
    read = run(folder, "reader", method, **updates)
    assert not differences(outcome(wrote), outcome(read))
    run(folder, "other", "DIST", **updates, seed=3)
    assert len(caches(folder)) == 1
    known, own = recorded(wrote), recorded(read)
    assert (known.pop("epochs_read"), own.pop("epochs_read")) == (0, 2) and known == own
    assert own["directory"] == str(caches(folder)[0])
    seen = [results_of(each)["inputs"]["teacher"] for each in (wrote, read)]
    assert seen[0] == seen[1] and seen[0]["image_size"] == 8
    about = json.loads((caches(folder)[0] / "about.json").read_text())
    assert about["fingerprint"] == own["fingerprint"] and about["view_seed"] == 0


@pytest.mark.parametrize("updates", [{}, {"accumulate": 2}])
def test_where_nothing_is_shortened_runs_train_as_without_a_cache(updates, folder, no_teacher):
    updates = updates | {"precision": "bf16", "epochs": 1, "milestones": []}
    plain = run(folder, "plain", **updates)
    wrote = run(folder, "writer", **updates, teacher_cache="logits")
    no_teacher()
    read = run(folder, "reader", **updates, teacher_cache="logits")
    assert not differences(outcome(plain), outcome(wrote)) and not differences(outcome(plain), outcome(read))
    content = load_tensors(caches(folder)[0] / "epoch_1.pth")
    assert content["rows"]["logits"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "updates"),
    [("letKD-2", {}), ("SRRL+KD", {"accumulate": 2}), ("sdd:KD", {"precision": "bf16"}), ("ReviewKD", {"mixup": 0.4})],
)
def test_a_cache_of_all_trains_bit_for_bit_as_the_teacher_does(method, updates, folder, no_teacher):
    updates = updates | {"epochs": 1, "milestones": []}
    plain = run(folder, "plain", method, **updates)
    wrote = run(folder, "writer", method, **updates, teacher_cache="all")
    no_teacher()
    read = run(folder, "reader", method, **updates, teacher_cache="all")
    assert not differences(outcome(plain), outcome(wrote)) and not differences(outcome(plain), outcome(read))
    assert results_of(plain)["objective"] == results_of(read)["objective"]
    signals = [str(json.loads((cache / "about.json").read_text())["signal"]) for cache in caches(folder)]
    assert len({*signals}) == len(signals)
    known = recorded(read)
    assert known["epochs_read"] == 1 and len(known["fingerprint"]) == 64
    assert Path(known["directory"]) == (caches(folder)[0] if len(signals) == 1 else folder / "teacher_cache/digits")


def test_methods_share_the_signals_that_both_read(folder, no_teacher, capsys):
    """letKD-1 and QuEST read one of the two maps of letKD-2; KD then has only its logits to be written."""
    set_up_console()
    options = {"teacher_cache": "all", "epochs": 1, "milestones": []}
    run(folder, "two", "letKD-2", **options)
    assert len(caches(folder)) == 2
    run(folder, "logits", "letKD-2+KD", **options, subclasses_per_class=2)
    assert len(caches(folder)) == 3
    no_teacher()
    for method in ("letKD-1", "QuEST", "letKD-1+KD", "KD"):
        assert recorded(run(folder, method.replace("+", ""), method, **options))["epochs_read"] == 1
    assert len(caches(folder)) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher cache")]
    assert "of 256 images, maps/" in lines[0] and lines[0].count("maps/") == 2
    assert (
        "of 256 images, logits, in" in lines[1] and "teacher cache: maps/penultimate of 1 epoch, read from" in lines[2]
    )


def test_names_of_one_place_are_one_signal(folder, no_teacher):
    """Of a ResNet the penultimate map, which letKD-1 reads, is that of its last stage, which AT reads too."""
    options = {"teacher_cache": "all", "epochs": 1, "milestones": []}
    plain = run(folder, "plain", "letKD-1+AT", **options | {"teacher_cache": None})
    wrote = run(folder, "wrote", "letKD-1+AT", **options)
    assert not differences(outcome(plain), outcome(wrote)) and len(caches(folder)) == 3
    no_teacher()
    for method in ("letKD-1+AT", "letKD-1", "AT"):
        assert recorded(run(folder, f"reads{method}".replace("+", ""), method, **options))["epochs_read"] == 1


@pytest.mark.parametrize(("logits_in_file", "maps_in_file"), [(3, 1), (3, 2), (2, 3)])
def test_what_only_some_signals_lack_is_made_and_the_others_are_read(logits_in_file, maps_in_file, folder, monkeypatch):
    """Files of other lengths, some of which are gone and one damaged; the run stops in between, and nothing is lost."""
    whole_file = cached_signals.SignalFiles.__init__

    def with_lengths(files: cached_signals.SignalFiles, form: Any, *args: Any, **known: Any) -> None:
        whole_file(files, form, *args, **known)
        files.steps_of_file = logits_in_file if len(form.shape) == 1 else maps_in_file

    monkeypatch.setattr(cached_signals.SignalFiles, "__init__", with_lengths)
    options = {"teacher_cache": "all", "view_seed": 0, "subclasses_per_class": 2}
    plain = run(folder, "plain", "letKD-2+KD", **options | {"teacher_cache": None})
    run(folder, "whole", "letKD-2+KD", **options)
    expected = {path: load_tensors(path) for path in (folder / "teacher_cache").rglob("epoch_*")}
    by_cache = {cache: sorted(cache.glob("epoch_1_*")) for cache in caches(folder)}
    logits, *maps = sorted(by_cache, key=lambda cache: "logits" not in (cache / "about.json").read_text())
    lengths = logits_in_file, maps_in_file, maps_in_file
    assert [len(by_cache[cache]) for cache in (logits, *maps)] == [math.ceil(STEPS / length) for length in lengths]
    by_cache[logits][0].unlink()
    by_cache[maps[0]][-1].unlink()
    by_cache[maps[1]][0].write_bytes(b"none")
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(folder, "broken", "letKD-2+KD", **options)
    broken = run(folder, "broken", "letKD-2+KD", **options, checkpoint=-1)
    assert not differences(outcome(plain), outcome(broken)) and recorded(broken)["epochs_read"] == 1
    assert not differences(expected, {path: load_tensors(path) for path in (folder / "teacher_cache").rglob("epoch_*")})


def test_the_seed_of_views_is_apart_from_that_of_the_rest(folder):
    default = outcome(run(folder, "default", seed=1))
    assert not differences(default, outcome(run(folder, "said", seed=1, view_seed=1)))
    assert differences(default, outcome(run(folder, "others", seed=1, view_seed=0)))
    for seed, view_seed, number in [(0, None, 1), (1, 0, 1), (1, None, 2)]:
        run(folder, f"cached{seed}", seed=seed, view_seed=view_seed, teacher_cache="logits", epochs=1, milestones=[])
        assert len(caches(folder)) == number


def test_within_an_epoch_the_seed_of_views_stays(folder, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(folder, "stopped")
    with pytest.raises(ValueError, match="stopped within an epoch of view_seed=None, this run has view_seed=3"):
        run(folder, "stopped", view_seed=3, checkpoint=-1)


@pytest.mark.parametrize(
    ("how", "bytes_of_file"),
    [
        ("killed", 2**28),
        ("stopped", THREE_STEPS),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("stopped", 2**28), ("killed", THREE_STEPS)]),
        ("stopped in the last step", 2**28),
    ],
)
def test_a_run_that_is_broken_off_leaves_and_ends_as_the_one_that_was_not(how, bytes_of_file, folder, monkeypatch):
    monkeypatch.setattr(cached_signals, "FILE_BYTES", bytes_of_file)
    whole = run(folder, "whole", **CACHED, teacher_cache_dir=str(folder / "others"))
    expected = {path.name: load_tensors(path) for path in (folder / "others").rglob("epoch_*")}
    step = {"killed": STEPS + 4, "stopped": STEPS + 2, "stopped in the last step": STEPS}[how]
    with monkeypatch.context() as patch:
        stop_at(patch, step, fail if how == "killed" else lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(PowerFailure if how == "killed" else KeyboardInterrupt):
            run(folder, "broken", **CACHED)
    broken = run(folder, "broken", **CACHED, checkpoint=-1)
    assert not differences(outcome(whole), outcome(broken))
    assert len(expected) == (2 if bytes_of_file == 2**28 else 4)
    assert not differences(expected, {path.name: load_tensors(path) for path in caches(folder)[0].glob("epoch_*")})


def test_a_damaged_file_is_said_and_made_again(folder, capsys):
    set_up_console()
    wrote = run(folder, "writer", **CACHED)
    path = caches(folder)[0] / "epoch_2.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + b"?" + whole[2001:])
    capsys.readouterr()
    read = run(folder, "reader", **CACHED)
    out = capsys.readouterr().out
    assert f"warning: {path} is damaged: its checksum does not fit; the teacher makes it again" in out
    assert not differences(outcome(wrote), outcome(read)) and recorded(read)["epochs_read"] == 1
    first = path.with_name("epoch_1.pth")
    first.write_bytes(whole)
    third = run(folder, "third", **CACHED)
    assert f"warning: {first} is another file that was put in its place" in capsys.readouterr().out
    assert not differences(outcome(wrote), outcome(third))


@pytest.mark.parametrize("updates", [{}, {"val_split": 64}])
def test_the_time_of_a_step_has_the_teacher_in_it_as_long_as_it_runs(updates, folder, monkeypatch):
    """In as many parts as a batch is used; of a cache that is whole, or lacks a file."""
    asked = []
    original = Teacher.__call__

    def watched(teacher: Teacher, images: torch.Tensor) -> Any:
        asked.append(len(images))
        return original(teacher, images)

    def parts_of_a_step(method: str = "KD", **more: Any) -> list[int]:
        asked.clear()
        job = make_algorithm(configure(method, folder, **(TWO_EPOCHS | CACHED | updates | more)))
        step_seconds(job, job.open_training_data())
        return asked[:2]

    monkeypatch.setattr(Teacher, "__call__", watched)
    monkeypatch.setattr("algorithms.prepare.MEASURED_STEPS", 0)
    assert parts_of_a_step() == [64] and parts_of_a_step(accumulate=2) == [32, 32]
    run(folder, "writer", **CACHED, **updates)
    assert parts_of_a_step() == parts_of_a_step(accumulate=2) == []
    assert parts_of_a_step(view_seed=1) == parts_of_a_step(teacher_cache=None) == [64]
    assert parts_of_a_step("AT", teacher_cache="all") == [64]
    run(folder, "maps", "AT", **CACHED | updates | {"teacher_cache": "all"})
    assert parts_of_a_step("AT", teacher_cache="all") == []
    for path in (folder / "teacher_cache").rglob("epoch_2.pth"):
        path.unlink()
    assert parts_of_a_step() == parts_of_a_step("AT", teacher_cache="all") == [64]


def test_the_size_is_said_beforehand_and_what_has_no_room_is_refused(folder, monkeypatch, capsys):
    set_up_console()
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=20_000))
    with pytest.raises(
        ValueError, match=r"needs 28 kB in .*, and its disk has 20 kB left; choose fewer epochs, .*teacher_cache_top=$"
    ):
        run(folder, "writer", **CACHED, epochs=3)
    assert not (folder / "mine").exists() and not (folder / "teacher_cache").exists()
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    capsys.readouterr()
    run(folder, "writer", **CACHED)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher cache")]
    assert line == f"teacher cache: 18 kB for 2 epochs of 256 images, 10 classes, in {caches(folder)[0]}"
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    run(folder, "reader", **CACHED)
    assert "teacher cache: logits of 2 epochs, read from" in capsys.readouterr().out


def test_a_disk_that_becomes_full_stops_a_run_that_goes_on_when_there_is_room(folder, monkeypatch):
    whole = run(folder, "whole", **CACHED, teacher_cache_dir=str(folder / "others"))

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".epoch_2.pth"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"cannot write .*epoch_2\.pth: No space left on device"):
            run(folder, "writer", **CACHED)
    assert files(folder) == ["epoch_1.pth"] and not list(caches(folder)[0].glob(".*.part"))
    assert not differences(outcome(whole), outcome(run(folder, "writer", **CACHED, checkpoint=-1)))


def test_another_teacher_is_another_cache(folder):
    run(folder, "one", **CACHED, epochs=1, milestones=[])
    state = load_tensors(folder / "digits/RN8/last.pth")["model"]
    torch.save(
        {name: 2 * value if name == "fc.weight" else value for name, value in state.items()}, folder / "other.pth"
    )
    run(folder, "two", **CACHED, epochs=1, milestones=[], teacher_weights=str(folder / "other.pth"))
    assert len(caches(folder)) == 2


def test_a_finished_run_goes_on_with_what_is_missing(folder):
    """More epochs of the same views: those that are there are read, the others are written."""
    run(folder, "short", **CACHED)
    long = run(folder, "long", **CACHED, epochs=3)
    assert recorded(long)["epochs_read"] == 2 and len(files(folder)) == 3
    short = run(folder, "short", **CACHED, epochs=3, checkpoint=-1)
    assert recorded(short)["epochs_read"] == 1
    assert not differences(outcome(long), outcome(short))
    last = load_tensors(short / "last.pth")
    save_checkpoint(short / "last.pth", last | {"teacher_cache": {"epochs_read": "two"}})
    with pytest.raises(ValueError, match=r"damaged: its entry 'teacher_cache.epochs_read' is a str, not a int"):
        load_checkpoint(short / "last.pth")


def train_beside(folder: str, name: str) -> None:
    run(Path(folder), name, **CACHED)


def test_two_runs_at_once_share_a_cache(folder):
    children = [
        multiprocessing.get_context("fork").Process(target=train_beside, args=(str(folder), name))
        for name in ("one", "two")
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(files(folder)) == 2
    one, two = (load_tensors(folder / "mine" / name / "run" / "last.pth") for name in ("one", "two"))
    assert not differences(one["model"], two["model"])  # forks have random states of Python of their own


def train_on_a_rank(rank: int, folder: Path, method: str, options: dict[str, Any]) -> None:
    with fewer_digits():
        run(folder, "ranks", method, **options)


@pytest.mark.parametrize(("method", "kept", "name"), [("KD", "logits", "logits"), ("letKD-1+SRRL", "all", "values")])
def test_ranks_write_what_one_process_reads(method, kept, name, folder, tmp_path_factory, no_teacher):
    options = CACHED | {"teacher_cache": kept}
    alone = run(folder, "alone", method, **options, teacher_cache_dir=str(folder / "others"))
    on_ranks(2, train_on_a_rank, tmp_path_factory.mktemp("ranks"), folder, method, options)
    whole = sorted((folder / "others").rglob("epoch_*"))
    assert len(whole) == 2 * len(caches(folder)) and len(caches(folder)) == (1 if kept == "logits" else 3)
    for path in whole:
        found = load_tensors(folder / "teacher_cache/digits" / path.parent.name / path.name)["rows"][name]
        torch.testing.assert_close(found, load_tensors(path)["rows"][name], rtol=2**-10, atol=1e-4)
    no_teacher()
    run(folder, "reader", method, **options)
    on_ranks(2, train_on_a_rank, tmp_path_factory.mktemp("again"), folder, method, options)
    assert alone.is_dir()
