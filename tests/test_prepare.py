"""`prepare=True`: what it says before it begins, what it refuses at once, and that Ctrl-C ends it wherever it comes."""

import importlib
import signal
import sys
import time

import pytest
import torch
from PIL import Image

import algorithms
import main_classification
from algorithms import features
from algorithms.prepare import OFFLINE_OPTIONS, TRAINING_OPTIONS, Step
from config.options import OPTIONS
from engine import numerics
from engine.stopping import lost_stops_again
from letkd.processes import Member

PAIR = "ImageFolder.RN20_RN8.letKD-2"
QUEST = "ImageFolder.RN20_RN8.QuEST"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 training images of 8 x 8 in two classes."""
    folder = tmp_path_factory.mktemp("images")
    for split, number in (("train", 20), ("val", 4)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for index in range(number):
                Image.effect_noise((8, 8), 50).convert("RGB").save(folder / split / label / f"{index}.png")
    return folder


@pytest.fixture
def prepare(images, tmp_path, capsys):
    """Runs the pair on the images; returns the exit status and what was printed."""

    def run(*words: str, config: str = PAIR) -> tuple[int, str, str]:
        argv = ["main.py", "with", f"config={config}", f"data_dir={images}", "cuda=False", "num_workers=0"]
        status = main_classification.main([*argv, "prepare=True", f"localpath={tmp_path}", *words])
        return status, *capsys.readouterr()

    return run


def test_a_missing_gpu_is_said_once(prepare, monkeypatch):
    numerics._say_no_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, out, _ = prepare("cuda=True", "batch_size=8", "num_words=16")
    assert "step 4 of 4" in out and out.count("no GPU here") == 1


def test_all_steps_are_said_before_the_first_and_the_error_names_its_run(prepare, images, tmp_path):
    status, out, error = prepare("batch_size=8", "epochs=1", "num_words=16")
    assert status == 1
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {number} of 4" for number in (1, 2, 3, 4)]
    assert "ImageFolder.RN20 (resnet20), epochs=240 batch_size=64; time not known before its first epoch" in lines[0]
    assert "num_words=16" in lines[1] and "subclasses_per_class=8 lda_components=60" in lines[2]
    assert f"{PAIR}, epochs=1 batch_size=8" in lines[3]
    assert (
        f"epochs=1 batch_size=8 are for {PAIR} alone; ImageFolder.RN20 is trained with epochs=240 batch_size=64" in out
    )
    assert error.startswith("error: preparing ImageFolder.RN20: batch_size 64 exceeds the 40 training images")
    command = error.partition("python main_classification.py ")[2].split()
    assert {"config=ImageFolder.RN20", f"data_dir={images}", "batch_size=8", "epochs=1"} <= set(command)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.fixture
def short_teacher(monkeypatch) -> None:
    own = importlib.import_module("config.ImageFolder.RN20").config
    monkeypatch.setitem(own, "epochs", 1)
    monkeypatch.setitem(own, "batch_size", 8)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("batch_size=64", "num_words=16"), f"{PAIR}: batch_size 64 exceeds the 40 training images"),
        (("batch_size=8", "num_words=4096"), "preparing ImageFolder.RN20: num_words=4096 is more than the 160 patches"),
        (
            ("batch_size=8", "num_words=16", "subclasses_per_class=200"),
            "preparing ImageFolder.RN20: class 'a' has 80 patches, too few for subclasses_per_class=200",
        ),
        (
            ("batch_size=8", "num_words=16", "freeze=['cnv1']"),
            f"{PAIR}: freeze: nothing here is called 'cnv1'; there are",
        ),
        (("batch_size=8", "num_words=16", "learning_rates=['losses=2']"), f"{PAIR}: learning_rates: nothing here is"),
        (("batch_size=8", "val_split=39"), "preparing ImageFolder.RN20: cannot hold out 39"),
        (("batch_size=8", "data_dir=nowhere"), "preparing ImageFolder.RN20: there is no folder nowhere"),
    ],
    ids=["batch", "words", "subclasses", "freeze", "rates", "val_split", "folder"],
)
def test_what_a_later_step_would_refuse_is_refused_before_the_first(words, reason, prepare, tmp_path, short_teacher):
    status, _, error = prepare(*words)
    assert status == 1 and error.startswith(f"error: {reason}"), error
    assert not list(tmp_path.rglob("*.pth"))


def test_networks_that_do_not_fit_a_loss_are_refused_before_the_first(prepare, tmp_path, short_teacher):
    name = "ImageFolder.RN20_RN8.AT"
    status, _, error = prepare("batch_size=8", "image_size=8", "student=mobilenetv2", "name=mine.pair", config=name)
    stages = "mobilenetv2 has stage1, stage2, stage3, stage4 and resnet20 stage1, stage2, stage3"
    assert status == 1 and error.startswith(f"error: mine.pair: AT compares networks stage by stage: {stages};")
    assert not list(tmp_path.rglob("*.pth"))


def test_the_job_alone_names_its_own_option(prepare, short_teacher):
    status, _, error = prepare("kmeans=4096", config="ImageFolder.RN20")
    assert status == 1 and "kmeans=4096 is more than the 160 patches" in error


def test_an_option_that_reaches_no_step_says_so(prepare, short_teacher):
    status, out, _ = prepare("kmeans=16", "epochs=3", config="ImageFolder.RN20")
    assert status == 0
    assert "epochs=3 reaches no step; ImageFolder.RN20 is trained with epochs=1" in out
    assert "memmap" not in out


@pytest.mark.parametrize("option", ["codebook", "decisions"])
def test_chosen_supervision_that_is_not_there_is_refused_first(option, prepare, tmp_path):
    status, out, error = prepare(f"{option}=none.pth", "batch_size=8", "epochs=1", "num_words=16")
    assert status == 1 and error == f"error: {option}=none.pth: no file none.pth\n"
    assert "step 1" not in out and not list(tmp_path.glob("**/*.pth"))


def test_times_come_from_an_earlier_run_or_from_measured_steps(prepare, tmp_path, short_teacher):
    words = ("batch_size=8", "epochs=1", "num_words=16", "allow_poor_teacher=True")
    status, out, error = prepare(*words, config=QUEST)
    assert status == 0, error
    assert "step 1 of 3: about 0:00:0" in out and "for its 5 steps" in out
    next(tmp_path.glob("VQ/**/*.pth")).unlink()
    _, out, _ = prepare(*words, config=QUEST)
    steps = [line for line in out.splitlines() if line.startswith("step ") and ";" in line]
    assert [", as before" in line for line in steps] == [True, True]
    (next(tmp_path.glob("VQ/**/results.json"))).write_text("{")  # of no use, and no hindrance
    next(tmp_path.glob("VQ/**/*.pth")).unlink()
    status, out, _ = prepare(*words, config=QUEST)
    assert status == 0 and "time not known beforehand" in out


def test_many_processes_measure_no_steps(prepare, monkeypatch, short_teacher):
    """Each would stop by its own clock, and another would wait for it in a loss of the whole batch."""

    def end(step: Step) -> None:
        raise ValueError("all is checked")

    monkeypatch.setattr("algorithms.run.make_step", end)
    words = ("batch_size=8", "epochs=1", "num_words=16")
    assert "for its 5 steps" in prepare(*words, config=QUEST)[1]
    monkeypatch.setattr("algorithms.prepare.member", lambda: Member(0, 2))
    status, out, error = prepare(*words, config=QUEST)
    assert status == 1 and "all is checked" in error
    assert "time not known before its first epoch" in out and "steps," not in out


def test_every_phase_says_where_in_the_chain_it_is(prepare, short_teacher):
    words = ("batch_size=8", "epochs=1", "num_words=16", "allow_poor_teacher=True")
    status, out, error = prepare(*words, "trials=2")
    assert status == 0, error
    done = [line.rpartition(", done in ")[0] for line in out.splitlines() if ", done in " in line]
    assert done == [
        "step 1 of 4: 1 epoch",
        "step 2 of 4, part 1 of 2: reading patches",
        "step 2 of 4, part 2 of 2: k-means of 16 words",
        "step 3 of 4, part 1 of 4: reading patches",
        "step 3 of 4, part 2 of 4: LDA",
        "step 3 of 4, part 3 of 4: sub-classes",
        "step 3 of 4, part 4 of 4: decisions",
        "step 4 of 4, trial 1 of 2: 1 epoch",
        "step 4 of 4, trial 2 of 2: 1 epoch",
    ]


def test_patches_that_memory_does_not_hold_are_an_error_of_their_step(prepare, monkeypatch, short_teacher):
    monkeypatch.setattr(features, "memory_bytes", lambda device: 1000)
    _, _, error = prepare("batch_size=8", "epochs=1", "num_words=16")
    assert error.startswith("error: preparing ImageFolder.RN20: 160 patches") and "memmap=True" in error


def test_what_steps_inherit_and_what_is_said_where_they_do_not():
    inherited = {name for name, said in OPTIONS.items() if said.inherited}
    assert inherited == {
        "localpath", "data_dir", "seed", "precision", "deterministic", "cuda", "num_workers", "memmap", "memmap_dir",
        "dataset", "image_size", "mean", "std", "val_split", "test_batch_size",
    }  # fmt: skip
    assert set(TRAINING_OPTIONS) == {
        "epochs", "batch_size", "milestones", "learning_rate", "lr_factor", "momentum", "nesterov", "weight_decay",
        "keep_every", "disp_step", "cuda_graph", "ema_decay", "optimizer", "schedule",
        "final_learning_rate", "warmup", "warmup_steps", "learning_rates", "freeze", "decay_norms_and_biases",
        "clip_gradients", "accumulate", "dropout", "drop_path", "sync_bn", "betas", "eps", "mixup", "cutmix",
        "mix_switch", "mix_probability", "mix_off_epoch", "view_seed", "crop", "crop_scale", "crop_ratio",
        "auto_augment", "randaugment_ops", "randaugment_magnitude", "color_jitter", "random_erasing",
    }  # fmt: skip
    assert OFFLINE_OPTIONS == ("memmap", "memmap_dir")


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


class Finalized:
    """Gets signals while Python finalizes it."""

    def __init__(self, *numbers: int):
        self.numbers = numbers

    def __del__(self) -> None:
        for number in self.numbers:
            signal.raise_signal(number)


def test_ctrl_c_in_a_finalizer_comes_again():
    hook, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), lost_stops_again():
        Finalized(signal.SIGINT)
        time.sleep(5)
        pytest.fail("it was lost")
    with pytest.raises(KeyboardInterrupt), lost_stops_again():
        Finalized(signal.SIGINT)  # the context ends before it comes again
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == (hook, alarm)


@pytest.mark.parametrize("command", ["run", "predict", "picture_confusion"])
def test_every_command_brings_a_lost_stop_back(command, tmp_path, monkeypatch):
    def lose(*_: object) -> None:
        Finalized(signal.SIGINT)
        time.sleep(5)
        pytest.fail("it was lost")

    monkeypatch.setattr(algorithms.Prediction, "run", lose)
    for module in (algorithms, algorithms.run):  # for pictures, and for jobs
        monkeypatch.setattr(module, "provide", lose)
    words = [] if command == "run" else [command]
    assert main_classification.main(["main.py", *words, "with", "cuda=False", f"localpath={tmp_path}"]) == 130


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_in_a_finalizer_ends_the_program_before_the_next_step(
    number, status, prepare, monkeypatch, tmp_path, short_teacher
):
    """As where the workers of the teacher's training are ended, between it and the codebook."""
    finish = torch.nn.Module.state_dict
    left = [Finalized(number)]

    def drop(*args, **kwargs):
        left.clear()
        return finish(*args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "state_dict", drop)
    assert prepare("batch_size=8", "epochs=1", "num_words=16")[0] == status
    assert not list(tmp_path.glob("VQ/**/*.pth"))
