"""Files are whole or absent, damage is noticed, and two jobs do not share a directory."""

import errno
import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch

from algorithms import checkpoints
from algorithms.checkpoints import NEWEST, find_checkpoint, load_checkpoint, save_last, set_aside
from algorithms.files import load_json, load_tensors, save_json, save_tensors
from algorithms.records import exclusive

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


def test_an_edited_number_is_noticed_and_a_document_that_never_had_a_checksum_is_mentioned(
    results, caplog, monkeypatch
):
    monkeypatch.setattr(checkpoints.log, "propagate", True)
    caplog.set_level("INFO")
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content | {"top1": 99.0}))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        load_json(results)
    assert not caplog.text
    del content["sha256"]
    results.write_text(json.dumps(content))
    assert load_json(results) == content
    assert "results.json has no checksum" in caplog.text


def test_a_file_without_checksum_is_read_if_it_is_not_ours(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "published.pth")
    assert list(load_tensors(tmp_path / "published.pth")) == ["model"]
    torch.save(CONTENT, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match="has lost its checksum"):
        load_tensors(tmp_path / "ours.pth")


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


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checkpoints.log, "propagate", True)
    for epoch in (1, 2, 3):
        save_last(tmp_path, {"epoch": epoch})
    assert load_checkpoint(find_checkpoint(tmp_path, NEWEST))["epoch"] == 3
    (tmp_path / "last.pth").write_bytes(b"PK torn")
    assert load_checkpoint(find_checkpoint(tmp_path, NEWEST))["epoch"] == 2
    assert "last.pth is damaged" in caplog.text and "previous.pth" in caplog.text


def test_setting_aside_keeps_one_earlier_run(tmp_path):
    for number in (1, 2):
        (tmp_path / "last.pth").write_text(str(number))
        (tmp_path / "results.json").write_text(str(number))
        assert set_aside(tmp_path, ["results.json"])
        assert {path.name: path.read_text() for path in (tmp_path / "replaced").iterdir()} == {
            "last.pth": str(number),
            "results.json": str(number),
        }
    assert not set_aside(tmp_path, ["results.json"])


def test_a_directory_in_use_is_refused_with_its_process(tmp_path):
    refused = pytest.raises(ValueError, match=rf"in use by process {os.getpid()}, started 20")
    with exclusive(tmp_path), refused, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    code = "import sys, pathlib; from algorithms.records import exclusive\n"
    code += "with exclusive(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid}"), exclusive(tmp_path):
            pass
        process.kill()
        process.wait()
    with exclusive(tmp_path):
        pass
