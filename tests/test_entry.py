"""The command line: what each command leaves, and what bad input gets."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import main_classification
from algorithms.evaluate import Evaluation
from architectures import create_model
from engine import numerics
from engine.records import exclusive
from letkd.files import fingerprint
from storage.tensor_files import load_tensors

pytestmark = pytest.mark.usefixtures("few_digits")

ROOT = Path(main_classification.__file__).parent
PYTHON_MAIN = "python main_classification.py with "
FAST = ("image_size=8", "cuda=False")
TEACHER = ("config=digits.RN8", *FAST)
SUPERVISION = ("teacher=resnet8", "teacher_experiment=digits.RN8", "supervision=digits.RN8")
SMALL = ("num_words=16", "subclasses_per_class=2")
PAIR = ("config=digits.RN14_RN8.letKD-2", "name=mine.RN8_RN8.letKD-2", *SUPERVISION, *SMALL, *FAST)
OTHER = (*TEACHER, "network=resnet14", "name=mine.RN14")
DECISIONS = "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth"
# What DESIGN.md section 2 promises of every results.json.
PROMISED = {
    "config", "mode", "dataset", "epochs", "top1", "top5", "best_top1", "best_epoch", "seed", "device", "precision",
    "images_per_second", "seconds",
}  # fmt: skip


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a mistake of the user's gets."""
        assert self.status == 1, self
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.out + self.err
        return self.err.strip()


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command line in this process with its outputs below `tmp_path`."""

    def run(*words: str, name: str | None = None, localpath: Path = tmp_path) -> Outcome:
        capsys.readouterr()
        argv = ["main_classification.py", *([name] if name else []), "with", *words]
        status = main_classification.main([*argv, f"localpath={localpath}"])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(few_digits, supervision, tmp_path_factory) -> Path:
    """A teacher of one epoch, its supervision, and a letKD-2 run of three epochs, the last of which is not the best."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    destructive = ("epochs=3", "milestones=[2]", "lr_factor=40", "keep_every=1")
    assert main_classification.main(["main.py", "with", *PAIR, *destructive, f"localpath={folder}"]) == 0
    return folder


@pytest.fixture
def short_teacher(monkeypatch) -> None:
    """digits.RN8 has one epoch where no command line can say so: when it is prepared for another run."""
    monkeypatch.setitem(importlib.import_module("config.digits.RN8").config, "epochs", 1)


@pytest.fixture
def tree(finished, tmp_path) -> Path:
    """A copy of `finished` to break, where `command` has its outputs."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(path: Path) -> dict:
    """A JSON document without its checksum, where it has one."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}


def products(folder: Path) -> set[Path]:
    """All files that a run makes but its log and locks: checkpoints, supervision, results, curves, unfinished files."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path for path in files if path.parts[0] != "sacred" and path.name not in ("log.txt", ".lock", ".results.lock")
    }


# --- names, keys and types -------------------------------------------------------------------------------------------


def test_unknown_config_names_the_nearest(command):
    assert "'digits.RN14_RN8.letKD-2'" in command("config=digits.RN14_RN8.letkd-2").error


@pytest.mark.parametrize("name", ["digits", "recipes", "", "5", ".."])
def test_what_is_no_experiment_is_an_unknown_config(name, command, tmp_path):
    assert f"unknown config '{name}'" in command(f"config={name}").error
    assert not products(tmp_path)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("learning_rat=0.1", "'learning_rate'"),
        ("evalute=True", "'evaluate'"),
        ("lda=5", "'LDA'"),
        ("Kmeans=5", "'kmeans'"),
    ],
)
def test_unknown_key_names_the_nearest(word, nearest, command, tmp_path):
    error = command(*TEACHER, word).error
    assert repr(word.split("=")[0]) in error and nearest in error
    assert not products(tmp_path)


def test_a_key_of_another_method_is_unknown(command):
    assert "no option num_words: it is one of methods with words" in command(*TEACHER, "num_words=16").error


def test_a_word_without_a_value_is_named(command, tmp_path):
    assert "epochs" in command(*TEACHER, "epochs").error
    assert not products(tmp_path)


@pytest.mark.parametrize(
    "word",
    [
        "epochs=many", "epochs=1.5", "epochs=True", "learning_rate=fast", "cuda=maybe", "dataset=5", "milestones=5",
        "image_size=abc", "mean=0.5", "mean=[a,b,c]", "std=x", "data_dir=5", "milestones=['a','b']",
    ],
)  # fmt: skip
def test_wrong_type_names_the_key(word, command, tmp_path, short_teacher):
    words = [kept for kept in TEACHER if kept.split("=")[0] != word.split("=")[0]]
    assert word.split("=")[0] in command(*words, word).error
    assert not products(tmp_path)


@pytest.mark.parametrize("word", ["epochs=0", "epochs=-1", "batch_size=0", "batch_size=5000", "disp_step=0"])
def test_impossible_numbers_are_refused(word, command, tmp_path):
    assert word.split("=")[0] in command(*TEACHER, word).error
    assert not products(tmp_path)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("name=mine.other network=resnet9", "'resnet8'"),
        ("dataset=digit", "'digits'"),
        ("precision=fp16", "fp32"),
        ("method=clasification", "'classification'"),
    ],
)
def test_unknown_names_come_with_the_nearest(word, nearest, command, tmp_path):
    error = command(*TEACHER, *word.split()).error
    value = word.rpartition("=")[2]
    assert repr(value) in error and nearest in error.replace(repr(value), "")
    assert not products(tmp_path)


def test_a_method_that_does_not_fit_the_experiment_is_refused(command, tmp_path):
    assert "letKD-1" in command(*TEACHER, "method=letKD-1").error
    assert not products(tmp_path)


def test_a_misspelt_student_stops_before_anything_is_prepared(command, tmp_path, short_teacher):
    assert "'resnet8'" in command(*PAIR, "student=resnt8", "prepare=True").error
    assert not products(tmp_path)


# --- what is missing -------------------------------------------------------------------------------------------------


def made_by(error: str) -> list[str]:
    """The words after `with` of the command that an error gives."""
    assert error.count(PYTHON_MAIN) == 1, error
    return shlex.split(error.partition(PYTHON_MAIN)[2])


def test_what_is_missing_is_made_by_the_commands_that_the_errors_give(command, tmp_path, short_teacher):
    jobs = []
    while (outcome := command(*PAIR, "epochs=1")).status:
        assert len(jobs) < 3, f"{outcome.error} after {jobs}"
        words = made_by(outcome.error)
        assert not any("letKD-2" in str(path) for path in products(tmp_path))
        jobs.append(words)
        updates = [word for word in words if not word.startswith("localpath=")]
        assert f"localpath={tmp_path}" in words
        assert command(*updates).status == 0
    assert ["config=digits.RN8" in words for words in jobs] == [True] * 3
    assert [[word for word in words if re.match("(kmeans|LDA)=", word)] for words in jobs] == [
        [],
        ["kmeans=16"],
        ["LDA=5"],
    ]


def test_the_command_keeps_blanks_in_paths(command, tmp_path):
    folder = tmp_path / "my experiments"
    assert f"localpath={folder}" in made_by(command(*PAIR, localpath=folder).error)


def test_a_teacher_that_nothing_trains_is_said(command):
    words = [word for word in PAIR if not word.startswith("teacher_exp") and not word.startswith("supervision")]
    assert "nothing says what the weights of the teacher resnet8 are" in command(*words).error
    told = "digits.RN14 trains resnet14, and the teacher is resnet8: give its own experiment"
    assert told in command(*words, "teacher_experiment=digits.RN14").error


def test_published_teachers_are_downloaded(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = command("config=CIFAR100.resnetv1.RN56_RN20.letKD-1", "cuda=False").error
    assert error.endswith("python download_cifar100_teacher.py resnet56_vanilla")
    assert not products(tmp_path)


def test_a_failed_download_stops_the_preparation(command, tmp_path, monkeypatch):
    import download_cifar100_teacher

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download_cifar100_teacher, "main", lambda words: asked.append(words) or 1)
    words = ("config=CIFAR100.resnetv1.RN56_RN20.letKD-1", "cuda=False", "prepare=True")
    assert "download failed" in command(*words).error
    assert asked == [["resnet56_vanilla"]] and not products(tmp_path)


def test_prepare_makes_everything_that_is_missing(command, tmp_path, short_teacher):
    assert command(*PAIR, "epochs=1", "prepare=True").status == 0
    assert {Path(name) for name in (
        "digits/RN8/last.pth",
        "VQ/digits/RN8/codebook_K16.pth",
        "LDA/digits/RN8/decisions_layer3.0_S2_L60.pth",
        "mine/RN8_RN8/letKD-2/last.pth",
    )} <= products(tmp_path)  # fmt: skip


def test_preparing_does_not_change_the_run(command, tmp_path, short_teacher):
    def trained() -> dict[str, torch.Tensor]:
        assert command(*PAIR, "epochs=1", "prepare=True").status == 0
        return torch.load(tmp_path / "mine/RN8_RN8/letKD-2/last.pth", weights_only=True)["model"]

    prepared, again = trained(), trained()
    assert [name for name in prepared if not torch.equal(prepared[name], again[name])] == []


def test_prepare_leaves_alone_what_is_there(command, tree):
    before = {path: (tree / path).stat().st_mtime_ns for path in products(tree) if "RN8_RN8" not in path.parts}
    (tree / "VQ/digits/RN8/codebook_K16.pth").unlink()
    assert command(*PAIR, "epochs=1", "prepare=True").status == 0
    after = {path: (tree / path).stat().st_mtime_ns for path in before}
    changed = {path for path in before if after[path] != before[path]}
    assert {path.name for path in changed} == {"codebook_K16.pth", "results.json"}
    assert {path.parts[0] for path in changed} == {"VQ"}


def test_evaluating_what_was_not_trained_gives_the_command_that_trains_it(command, tmp_path):
    assert "config=digits.RN14_RN8.letKD-2" in made_by(command(*PAIR, "evaluate=True").error)
    assert not products(tmp_path)


# --- checkpoints that do not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (*PAIR, "teacher=resnet14"),
        (*OTHER, "evaluate=True"),
        (*OTHER, "checkpoint=-1", "epochs=2"),
        (*OTHER, "kmeans=8"),
        (*OTHER, "LDA=5"),
    ],
    ids=["teacher", "evaluate", "checkpoint", "kmeans", "LDA"],
)
def test_weights_of_another_architecture_name_the_tensors(words, command, tree):
    teacher = tree / ("mine/RN14" if "name=mine.RN14" in words else "digits/RN8")
    if not teacher.is_dir():
        shutil.copytree(tree / "digits/RN8", teacher)
    before = products(tree)
    error = command(*words).error
    assert "missing: layer1.1.conv1.weight" in error and str(teacher) in error
    assert products(tree) == before


@pytest.fixture
def images(tmp_path_factory) -> Path:
    """Two classes of four images, as ImageFolder takes them."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 8, 8, 3), dtype=np.uint8)
    for split, classes in zip(("train", "val"), pixels, strict=True):
        for label, files in zip(("cat", "dog"), classes, strict=True):
            (folder / split / label).mkdir(parents=True)
            for number, image in enumerate(files):
                Image.fromarray(image).save(folder / split / label / f"{number}.png")
    return folder


def folder_words(images: Path) -> tuple[str, ...]:
    return ("config=ImageFolder.RN8", f"data_dir={images}", "epochs=1", "batch_size=4", "num_workers=0", "cuda=False")


@pytest.mark.parametrize("method", ["KD", "SRRL"])
def test_a_teacher_of_other_classes_is_refused_where_its_logits_are_read(method, command, tree, images):
    pair = (f"config=ImageFolder.RN20_RN8.{method}", "name=mine.pair", *SUPERVISION[:2], *folder_words(images)[1:])
    error = command(*pair).error
    assert "ImageFolder has 2 classes where 10 are expected; class 0 is 'cat', expected '0'" in error
    assert "the teacher" in error and "digits/RN8/last.pth" in error


def test_a_teacher_of_other_classes_is_taken_for_its_maps(command, tree, images):
    pair = ("config=ImageFolder.RN20_RN8.letKD-1", "name=mine.pair", *SUPERVISION, "num_words=16")
    error = command(*pair, *folder_words(images)[1:]).error
    assert "codebook_K16.pth was made with another dataset (digits, this run has ImageFolder)" in error


def test_a_damaged_checkpoint_is_named(command, tree):
    path = tree / "digits/RN8/last.pth"
    path.write_bytes(path.read_bytes()[:5000])
    assert str(path) in command(*TEACHER, "evaluate=True").error


# --- supervision jobs ------------------------------------------------------------------------------------------------


def test_more_words_than_patches_are_refused(command, tree):
    before = products(tree)
    error = command(*TEACHER, "kmeans=1025").error
    assert "1025" in error and "1024" in error  # 256 images of 2 x 2 patches
    assert "1024" not in command(*TEACHER, "kmeans=100", "max_patches=99").error
    assert products(tree) == before


def test_words_go_before_files_whatever_an_option_is_called_there(command, tree, tmp_path):
    file = tmp_path / "fewer.json"
    file.write_text('{"ksubset": 99}')
    assert "kmeans=100 is more than the 99 patches" in command(*TEACHER, "kmeans=100", str(file)).err
    assert command(*TEACHER, "kmeans=100", str(file), "max_patches=100").status == 0


@pytest.mark.parametrize("index", [1, 6])
def test_an_index_that_is_no_stage_is_refused_with_the_stages(index, command, tree):
    before = products(tree)
    error = command(*TEACHER, f"LDA={index}").error
    assert f"LDA={index}" in error
    assert all(stage in error for stage in ("3 (layer1)", "4 (layer2)", "5 (layer3)"))
    assert products(tree) == before


def test_jobs_are_run_one_at_a_time(command, tree):
    error = command(*TEACHER, "kmeans=8", "LDA=5").error
    assert "kmeans" in error and "LDA" in error
    assert "evaluate" in command(*TEACHER, "kmeans=8", "evaluate=True").error


@pytest.mark.parametrize("job", ["kmeans=16", "LDA=5", "LDA=layer3.0", "LDA=intermediate"])
def test_supervision_of_a_pair_is_that_of_its_teacher(job, command, tree):
    """The same file at the same place, as if the teacher had been named, and none of the pair's own."""
    path = tree / ("VQ/digits/RN8/codebook_K16.pth" if "kmeans" in job else DECISIONS)
    before, others = contents(path), products(tree)
    path.unlink()
    assert command(*PAIR, job).status == 0
    assert contents(path) == before and products(tree) == others


def contents(path: Path) -> str:
    """What a file of supervision holds, but for where the weights lay."""
    content = load_tensors(path)
    for made in content["maps"].values():
        assert Path(made["record"].pop("weights")).name == "last.pth"
        made["tensors"] = fingerprint(made["tensors"])
    return str(content)


@pytest.mark.parametrize("job", ["kmeans=8", "LDA=5"])
def test_supervision_of_an_untrained_network_gives_the_command_that_trains_it(job, command, tmp_path):
    made = made_by(command(*TEACHER, job).error)
    assert "config=digits.RN8" in made and job not in made
    assert not products(tmp_path)


# --- folders of images -----------------------------------------------------------------------------------------------


def test_a_good_folder_trains(command, images):
    assert command(*folder_words(images)).status == 0


def test_a_folder_of_one_class_is_refused(command, images, tmp_path):
    shutil.rmtree(images / "train" / "dog")
    error = command(*folder_words(images)).error
    assert str(images / "train") in error and "'cat'" in error
    assert not products(tmp_path)


def test_a_class_without_images_is_refused(command, images, tmp_path):
    for path in (images / "train" / "dog").iterdir():
        path.unlink()
    assert str(images / "train" / "dog") in command(*folder_words(images)).error
    assert not products(tmp_path)


def test_an_empty_folder_is_refused(command, tmp_path):
    assert f"{tmp_path}/none" in command(*folder_words(tmp_path / "none")).error
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty" in command(*folder_words(tmp_path / "empty")).error


@pytest.mark.parametrize("extra", [(), ("num_workers=2",)])
def test_an_unreadable_image_is_named(extra, command, images, tmp_path):
    bad = images / "train" / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    words = [word for word in folder_words(images) if not extra or not word.startswith("num_workers")]
    assert str(bad) in command(*words, *extra).error
    assert not products(tmp_path)


# --- what the commands leave -----------------------------------------------------------------------------------------


def test_without_a_gpu_the_run_goes_on_and_says_so(command, tree, monkeypatch):
    numerics._say_no_gpu.cache_clear()  # it is said once a process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = command("config=digits.RN8", "image_size=8", "cuda=True", "evaluate=True")
    assert outcome.status == 0 and "no GPU" in outcome.out
    assert "no GPU" not in command(*TEACHER, "evaluate=True").out


def shown_config(out: str) -> dict[str, str]:
    """Keys and values that print_config shows; sacred colours the changed ones."""
    plain = re.sub(r"\x1b\[\d*m", "", out)
    return dict(re.findall(r"^\s*(\w+) = (.*?)(?:\s+#.*)?$", plain, flags=re.M))


@pytest.mark.parametrize("name", ["digits.RN8", "digits.RN14_RN8.letKD-2", "digits.RN14_RN8.QuEST"])
def test_print_config_shows_every_key(name, command, tmp_path):
    shown = shown_config(command(f"config={name}", name="print_config").out)
    assert set(shown) >= set(main_classification.default_config(name))
    assert not any(tmp_path.iterdir())


def other(value):
    """Another value of the same type, as it is written on the command line."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [1, 2] if isinstance(value, list) else "other"


def test_every_key_can_be_overridden(command, tmp_path):
    name = "digits.RN14_RN8.letKD-2"
    typed_by_use = {"image_size": 24, "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]}
    typed_by_use |= {"learning_rates": ["conv1=0.5"], "freeze": ["conv1"], "betas": [0.8, 0.9], "eps": 1e-6}
    typed_by_use |= dict.fromkeys(("clip_gradients", "dropout", "drop_path"), 0.5)
    typed_by_use |= dict.fromkeys(("view_seed", "teacher_cache_top", "teacher_size", "student_size"), 32)
    typed_by_use |= {key: [0.1, 0.2, 0.3] for key in ("teacher_mean", "teacher_std", "student_mean", "student_std")}
    typed_by_use |= {"color_jitter": [0.4, 0.4, 0.4, 0.1]}
    skipped = {"config", "localpath"}
    defaults = main_classification.default_config(name)
    wanted = {key: other(value) for key, value in defaults.items() if key not in skipped} | typed_by_use
    out = command(f"config={name}", *(f"{key}={value}" for key, value in wanted.items()), name="print_config").out
    assert {key: shown_config(out).get(key) for key in wanted} == {key: repr(value) for key, value in wanted.items()}


def test_the_run_is_recorded_with_its_overrides(command, tmp_path):
    words = (*TEACHER, "epochs=1", "milestones=[1,2]", "mean=[0.3,0.4,0.5]", "learning_rate=0.01", "seed=3")
    assert command(*words).status == 0
    recorded = read(tmp_path / "sacred" / "1" / "config.json")
    expected = main_classification.default_config("digits.RN8") | {
        "image_size": 8, "cuda": False, "epochs": 1, "milestones": [1, 2], "mean": [0.3, 0.4, 0.5],
        "learning_rate": 0.01, "seed": 3, "localpath": str(tmp_path),
    }  # fmt: skip
    assert recorded == expected
    run = read(tmp_path / "sacred" / "1" / "run.json")
    assert run["status"] == "COMPLETED"
    results = read(tmp_path / "digits/RN8/results.json")
    assert results["options"] == expected and results["seed"] == 3


def test_a_failed_run_is_recorded_as_failed(command, tmp_path):
    assert "became nan" in command(*TEACHER, "learning_rate=1e9").error
    assert read(tmp_path / "sacred" / "1" / "run.json")["status"] == "FAILED"


MISTAKES = {
    "network": (*TEACHER, "network=resnet9", "name=mine.other"),
    "place": (*PAIR, "name=mine.place", "words_place=layer9"),
    "classes": (*PAIR, "name=mine.classes", "teacher_weights=seven.pth", "codebook=VQ/digits/RN8/codebook_K16.pth"),
    "words": (*TEACHER, "kmeans=100000", "name=mine.words", "trained_as=digits.RN8"),
    "stage": (*TEACHER, "LDA=1", "name=mine.stage", "trained_as=digits.RN8"),
    "missing": (*PAIR, "name=mine.missing", "num_words=17"),
    "preparation": (*OTHER, "name=mine.prepared", "kmeans=100000", "prepare=True", "val_split=300"),
    "weights": (*TEACHER, "evaluate=True", "name=mine.weights", "weights=nowhere.pth"),
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("is_recorded", [True, False], ids=["with records", "without"])
def test_a_mistake_that_is_found_before_a_job_begins_leaves_nothing(words, is_recorded, command, tree, monkeypatch):
    monkeypatch.chdir(tree)
    torch.save(create_model("resnet8", num_classes=7).state_dict(), tree / "seven.pth")
    if not is_recorded:
        shutil.rmtree(tree / "sacred")
    before = set(tree.rglob("*"))
    assert command(*words).error
    assert set(tree.rglob("*")) == before


def test_a_mistake_makes_no_folder(command, tmp_path):
    assert command(*TEACHER, "network=resnet9", "name=mine.other", localpath=tmp_path / "new" / "one").error
    assert not any(tmp_path.iterdir())


def test_a_mistake_in_a_directory_that_is_there_is_logged_and_recorded(command, tree):
    number = len([*(tree / "sacred").glob("[0-9]*")])
    torch.save(create_model("resnet14", num_classes=10).state_dict(), tree / "other.pth")
    assert command(*PAIR, f"teacher_weights={tree / 'other.pth'}").error
    assert "does not hold resnet8 with 10 classes" in (tree / "mine/RN8_RN8/letKD-2/log.txt").read_text()
    assert read(tree / "sacred" / str(number + 1) / "run.json")["status"] == "FAILED"


@pytest.mark.parametrize("is_shared", [True, False], ids=["beside a training", "alone"])
def test_a_mistake_of_an_evaluation_leaves_what_a_training_has_begun(is_shared, command, tmp_path, monkeypatch):
    directory, training = tmp_path / "mine" / "net", ExitStack()

    def fail(job: Evaluation) -> None:
        assert job.directory == directory
        if is_shared:
            training.enter_context(exclusive(directory))
        raise ValueError("a mistake")

    monkeypatch.setattr(Evaluation, "_run", fail)
    with training:
        assert command(*TEACHER, "name=mine.net", "evaluate=True").error == "error: a mistake"
        assert {path.name for path in directory.glob("*")} == ({"log.txt", ".lock"} if is_shared else set())
    assert directory.exists() == is_shared


def test_a_mistake_leaves_the_record_that_another_process_has_begun_meanwhile(command, tmp_path, monkeypatch):
    other = tmp_path / "new" / "sacred" / "7" / "run.json"
    rmtree = shutil.rmtree

    def begin_and_remove(path: Path, **options: Any) -> None:
        if Path(path).name in ("sacred", "_sources"):  # the last that goes, after a look at what else is there
            other.parent.mkdir()
            other.write_text("{}")
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", begin_and_remove)
    assert command(*TEACHER, "evaluate=True", localpath=tmp_path / "new").error
    assert other.read_text() == "{}"


def test_an_observer_on_the_command_line_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["with", "config=digits.RN8", "evaluate=True", "localpath=here", "-F", "elsewhere"]
    main_classification.main(["main_classification.py", *words])
    assert (tmp_path / "elsewhere" / "1" / "config.json").is_file()


def test_a_training_leaves_what_is_promised(finished):
    folder = finished / "mine/RN8_RN8/letKD-2"
    results = read(folder / "results.json")
    assert set(results) >= PROMISED
    assert not [key for key in PROMISED if results[key] is None]
    facts = {key: results[key] for key in ("config", "mode", "dataset", "epochs", "seed", "precision")}
    assert facts == {
        "config": "mine.RN8_RN8.letKD-2",
        "mode": "train",
        "dataset": "digits",
        "epochs": 3,
        "seed": 0,
        "precision": "fp32",
    }
    assert 0 <= results["top1"] <= results["top5"] <= 100
    # A KD layer of K templates on C channels: templates, semantic vectors, BatchNorm, two scales.
    layers = [(64, 16), (64, 20)]
    added = sum(2 * channels * words + 2 * words + 2 for channels, words in layers)
    assert results["parameters"] - results["parameters_without_kd_layers"] == added
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "best.pth", "last.pth", "previous.pth", "epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "log.txt", "results.json",
        "tensorboard", ".lock", ".results.lock",
    }  # fmt: skip
    log = (folder / "log.txt").read_text()
    assert len(re.findall(r"  epoch \d/3  ", log)) == 3


@pytest.mark.parametrize(("place", "mode"), [("VQ", "kmeans"), ("LDA", "LDA")])
def test_supervision_jobs_leave_what_is_promised(place, mode, finished):
    results = read(finished / place / "digits/RN8/results.json")
    assert set(results) >= PROMISED
    assert results["mode"] == mode and results["config"] == "digits.RN8"
    assert Path(results["file"]).is_file()


def test_the_first_line_of_the_log_repeats_the_command(command, tree, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_classification.py", "with", "config=digits.RN8"])
    command(*TEACHER, "evaluate=True")
    assert "$ main_classification.py with config=digits.RN8" in (tree / "digits/RN8/log.txt").read_text()


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tree) -> Path:
    """A finished letKD-2 run without its teacher and supervision."""
    for place in ("digits/RN8", "VQ", "LDA"):
        shutil.rmtree(tree / place)
    return tree / "mine/RN8_RN8/letKD-2"


def test_evaluation_needs_no_teacher_and_repeats_the_training_exactly(command, alone):
    trained = read(alone / "results.json")
    assert trained["best_top1"] != trained["top1"], "the fixture's last epoch should not be its best"
    assert command(*PAIR, "evaluate=True").status == 0
    assert command(*PAIR, "evaluate=True", "best=True").status == 0
    results = read(alone / "results.json")
    last, best = results["evaluations"]["last"], results["evaluations"]["best"]
    assert (last["top1"], last["top5"], last["epoch"]) == (trained["top1"], trained["top5"], 3)
    assert (best["top1"], best["epoch"]) == (trained["best_top1"], trained["best_epoch"])
    assert {key: results[key] for key in trained} == trained


def test_evaluation_of_an_earlier_epoch_is_recorded_under_its_own_name(command, alone):
    assert command(*PAIR, "evaluate=True").status == 0
    assert command(*PAIR, "evaluate=True", "checkpoint=1").status == 0
    evaluations = read(alone / "results.json")["evaluations"]
    assert {name: found["epoch"] for name, found in evaluations.items()} == {"last": 3, "epoch_1": 1}
    assert evaluations["epoch_1"]["weights"].endswith("epoch_1.pth")


def test_evaluation_leaves_the_checkpoints_alone(command, alone):
    before = {path: path.read_bytes() for path in alone.glob("*.pth")}
    assert command(*PAIR, "evaluate=True").status == 0
    assert {path: path.read_bytes() for path in alone.glob("*.pth")} == before


def test_a_missing_split_is_refused(command, alone):
    assert "'test'" in command(*PAIR, "evaluate=True", "testset=True").error


# --- as a process ----------------------------------------------------------------------------------------------------


def test_a_mistake_is_one_line_and_status_1():
    command = [sys.executable, "main_classification.py", "with", "config=digits.RN9"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    outcome = Outcome(process.returncode, process.stdout, process.stderr)
    assert "'digits.RN8'" in outcome.error and outcome.out == ""


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["config=A.B"], "options stand behind `with`: python main.py with config=A.B"),
        (
            ["report", "localpath=a b"],
            "options stand behind `with`: python main.py report with 'localpath=a b'",
        ),
        (["config=A.B", "with", "seed=1"], "options stand behind `with`: python main.py with config=A.B seed=1"),
        (["with", "config=A.B", "print_config"], "the command print_config stands before `with`"),
        (["with", "config=A.B", "milestones=[10,", "15]"], "'15]' is no option key=value; one with blanks needs"),
        (["with", "config=A.B", "evalute"], "'evalute' is no option key=value"),
    ],
)
def test_a_word_in_the_wrong_place_is_named(words, error, capsys):
    assert main_classification.main(["main.py", *words]) == 1
    assert capsys.readouterr().err.startswith(f"error: {error}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-h", "Commands:"),
        ("with config=digits.RN8 --help", "Commands:"),
        ("report --help", "Write a page and a Markdown file of all results"),
        ("-h study --dry-run with pairs=digits.RN14_RN8", "Train every method of every pair with every seed"),
    ],
)
def test_help_may_stand_anywhere(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        sys.exit(main_classification.main(["main.py", *words.split()]))
    assert not end.value.code and said in capsys.readouterr().out


@pytest.mark.parametrize("words", ["report", "print_config -l INFO with config=A.B -F runs -d", "help run", ""])
def test_words_in_their_places_are_sacreds(words):
    main_classification.check_words(["main.py", *words.split()])


def test_options_may_come_from_a_file(tmp_path, capsys):
    path = tmp_path / "options.json"
    path.write_text('{"config": "digits.RN8", "epochs": 77}')
    assert main_classification.main(["main.py", "print_config", "with", str(path)]) == 0
    assert "epochs = 77" in capsys.readouterr().out


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown config"):
        main_classification.main(["main_classification.py", "--debug", "with", "config=nothing"])


def test_a_published_file_is_compared_with_its_published_figure(command, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "published.pth"
    torch.save({"model": create_model("resnet8", num_classes=10).state_dict()}, path)
    words = (*TEACHER, f"published_weights={path}", "evaluate=True")
    unknown = command(*words)
    assert unknown.status == 0 and "difference" not in unknown.out
    top1 = json.loads((tmp_path / "digits/RN8/results.json").read_text())["top1"]
    near, far = (command(*words, f"published_top1={figure}") for figure in (top1 + 0.4, top1 - 0.6))
    assert f"published  {top1 + 0.4:.2f}%, difference -0.40" in near.out and "warning" not in near.out
    command(*TEACHER, f"weights={shutil.copy(path, tmp_path / 'other.pth')}", "evaluate=True")
    assert set(read(tmp_path / "digits/RN8/results.json")["evaluations"]) == {"published", "other"}
    assert "difference +0.60\nwarning: more than 0.5 from the published figure" in far.out


@pytest.mark.parametrize(
    ("words", "has_state", "expected"),
    [
        ("with config=A.B checkpoint=3", True, "with config=A.B checkpoint=-1"),
        ("with config=A.B checkpoint=3", False, "with config=A.B checkpoint=3"),
        ("run with config=A.B", True, "run with config=A.B checkpoint=-1"),
        ("", True, "with checkpoint=-1"),
        ("print_config", False, "print_config"),
    ],
)
def test_what_goes_on_is_the_same_command(words, has_state, expected):
    found = main_classification.continuation(["main.py", *words.split()], has_state=has_state)
    assert found == f"main.py {expected}"


def write_noise(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_tiny_imagenet_as_published_trains_and_evaluates(command, tmp_path):
    root, annotations = tmp_path / "tiny-imagenet-200", []
    for wnid in ("n01443537", "n01629819", "n01641577"):
        for number in range(4):
            write_noise(root / f"train/{wnid}/images/{wnid}_{number}.JPEG", (64, 64))
        write_noise(root / f"val/images/val_{len(annotations)}.JPEG", (64, 64))
        annotations.append(f"val_{len(annotations)}.JPEG\t{wnid}\t0\t0\t62\t57\n")
    (root / "val/val_annotations.txt").write_text("".join(annotations))
    words = ("config=TinyImageNet.resnetv1.RN20", f"data_dir={tmp_path}", "cuda=False", "num_workers=0")
    assert command(*words, "epochs=1", "batch_size=4").status == 0
    assert command(*words, "evaluate=True").status == 0
    results = read(tmp_path / "TinyImageNet/resnetv1/RN20/results.json")
    assert results["evaluations"]["last"]["top1"] == results["top1"]
    assert "no split 'test'" in command(*words, "evaluate=True", "testset=True").error


def test_imagenet_folders_train_and_evaluate(command, tmp_path):
    for wnid in ("n01440764", "n01443537"):
        for number in range(4):
            write_noise(tmp_path / f"train/{wnid}/{wnid}_{number}.JPEG", (90, 70))
        write_noise(tmp_path / f"val/{wnid}/ILSVRC2012_val_{wnid}.JPEG", (70, 90))
    words = ("config=ImageNet.RN18", "network=resnet8", "name=mine.RN8", f"data_dir={tmp_path}", "image_size=64")
    words += ("cuda=False", "num_workers=0")
    assert command(*words, "epochs=1", "batch_size=4").status == 0
    assert command(*words, "evaluate=True").status == 0
    results = read(tmp_path / "mine/RN8/results.json")
    assert results["evaluations"]["last"]["top1"] == results["top1"]
