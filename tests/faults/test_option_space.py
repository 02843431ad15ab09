"""Any combination of options either runs, or stops with one line: never a traceback.

Command lines are drawn from all options of the entry and all keys of an experiment, with values that are meant and
values that are not, for every job but the report, which refuses all options but two
(`algorithms/test_options.py::test_the_report_reads_a_place_alone`). What runs is real but small: one epoch of one step
on 80 digits. Pictures are laid out and not painted.
"""

import contextlib
import importlib
import io
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sacred.observers
from digits_tools import fewer_digits
from fault_tools import SMALL, TEACHER, run_here, short_and_long
from PIL import Image

import download_cifar100_teacher
import main_classification
import reporting.pictures.base
from algorithms import export

if TYPE_CHECKING:
    from hypothesis import strategies as st

# What every drawn command line begins with, so that an experiment fits the small data and the small teacher.
SMALL_PAIR = {
    "dataset": "digits",
    "teacher": "resnet8",
    "student": "resnet8",
    "teacher_experiment": "digits.RN8",
    "supervision": "digits.RN8",
    "num_words": 16,
    "subclasses_per_class": 2,
    "published_weights": None,
}
SMALL_RUN = {"image_size": 8, "epochs": 1, "milestones": [], "trials": 0}
EXPERIMENTS = (
    "digits.RN8",
    "digits.RN14_RN8.QuEST",
    "digits.RN14_RN8.letKD-1",
    "digits.RN14_RN8.letKD-2",
    "CIFAR100.resnetv1.RN110_RN32.FitNet-letKD",
)
PHOTOGRAPHS = "images=experiments/photographs"
# Words that ask for a job; the first one is a command where it has no sign of equality.
JOBS = (
    "", "", "", "", "evaluate=True", "evaluate=True", "probe=True", "layers=True", "kmeans=8", "kmeans=8",
    "LDA=5", "LDA=3", "kmeans=8 LDA=5", "export=onnx", "export=pt2", f"predict {PHOTOGRAPHS}",
    f"predict {PHOTOGRAPHS}", "predict", "picture_confusion", "picture_usage", "pictures",
)  # fmt: skip

# Values that some key may take; a key of another kind gets them as well.
NUMBERS = (-1, 0, 1, 2, 3, 5, 64, 10**30, -0.5, 0.0, 0.5, 1e-30, 1e30, float("nan"), float("inf"))
NAMES = (
    "digits", "ImageFolder", "resnet8", "resnet14", "wrn_16_1", "mobilenetv2", "letKD-1", "letKD-2", "QuEST", "FitNet",
    "classification", "digits.RN8", "digits.RN14_RN8.letKD-2", "CIFAR100.WRN.WRN40w2_downscale", "fp32", "bf16", "tf32",
    "ema", "penultimate", "intermediate", "", ".", "..", "a/b", "last.pth", "results.json", "nonsense", "with a blank",
    "ü", "/dev/null", "/proc/nothing", "onnx", "pt2", "json", "experiments/photographs",
    "experiments/photographs/0.png",
)  # fmt: skip
OTHERS = (None, True, False, [], [0], [1, 2], [2, 1], ["a"], [0.5, 0.5, 0.5], [0, 0, 0], {}, {"a": 1})
VALUES = (*NUMBERS, *NAMES, *OTHERS)
# What takes long when it is granted: more epochs, larger images, wider layers. The others may have any value.
LIMITS = {"epochs": 2, "image_size": 16, "num_words": 64, "trials": 2, "subclasses_per_class": 5, "kmeans": 64}
LIMITS |= {"teacher_size": 16, "student_size": 16, "network_size": 16}
# Drawn otherwise, given by the test, or in need of a server.
FIXED = {"config", "localpath", "mongo"}


def near(default: Any) -> "st.SearchStrategy[Any]":
    """Values of the type of a default, many of them good ones."""
    from hypothesis import strategies as st

    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, (int, float)):
        return st.sampled_from([default, 1, 2, 5, 0.5])
    return st.just(default)


def command_lines() -> "st.SearchStrategy[list[str]]":
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: st.DrawFn) -> list[str]:
        name = draw(st.sampled_from(EXPERIMENTS))
        defaults = main_classification.default_config(name)
        options = {key: value for key, value in (SMALL_PAIR | SMALL_RUN).items() if key in defaults}
        keys = sorted(set(defaults) - FIXED)
        for key in draw(st.lists(st.sampled_from(keys), max_size=4, unique=True)):
            values = near(options.get(key, defaults[key])) if draw(st.booleans()) else st.sampled_from(VALUES)
            options[key] = draw(values.filter(lambda value, key=key: _is_quick(key, value)))
        job = draw(st.sampled_from(JOBS)).split()
        command = job[:1] if job and "=" not in job[0] else []
        words = (f"{key}={value}" for key, value in options.items())
        return [*command, "with", f"config={name}", *words, *job[len(command) :]]

    return drawn()


def _is_quick(key: str, value: Any) -> bool:
    limited = key in LIMITS and isinstance(value, (int, float))
    return not (limited and LIMITS[key] < value < 10**30)


class NoRecords(sacred.observers.RunObserver):
    """In place of those on the disk."""

    def __init__(self, place: Path):
        super().__init__()


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """80 training and 40 evaluation digits, experiments of one epoch, no downloads; a teacher and its supervision."""
    folder = tmp_path_factory.mktemp("world")
    with fewer_digits(80, 40), pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_cifar100_teacher, "main", lambda names: 1)
        patch.setattr(main_classification, "Records", NoRecords)
        patch.setattr(reporting.pictures.base, "save_figure", lambda figure, place: None)
        patch.setattr(export, "TIMED_SECONDS", 0)
        for name in ("digits.RN8", "digits.RN14"):
            module = importlib.import_module(f"config.{name}")
            patch.setitem(module.config, "epochs", 1)
            patch.setitem(module.config, "milestones", [])
        run_here(*TEACHER, "epochs=1", localpath=folder)
        run_here(*TEACHER, "kmeans=16", localpath=folder)
        run_here(*TEACHER, "LDA=5", SMALL[1], localpath=folder)
        (folder / "photographs").mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photographs" / f"{number}.png")
        yield folder


@contextlib.contextmanager
def inside(place: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def runs_or_says_why(words: list[str], world: Path) -> None:
    """Runs a command in a copy of `world`."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as place, inside(place):
        shutil.copytree(world, "experiments", ignore=shutil.ignore_patterns("log.txt", ".lock"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main_classification.main(["main_classification.py", *words, "cuda=False"])
        assert not list(Path(place).rglob("*.part")), "an unfinished file was left behind"
    shown = f"{words}\n{err.getvalue()}"
    assert "Traceback" not in out.getvalue() + err.getvalue(), shown
    failed = status == 1 and err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1
    assert status == 0 or failed, shown


@short_and_long("number", 20, 1500)
def test_every_command_line_runs_or_says_why(number, small_world):
    from hypothesis import HealthCheck, given, settings

    repeatable = settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    repeatable(given(command_lines())(lambda words: runs_or_says_why(words, small_world)))()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_key_takes_or_refuses_any_value(name, small_world):
    """One key at a time, so that nothing else is refused before it."""
    defaults = main_classification.default_config(name)
    options = {key: value for key, value in (SMALL_PAIR | SMALL_RUN).items() if key in defaults}
    pairs = [(key, value) for key in sorted(set(defaults) - FIXED) for value in VALUES]
    for key, value in random.Random(name).sample(pairs, 600):
        if _is_quick(key, value):
            words = [f"{option}={chosen}" for option, chosen in (options | {key: value}).items()]
            runs_or_says_why(["with", f"config={name}", *words], small_world)
