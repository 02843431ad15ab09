"""Damaged files are refused by name and never give another result; files that claim too much are refused early."""

import hashlib
import io
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_tools import (
    CODEBOOK,
    DECISIONS,
    MEANS,
    PAIR,
    RUN,
    damages,
    differences,
    outcome,
    run_here,
    short_and_long,
)
from objective_tools import open_networks
from supervision_tools import change_tensors, read_map, write_map

import main_classification
from algorithms.predict import open_export
from algorithms.trials import TRIALS
from architectures import create_model
from config.options import Options
from dataloaders import load_dataset
from distillation.objective import Teacher
from distillation.prepared import open_codebook, open_means, open_subclasses
from distillation.signals import Network
from engine.checkpoints import BEST, LAST, STOPPED, load_checkpoint, save_checkpoint
from engine.records import PROGRESS, RESULTS
from engine.weights import read_published
from letkd.files import OUR_FORMATS
from letkd.supervision import DECISION_TENSORS
from storage.tensor_files import (
    checksum_path,
    load_json,
    load_tensors,
    save_checksum,
    save_json,
    save_tensors,
)

NUM_CLASSES = 10


@pytest.fixture
def pair(folder: Path) -> dict[str, Any]:
    """The configuration of the finished run."""
    return load_checkpoint(folder / RUN / "last.pth")["config"] | {"localpath": str(folder)}


@pytest.fixture
def networks(pair: dict[str, Any]) -> tuple[Network, Teacher]:
    """Its student and its teacher."""
    return open_networks(Options.of(pair), load_dataset(pair["dataset"], image_size=pair["image_size"]))


def refusal(path: Path, read: Callable[[], Any]) -> str:
    """The one line that reading gives, which names the file."""
    with pytest.raises(ValueError, match=path.name) as caught:
        read()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# --- our files: noticed, always --------------------------------------------------------------------------------------


@short_and_long("number", 20, 200)
@pytest.mark.parametrize("name", [LAST, BEST, STOPPED])
def test_a_damaged_checkpoint_is_refused(name, number, folder):
    path = folder / RUN / name
    if name == STOPPED:
        save_checkpoint(path, load_checkpoint(folder / RUN / LAST) | {"unfinished": {"num_steps": 2}})
    for damaged in damages(path.read_bytes(), number, seed=1):
        path.write_bytes(damaged)
        refusal(path, lambda: load_checkpoint(path))


@short_and_long("number", 20, 200)
def test_a_damaged_codebook_is_refused(number, folder, pair, networks):
    path = folder / CODEBOOK
    for damaged in damages(path.read_bytes(), number, seed=2):
        path.write_bytes(damaged)
        refusal(path, lambda: open_codebook(Options.of(pair), *networks))


@short_and_long("number", 20, 200)
def test_damaged_decision_scores_are_refused(number, folder, pair, networks):
    path = folder / DECISIONS
    for damaged in damages(path.read_bytes(), number, seed=3):
        path.write_bytes(damaged)
        refusal(path, lambda: open_subclasses(Options.of(pair), *networks))


@short_and_long("number", 20, 200)
def test_damaged_class_means_are_refused(number, folder, pair, networks):
    path = folder / MEANS
    for damaged in damages(path.read_bytes(), number, seed=12):
        path.write_bytes(damaged)
        refusal(path, lambda: open_means(Options.of(pair), *networks))


@short_and_long("number", 20, 200)
def test_a_damaged_export_is_refused(number, tmp_path):
    """By the checksum beside it, before anything else looks at its content."""
    path = tmp_path / "student.onnx"
    content = random.Random(11).randbytes(20_000)
    save_json(path.with_name("student.onnx.json"), {"file_sha256": hashlib.sha256(content).hexdigest()})
    for damaged in damages(content, number, seed=11):
        path.write_bytes(damaged)
        assert "its checksum in student.onnx.json does not fit" in refusal(path, lambda: open_export(path))


@short_and_long("number", 20, 200)
@pytest.mark.parametrize("name", [RESULTS, PROGRESS, TRIALS, "export/student.onnx.json"])
def test_damaged_results_are_refused_or_read_as_they_were(name, number, folder):
    """As they were: a damage may spare what means something, the newline at the end for instance."""
    path = folder / RUN / name
    save_json(path, load_json(folder / RUN / RESULTS))  # all of them are such documents
    expected, refused = load_json(path), 0
    for damaged in damages(path.read_bytes(), number, seed=4):
        path.write_bytes(damaged)
        try:
            assert load_json(path) == expected
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
            refused += 1
    assert refused > 0.8 * number


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_a_warning(folder, capsys):
    whole = outcome(folder / RUN)
    path = folder / RUN / "last.pth"
    path.write_bytes(next(damages(path.read_bytes(), 1, seed=5)))
    run_here(*PAIR, "epochs=2", "milestones=[1]", "checkpoint=-1", localpath=folder)
    assert f"warning: {path} is damaged" in capsys.readouterr().out
    assert differences(outcome(folder / RUN), whole) == []


# --- files without a checksum: whole, or an error of one line ---------------------------------------------------------


def read_or_refuse(path: Path, read: Callable[[], Any]) -> None:
    try:
        read()
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error), error


@short_and_long("number", 20, 200)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_published_checkpoint_is_at_most_refused(zipped, number, folder):
    path = folder / "ckpt_epoch_240.pth"
    content = {"model": create_model("resnet8", num_classes=NUM_CLASSES).state_dict(), "epoch": 240}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for damaged in damages(path.read_bytes(), number, seed=6):
        path.write_bytes(damaged)
        read_or_refuse(path, lambda: read_published(path))


@short_and_long("number", 20, 200)
def test_a_damaged_teacher_with_its_checksum_beside_it_is_refused(number, folder):
    """As a download leaves it; one without the checksum, put there by hand, is read as above."""
    path = folder / "ckpt_epoch_240.pth"
    torch.save({"model": create_model("resnet8", num_classes=NUM_CLASSES).state_dict(), "epoch": 240}, path)
    save_checksum(path)
    whole = path.read_bytes()
    for damaged in damages(whole, number, seed=10):
        path.write_bytes(damaged)
        assert "checksum" in refusal(path, lambda: read_published(path))
    path.write_bytes(whole)
    read_published(path)
    checksum_path(path).write_text("")
    assert "delete it" in refusal(path, lambda: read_published(path))


@short_and_long("number", 20, 200)
def test_a_damaged_codebook_of_the_authors_is_at_most_refused(number, folder, pair, networks):
    path = folder / CODEBOOK
    path = path.rename(path.with_name("vector_quantizer_kmeansK16_net_epoch_"))
    network = {"_embedding.weight": read_map(path)["tensors"]["centroids"]}
    torch.save({"epoch": "*", "network": network, "metric": None}, path)
    open_codebook(Options.of(pair), *networks)
    for damaged in damages(path.read_bytes(), number, seed=7):
        path.write_bytes(damaged)
        read_or_refuse(path, lambda: open_codebook(Options.of(pair), *networks))


@pytest.fixture
def arrays(folder: Path) -> dict[str, Path]:
    """The decision scores as the authors' four files."""
    ours = folder / DECISIONS
    names = ("lda_model_scalings", "lda_model_xbar", "centers_subclass_2_60", "final_scores_2_60")
    tensors = read_map(ours)["tensors"]
    files = {key: ours.with_name(f"{name}.npy") for key, name in zip(DECISION_TENSORS, names, strict=True)}
    for key, path in files.items():
        np.save(path, tensors[key].double().numpy())
    ours.unlink()
    return files


@short_and_long("number", 20, 200)
@pytest.mark.parametrize("key", DECISION_TENSORS)
def test_a_damaged_array_of_the_authors_is_at_most_refused(key, number, arrays, pair, networks):
    path = arrays[key]
    open_subclasses(Options.of(pair), *networks)
    for damaged in damages(path.read_bytes(), number, seed=8):
        path.write_bytes(damaged)
        try:
            open_subclasses(Options.of(pair), *networks)
        except ValueError as error:  # of shapes that do not belong together, the scores are named
            assert str(path.parent) in str(error) and "\n" not in str(error), error


def test_numbers_that_are_not_finite_are_refused(folder, arrays, pair, networks):
    for key in DECISION_TENSORS:
        whole = np.load(arrays[key])
        spoiled = whole.copy()
        spoiled.flat[-1] = np.nan
        np.save(arrays[key], spoiled)
        assert "not finite" in refusal(arrays[key], lambda: open_subclasses(Options.of(pair), *networks))
        np.save(arrays[key], whole)
    path = folder / CODEBOOK
    centroids = read_map(path)["tensors"]["centroids"]
    centroids[3, 5] = torch.inf
    change_tensors(path, centroids=centroids)
    assert "not finite" in refusal(path, lambda: open_codebook(Options.of(pair), *networks))


# --- claims: refused before memory is taken for them -----------------------------------------------------------------

CLAIMED_ROWS = 2**32
ALLOWED_MIB = 64


@pytest.fixture
def modest() -> Iterator[None]:
    """The test takes no memory to speak of, at no time."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    before = peak_mib()
    yield
    assert peak_mib() - before < ALLOWED_MIB


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def rezipped(archive: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch archive with changed members."""
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(written, "w", compression, compresslevel=1) as target,
    ):
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return written.getvalue()


def claiming(pickled: bytes) -> bytes:
    """The pickle of a tensor (16, 64) that says it has CLAIMED_ROWS rows, and a storage of that size."""
    numbers = {b"K\x10": CLAIMED_ROWS, b"M\x00\x04": CLAIMED_ROWS * 64}  # BININT1 16, BININT2 1024
    for code, number in numbers.items():
        assert pickled.count(code) == 1
        pickled = pickled.replace(code, b"\x8a\x06" + number.to_bytes(6, "little"))  # LONG1 of six bytes
    return pickled


def published(content: dict[str, Any], *, zipped: bool = True) -> bytes:
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=zipped)
    return written.getvalue()


WORDS = {"network": {"_embedding.weight": torch.ones(16, 64)}}


def a_huge_storage() -> bytes:
    return rezipped(published(WORDS), lambda name, data: claiming(data) if name.endswith("data.pkl") else data)


def a_huge_storage_before_torch_1_6() -> bytes:
    return claiming(published(WORDS, zipped=False))


def a_bomb() -> bytes:
    """Half a megabyte that unpacks to 128."""
    return rezipped(
        published(WORDS), lambda name, data: bytes(2**27) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED
    )


def one_number_shown_as_many() -> bytes:
    return published({"network": {"_embedding.weight": torch.ones(1).expand(CLAIMED_ROWS, 64)}})


def a_codebook_of_other_channels() -> bytes:
    return published({"network": {"_embedding.weight": torch.ones(1).expand(16, CLAIMED_ROWS)}})


CLAIMS = [
    a_huge_storage,
    a_huge_storage_before_torch_1_6,
    one_number_shown_as_many,
    a_codebook_of_other_channels,
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_codebook_that_claims_too_much_is_refused_first(claim, folder, pair, networks, modest):
    path = folder / CODEBOOK
    path.write_bytes(claim())
    refusal(path, lambda: open_codebook(Options.of(pair), *networks))


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused_first(folder, pair, networks, request):
    path = folder / CODEBOOK
    path.write_bytes(a_bomb())
    request.getfixturevalue("modest")  # making the bomb took more
    assert "unpacks to more than it holds" in refusal(path, lambda: open_codebook(Options.of(pair), *networks))


def test_an_array_that_claims_too_much_is_refused_first(arrays, pair, networks, modest):
    path = arrays["centers"]
    whole = path.read_bytes()
    claim = whole.replace(b"(20, 9), }" + b" " * 12, b"(20000000000, 9), }   ")
    assert claim != whole and len(claim) == len(whole)
    path.write_bytes(claim)
    refusal(path, lambda: open_subclasses(Options.of(pair), *networks))


def test_our_own_file_that_claims_too_much_is_refused_first(folder, pair, networks, modest):
    """Not damage but another program's work: the checksum fits."""
    path = folder / CODEBOOK
    change_tensors(path, centroids=torch.ones(1).expand(CLAIMED_ROWS, 64))
    assert "words, not num_words=16" in refusal(path, lambda: open_codebook(Options.of(pair), *networks))
    write_map(path, read_map(path) | {"tensors": {}})
    assert str(load_tensors(path)["format"]).startswith(OUR_FORMATS)
    assert "no tensor 'centroids'" in refusal(path, lambda: open_codebook(Options.of(pair), *networks))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"xbar": torch.ones(32)}, "do not belong together"),
        ({"xbar": torch.ones(64, 1)}, "do not belong together"),
        ({"centers": torch.ones(20)}, "do not belong together"),
        ({"decisions": torch.ones(1).expand(CLAIMED_ROWS, 20)}, "do not belong together"),
        ({"scalings": torch.ones(64, 8)}, "do not belong together"),
        ({"scalings": torch.ones(32, 9), "xbar": torch.ones(32)}, "maps of 32 channels"),
        ({"centers": torch.ones(40, 9), "decisions": torch.ones(40, 40)}, "40 sub-classes; this run has 20"),
    ],
)
def test_decision_scores_of_other_shapes_are_refused(change, complaint, folder, pair, networks, modest):
    path = folder / DECISIONS
    change_tensors(path, **change)
    assert complaint in refusal(path, lambda: open_subclasses(Options.of(pair), *networks))


def test_a_checkpoint_of_another_number_of_classes_is_refused(folder, capsys):
    path = folder / "digits/RN8/last.pth"
    network = create_model("resnet8", num_classes=7)
    save_tensors(path, load_tensors(path) | {"model": network.state_dict()})
    path.with_name("results.json").unlink()  # which would tell that these are not the weights of its run
    for words in (PAIR, ("config=digits.RN8", "image_size=8", "checkpoint=-1", "epochs=2", "milestones=[]")):
        argv = ["main_classification.py", "with", *words, "cuda=False", f"localpath={folder}"]
        assert main_classification.main(list(dict.fromkeys(argv))) == 1
        error = capsys.readouterr().err
        assert str(path) in error and "fc.weight (7, 64) instead of (10, 64)" in error and error.count("\n") == 1


def test_the_supervision_of_a_run_is_read_whole_or_not_at_all(folder, capsys):
    """One of each kind, as a command meets it."""
    for name in (CODEBOOK, DECISIONS, "digits/RN8/last.pth"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(next(damages(whole, 1, seed=9)))
        argv = ["main_classification.py", "with", *PAIR, "epochs=1", "milestones=[]", f"localpath={folder}"]
        assert main_classification.main(argv) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(path) in error and error.count("\n") == 1
        path.write_bytes(whole)
    assert not (folder / RUN / "replaced").exists()
