"""Teachers, codebooks and decision scores: files of ours and of the authors, and what is refused."""

import argparse
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_tools import batch_of, open_networks, pooled_maps
from PIL import Image
from supervision_tools import change_fact, fact_of, read_map, write_map
from torch import nn

import main_classification
from algorithms import KMeansCodebook, features, run_config
from algorithms.teaching import missing_supervision, open_objective, teacher_weights
from architectures import create_model
from config.experiments import ENTRY_OPTIONS
from config.options import Options
from config.recipes import letkd2
from dataloaders import Dataset, load_dataset
from distillation.objective import Teacher
from distillation.prepared import open_codebook, open_subclasses
from distillation.signals import Network
from engine.weights import read_published
from letkd import Codebook, SubclassTargets, Supervision, attach, load_supervision, make_supervision
from letkd.fit import hold_patches
from letkd.supervision import earlier_fingerprint
from storage.state_dicts import fingerprint
from storage.tensor_files import load_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("few_digits")

ARTIFACTS = Path(__file__).parents[3] / "shared" / "reference" / "authors_artifacts"
NUM_PATCHES = 1024  # 256 images, 2 x 2 patches
CODEBOOK = "VQ/digits/RN8/codebook_K16.pth"
DECISIONS = "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth"
PIXELS = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def configure(name: str, localpath: Path, **updates: Any) -> dict[str, Any]:
    small = {"image_size": 8, "cuda": False, "localpath": str(localpath), "subclasses_per_class": 2}
    if "." in name.removeprefix("digits."):
        small |= {"teacher": "resnet8", "teacher_experiment": "digits.RN8", "supervision": "digits.RN8"}
        small |= {"num_words": 16, "allow_poor_teacher": True}
    config = main_classification.default_config(name)
    small = {key: value for key, value in small.items() if key in config}
    assert set(updates) <= set(config)
    return config | small | updates


def run(name: str, localpath: Path, **updates: Any) -> dict[str, Any]:
    return run_config(configure(name, localpath, **updates))


def pair(localpath: Path, **updates: Any) -> dict[str, Any]:
    return configure("digits.RN14_RN8.letKD-2", localpath, **updates)


def digits(config: dict[str, Any]) -> Dataset:
    return load_dataset("digits", **{key: config[key] for key in ("image_size", "mean", "std")})


def open_pair(config: dict[str, Any]) -> tuple[Network, Teacher]:
    return open_networks(Options.of(config), digits(config))


def open_all(config: dict[str, Any]) -> tuple[Teacher, Codebook, SubclassTargets]:
    """The supervision of a letKD-2 run, read from its files."""
    options, (student, teacher) = Options.of(config), open_pair(config)
    return teacher, open_codebook(options, student, teacher), open_subclasses(options, student, teacher)


def refusal(caught: pytest.ExceptionInfo) -> str:
    """The message of an error, which is one line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- our files -------------------------------------------------------------------------------------------------------


def test_our_files_come_back_as_they_were_written(folder):
    teacher, codebook, subclasses = open_all(pair(folder, temperature=2.0))
    files = read_map(folder / CODEBOOK), read_map(folder / DECISIONS)
    words, decisions = (found["tensors"] for found in files)
    assert words["centroids"].shape == (16, 64) and words["centroids"].dtype == torch.float32
    assert torch.equal(codebook.centroids, words["centroids"]) and codebook.temperature == 2.0
    assert decisions["centers"].shape == decisions["prototypes"].shape == (20, 9)  # 10 classes: 9 components
    assert torch.equal(subclasses.decisions, decisions["decisions"])
    assert torch.equal(subclasses.centers.flatten(0, 1), decisions["centers"])
    assert torch.equal(subclasses.weight, decisions["scalings"][:, :9].T.float())
    torch.testing.assert_close(subclasses.decisions.sum(dim=1), torch.ones(20))
    own = {"network": "resnet8", "dataset": "digits", "seed": 0, "patches": NUM_PATCHES}
    place = {"teacher": teacher.identity, "pooling": 1, "channels": 64, "grid": (2, 2), "image_shape": (3, 8, 8)}
    for found, path in zip(files, ("layer3", "layer3.0"), strict=True):
        assert {key: found["record"][key] for key in own} == own
        assert {key: found[key] for key in (*place, "path")} == place | {"path": path}


def test_a_teacher_with_other_weights_is_refused(folder):
    config = pair(folder)
    run("digits.RN8", folder, epochs=1, seed=1)
    networks = open_pair(config)
    with pytest.raises(ValueError, match="another teacher") as caught:
        open_codebook(Options.of(config), *networks)
    assert str(folder / CODEBOOK) in refusal(caught)
    with pytest.raises(ValueError, match="another teacher") as caught:
        open_subclasses(Options.of(config), *networks)
    assert str(folder / DECISIONS) in refusal(caught)
    with pytest.raises(ValueError, match="another teacher") as caught:
        run_config(config)
    assert "make it again: python main_classification.py with config=digits.RN8 " in refusal(caught)
    assert refusal(caught).endswith("kmeans=16")


def test_equal_weights_have_one_fingerprint_and_others_another():
    state = create_model("resnet8").state_dict()
    other = state | {"fc.bias": state["fc.bias"] + 1e-6}
    strided = {
        name: tensor.clone().t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()
    }
    assert fingerprint(state) == fingerprint(dict(reversed(state.items()))) == fingerprint(strided)
    assert fingerprint(state) != fingerprint(other)


def test_another_number_of_words_or_subclasses_is_refused(folder):
    with pytest.raises(ValueError, match="16 words, not num_words=8"):
        open_all(pair(folder, num_words=8, codebook=str(folder / CODEBOOK)))
    with pytest.raises(ValueError, match="20 sub-classes; this run has 40"):
        open_all(pair(folder, subclasses_per_class=4, decisions=str(folder / DECISIONS)))


def test_a_decision_file_of_another_stage_is_refused(folder):
    run("digits.RN8", folder, LDA=4)
    with pytest.raises(ValueError, match=r"another tap \(layer2.0, this run has layer3.0\)"):
        open_all(pair(folder, decisions=str(folder / DECISIONS.replace("layer3", "layer2"))))


def outdated(config: dict[str, Any], fact: str) -> list[str]:
    """The words of the command that makes the file again, of a run that is refused for a fact of its record."""
    with pytest.raises(ValueError, match=f"was made with another {fact} ") as caught:
        run_config(config)
    return shlex.split(refusal(caught).partition("python main_classification.py with ")[2])


@pytest.mark.parametrize(
    ("fact", "value"), [("image_size", 16), ("image_size", None), ("mean", [0.5] * 3), ("std", [0.5, 0.3203, 0.3203])]
)
def test_images_that_were_prepared_otherwise_are_refused(fact, value, folder):
    """The teacher was trained on images of 8 x 8; the command must not take over how its images were prepared."""
    config = pair(folder, epochs=1, milestones=[], teacher_input="data", **{fact: value})
    seen = value or 16  # the data set's own size
    word = f"{fact}={seen}".replace(" ", "")
    for job in ("kmeans=16", "LDA=5"):
        words = outdated(config, fact)
        assert {job, word} <= set(words)
        assert main_classification.main(["main.py", "with", *words]) == 0
    assert fact_of(folder / CODEBOOK, fact) == seen
    run_config(config)


def test_what_is_measured_may_differ_by_rounding(folder):
    change_fact(folder / CODEBOOK, "mean", [value + 1e-5 for value in fact_of(folder / CODEBOOK, "mean")])
    open_all(pair(folder))


def test_other_lda_components_are_refused(folder):
    chosen = folder / "chosen.pth"
    shutil.copy(folder / DECISIONS, chosen)
    words = outdated(pair(folder, lda_components=4, decisions=str(chosen)), "lda_components")
    assert {"LDA=5", "lda_components=4"} <= set(words)


def test_a_chosen_file_is_refused_with_the_option_that_chose_it(folder):
    """The command makes the standard file: without that word the same refusal would come again."""
    networks = open_pair(pair(folder, image_size=16))
    for option, name in (("codebook", CODEBOOK), ("decisions", DECISIONS)):
        for chosen in (None, str(folder / name)):
            config = pair(folder, image_size=16, **{option: chosen})
            with pytest.raises(ValueError, match="another image_size") as caught:
                (open_codebook if option == "codebook" else open_subclasses)(Options.of(config), *networks)
            assert refusal(caught).endswith(f"; leave out {option}= to use the standard file") == bool(chosen)


def test_what_an_older_record_does_not_say_is_not_compared(folder):
    for name in (CODEBOOK, DECISIONS):
        found = read_map(folder / name)
        record = found["record"] | {"tap": found["path"], "downscale": found["pooling"], "teacher": found["teacher"]}
        for fact in ("mean", "std", "lda_components", "max_patches", "precision"):
            del record[fact]
        form = "letkd-codebook-1" if name == CODEBOOK else "letkd-decisions-1"
        save_tensors(folder / name, {"format": form, **found["tensors"], "record": record})
    open_all(pair(folder, image_size=16))


@pytest.mark.parametrize("name", [CODEBOOK, DECISIONS])
def test_a_file_of_ours_without_a_record_is_refused(name, folder):
    write_map(folder / name, {key: value for key, value in read_map(folder / name).items() if key != "record"})
    with pytest.raises(ValueError, match="it has no record of what made it") as caught:
        open_all(pair(folder))
    assert str(folder / name) in refusal(caught)


def test_what_chose_among_equals_is_said_and_not_compared(folder):
    run("digits.RN8", folder, kmeans=16, seed=3, max_patches=500)
    record = read_map(folder / CODEBOOK)["record"]
    assert (record["seed"], record["max_patches"], record["precision"]) == (3, 500, "fp32")
    open_all(pair(folder))


@pytest.mark.parametrize(("dataset", "fact"), [("ImageFolder", "images"), ("TinyImageNet", "num_images")])
def test_supervision_belongs_to_the_images_of_a_folder(dataset, fact, tmp_path):
    """Their classes, names and sizes on the disk: no more is looked at. Where the data set is one, their number."""
    images = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    for label, files in zip("ab", pixels, strict=True):
        (images / "train" / label).mkdir(parents=True)
        for number, image in enumerate(files):
            Image.fromarray(image).save(images / "train" / label / f"{number}.png")
    (images / "val").symlink_to(images / "train")
    here = {"data_dir": str(images), "localpath": str(tmp_path), "cuda": False, "num_workers": 0, "test_batch_size": 8}
    small = here | {"epochs": 1, "milestones": [], "batch_size": 4, "dataset": dataset, "image_size": 8}
    alone = main_classification.default_config("ImageFolder.RN8") | small
    run_config(alone)
    run_config(alone | {"kmeans": 4})
    config = main_classification.default_config("ImageFolder.RN20_RN8.letKD-1") | small
    config |= {"teacher": "resnet8", "teacher_experiment": "ImageFolder.RN8", "supervision": "ImageFolder.RN8"}
    config |= {"num_words": 4, "allow_poor_teacher": True}  # of eight images of noise
    run_config(config)
    shutil.copy(images / "train" / "a" / "0.png", images / "train" / "b" / "4.png")
    words = outdated(config, fact)
    assert main_classification.main(["main.py", "with", *words]) == 0
    run_config(config)


@pytest.mark.parametrize("name", [CODEBOOK, DECISIONS])
def test_of_an_older_file_the_number_of_images_is_that_of_its_patches(name, folder):
    found = read_map(folder / name)
    del found["record"]["num_images"]
    write_map(folder / name, found)
    run_config(pair(folder, epochs=1, milestones=[]))
    change_fact(folder / name, "patches", NUM_PATCHES - 4)
    words = outdated(pair(folder, epochs=1, milestones=[], checkpoint=0), "num_images")
    assert ("kmeans=16" if name == CODEBOOK else "LDA=5") in words
    change_fact(folder / name, "max_patches", NUM_PATCHES - 4)  # random ones of more: nothing tells
    run_config(pair(folder, epochs=1, milestones=[], checkpoint=0))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("QuEST", ["teacher", "kmeans"]),
        ("letKD-1", ["teacher", "kmeans"]),
        ("letKD-2", ["teacher", "kmeans", "LDA"]),
    ],
)
def test_a_method_requires_what_it_uses_in_the_order_of_making(name, wanted, tmp_path):
    requirements = list(missing_supervision(Options.of(configure(f"digits.RN14_RN8.{name}", tmp_path))))
    found = [next((job for job in ("kmeans", "LDA") if job in need.options), "teacher") for need in requirements]
    assert found == wanted


def test_nothing_is_missing_of_what_was_made(folder):
    assert list(missing_supervision(Options.of(pair(folder)))) == []
    (folder / CODEBOOK).unlink()
    (need,) = missing_supervision(Options.of(pair(folder)))
    assert need.experiment == "digits.RN8" and need.options["kmeans"] == 16
    assert list(missing_supervision(Options.of(pair(folder, penultimate=False)))) == []


# --- the authors' files ----------------------------------------------------------------------------------------------


def write_authors_codebook(path: Path, centroids: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    network = {
        "_ema_w": torch.zeros_like(centroids),
        "_ema_cluster_size": torch.ones(len(centroids)),
        "_embedding.weight": centroids,
    }
    torch.save({"epoch": "*", "network": network, "metric": None}, path)


def write_authors_decisions(folder: Path, suffix: str, *, channels: int = 64, rows: int = 80) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    scores = generator.random((rows, rows))
    arrays = {
        "lda_model_scalings": generator.normal(size=(channels, channels)),
        "lda_model_xbar": generator.normal(size=channels),
        f"centers_subclass_8{suffix}": generator.normal(size=(rows, 60)),
        f"final_scores_8{suffix}": scores / scores.sum(axis=1, keepdims=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


@pytest.mark.parametrize("ending", ["_", "_.zip", "20.pth", "*"])
def test_the_authors_codebooks_load(ending, folder):
    (folder / CODEBOOK).unlink()
    centroids = torch.randn(16, 64)
    write_authors_codebook(folder / f"VQ/digits/RN8/vector_quantizer_kmeansK16_net_epoch{ending}", centroids)
    assert torch.equal(open_all(pair(folder))[1].centroids, centroids)
    assert list(missing_supervision(Options.of(pair(folder)))) == []


@pytest.mark.parametrize("suffix", ["", "_60"])
def test_the_authors_decision_scores_load_and_train(suffix, folder):
    arrays = write_authors_decisions(folder / "LDA/digits/RN8", suffix)
    config = pair(folder, subclasses_per_class=8)
    assert list(missing_supervision(Options.of(config))) == []
    subclasses = open_all(config)[2]
    expected = [
        (subclasses.weight, arrays["lda_model_scalings"][:, :60].T),
        (subclasses.centers.flatten(0, 1), arrays[f"centers_subclass_8{suffix}"]),
        (subclasses.decisions, arrays[f"final_scores_8{suffix}"]),
        (subclasses.offset, -arrays["lda_model_xbar"] @ arrays["lda_model_scalings"][:, :60]),
    ]
    for found, array in expected:
        np.testing.assert_allclose(found.numpy(), array, rtol=1e-5, atol=1e-5)
    objective = open_objective(Options.of(config), digits(config)).train()
    step = objective(batch_of(PIXELS, torch.arange(4)))
    assert step.loss.isfinite() and step.terms["decisions"] > 0


def test_the_authors_files_are_taken_with_a_notice(folder, capsys):
    """They do not say what made them, and the run says so."""
    codebook = folder / "VQ/digits/RN8/vector_quantizer_kmeansK16_net_epoch_"
    (folder / CODEBOOK).unlink()
    write_authors_codebook(codebook, torch.randn(16, 64))
    arrays = write_authors_decisions(folder / "LDA/digits/RN8", "_60")
    assert len(arrays) == 4
    words = [
        "config=digits.RN14_RN8.letKD-2",
        "name=mine.pair",
        "teacher=resnet8",
        "teacher_experiment=digits.RN8",
        "num_words=16",
    ]
    words += ["supervision=digits.RN8", "image_size=8", "cuda=False", "epochs=1", "milestones=[]"]
    assert main_classification.main(["main.py", "with", *words, f"localpath={folder}"]) == 0
    said = capsys.readouterr().out
    assert f"codebook   {codebook}, the authors': no record of the teacher that made it\n" in said
    scores = folder / "LDA/digits/RN8/final_scores_8_60.npy"
    assert f"decisions  {scores}, the authors': no record of the teacher that made them\n" in said


def test_without_the_number_of_components_in_the_name_it_is_sixty(folder):
    write_authors_decisions(folder / "LDA/digits/RN8", "")
    (need,) = missing_supervision(Options.of(pair(folder, subclasses_per_class=8, lda_components=9)))
    assert need.options["LDA"] == 5


def test_our_files_go_before_the_authors(folder):
    write_authors_codebook(folder / "VQ/digits/RN8/vector_quantizer_kmeansK16_net_epoch_", torch.zeros(16, 64))
    assert open_all(pair(folder))[1].centroids.any()


def test_the_authors_files_of_another_teacher_are_refused(folder):
    write_authors_codebook(folder / "wide", torch.zeros(16, 128))
    with pytest.raises(ValueError, match="128 channels"):
        open_all(pair(folder, codebook=str(folder / "wide")))
    write_authors_decisions(folder / "LDA/digits/RN8", "_60", channels=128)
    with pytest.raises(ValueError, match="128 channels"):
        open_all(pair(folder, subclasses_per_class=8))


@pytest.mark.parametrize("name", ["lda_model_scalings", "lda_model_xbar", "centers_subclass_8_60"])
def test_an_incomplete_set_of_the_authors_files_is_named(name, folder):
    write_authors_decisions(folder / "LDA/digits/RN8", "_60")
    (folder / f"LDA/digits/RN8/{name}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.npy") as caught:
        open_all(pair(folder, subclasses_per_class=8))
    refusal(caught)


PUBLISHED = [("resnet56", "CIFAR100.resnetv1.RN56", ""), ("wrn_40_2", "CIFAR100.WRN.WRN40w2_downscale", "_60")]


@pytest.mark.skipif(not ARTIFACTS.is_dir(), reason="the authors' files are not beside this repository")
@pytest.mark.parametrize(("teacher", "supervision", "suffix"), PUBLISHED)
def test_the_files_that_the_authors_published_load(teacher, supervision, suffix, tmp_path):
    student = {"resnet56": "resnet20", "wrn_40_2": "shufflenetv1"}[teacher]
    weights = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"model": create_model(teacher, num_classes=100).state_dict(), "epoch": 240}, weights)
    shutil.copytree(ARTIFACTS, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    place = tmp_path / "LDA" / Path(*supervision.split("."))
    place.chmod(0o755)
    scores = np.full((800, 800), 1 / 800)  # not among the published files that are here
    np.save(place / f"final_scores_8{suffix}.npy", scores)
    experiment = letkd2(dataset="CIFAR100", teacher=teacher, student=student, supervision=supervision)
    config = ENTRY_OPTIONS | experiment | {"localpath": str(tmp_path), "teacher_weights": str(weights)}
    classes = tuple(map(str, range(100)))
    dataset = Dataset("CIFAR100", classes, 32, mean=(0.5,) * 3, std=(0.25,) * 3, padding=4, flip=True)
    networks = open_networks(Options.of(config), dataset)
    subclasses = open_subclasses(Options.of(config), *networks)
    assert subclasses.num_targets == 800 and subclasses.centers.shape == (100, 8, 60)
    images = torch.randn(2, 3, 32, 32)
    maps = pooled_maps(*networks, images)
    side = 8 if student == "resnet20" else 4
    assert maps["penultimate"].shape[2:] == maps["intermediate"].shape[2:] == (side, side)
    assert subclasses.assign(maps["intermediate"], torch.tensor([3, 99])).shape == (2 * side**2,)
    if teacher == "resnet56":
        assert open_codebook(Options.of(config), *networks).centroids.shape == (4096, 64)


# --- files that are refused ------------------------------------------------------------------------------------------


class RunsCode:
    """Unpickling it makes a directory."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def spoil(path: Path, how: str, marker: Path) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("404: Not Found\n")
    elif how == "code":
        torch.save({"model": {}, "run": RunsCode(marker)}, path)
    elif how == "tensor":
        torch.save(torch.zeros(16, 64), path)
    elif how == "other":
        torch.save({"something": 1}, path)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "code", "tensor", "other"])
@pytest.mark.parametrize("name", [CODEBOOK, DECISIONS, "digits/RN8/last.pth"])
def test_a_file_that_is_damaged_or_no_data_is_refused_by_name(name, how, folder):
    spoil(folder / name, how, marker=folder / "code was run")
    with pytest.raises(ValueError, match=r"\.pth") as caught:
        open_all(pair(folder))
    assert str(folder / name) in refusal(caught)
    assert not (folder / "code was run").exists()


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "code"])
def test_a_damaged_array_is_refused_by_name(how, folder):
    arrays = write_authors_decisions(folder / "LDA/digits/RN8", "_60")
    path = folder / "LDA/digits/RN8/centers_subclass_8_60.npy"
    if how == "code":
        np.save(path, np.array([RunsCode(folder / "code was run")]), allow_pickle=True)
    else:
        spoil(path, how, marker=folder / "code was run")
    assert len(arrays) == 4
    with pytest.raises(ValueError, match="centers_subclass_8_60") as caught:
        open_all(pair(folder, subclasses_per_class=8))
    refusal(caught)
    assert not (folder / "code was run").exists()


# --- the teacher's weights -------------------------------------------------------------------------------------------


def published_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    options = argparse.Namespace(
        model="resnet8", learning_rate=0.05, lr_decay_epochs=[150, 180, 210], dataset="cifar100"
    )
    return {"model": state, "epoch": 240, "accuracy": np.float64(72.34), "best_acc": torch.tensor(72.5), "opt": options}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_loads(prefix, zipped, tmp_path):
    state = create_model("resnet8", num_classes=10).state_dict()
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save(
        published_checkpoint({prefix + name: tensor for name, tensor in state.items()}),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    weights = teacher_weights(Options.of(pair(tmp_path, teacher_weights=str(path))))
    assert weights.source == path and list(weights.state) == list(state)
    assert all(torch.equal(weights.state[name], tensor) for name, tensor in state.items())


def test_a_checkpoint_with_numbers_of_numpy_1_loads(tmp_path):
    state = create_model("resnet8", num_classes=10).state_dict()
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save(published_checkpoint(state), path, _use_new_zipfile_serialization=False)
    now, then = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    content = path.read_bytes()
    assert now in content or then in content
    path.write_bytes(content.replace(now, then))
    assert list(read_published(path).state) == list(state)


def test_a_chosen_file_goes_before_own_training_and_that_before_the_published_file(folder):
    chosen, published = folder / "chosen.pth", folder / "ckpt_epoch_240.pth"
    for path in (chosen, published):
        torch.save(published_checkpoint(create_model("resnet8", num_classes=10).state_dict()), path)
    own = folder / "digits/RN8/last.pth"
    config = pair(folder, published_weights=str(published))
    assert teacher_weights(Options.of(config | {"teacher_weights": str(chosen)})).source == chosen
    assert teacher_weights(Options.of(config)).source == own
    own.unlink()
    assert teacher_weights(Options.of(config)).source == published
    published.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        teacher_weights(Options.of(config))
    assert str(own) in refusal(caught) and str(published) in refusal(caught)


def test_a_chosen_file_that_is_missing_is_refused_and_not_replaced(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth") as caught:
        list(missing_supervision(Options.of(pair(folder, teacher_weights=str(folder / "nowhere.pth")))))
    refusal(caught)


def test_an_unfinished_training_is_refused_with_the_command_that_finishes_it(folder):
    path = folder / "digits/RN8/last.pth"
    save_tensors(path, load_tensors(path) | {"epoch": 1, "epochs": 8})
    with pytest.raises(FileNotFoundError, match=r"stands at epoch 1 of 8; make it: ") as caught:
        run_config(pair(folder))
    words = set(shlex.split(refusal(caught).partition("python main_classification.py with ")[2]))
    assert {"config=digits.RN8", "checkpoint=-1", f"localpath={folder}"} <= words


# --- networks of different resolution --------------------------------------------------------------------------------


def test_pooling_follows_from_the_networks(folder):
    cross = {"student": "shufflenetv1"}  # its maps have half the side of resnet8's
    with pytest.raises(FileNotFoundError, match=r"no codebook of 16 words of digits.RN8, of maps averaged over 2 x 2"):
        open_all(pair(folder, **cross))
    run("digits.RN8", folder, kmeans=16, downscale=2)
    run("digits.RN8", folder, LDA=5, downscale=2)
    config = pair(folder, **cross)
    objective = open_objective(Options.of(config), digits(config)).train()
    losses = {key: objective.losses[key] for key in ("words", "decisions")}
    assert {loss.place: loss.pooling for loss in losses.values()} == {"penultimate": 2, "intermediate": 2}
    taught = objective.teacher(objective.teacher.input(PIXELS))
    assert {loss.place: loss.teacher_map(taught).shape for loss in losses.values()} == {
        "penultimate": (4, 64, 1, 1),
        "intermediate": (4, 64, 1, 1),
    }
    assert objective(batch_of(PIXELS, torch.arange(4))).loss.isfinite()
    pooled = folder / CODEBOOK.replace("_K16", "_pooled2_K16")
    assert fact_of(pooled, "patches") == NUM_PATCHES // 4
    open_all(pair(folder))  # what a student of the teacher's grid needs is still there
    with pytest.raises(ValueError, match=r"another downscale \(2, this run has 1\)"):
        open_all(pair(folder, codebook=str(pooled)))


def test_pooled_patches_are_the_means_of_windows(folder):
    plain, _ = patches_of(folder, "layer3")
    pooled, _ = patches_of(folder, "layer3", downscale=2)
    torch.testing.assert_close(pooled, plain.view(-1, 4, 64).mean(dim=1))


def test_a_teacher_coarser_than_the_student_is_refused(folder):
    weights = folder / "shuffle.pth"
    torch.save({"model": create_model("shufflenetv1", num_classes=10).state_dict()}, weights)
    config = pair(folder, teacher="shufflenetv1", teacher_experiment="none", teacher_weights=str(weights))
    told = r"map of shufflenetv1 \(1 x 1\) is no whole multiple of that of resnet8 \(2 x 2\)"
    with pytest.raises(ValueError, match=told):
        open_all(config)


# --- ways of making supervision --------------------------------------------------------------------------------------


def patches_of(folder: Path, path: str, **updates: Any) -> tuple[torch.Tensor, torch.Tensor]:
    job = KMeansCodebook(Options.of(configure("digits.RN8", folder, kmeans=16, **updates)))
    job.open()
    of = job.teacher_map(job.place(path))
    batches = [batch[path] for batch in job.source(of).batches([path])]
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_patches_are_the_rows_of_the_maps_of_unaugmented_images(folder):
    found, labels = patches_of(folder, "layer3", test_batch_size=100)
    job = KMeansCodebook(Options.of(configure("digits.RN8", folder, kmeans=16)))
    job.open()
    data = job.dataset.train
    pixels = data.images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (job.dataset.mean, job.dataset.std))
    with torch.no_grad():
        maps = job.network.eval().forward_features((pixels - mean) / std)
    torch.testing.assert_close(found, maps.permute(0, 2, 3, 1).reshape(-1, 64), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, data.labels.repeat_interleave(4))


def remade(folder: Path, name: str, **updates: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the file as it is, and as it is with `updates`."""
    before = read_map(folder / name)["tensors"]
    (folder / name).unlink()
    job = {"kmeans": 16} if name == CODEBOOK else {"LDA": 5}
    run("digits.RN8", folder, **job, **updates)
    return before, read_map(folder / name)["tensors"]


def assert_same_decisions(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Equal up to float noise and the sign of each component, which no solver determines."""
    sign = (first["scalings"] * second["scalings"]).sum(dim=0).sign()
    torch.testing.assert_close(first["scalings"], second["scalings"] * sign, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(first["xbar"], second["xbar"], rtol=1e-5, atol=1e-6)
    kept = first["centers"].shape[1]
    torch.testing.assert_close(first["centers"], second["centers"] * sign[:kept].float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(first["decisions"], second["decisions"], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "updates", [{"memmap": True}, {"max_patches": NUM_PATCHES}, {"max_patches": 10 * NUM_PATCHES}], ids=str
)
def test_a_codebook_does_not_depend_on_where_the_patches_are(updates, folder):
    before, after = remade(folder, CODEBOOK, **updates)
    torch.testing.assert_close(before["centroids"], after["centroids"])
    assert fact_of(folder / CODEBOOK, "patches") == NUM_PATCHES


def test_a_codebook_does_not_depend_on_the_batch_size(folder):
    before, after = remade(folder, CODEBOOK, test_batch_size=17)
    torch.testing.assert_close(before["centroids"], after["centroids"], rtol=1e-3, atol=1e-4)


def test_a_subset_makes_another_codebook_of_as_many_words(folder):
    before, after = remade(folder, CODEBOOK, max_patches=200)
    assert after["centroids"].shape == before["centroids"].shape
    assert not torch.allclose(after["centroids"], before["centroids"])
    assert fact_of(folder / CODEBOOK, "patches") == 200


def test_a_subset_is_drawn_from_all_patches_and_holds_no_others(folder):
    job = KMeansCodebook(Options.of(configure("digits.RN8", folder, kmeans=16)))
    job.open()
    of = job.teacher_map(job.place("penultimate"))
    everything, labels = hold_patches(job.source(of), [of.path])[of.path]
    some, some_labels = hold_patches(job.source(of), [of.path], max_patches=200)[of.path]
    assert some.shape == (200, of.channels)
    chosen = torch.randperm(NUM_PATCHES, generator=torch.Generator().manual_seed(0))[:200].sort().values
    assert torch.equal(some, everything[chosen]) and torch.equal(some_labels, labels[chosen])


def test_patches_that_do_not_fit_into_memory_are_refused_with_the_remedies(folder, monkeypatch):
    monkeypatch.setattr(features, "memory_bytes", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"need 0\.0 GiB.*memmap=True.*max_patches=n") as caught:
        run("digits.RN8", folder, kmeans=16)
    assert "\n" not in str(caught.value)
    run("digits.RN8", folder, kmeans=16, memmap=True)
    with pytest.raises(ValueError, match=f"{NUM_PATCHES} patches of 9 channels need"):  # the projections count too
        run("digits.RN8", folder, LDA=5, incremental=True)
    run("digits.RN8", folder, LDA=5, incremental=True, memmap=True)


@pytest.mark.parametrize(
    "updates",
    [{"incremental": True}, {"memmap": True}, {"incremental": True, "memmap": True}, {"test_batch_size": 17}],
    ids=str,
)
def test_decision_scores_do_not_depend_on_how_they_were_computed(updates, folder):
    assert_same_decisions(*remade(folder, DECISIONS, **updates))


def test_the_file_of_patches_is_where_it_was_asked_for_and_goes_afterwards(folder, tmp_path_factory, monkeypatch):
    """It never has a name: it cannot outlive the process."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    places, temporary_file = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: places.append(dir) or temporary_file(dir=dir))
    remade(folder, CODEBOOK, memmap=True)
    remade(folder, CODEBOOK, memmap=True, memmap_dir=str(elsewhere))
    assert places == [folder / "VQ/digits/RN8", elsewhere]
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(("job", "place"), [({"kmeans": 16}, "VQ"), ({"LDA": 5}, "LDA")])
def test_fname_names_the_result(job, place, folder):
    results = run("digits.RN8", folder, fname="mine.pth", **job)
    assert results["file"] == str(folder / place / "digits/RN8/mine.pth")
    key = {"VQ": "codebook", "LDA": "decisions"}[place]
    default = folder / {"VQ": CODEBOOK, "LDA": DECISIONS}[place]
    default.unlink()
    open_all(pair(folder, **{key: results["file"]}))


def test_a_missing_file_that_was_named_is_refused(folder):
    for key in ("codebook", "decisions"):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
            open_all(pair(folder, **{key: str(folder / "nowhere.pth")}))


def test_a_teacher_that_does_not_fit_is_told_with_the_losses_that_need_it(folder):
    path = folder / "digits" / "RN8" / "last.pth"
    other = create_model("resnet14", num_classes=10)
    torch.save({"model": other.state_dict()}, path.with_name("other.pth"))
    config = pair(folder, teacher_weights=str(path.with_name("other.pth")))
    told = r"other\.pth does not hold resnet8 with 10 classes, the teacher of words, decisions: unexpected: layer1\.1"
    with pytest.raises(ValueError, match=told):
        open_objective(Options.of(config), load_dataset("digits", image_size=8))


# --- one format for the jobs and for the library ---------------------------------------------------------------------


def training_images(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of all training images as the teacher takes them, and their classes."""
    job = KMeansCodebook(Options.of(configure("digits.RN8", folder, kmeans=16)))
    job.open()
    return list(job.source(job.teacher_map(job.place("penultimate"))).images)


def trained_teacher(folder: Path) -> nn.Module:
    network = create_model("resnet8", num_classes=10)
    network.load_state_dict(teacher_weights(Options.of(pair(folder))).state)
    return network


@pytest.fixture
def saved(folder) -> Path:
    """What the library makes of the same teacher and images, for both maps in one file, and for another."""
    made = make_supervision(
        trained_teacher(folder),
        training_images(folder),
        words={"layer2": 7, "layer3": 16},
        decisions={"layer3.0": 2, "layer2.0": 3},
        num_classes=10,
    )
    made.save(folder / "teacher.supervision")
    return folder / "teacher.supervision"


def terms_of(config: dict[str, Any]) -> dict[str, float]:
    torch.manual_seed(0)
    objective = open_objective(Options.of(config), digits(config)).train()
    return {key: term.item() for key, term in objective(batch_of(PIXELS, torch.arange(4))).terms.items()}


def test_the_library_supervises_with_what_the_jobs_made(folder):
    made = load_supervision(folder / CODEBOOK) | load_supervision(folder / DECISIONS)
    config = pair(folder)
    torch.manual_seed(0)
    objective = open_objective(Options.of(config), digits(config)).train()
    student = attach(create_model("resnet8", num_classes=10), made, teacher=trained_teacher(folder)).train()
    names = {"layers.penultimate.": "layers.layer3.", "layers.intermediate.": "layers.layer3/0."}

    def theirs(name: str) -> str:
        return next((name.replace(ours, other) for ours, other in names.items() if name.startswith(ours)), name)

    student.load_state_dict({theirs(name): tensor for name, tensor in objective.student.state_dict().items()})
    terms = objective(batch_of(PIXELS, torch.arange(4))).terms
    losses = student.distillation_loss(objective.input(PIXELS), torch.arange(4))
    assert losses["layer3"].item() == pytest.approx(terms["words"].item(), rel=1e-5)
    assert losses["layer3.0"].item() == pytest.approx(terms["decisions"].item(), rel=1e-5)


def test_a_run_is_supervised_with_what_the_library_made(folder, saved):
    """The map of the teacher's place is taken of several; of the same images it is what the jobs make."""
    library = {"codebook": str(saved), "decisions": str(saved)}
    found, expected = open_all(pair(folder, **library))[1:], open_all(pair(folder))[1:]
    torch.testing.assert_close(found[0].centroids, expected[0].centroids)
    torch.testing.assert_close(found[1].decisions, expected[1].decisions)
    assert terms_of(pair(folder, **library)) == pytest.approx(terms_of(pair(folder)), rel=1e-4)
    for name in (CODEBOOK, DECISIONS):
        (folder / name).unlink()
    assert list(missing_supervision(Options.of(pair(folder, **library)))) == []
    run_config(pair(folder, **library, epochs=1, milestones=[]))


def test_a_file_of_the_version_before_is_known_by_its_teacher(folder, saved):
    content = load_tensors(saved)
    identity = earlier_fingerprint(trained_teacher(folder))
    for found in content["maps"].values():
        found["teacher"] = identity
        del found["record"]
    torch.save(content | {"format": "letkd-supervision-1"}, saved)
    config = pair(folder, codebook=str(saved), decisions=str(saved))
    open_objective(Options.of(config), digits(config))
    run("digits.RN8", folder, epochs=1, seed=1)
    with pytest.raises(ValueError, match=rf"another teacher \({identity[:12]}\.\.\., this run has"):
        open_objective(Options.of(config), digits(config))


@pytest.mark.parametrize(
    ("updates", "complaint"),
    [
        ({"num_words": 8}, "has 16 words, not num_words=8"),
        (
            {"subclasses_per_class": 4},
            r"20 sub-classes; this run has 40, 4 of each of 10 classes \(the file 2 of each of 10\)",
        ),
        ({"image_size": 16}, r"another image_size \(8, this run has 16\)"),
        ({"lda_components": 4}, r"another lda_components \(60, this run has 4\)"),
        ({"student": "shufflenetv1"}, r"another downscale \(1, this run has 2\)"),
    ],
    ids=str,
)
def test_a_file_of_the_library_that_does_not_fit_is_refused(updates, complaint, folder, saved):
    with pytest.raises(ValueError, match=complaint) as caught:
        open_all(pair(folder, **updates, codebook=str(saved), decisions=str(saved)))
    assert str(saved) in refusal(caught)


def test_a_file_without_the_teachers_place_lists_what_it_has(folder, saved):
    made = load_supervision(saved)
    chosen = pair(folder, codebook=str(saved))
    Supervision({"layer2": made["layer2"], "layer3.0": made["layer3.0"]}).save(saved)
    with pytest.raises(ValueError, match=r"another tap \(layer2, this run has layer3\)"):
        open_all(chosen)
    Supervision({"layer3.0": made["layer3.0"], "layer2.0": made["layer2.0"]}).save(saved)
    with pytest.raises(ValueError, match=r"holds no codebook; it holds decision scores of layer3.0, layer2.0"):
        open_all(chosen)


def test_the_library_refuses_what_a_job_made_of_another_grid_or_teacher(folder):
    made = load_supervision(folder / CODEBOOK)
    with pytest.raises(ValueError, match=r"grid of 4 x 4, the supervision of 'layer3' one of 2 x 2"):
        attach(create_model("resnet8", num_classes=10), {"layer2": made["layer3"]})
    other = create_model("resnet8", num_classes=10)
    told = (
        f"made from another teacher \\({made['layer3'].teacher[:8]}, this one is {fingerprint(other.state_dict())[:8]}"
    )
    with pytest.raises(ValueError, match=told):
        attach(create_model("resnet8", num_classes=10), made, teacher=other)


def test_the_earlier_name_of_max_patches_is_read(folder):
    words = ["config=digits.RN8", "kmeans=16", "image_size=8", "cuda=False", f"localpath={folder}"]
    assert main_classification.main(["main.py", "with", *words, "ksubset=300"]) == 0
    assert (fact_of(folder / CODEBOOK, "max_patches"), fact_of(folder / CODEBOOK, "patches")) == (300, 300)
    assert main_classification.main(["main.py", "with", *words, "ksubset=300", "max_patches=300"]) == 1
    results = run("digits.RN8", folder, LDA=5, max_patches=300)
    assert results["patches"] == results["options"]["max_patches"] == fact_of(folder / DECISIONS, "patches") == 300
