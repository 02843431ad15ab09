"""The CIFAR-100 teachers of the published experiments: names, addresses, and the check that a file is one of them.

    python download_cifar100_teacher.py                      all six, into saved_models/<directory>/ckpt_epoch_240.pth
    python download_cifar100_teacher.py resnet56 vgg13       some of them, by architecture or by directory
    python download_cifar100_teacher.py --list               what there is and what is already here

A teacher is fetched from its own address; what cannot be had there is unpacked from one archive that holds all six.
Every file is checked before it takes its place: it is read with `weights_only=True`, and the names and shapes of its
weights must be those of the architecture. Its checksum is written beside it, and compared whenever it is read.
Who finds another process at the same teacher waits for it.

The checkpoints are those of RepDistiller (Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020);
the archive is a release asset of mdistiller, which uses the same teachers.
"""

import argparse
import difflib
import os
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from config import recipes
from storage.documents import names_file

PRIMARY = "http://shape2prog.csail.mit.edu/repo/{directory}/ckpt_epoch_240.pth"
FALLBACK = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
ARCHIVE_FOLDER = "cifar_teachers"
FILE_NAME = "ckpt_epoch_240.pth"

CHUNK_BYTES = 1 << 20
FIRST_PAUSE_S = 1.0  # before the second try; doubles with every further one


class Teacher(NamedTuple):
    """One published teacher: top-1 accuracy on CIFAR-100 in percent, number of trainable parameters."""

    directory: str
    architecture: str
    top1: float
    num_parameters: int


NUM_PARAMETERS = {
    "wrn_40_2": 2_255_156,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet32x4": 7_433_860,
    "vgg13": 9_462_180,
    "resnet50": 23_705_252,
}
TEACHERS = tuple(
    Teacher(teacher.directory, architecture, teacher.top1, NUM_PARAMETERS[architecture])
    for architecture, teacher in recipes.TEACHERS.items()
)


class Patience(NamedTuple):
    """Seconds without any data before a transfer counts as stalled; tries of an address after the first."""

    timeout: float = 30.0
    retries: int = 3


PATIENCE = Patience()


class DownloadError(Exception):
    """An address did not give the file, and asking it again would not help."""


class ServerDownError(DownloadError):
    """The server does not answer, so its other files cannot be had either."""


class InterruptedTransferError(ServerDownError):
    """The transfer broke off, stalled or was put off: worth some more tries; after them the server counts as down."""


def select_teachers(names: Iterable[str]) -> list[Teacher]:
    """The teachers of the given directories or architectures, in that order and once each; all for no names.

    Raises:
        ValueError: a name is neither a directory nor an architecture of the zoo.
    """
    known = {name: teacher for teacher in TEACHERS for name in (teacher.directory, teacher.architecture)}
    chosen: dict[Teacher, None] = {}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(f"unknown teacher {name!r}; {hint}known: {', '.join(known)}")
        chosen[known[name]] = None
    return list(chosen) or list(TEACHERS)


def checkpoint_path(teacher: Teacher, directory: Path) -> Path:
    return directory / teacher.directory / FILE_NAME


@contextmanager
def alone(directory: Path, name: str) -> Iterator[None]:
    """Wait for another process that fetches the same into this directory: both would write one partial file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".{name}.lock"
    lock = FileLock(path, fallback_to_soft=False)
    with ExitStack() as stack:
        with names_file(path):
            try:
                stack.enter_context(lock.acquire(blocking=False))
            except Timeout:
                print(f"{name}: another process is fetching it; waiting", flush=True)
                stack.enter_context(lock)
        yield


def check_checkpoint(path: Path, architecture: str, num_classes: int = 100) -> None:
    """Check that a file is a checkpoint `{'model': state_dict, ...}` of the architecture, without running its code.

    Raises:
        ValueError: it is not; one line says what is wrong.
        FileNotFoundError: it is not there.
    """
    import torch

    from architectures import create_model
    from engine.weights import read_published
    from storage.state_dicts import check_fit

    with torch.device("meta"):  # nothing is allocated
        expected = create_model(architecture, num_classes=num_classes).state_dict()
    what = f"{architecture} with {num_classes} classes"
    check_fit(expected, read_published(path).state, source=path, what=what)


# Transfers


def open_address(url: str, offset: int, timeout: float) -> HTTPResponse:
    """Ask for a file from byte `offset` on; raises a DownloadError that names the address and says what happened."""
    headers = {"User-Agent": "letkd"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code == 416 and offset:
            raise
        put_off = error.code in (408, 429) or error.code >= 500
        kind = InterruptedTransferError if put_off else DownloadError
        raise kind(f"{url}: HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, socket.gaierror):
            raise ServerDownError(f"{url}: the host name cannot be resolved") from error
        if isinstance(reason, ConnectionRefusedError):
            raise ServerDownError(f"{url}: connection refused") from error
        if isinstance(reason, TimeoutError):
            raise ServerDownError(f"{url}: no answer within {timeout:g} s") from error
        raise InterruptedTransferError(f"{url}: {reason}") from error


def read_chunk(response: HTTPResponse, url: str, timeout: float) -> bytes:
    """What has arrived, without waiting for a full chunk: a transfer that breaks off loses nothing."""
    try:
        return response.read1(CHUNK_BYTES)
    except TimeoutError as error:
        raise InterruptedTransferError(f"{url}: stalled for {timeout:g} s") from error
    except (OSError, HTTPException) as error:
        raise InterruptedTransferError(f"{url}: {error}") from error


def transfer(url: str, part: Path, label: str, timeout: float) -> None:
    """Bring `part` to its full length, continuing what it holds where the server can do that."""
    from tqdm import tqdm

    offset = part.stat().st_size if part.exists() else 0
    try:
        response = open_address(url, offset, timeout)
    except HTTPError as error:  # 416: there is nothing after the offset
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return
        part.unlink()
        raise InterruptedTransferError(f"{url}: the partial file is longer than the file, starting again") from error

    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            offset = 0  # the server sends the whole file
        total = None if response.length is None else offset + response.length
        chunk = read_chunk(response, url, timeout)
        if response.headers.get_content_type() == "text/html" or (not offset and chunk.lstrip().startswith(b"<")):
            raise DownloadError(f"{url}: an HTML page instead of a file")
        part.parent.mkdir(parents=True, exist_ok=True)
        with (
            part.open("ab" if offset else "wb") as file,
            tqdm(total=total, initial=offset, desc=label, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk:
                file.write(chunk)
                bar.update(len(chunk))
                chunk = read_chunk(response, url, timeout)
            flush_to_disk(file)
    size = part.stat().st_size
    if total is not None and size != total:
        raise InterruptedTransferError(f"{url}: broke off after {size} of {total} bytes")


def flush_to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def transfer_with_retries(url: str, part: Path, label: str, patience: Patience) -> None:
    for attempt in range(patience.retries + 1):
        try:
            return transfer(url, part, label, patience.timeout)
        except InterruptedTransferError as error:
            if attempt == patience.retries:
                raise
            pause = FIRST_PAUSE_S * 2**attempt
            print(f"{error}; trying again in {pause:g} s ({attempt + 1} of {patience.retries})", flush=True)
            time.sleep(pause)
    raise AssertionError("unreachable")


def download(url: str, part: Path, label: str, use: Callable[[Path], None], patience: Patience) -> None:
    """Fetch a file into `part` and hand it to `use`, which raises ValueError if it is not what it should be.

    The refused file is removed. Where it had been continued from an earlier run, the two halves may be of different
    files, so it is fetched once more from the start.
    """
    continued = part.exists()
    while True:
        transfer_with_retries(url, part, label, patience)
        try:
            return use(part)
        except ValueError as error:
            part.unlink()
            if not continued:
                raise DownloadError(f"{url}: {error}") from error
            print(f"{url}: {error}; starting again without the partial file", flush=True)
            continued = False


# The two sources


def keep(file: Path, teacher: Teacher, directory: Path) -> None:
    """Check a complete file and move it to its place in one step; then its checksum follows."""
    from storage.tensor_files import checksum_path, save_checksum

    check_checkpoint(file, teacher.architecture)
    target = checkpoint_path(teacher, directory)
    # First: the checksum of an earlier file must at no time stand beside this one.
    checksum_path(target).unlink(missing_ok=True)
    file.replace(target)
    save_checksum(target)
    print(f"{teacher.directory}: fetched, {describe_size(target)}", flush=True)


def fetch_one_by_one(
    wanted: list[Teacher], directory: Path, primary: str, patience: Patience, *, force: bool
) -> tuple[list[Teacher], str]:
    """Fetch every teacher from its own address; returns those that could not be had and the last failure.

    One that another process has brought since it was missing stays, unless `force` fetches it again.
    """
    left, failure, server_down = [], "", False
    for teacher in wanted:
        if server_down:
            left.append(teacher)
            continue
        url = primary.replace("{directory}", teacher.directory)
        part = checkpoint_path(teacher, directory).with_suffix(".pth.part")
        with alone(directory, teacher.directory):
            if not force and is_here(teacher, directory):
                continue
            try:
                download(url, part, teacher.directory, partial(keep, teacher=teacher, directory=directory), patience)
            except DownloadError as error:
                print(error, flush=True)
                left.append(teacher)
                failure, server_down = str(error), isinstance(error, ServerDownError)
    return left, failure


def unpack(archive: Path, wanted: dict[str, Teacher], directory: Path) -> None:
    """Unpack teachers from a tar file, taking every one that was kept out of `wanted`, {member name: teacher}.

    Members are only compared with the names asked for, and their content goes to a path of our own: no path of the
    archive is ever written to.

    Raises:
        ValueError: the archive is damaged, or a teacher in it is missing, not a regular file, or another network.
    """
    problems = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if name not in wanted:
                    continue
                try:
                    unpack_member(tar, member, wanted[name], directory)
                    del wanted[name]
                except ValueError as error:
                    problems.append(f"{name}: {error}")
    except tarfile.TarError as error:
        problems.append(f"the archive is damaged ({error})")
    if wanted:
        raise ValueError("; ".join(problems) or f"the archive has no {', '.join(wanted)}")


def unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, teacher: Teacher, directory: Path) -> None:
    if not member.isreg():
        raise ValueError("refused, it is a link or a device and not a regular file")
    target = checkpoint_path(teacher, directory)
    unpacked = target.with_suffix(".pth.unpacked")  # not .part: that one may hold the start of another file
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(directory, teacher.directory):
        try:
            with tar.extractfile(member) as source, unpacked.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
                flush_to_disk(file)
            keep(unpacked, teacher, directory)
        finally:
            unpacked.unlink(missing_ok=True)
        target.with_suffix(".pth.part").unlink(missing_ok=True)


def fetch_from_archive(
    wanted: list[Teacher], directory: Path, fallback: str, patience: Patience, *, force: bool
) -> None:
    """Unpack the teachers from the archive at an address or path; one that was downloaded is removed afterwards.

    Those that another process has brought meanwhile stay, unless `force` fetches them again.

    Raises:
        DownloadError: some could not be had; names them and says why.
    """
    with alone(directory, ARCHIVE_FOLDER):
        missing = [teacher for teacher in wanted if force or not is_here(teacher, directory)]
        if missing:
            _fetch_from_archive(missing, directory, fallback, patience)


def _fetch_from_archive(wanted: list[Teacher], directory: Path, fallback: str, patience: Patience) -> None:
    members = {f"{ARCHIVE_FOLDER}/{teacher.directory}/{FILE_NAME}": teacher for teacher in wanted}
    try:
        if not is_address(fallback):
            unpack(Path(fallback), members, directory)
            return
        part = directory / f"{ARCHIVE_FOLDER}.tar.part"
        print(f"taking the archive {fallback}", flush=True)
        download(fallback, part, part.stem, partial(unpack, wanted=members, directory=directory), patience)
        part.unlink()
    except (DownloadError, ValueError) as error:
        names = ", ".join(teacher.directory for teacher in members.values())
        raise DownloadError(f"cannot fetch {names}: {error}") from error


def fetch_teachers(
    wanted: list[Teacher],
    directory: Path,
    *,
    primary: str = PRIMARY,
    fallback: str = FALLBACK,
    force: bool = False,
    patience: Patience = PATIENCE,
) -> None:
    """Make sure that `directory` holds the teachers; correct files stay unless `force` fetches them again.

    `primary` is an address with {directory} in it, `fallback` the address or the path of the archive.

    Raises:
        ValueError: an address cannot be one, or a file that is there is another network and `force` is off.
        FileNotFoundError: the archive is given by a path where no file is.
        DownloadError: a teacher could be had from neither address; one line says why and what to do offline.
    """
    if not is_address(primary) or "{directory}" not in primary:
        raise ValueError(f"not a teacher address: {primary!r}; give one like {PRIMARY}")
    if not is_address(fallback) and not Path(fallback).is_file():
        raise FileNotFoundError(
            f"no archive at {fallback!r}; give the path of a tar file or an address like {FALLBACK}"
        )

    missing = [teacher for teacher in wanted if force or not is_here(teacher, directory)]
    left, failure = fetch_one_by_one(missing, directory, primary, patience, force=force)
    if not left:
        return
    try:
        fetch_from_archive(left, directory, fallback, patience, force=force)
    except DownloadError as error:
        place = directory / "<directory>" / FILE_NAME
        raise DownloadError(
            f"{error}; before that {failure}; offline: fetch {FALLBACK} elsewhere and pass its path with --fallback, "
            f"or put each checkpoint at {place}"
        ) from error


def is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def is_here(teacher: Teacher, directory: Path) -> bool:
    path = checkpoint_path(teacher, directory)
    if not path.exists():
        return False
    try:
        check_checkpoint(path, teacher.architecture)
    except ValueError as error:
        raise ValueError(f"{error}; move it away, or replace it with --force") from error
    print(f"{teacher.directory}: already here, {describe_size(path)}", flush=True)
    return True


# Command line


def describe_size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def list_teachers(teachers: list[Teacher], directory: Path) -> str:
    """A table of teachers and of what `directory` holds of it (not checked: that would need torch)."""
    lines = [f"{'directory':<20}{'architecture':<14}{'parameters':>12}{'top-1 %':>9}  in {directory}"]
    for teacher in teachers:
        path = checkpoint_path(teacher, directory)
        part = path.with_suffix(".pth.part")
        state = "missing"
        if path.exists():
            state = describe_size(path)
        elif part.exists():
            state = f"partial, {describe_size(part)}"
        columns = f"{teacher.directory:<20}{teacher.architecture:<14}{teacher.num_parameters:>12,}{teacher.top1:>9.2f}"
        lines.append(f"{columns}  {state}")
    return "\n".join(lines)


def positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fetch the CIFAR-100 teachers of the published experiments.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures or directories; all six if none")
    parser.add_argument("--list", action="store_true", help="show the teachers and what is already here")
    parser.add_argument("--directory", type=Path, default=Path("saved_models"), help="where to put them (%(default)s)")
    parser.add_argument("--force", action="store_true", help="fetch again what is already here")
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=PATIENCE.timeout,
        help="seconds without any data before giving up (%(default)s)",
    )
    parser.add_argument(
        "--retries", type=count, default=PATIENCE.retries, help="further tries of an address (%(default)s)"
    )
    parser.add_argument(
        "--primary", default=PRIMARY, metavar="URL", help="address with {directory} in it (%(default)s)"
    )
    parser.add_argument(
        "--fallback", default=FALLBACK, metavar="URL|PATH", help="archive of all teachers, remote or here (%(default)s)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all teachers are there, 1 failed with one line on stderr, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        wanted = select_teachers(options.names)
        if options.list:
            print(list_teachers(wanted, options.directory))
            return 0
        fetch_teachers(
            wanted,
            options.directory,
            primary=options.primary,
            fallback=options.fallback,
            force=options.force,
            patience=Patience(options.timeout, options.retries),
        )
    except (ValueError, OSError, DownloadError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what has arrived is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
