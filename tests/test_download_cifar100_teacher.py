"""The teacher zoo against a local server that behaves, misbehaves, and lies."""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import download_cifar100_teacher as zoo
from architectures import create_model
from storage import tensor_files as files

TINY_ZOO = (
    zoo.Teacher("resnet8_vanilla", "resnet8", 60.0, 83_892),
    zoo.Teacher("resnet14_vanilla", "resnet14", 65.0, 181_556),
)
ARCHIVE_URL = "/cifar_teachers.tar"
# The server's threads wait for those of the test: only an address that stalls on purpose is soon given up.
TIMEOUT_S, STALLED_S = 5.0, 0.5


class Site:
    """What the server holds and how it answers; `log` lists (path, Range header) of every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler, bytes], None]] = {}
        self.log: list[tuple[str, str | None]] = []
        self.closing = threading.Event()
        self.address = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.log]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.log.append((request.path, request.headers.get("Range")))
        answer = self.answers.get(request.path, serve)
        if request.path in self.files:
            answer(request, self.files[request.path])
        else:
            request.send_error(404)

    # Answers: each takes the request and the file it is for.

    def stall(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        send(request, content, length=len(content) + 1)
        self.closing.wait()

    def break_off_once(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        del self.answers[request.path]
        send(request, content[: len(content) // 2], length=len(content))


def send(request: BaseHTTPRequestHandler, content: bytes, *, length: int, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(content)
    request.wfile.flush()


def serve(request: BaseHTTPRequestHandler, content: bytes) -> None:
    total = len(content)
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if "Range" not in request.headers:
        send(request, content, length=total)
    elif start >= total:
        send(request, b"", length=0, status=416, Content_Range=f"bytes */{total}")
    else:
        send(
            request,
            content[start:],
            length=total - start,
            status=206,
            Content_Range=f"bytes {start}-{total - 1}/{total}",
        )


def serve_whole(request: BaseHTTPRequestHandler, content: bytes) -> None:
    send(request, content, length=len(content))


def html(request: BaseHTTPRequestHandler, _: bytes) -> None:
    page = b"This domain is parked.<br>"
    send(request, page, length=len(page), Content_Type="text/html; charset=utf-8")


def unlabelled_html(request: BaseHTTPRequestHandler, _: bytes) -> None:
    page = b"\n<html>gone</html>"
    send(request, page, length=len(page), Content_Type="application/octet-stream")


def busy(request: BaseHTTPRequestHandler, _: bytes) -> None:
    request.send_error(503)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    yield site
    site.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def tiny_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "TEACHERS", TINY_ZOO)
    monkeypatch.setattr(zoo, "FIRST_PAUSE_S", 0.0)


def checkpoint_bytes(architecture: str, num_classes: int = 100, **saving: bool) -> bytes:
    """A checkpoint as training scripts leave it: optimizer state, a numpy accuracy and the options beside the model."""
    model = create_model(architecture, num_classes=num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer.param_groups[0]["lr"] = np.float64(5e-5)
    content = {
        "epoch": 240,
        "model": model.state_dict(),
        "accuracy": np.float32(72.34),
        "opt": argparse.Namespace(model=architecture, lr_decay_epochs=[150, 180, 210]),
        "optimizer": optimizer.state_dict(),
    }
    file = io.BytesIO()
    torch.save(content, file, **saving)
    return file.getvalue()


@pytest.fixture(scope="session")
def good() -> dict[str, bytes]:
    return {teacher.directory: checkpoint_bytes(teacher.architecture) for teacher in TINY_ZOO}


def tar_bytes(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def member(directory: str) -> str:
    return f"cifar_teachers/{directory}/ckpt_epoch_240.pth"


def archive_of(good: dict[str, bytes]) -> bytes:
    return tar_bytes({member(directory): content for directory, content in good.items()})


def url_path(directory: str) -> str:
    return f"/{directory}/ckpt_epoch_240.pth"


@pytest.fixture
def run(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, with the site as both of its sources."""
    transfer = zoo.transfer

    def impatient(url: str, part: Path, label: str, timeout: float) -> None:
        stalls = site.answers.get(url.removeprefix(site.address)) == site.stall
        transfer(url, part, label, STALLED_S if stalls else timeout)

    monkeypatch.setattr(zoo, "transfer", impatient)

    def run(*arguments: str) -> int:
        places = ["--directory", str(tmp_path / "saved")]
        sources = ["--primary", site.address + "/{directory}/ckpt_epoch_240.pth"]
        sources += ["--fallback", site.address + ARCHIVE_URL]
        return zoo.main([*places, *sources, "--timeout", str(TIMEOUT_S), "--retries", "1", *arguments])

    return run


def files_under(folder: Path) -> dict[str, bytes]:
    """All but the locks, which stay and are empty."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if content or not name.endswith(".lock")}


def stored(good: dict[str, bytes]) -> dict[str, bytes]:
    """Teachers with their checksums beside them, as sha256sum writes and checks them."""
    expected = {}
    for directory, content in good.items():
        name = f"{directory}/ckpt_epoch_240.pth"
        line = f"{hashlib.sha256(content).hexdigest()}  ckpt_epoch_240.pth\n"
        expected |= {name: content, f"{name}.sha256": line.encode()}
    return expected


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def on_primary(site: Site, good: dict[str, bytes]) -> None:
    site.files |= {url_path(directory): content for directory, content in good.items()}


@pytest.fixture
def on_fallback(site: Site, good: dict[str, bytes]) -> None:
    site.files[ARCHIVE_URL] = archive_of(good)


# What there is


def test_zoo_is_the_published_one(monkeypatch, golden_dir):
    monkeypatch.undo()
    shapes = json.loads((golden_dir / "state_dict_shapes.json").read_text())
    golden_names = {
        "wrn_40_2": "WRN40w2",
        "resnet56": "RN56",
        "resnet110": "RN110",
        "resnet32x4": "RN32x4",
        "vgg13": "VGG13",
        "resnet50": "RN50",
    }
    assert {teacher.architecture for teacher in zoo.TEACHERS} == golden_names.keys()
    for teacher in zoo.TEACHERS:
        golden = golden_names[teacher.architecture]
        assert teacher.num_parameters == shapes[f"{golden}#params"]
        with torch.device("meta"):
            state = create_model(teacher.architecture, num_classes=100).state_dict()
        assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes[golden]


def test_teachers_are_chosen_by_architecture_or_directory():
    first, second = TINY_ZOO
    assert zoo.select_teachers([]) == [first, second]
    assert zoo.select_teachers(["resnet14", "resnet8_vanilla", "resnet14_vanilla"]) == [second, first]


def test_unknown_teacher_names_the_nearest(run, site, capsys):
    assert run("resnet9") == 1
    assert "unknown teacher 'resnet9'; did you mean 'resnet8'" in the_error(capsys)
    assert not site.log


def test_list_shows_what_is_here_without_loading_torch(tmp_path):
    there = tmp_path / "resnet56_vanilla"
    there.mkdir()
    (there / "ckpt_epoch_240.pth").write_bytes(bytes(3_500_000))
    partial = tmp_path / "vgg13_vanilla"
    partial.mkdir()
    (partial / "ckpt_epoch_240.pth.part").write_bytes(bytes(1_200_000))
    code = (
        "import sys, download_cifar100_teacher as zoo\n"
        f"assert zoo.main(['--list', '--directory', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(zoo.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["resnet56_vanilla"] == ["resnet56", "861,620", "72.34", "3.5", "MB"]
    assert rows["vgg13_vanilla"][3:] == ["partial,", "1.2", "MB"]
    assert rows["ResNet50_vanilla"][3:] == ["missing"]


# Fetching


def test_fetches_all_from_their_own_addresses(run, site, on_primary, good, tmp_path):
    assert run() == 0
    assert files_under(tmp_path / "saved") == stored(good)
    assert site.paths() == [url_path(directory) for directory in good]


def test_correct_files_are_kept_and_reported(run, site, on_primary, capsys):
    run("resnet8")
    site.log.clear()
    assert run("resnet8") == 0
    assert not site.log
    assert "resnet8_vanilla: already here" in capsys.readouterr().out


def test_force_fetches_again(run, site, on_primary):
    run("resnet8")
    assert run("resnet8", "--force") == 0
    assert site.paths() == [url_path("resnet8_vanilla")] * 2


def test_other_network_in_place_is_left_alone_unless_forced(run, site, on_primary, good, tmp_path, capsys):
    target = tmp_path / "saved/resnet8_vanilla/ckpt_epoch_240.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(good["resnet14_vanilla"])
    assert run("resnet8") == 1
    assert "--force" in the_error(capsys)
    assert not site.log
    assert target.read_bytes() == good["resnet14_vanilla"]
    assert run("resnet8", "--force") == 0
    assert target.read_bytes() == good["resnet8_vanilla"]


def test_forced_fetch_that_fails_keeps_the_old_file(run, site, on_primary, good, tmp_path):
    run("resnet8")
    site.files.clear()
    assert run("resnet8", "--force") == 1
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


def test_a_file_that_was_damaged_afterwards_is_noticed_and_fetched_again(run, on_primary, good, tmp_path, capsys):
    """Its weights may still look like weights: the checksum beside it tells."""
    run("resnet8")
    path = tmp_path / "saved/resnet8_vanilla/ckpt_epoch_240.pth"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert run("resnet8") == 1
    assert f"{path} is damaged: its checksum" in the_error(capsys)
    assert run("resnet8", "--force") == 0
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


def test_a_file_that_was_put_there_by_hand_is_taken_without_a_checksum(run, site, good, tmp_path):
    target = tmp_path / "saved/resnet8_vanilla/ckpt_epoch_240.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(good["resnet8_vanilla"])
    assert run("resnet8") == 0
    assert not site.log and [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_checksum_never_stands_beside_another_file(run, on_primary, good, tmp_path, monkeypatch):
    """Killed when the new file has its place and its checksum has not: what is there loads, and is fetched no more."""
    target = tmp_path / "saved/resnet8_vanilla/ckpt_epoch_240.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(checkpoint_bytes("resnet8"))
    files.save_checksum(target)

    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_checksum", kill)
        assert run("resnet8", "--force") == 130
    assert target.read_bytes() == good["resnet8_vanilla"]
    assert run("resnet8") == 0


def test_broken_transfer_goes_on_where_it_stopped(run, site, on_primary, good, tmp_path):
    path = url_path("resnet8_vanilla")
    site.answers[path] = site.break_off_once
    assert run("resnet8") == 0
    half = len(good["resnet8_vanilla"]) // 2
    assert site.log == [(path, None), (path, f"bytes={half}-")]
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


def put_part(tmp_path: Path, content: bytes) -> Path:
    part = tmp_path / "saved/resnet8_vanilla/ckpt_epoch_240.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_server_without_ranges_starts_again(run, site, on_primary, good, tmp_path):
    content = good["resnet8_vanilla"]
    put_part(tmp_path, content[:1000])
    site.answers[url_path("resnet8_vanilla")] = serve_whole
    assert run("resnet8") == 0
    assert site.log == [(url_path("resnet8_vanilla"), "bytes=1000-")]
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": content})


def test_complete_partial_file_is_not_fetched_again(run, site, on_primary, good, tmp_path):
    content = good["resnet8_vanilla"]
    put_part(tmp_path, content)
    assert run("resnet8") == 0
    assert site.log == [(url_path("resnet8_vanilla"), f"bytes={len(content)}-")]
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": content})


@pytest.mark.parametrize("length", [1000, 10_000_000], ids=["shorter", "longer"])
def test_partial_file_of_something_else_is_fetched_from_the_start(run, site, on_primary, good, tmp_path, length):
    put_part(tmp_path, bytes(length))
    assert run("resnet8") == 0
    assert site.log[-1] == (url_path("resnet8_vanilla"), None)
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


def test_stall_keeps_what_has_arrived(run, site, on_primary, good, tmp_path):
    site.answers[url_path("resnet8_vanilla")] = site.stall
    assert run("resnet8", "--retries", "0") == 1
    assert files_under(tmp_path / "saved") == {
        "resnet8_vanilla/ckpt_epoch_240.pth.part": good["resnet8_vanilla"],
    }


def test_interrupt_keeps_what_has_arrived(run, site, on_primary, good, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "CHUNK_BYTES", 4096)
    read_chunk, chunks = zoo.read_chunk, []

    def interrupted_after_two(*arguments):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(read_chunk(*arguments))
        return chunks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "read_chunk", interrupted_after_two)
        assert run("resnet8") == 130
    assert the_error(capsys).startswith("interrupted")
    saved = tmp_path / "saved"
    assert files_under(saved) == {"resnet8_vanilla/ckpt_epoch_240.pth.part": b"".join(chunks)}
    assert run("resnet8") == 0
    assert files_under(saved) == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


class AtWork:
    """Another process that is fetching something: it has what it fetches when somebody begins to wait for it.

    Args:
        name: of the lock that it has.
        brings: files by path below the folder.
    """

    def __init__(self, folder: Path, name: str, brings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
        self.folder, self.brings, self.waited = folder, brings, 0
        folder.mkdir(exist_ok=True)
        self.lock = FileLock(folder / f".{name}.lock")
        self.said = f"{name}: another process is fetching it; waiting"
        monkeypatch.setattr(zoo, "print", self.hear, raising=False)

    def hear(self, text: object, **_: object) -> None:
        if text != self.said:
            return
        self.waited += 1
        for name, content in self.brings.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        self.lock.release()


def test_a_teacher_that_another_process_is_fetching_is_waited_for(run, site, on_primary, good, tmp_path, monkeypatch):
    """Two that write one partial file make it too long, or write into what has its place already."""
    saved, brought = tmp_path / "saved", stored({"resnet8_vanilla": good["resnet8_vanilla"]})
    other = AtWork(saved, "resnet8_vanilla", brought, monkeypatch)
    with other.lock:
        assert run() == 0
    assert other.waited == 1 and site.paths() == [url_path("resnet14_vanilla")]
    assert files_under(saved) == stored(good)


def test_who_has_waited_fetches_what_the_other_has_not(run, site, on_primary, good, tmp_path, monkeypatch):
    """It goes on where that one broke off. With --force it fetches in any case."""
    part = {"resnet8_vanilla/ckpt_epoch_240.pth.part": good["resnet8_vanilla"][:1000]}
    other = AtWork(tmp_path / "saved", "resnet8_vanilla", part, monkeypatch)
    with other.lock:
        assert run("resnet8") == 0
    assert site.log == [(url_path("resnet8_vanilla"), "bytes=1000-")]
    again = AtWork(tmp_path / "saved", "resnet8_vanilla", {}, monkeypatch)
    with again.lock:
        assert run("resnet8", "--force") == 0
    assert (other.waited, again.waited, len(site.log)) == (1, 1, 2)
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})


def test_an_archive_that_another_process_is_fetching_is_waited_for(run, site, on_fallback, good, tmp_path, monkeypatch):
    other = AtWork(tmp_path / "saved", "cifar_teachers", stored(good), monkeypatch)
    with other.lock:
        assert run() == 0
    assert other.waited == 1 and ARCHIVE_URL not in site.paths()
    assert files_under(tmp_path / "saved") == stored(good)


def test_a_teacher_is_unpacked_when_nobody_else_is_fetching_it(run, site, good, tmp_path, monkeypatch):
    archive = tmp_path / "mine.tar"
    archive.write_bytes(archive_of(good))
    other, unpack = AtWork(tmp_path / "saved", "resnet14_vanilla", {}, monkeypatch), zoo.unpack

    def unpack_beside(*arguments: object) -> None:
        with other.lock:
            unpack(*arguments)

    monkeypatch.setattr(zoo, "unpack", unpack_beside)
    assert run("--fallback", str(archive)) == 0
    assert other.waited == 1 and files_under(tmp_path / "saved") == stored(good)


# The archive


@pytest.mark.parametrize("answer", [html, unlabelled_html, busy], ids=["html", "unlabelled-html", "busy"])
def test_archive_replaces_an_address_that_gives_no_file(
    run, site, on_primary, on_fallback, good, tmp_path, capsys, answer
):
    site.answers |= {url_path(directory): answer for directory in good}
    assert run() == 0
    assert files_under(tmp_path / "saved") == stored(good)
    assert site.paths().count(ARCHIVE_URL) == 1
    assert ("HTML" if answer is not busy else "HTTP 503") in capsys.readouterr().out


def test_archive_replaces_addresses_that_are_gone_and_is_removed(run, site, on_fallback, good, tmp_path):
    assert run() == 0
    assert files_under(tmp_path / "saved") == stored(good)
    assert site.paths() == [*(url_path(directory) for directory in good), ARCHIVE_URL]


def test_archive_gives_only_what_was_asked_for(run, site, on_fallback, good, tmp_path):
    assert run("resnet14") == 0
    assert files_under(tmp_path / "saved") == stored({"resnet14_vanilla": good["resnet14_vanilla"]})


def test_one_missing_file_does_not_keep_the_others_from_their_addresses(run, site, on_primary, on_fallback, good):
    del site.files[url_path("resnet8_vanilla")]
    assert run() == 0
    assert site.paths() == [*(url_path(directory) for directory in good), ARCHIVE_URL]


def test_server_that_stalls_is_left_for_all_its_files(run, site, on_primary, on_fallback, good, tmp_path, capsys):
    first = url_path("resnet8_vanilla")
    site.answers[first] = site.stall
    assert run("--retries", "0") == 0
    assert site.paths() == [first, ARCHIVE_URL]
    assert f"stalled for {STALLED_S:g} s" in capsys.readouterr().out
    assert files_under(tmp_path / "saved") == stored(good)


@pytest.mark.parametrize(
    ("primary", "reason"),
    [("http://127.0.0.1:1/", "connection refused"), ("http://gone.invalid/", "cannot be resolved")],
)
def test_server_that_is_not_there(run, on_fallback, good, tmp_path, capsys, monkeypatch, primary, reason):
    real = zoo.socket.getaddrinfo

    def getaddrinfo(host: str, *rest: object, **options: object) -> list:
        if host == "gone.invalid":  # no real name server is asked
            raise zoo.socket.gaierror(-2, "Name or service not known")
        return real(host, *rest, **options)

    monkeypatch.setattr(zoo.socket, "getaddrinfo", getaddrinfo)
    assert run("--primary", primary + "{directory}") == 0
    out = capsys.readouterr().out
    assert out.count(reason) == 1
    assert files_under(tmp_path / "saved") == stored(good)


def test_archive_goes_on_where_it_stopped(run, site, on_fallback, good, tmp_path):
    site.answers[ARCHIVE_URL] = site.break_off_once
    assert run("--retries", "0") == 1
    half = len(site.files[ARCHIVE_URL]) // 2
    assert files_under(tmp_path / "saved") == {"cifar_teachers.tar.part": site.files[ARCHIVE_URL][:half]}
    assert run() == 0
    assert site.log[-1] == (ARCHIVE_URL, f"bytes={half}-")
    assert files_under(tmp_path / "saved") == stored(good)


def test_archive_that_is_already_here_is_used_and_left(run, site, good, tmp_path):
    archive = tmp_path / "mine.tar"
    archive.write_bytes(archive_of(good))
    assert run("--fallback", str(archive)) == 0
    assert files_under(tmp_path / "saved") == stored(good)
    assert archive.exists()


def test_truncated_archive_gives_what_is_whole(run, site, good, tmp_path, capsys):
    site.files[ARCHIVE_URL] = archive_of(good)[: len(good["resnet8_vanilla"]) + 5000]
    assert run() == 1
    assert files_under(tmp_path / "saved") == stored({"resnet8_vanilla": good["resnet8_vanilla"]})
    error = the_error(capsys)
    assert "cannot fetch resnet14_vanilla" in error
    assert "damaged" in error


def test_no_path_of_the_archive_is_written_to(run, site, good, tmp_path):
    evil = b"evil"
    site.files[ARCHIVE_URL] = tar_bytes(
        {
            "../../evil": evil,
            str(tmp_path / "absolute"): evil,
            "cifar_teachers/../../evil/ckpt_epoch_240.pth": evil,
            member("resnet8_vanilla"): good["resnet8_vanilla"],
        }
    )
    assert run("resnet8") == 0
    expected = stored({"resnet8_vanilla": good["resnet8_vanilla"]})
    assert files_under(tmp_path) == {f"saved/{name}": content for name, content in expected.items()}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(run, site, tmp_path, capsys, kind):
    link = tarfile.TarInfo(member("resnet8_vanilla"))
    link.type, link.linkname = kind, "/etc/hostname"
    site.files[ARCHIVE_URL] = tar_bytes({"link": link})
    assert run("resnet8") == 1
    assert "not a regular file" in the_error(capsys)
    assert not files_under(tmp_path)


def test_archive_without_the_teacher(run, site, good, tmp_path, capsys):
    site.files[ARCHIVE_URL] = tar_bytes({member("resnet14_vanilla"): good["resnet14_vanilla"]})
    assert run("resnet8") == 1
    assert f"the archive has no {member('resnet8_vanilla')}" in the_error(capsys)
    assert not files_under(tmp_path)


# The check


def test_wrong_network_is_refused_from_both_sources(run, site, good, tmp_path, capsys):
    site.files[url_path("resnet8_vanilla")] = good["resnet14_vanilla"]
    site.files[ARCHIVE_URL] = tar_bytes({member("resnet8_vanilla"): good["resnet14_vanilla"]})
    assert run("resnet8") == 1
    assert the_error(capsys).count("does not hold resnet8 with 100 classes: unexpected: layer1.1.") == 2
    assert not files_under(tmp_path)


class RunsCode:
    """A pickle that makes a folder when it is read by an unpickler that allows everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code_is_refused(run, site, tmp_path, capsys, zipped):
    file = io.BytesIO()
    model = create_model("resnet8", num_classes=100).state_dict()
    torch.save({"model": model, "x": RunsCode(tmp_path / "evil")}, file, _use_new_zipfile_serialization=zipped)
    site.files[url_path("resnet8_vanilla")] = file.getvalue()
    site.files[ARCHIVE_URL] = tar_bytes({member("resnet8_vanilla"): file.getvalue()})
    assert run("resnet8") == 1
    assert "mkdir, which could run code" in the_error(capsys)
    assert not files_under(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_check_accepts_old_and_new_files_with_what_scripts_store(tmp_path, zipped):
    path = tmp_path / "teacher.pth"
    path.write_bytes(checkpoint_bytes("resnet8", _use_new_zipfile_serialization=zipped))
    zoo.check_checkpoint(path, "resnet8")


def test_check_accepts_numpy_values_written_with_numpy_1(tmp_path):
    content = checkpoint_bytes("resnet8", _use_new_zipfile_serialization=False)
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n" in content
    path = tmp_path / "teacher.pth"
    path.write_bytes(content)
    zoo.check_checkpoint(path, "resnet8")


def test_check_names_the_tensor_that_differs(tmp_path):
    path = tmp_path / "teacher.pth"
    path.write_bytes(checkpoint_bytes("resnet8", num_classes=10))
    zoo.check_checkpoint(path, "resnet8", num_classes=10)
    with pytest.raises(
        ValueError, match=r"fc\.weight \(10, 64\) instead of \(100, 64\), fc\.bias \(10,\) instead of \(100,\)"
    ):
        zoo.check_checkpoint(path, "resnet8")


@pytest.mark.parametrize("content", [{"epoch": 240}, {"model": torch.zeros(3)}, [1, 2]])
def test_check_wants_a_state_dict_under_model(tmp_path, content):
    path = tmp_path / "teacher.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"no entry 'model' with a state dict|holds a list, not a dictionary"):
        zoo.check_checkpoint(path, "resnet8")


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_check_refuses_damaged_files(tmp_path, good, keep):
    content = good["resnet8_vanilla"]
    path = tmp_path / "teacher.pth"
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"teacher\.pth is damaged, or no torch file"):
        zoo.check_checkpoint(path, "resnet8")


def test_check_leaves_the_random_numbers_alone(tmp_path, good):
    path = tmp_path / "teacher.pth"
    path.write_bytes(good["resnet8_vanilla"])
    before = torch.get_rng_state()
    zoo.check_checkpoint(path, "resnet8")
    assert torch.equal(before, torch.get_rng_state())


# Failing


def test_failure_names_both_addresses_and_the_offline_way(run, site, tmp_path, capsys):
    assert run() == 1
    error = the_error(capsys)
    assert "cannot fetch resnet8_vanilla, resnet14_vanilla" in error
    assert f"{site.address}{url_path('resnet14_vanilla')}: HTTP 404" in error
    assert f"{site.address}{ARCHIVE_URL}: HTTP 404" in error
    assert "--fallback" in error
    assert str(tmp_path / "saved/<directory>/ckpt_epoch_240.pth") in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--primary", "http://mirror/teacher.pth"], "not a teacher address"),
        (["--primary", "ftp://mirror/{directory}"], "not a teacher address"),
        (["--fallback", "/nowhere/teachers.tar"], "no archive at '/nowhere/teachers.tar'"),
    ],
)
def test_addresses_are_checked_before_any_is_asked(run, site, capsys, arguments, message):
    assert run(*arguments) == 1
    assert message in the_error(capsys)
    assert not site.log


def test_folder_that_cannot_be_made_is_an_error_of_one_line(run, on_primary, tmp_path, capsys):
    (tmp_path / "saved").write_bytes(b"")
    assert run() == 1
    assert "saved" in the_error(capsys)
