"""CIFAR from files in the published layout: Python 2 pickles of protocol 2, unpacked or still in their archive."""

import errno
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import urllib.error
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets

from dataloaders import cifar, load_dataset

ROWS = 6  # images in each generated file


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings as BINSTRING, NumPy's flags as integers."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_binstring(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_flag(self, flag):
        self.write(pickle.BININT1 + bytes([flag]))

    dispatch[str] = dispatch[bytes] = save_binstring
    dispatch[bool] = save_flag


def python2_pickle(content):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)


def fine_labels(seed):
    return [(37 * seed + 11 * row) % 100 for row in range(ROWS)]


@pytest.fixture
def cifar100_dir(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(["train", "test"]):
        content = {
            "filenames": [f"image_{row}.png" for row in range(ROWS)],
            "batch_label": f"{name} batch",
            "fine_labels": fine_labels(seed),
            "coarse_labels": [0] * ROWS,
            "data": pixels(seed),
        }
        (folder / name).write_bytes(python2_pickle(content))
    names = {"fine_label_names": [f"fine_{index:02}" for index in range(100)], "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(python2_pickle(names))
    return tmp_path


@pytest.fixture
def cifar10_dir(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        content = {"batch_label": name, "labels": [seed] * ROWS, "data": pixels(seed), "filenames": ["a.png"] * ROWS}
        (folder / name).write_bytes(python2_pickle(content))
    names = {"num_cases_per_batch": ROWS, "label_names": [f"name_{index}" for index in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(names))
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", refuse)


def test_cifar100_has_the_published_protocol(cifar100_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as NumPy's about the age of the files
        dataset = load_dataset("CIFAR100", data_dir=cifar100_dir)
    assert dataset.name == "CIFAR100" and dataset.num_classes == 100 and dataset.classes[7] == "fine_07"
    assert (dataset.image_size, dataset.padding, dataset.flip) == (32, 4, True)
    assert dataset.mean == (0.5071, 0.4867, 0.4408) and dataset.std == (0.2675, 0.2565, 0.2761)
    assert dataset.test is None


def test_pixels_are_planes_in_the_file_and_channels_last_here(cifar100_dir):
    dataset = load_dataset("CIFAR100", data_dir=cifar100_dir)
    for seed, split in enumerate([dataset.train, dataset.eval]):
        flat = torch.from_numpy(pixels(seed))
        assert split.images.shape == (ROWS, 32, 32, 3) and split.images.is_contiguous()
        assert split.images[2, 5, 9].tolist() == flat[2, [5 * 32 + 9, 1024 + 5 * 32 + 9, 2048 + 5 * 32 + 9]].tolist()
        assert split.labels.tolist() == fine_labels(seed)


def test_pixels_equal_torchvisions_reading(cifar100_dir, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_load_meta", lambda self: None)
    reference = torchvision.datasets.CIFAR100(cifar100_dir, train=False)
    split = load_dataset("CIFAR100", data_dir=cifar100_dir, splits=("eval",)).eval
    assert np.array_equal(split.images.numpy(), reference.data) and split.labels.tolist() == reference.targets


def test_cifar10_joins_its_five_batches_in_order(cifar10_dir):
    dataset = load_dataset("CIFAR10", data_dir=cifar10_dir)
    assert dataset.num_classes == 10 and dataset.classes[3] == "name_3"
    assert dataset.train.labels.tolist() == [batch for batch in range(5) for _ in range(ROWS)]
    assert len(dataset.eval) == ROWS
    assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2470, 0.2435, 0.2616)


def test_only_the_asked_split_is_read(cifar100_dir):
    (cifar100_dir / "cifar-100-python" / "train").write_bytes(b"not a pickle")
    dataset = load_dataset("CIFAR100", data_dir=cifar100_dir, splits=("eval",))
    assert dataset.train is None and len(dataset.eval) == ROWS


def test_an_archive_in_data_dir_needs_no_network(cifar100_dir, tmp_path_factory, monkeypatch, offline):
    data_dir = tmp_path_factory.mktemp("archive")
    archive = data_dir / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar100_dir / "cifar-100-python", arcname="cifar-100-python")
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", checksum)
    assert len(load_dataset("CIFAR100", data_dir=data_dir).train) == ROWS


def test_a_failed_download_says_what_to_put_where(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("CIFAR100", data_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message and "no network" in message
    assert f"put cifar-100-python.tar.gz into {tmp_path}" in message


def test_the_default_folder_is_data(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"into data$"):
        load_dataset("CIFAR10")


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(tmp_path, offline):
    """Its paths are its author's: torchvision knows the checksum."""
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        for name in ("../evil", "cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(FileNotFoundError, match="no network"):
        load_dataset("CIFAR100", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


class Archive(http.server.BaseHTTPRequestHandler):
    """Serves `content`, of which the first answer has `sent` bytes only."""

    content = b""
    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: self.sent])
        type(self).sent = len(self.content)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(cifar100_dir, monkeypatch):
    """CIFAR-100 as an archive at an address of this machine."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(cifar100_dir / "cifar-100-python", arcname="cifar-100-python")
    monkeypatch.setattr(Archive, "content", buffer.getvalue())
    monkeypatch.setattr(Archive, "sent", len(buffer.getvalue()))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", hashlib.md5(buffer.getvalue()).hexdigest())
    # The address is followed by a request that reads nothing; it would count as the first answer.
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, max_hops: url)
    with http.server.HTTPServer(("127.0.0.1", 0), Archive) as server:
        monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/a.tar.gz")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Archive
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_everything(served, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    served.sent = 1000
    with pytest.raises(FileNotFoundError, match="its download from http://127"):
        load_dataset("CIFAR100", data_dir=data_dir)
    assert list(data_dir.iterdir()) == []
    assert len(load_dataset("CIFAR100", data_dir=data_dir).train) == ROWS
    assert {path.name for path in data_dir.iterdir()} == {"cifar-100-python", "cifar-100-python.tar.gz"}


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_files_are_unpacked_whole_or_not_at_all(file, served, tmp_path_factory, monkeypatch):
    """The disk is full in the middle of one of them: those that are there are whole, and the next start goes on."""
    data_dir, extractall = tmp_path_factory.mktemp("data"), tarfile.TarFile.extractall

    def fill_the_disk(tar: tarfile.TarFile, place: str, **options: object) -> None:
        extractall(tar, place, **options)
        os.truncate(Path(place, "cifar-100-python", file), 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", fill_the_disk)
        with pytest.raises(FileNotFoundError, match="No space left"):
            load_dataset("CIFAR100", data_dir=data_dir)
    assert {path.name for path in data_dir.iterdir()} == {"cifar-100-python.tar.gz"}
    assert len(load_dataset("CIFAR100", data_dir=data_dir).train) == ROWS


def test_a_process_that_is_killed_while_files_get_their_names_leaves_whole_ones(served, tmp_path_factory, monkeypatch):
    data_dir = tmp_path_factory.mktemp("data")
    moved, move = [], cifar._move

    def stop_after_two(file: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        move(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(cifar, "_move", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            load_dataset("CIFAR100", data_dir=data_dir)
    (whole,) = (data_dir / "cifar-100-python").iterdir()
    assert moved[1] == whole and pickle.loads(whole.read_bytes(), encoding="latin1")
    assert len(load_dataset("CIFAR100", data_dir=data_dir).train) == ROWS


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\x80\x02K\x01.", python2_pickle({"data": [1]})[:-4]])
def test_a_damaged_file_is_named_with_the_remedy(cifar100_dir, content):
    (cifar100_dir / "cifar-100-python" / "test").write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar-100-python/test is damaged .*; delete .*cifar-100-python so that"):
        load_dataset("CIFAR100", data_dir=cifar100_dir)


def test_labels_outside_the_classes_are_damage(cifar100_dir):
    broken = python2_pickle({"data": pixels(0), "fine_labels": [100] * ROWS})
    (cifar100_dir / "cifar-100-python" / "test").write_bytes(broken)
    with pytest.raises(ValueError, match="is damaged"):
        load_dataset("CIFAR100", data_dir=cifar100_dir)


def test_arguments_that_do_not_fit_are_refused(cifar100_dir):
    with pytest.raises(ValueError, match="image_size 64 does not fit CIFAR100"):
        load_dataset("CIFAR100", data_dir=cifar100_dir, image_size=64)
    with pytest.raises(ValueError, match=r"no split 'test'.*choose from train, eval"):
        load_dataset("CIFAR100", data_dir=cifar100_dir, splits=("test",))
    with pytest.raises(ValueError, match="expected 'cat'"):
        load_dataset("CIFAR100", data_dir=cifar100_dir, classes=["cat", *(f"fine_{i:02}" for i in range(1, 100))])
