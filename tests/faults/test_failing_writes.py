"""A write that fails is one line naming the file; the file that was there before survives it, and no piece is left."""

import contextlib
import email.message
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from fault_tools import CODEBOOK, DECISIONS, MEANS, PAIR, RUN, SMALL, TEACHER

import download_cifar100_teacher
import main_classification
from engine.checkpoints import save_checkpoint
from storage.tensor_files import load_json, load_tensors

# What commands write, and a command that writes it anew. `checkpoint=-1` goes on for an epoch.
GO_ON = (*PAIR, "epochs=3", "milestones=[1]", "checkpoint=-1")
ARTEFACTS = {
    f"{RUN}/last.pth": GO_ON,
    f"{RUN}/best.pth": (*GO_ON, "lr_factor=1"),
    f"{RUN}/results.json": GO_ON,
    CODEBOOK: (*TEACHER, "kmeans=16"),
    DECISIONS: (*TEACHER, "LDA=5", SMALL[1]),
    MEANS: (*TEACHER, "class_means=True"),
    "VQ/digits/RN8/results.json": (*TEACHER, "kmeans=16"),
    "LDA/digits/RN8/results.json": (*TEACHER, "LDA=5", SMALL[1]),
}
FAILURES = {errno.ENOSPC: "No space left", errno.EDQUOT: "quota exceeded", errno.EACCES: "Permission denied"}


@pytest.fixture
def fail_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Let the disk fail from now on when the temporary file of `name` is flushed (or opened, without permission)."""

    def arrange(name: str, number: int) -> None:
        def meant(path: str) -> bool:
            return Path(path).name.startswith(f".{name}.")

        def fsync(descriptor: int) -> None:
            if number != errno.EACCES and meant(str(Path(f"/proc/self/fd/{descriptor}").readlink())):
                raise OSError(number, os.strerror(number))
            flush(descriptor)

        def open_(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
            if number == errno.EACCES and "w" in mode and meant(str(path)):
                raise OSError(number, os.strerror(number))
            return opened(path, mode, *arguments, **options)

        flush, opened = os.fsync, Path.open
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "open", open_)

    return arrange


def pieces(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("name", "number"),
    [(f"{RUN}/last.pth", errno.ENOSPC), (f"{RUN}/results.json", errno.EACCES), (CODEBOOK, errno.EDQUOT)]
    + [pytest.param(name, number, marks=pytest.mark.slow) for name in ARTEFACTS for number in FAILURES],
)
def test_the_earlier_file_survives_a_failed_write(name, number, folder, fail_writing, capsys, monkeypatch):
    path = folder / name
    before = path.read_bytes()
    if path.name == "best.pth":  # so that every epoch is a new best
        lowered = load_tensors(folder / RUN / "last.pth")
        save_checkpoint(folder / RUN / "last.pth", lowered | {"best": {"top1": -1.0, "epoch": 0}})
    fail_writing(path.name, number)
    capsys.readouterr()
    assert main_classification.main(["main.py", "with", *ARTEFACTS[name], f"localpath={folder}"]) == 1
    error = capsys.readouterr().err
    assert f"cannot write {path}: " in error and FAILURES[number] in error and error.count("\n") == 1
    assert path.read_bytes() == before
    assert pieces(folder) == []
    load_json(path) if path.suffix == ".json" else load_tensors(path)


@pytest.mark.parametrize("number", FAILURES)
def test_a_download_that_cannot_be_written_leaves_the_earlier_teacher(number, tmp_path, monkeypatch, capsys):
    """The transfer goes to a file beside the teacher's, which takes its place only when it is whole and checked."""
    path = tmp_path / "resnet56_vanilla" / "ckpt_epoch_240.pth"
    path.parent.mkdir()
    path.write_bytes(b"the earlier teacher")

    class Answer(contextlib.nullcontext):
        """A server's, of 100 bytes."""

        length = 100
        headers = email.message.Message()
        pieces = iter([bytes(100), b""])

        def read1(self, size: int) -> bytes:
            return next(self.pieces)

    def fail(file: IO[bytes]) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(download_cifar100_teacher, "open_address", lambda url, offset, timeout: Answer())
    monkeypatch.setattr(download_cifar100_teacher, "flush_to_disk", fail)
    arguments = ["resnet56", "--force", "--directory", str(tmp_path), "--retries", "0"]
    assert download_cifar100_teacher.main(arguments) == 1
    error = capsys.readouterr().err
    assert FAILURES[number] in error and error.count("\n") == 1
    assert path.read_bytes() == b"the earlier teacher"


# --- a disk that is really full --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size; skips where it cannot be mounted."""
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    if os.geteuid() or not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root, and the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a traceback may still hold a file in it


NOT_NEEDED = shutil.ignore_patterns("sacred", "tensorboard", "best.pth", "log.txt")


def kibibytes_of(folder: Path) -> int:
    """What its files take in pages of 4 KiB, and so many for its folders."""
    return sum(4 * (1 + path.stat().st_size // 4096) for path in folder.rglob("*"))


@pytest.mark.parametrize("room", [1500, *(pytest.param(room, marks=pytest.mark.slow) for room in range(0, 3000, 60))])
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(room, few_digits, supervision, tmp_path, capsys):
    """The disk ends anywhere in two epochs: in a log, a curve, a checkpoint, sacred's record."""
    words = [*PAIR, "epochs=2", "milestones=[1]"]
    shutil.copytree(supervision, tmp_path / "start", ignore=NOT_NEEDED)
    with small_disk(tmp_path / "disk", kibibytes_of(tmp_path / "start") + room) as disk:
        shutil.copytree(tmp_path / "start", disk, dirs_exist_ok=True)
        capsys.readouterr()
        status = main_classification.main(["main.py", "with", *words, f"localpath={disk}"])
        error = capsys.readouterr().err
        assert pieces(disk) == []
        for path in disk.rglob("*.pth"):
            load_tensors(path)
        shutil.copytree(disk, tmp_path / "roomy")
    assert status or room > 1500, "two checkpoints of 0.7 MB and more should not fit"
    if status:
        assert "No space left" in error and error.count("\n") == 1, error
    assert (
        main_classification.main(["main.py", "with", *words, "checkpoint=-1", f"localpath={tmp_path / 'roomy'}"]) == 0
    )
    assert load_json(tmp_path / "roomy" / RUN / "results.json")["epochs"] == 2


def test_patches_that_do_not_fit_on_the_disk_are_refused_beforehand(few_digits, supervision, tmp_path, capsys):
    """Afterwards, a write to a mapped file would end the process without a word."""
    shutil.copytree(supervision, tmp_path, dirs_exist_ok=True)
    with small_disk(tmp_path / "disk", 200) as disk:
        words = [*TEACHER, "kmeans=8", "memmap=True", f"memmap_dir={disk}", f"localpath={tmp_path}"]
        assert main_classification.main(["main.py", "with", *words]) == 1
        assert list(disk.iterdir()) == []
    error = capsys.readouterr().err
    assert f"cannot hold the patches in {disk}: No space left" in error and error.count("\n") == 1
