"""What is measured of the KD layers of a trained student: `layers=True`."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_tools import fewer_digits
from training_tools import configure, train

import main_classification
from algorithms import run_config
from algorithms.layers import LOSSES, LayerFigures, _Look, exact_output
from config.options import Options
from dataloaders import Dataset
from distillation.objective import Teacher
from engine.checkpoints import set_aside
from letkd import KDLayer
from letkd.layer import TokenKDLayer
from reporting.pictures import PICTURES
from results.settings import MEASUREMENTS
from storage.tensor_files import load_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("few_digits")
OF_SUPERVISION = {"agreement", "divergence", "gradient_share", "divergence_error", "teacher_usage"}


@pytest.fixture(scope="module")
def root(supervision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of letKD-2 beside what supervises it, to be copied."""
    root = tmp_path_factory.mktemp("layers")
    shutil.copytree(supervision, root, dirs_exist_ok=True)
    with fewer_digits():
        train("letKD-2", root, epochs=3, milestones=[2])
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path


def figures(root: Path, **updates: Any) -> dict[str, Any]:
    """What the job measures of letKD-2, by the name of the weights."""
    return run_config(configure("letKD-2", root, layers=True, **updates))["kd_layers"]


def options_of(root: Path) -> Options:
    return Options.of(configure("letKD-2", root))


def test_every_layer_has_every_figure(copied):
    (measured,) = figures(copied).values()
    assert list(measured["layers"]) == ["intermediate", "penultimate"], "as an image meets them"
    for found in measured["layers"].values():
        assert set(found) >= OF_SUPERVISION
        assert all(math.isfinite(value) for value in found.values())
    assert ("teacher_right" in measured["layers"]["intermediate"]) != (
        "teacher_right" in measured["layers"]["penultimate"]
    )


def test_figures_of_a_run_that_has_begun_again_meanwhile_are_not_recorded(copied, monkeypatch):
    opened = LayerFigures._open_images

    def open_images(self: LayerFigures, *args: Any) -> Dataset:
        set_aside(self.directory)
        return opened(self, *args)

    monkeypatch.setattr(LayerFigures, "_open_images", open_images)
    with pytest.raises(ValueError, match="has begun again"):
        figures(copied)


@pytest.mark.parametrize("job", ["layers", "evaluate"])
def test_the_best_epoch_is_measured_where_it_alone_was_kept(job, copied):
    folder = copied / "digits/RN14_RN8/letKD-2"
    for path in (folder / "last.pth", folder / "previous.pth"):
        path.unlink()
    found = run_config(configure("letKD-2", copied, best=True, **{job: True}))
    assert list(found[MEASUREMENTS[job]]) == ["best"]


def test_a_layer_is_left_out_as_alpha_zero_does_it(copied):
    (measured,) = figures(copied).values()
    for place in LOSSES:
        job = configure("letKD-2", copied, evaluate=True, **{f"alpha_{place}": 0.0})
        evaluated = run_config(job)["evaluations"]
        (without,) = (found for name, found in evaluated.items() if f"alpha_{place}" in name)
        assert measured["layers"][place]["top1_without"] == without["top1"]
    whole = run_config(configure("letKD-2", copied, evaluate=True))["evaluations"]["last"]["top1"]
    assert measured["top1"] == whole


def test_words_are_counted_as_the_picture_of_their_use_counts_them(copied):
    (measured,) = figures(copied).values()
    picture = PICTURES["usage"](options_of(copied), "command")
    picture.open()
    teacher_K, student_K, agreement = picture.count()
    found = measured["layers"]["penultimate"]
    assert found["agreement"] == pytest.approx(100 * float(agreement))
    assert found["most_frequent"] == pytest.approx(100 * float(teacher_K.max() / teacher_K.sum()))
    for name, counts_K in (("teacher_usage", teacher_K), ("usage", student_K)):
        share_K = counts_K[counts_K > 0].double() / counts_K.sum()
        assert found[name] == pytest.approx(float((-(share_K * share_K.log()).sum()).exp()))


def test_divergences_are_those_of_the_losses(copied):
    (measured,) = figures(copied).values()
    picture = PICTURES["subclasses"](options_of(copied), "command")
    picture.open()
    objective, sums = picture.objective, dict.fromkeys(LOSSES.values(), 0.0)
    batches = list(picture.loader(picture.dataset, "eval"))
    with torch.no_grad():
        for batch in batches:
            for name, term in objective(batch).terms.items():
                sums[name] += float(term) * len(batch.labels)
    for place, name in LOSSES.items():
        number = sum(len(batch.labels) for batch in batches)
        assert measured["layers"][place]["divergence"] == pytest.approx(sums[name] / number, rel=1e-4)
        assert measured["layers"][place]["divergence_of_mean"] > 0


def test_weights_scale_the_gradients_and_turn_none(copied):
    (one,) = figures(copied).values()
    *_, three = figures(copied, quest_loss_coef=3.0, sub_loss_coef=0.5).values()
    for place, factor in (("penultimate", 3), ("intermediate", 0.5)):
        before, now = one["layers"][place], three["layers"][place]
        assert now["gradient_share"] == pytest.approx(factor * before["gradient_share"])
        assert now["gradient_cosine"] == pytest.approx(before["gradient_cosine"])
        assert -1 <= before["gradient_cosine"] <= 1
    *_, alone = every = figures(copied, cls_loss_coef=0.0).values()
    assert alone["layers"]["penultimate"]["gradient_share"] is None
    assert three["changed"] == {"quest_loss_coef": [1.0, 3.0], "sub_loss_coef": [1.0, 0.5]}
    assert list(every) == [one, three, alone], "those with the training's own weights stay"


def test_gradients_of_tokens_that_are_no_patches_are_left_out():
    layer = TokenKDLayer(KDLayer(4, 3), prefix=1)
    look = _Look(SimpleNamespace(layers={"penultimate": layer}), None, {"words": 1.0, "ce": 1.0}, nullcontext)
    tokens_BNC = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    look._add_gradients("penultimate", tokens_BNC, tokens_BNC[:, 1:].square().sum(), tokens_BNC.square().sum())
    sums = look.sums["penultimate"]
    assert sums["gradient_own"] == sums["gradient_other"] == sums["gradient_both"] > 0


def test_the_teacher_computes_in_the_precision_of_training(copied, monkeypatch):
    seen, call = [], Teacher.__call__

    def spied(teacher: Teacher, images: torch.Tensor) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return call(teacher, images)

    monkeypatch.setattr(Teacher, "__call__", spied)
    (measured,) = figures(copied, precision="bf16").values()
    assert seen and all(seen)
    assert all(found["output_error"] > 1e-4 for found in measured["layers"].values()), "it was computed in bfloat16"


def test_a_classifier_that_nothing_has_trained_is_marked(copied):
    last = copied / "digits/RN14_RN8/letKD-2/last.pth"
    save_tensors(last, load_tensors(last) | {"classifier": "untrained"})
    last.with_name("results.json").unlink()  # which knows these weights by their numbers
    (measured,) = figures(copied).values()
    assert measured["classifier"] == "untrained"


def test_the_arithmetic_is_compared_with_the_formula(copied, monkeypatch):
    (measured,) = figures(copied).values()
    for found in measured["layers"].values():
        assert 0 < found["output_error"] < 1e-5 and 0 <= found["divergence_error"] < 1e-5
    added = KDLayer._add

    def wrong(layer: KDLayer, features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return added(layer, features, 1.01 * values)

    monkeypatch.setattr(KDLayer, "_add", wrong)
    (measured,) = figures(copied).values()
    assert all(found["output_error"] > 1e-4 for found in measured["layers"].values())


def test_the_formula_is_the_authors(method_golden, fill):
    """Golden values of the authors' layer, after one pass in training."""
    golden = method_golden
    layer = KDLayer(16, 24, alpha=0.2).eval()
    with torch.no_grad():
        layer.scores.templates.copy_(torch.from_numpy(fill.array("kd_layer/templates", (24, 16, 1, 1))).flatten(1))
        semantic = torch.from_numpy(fill.array("kd_layer/semantic_vectors", (16, 24, 1, 1)))
        layer.semantic_vectors.copy_(semantic.flatten(1))
        layer.bn.weight.copy_(1 + 0.1 * torch.from_numpy(fill.array("kd_layer/bn.weight", (24,))))
        layer.bn.bias.copy_(0.1 * torch.from_numpy(fill.array("kd_layer/bn.bias", (24,))))
        layer.bn.running_mean.copy_(torch.from_numpy(golden["kd_layer/running_mean"]))
        layer.bn.running_var.copy_(torch.from_numpy(golden["kd_layer/running_var"]))
    output_PC = exact_output(layer, torch.from_numpy(fill.array("kd_layer/input", (2, 16, 4, 4))))
    expected = torch.from_numpy(golden["kd_layer/output_eval"]).permute(0, 2, 3, 1).reshape(-1, 16).double()
    assert torch.allclose(output_PC, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_statistics_that_are_off_are_seen(copied):
    """BatchNorm's means moved by two deviations, and its variances four times as large."""
    last = copied / "digits/RN14_RN8/letKD-2/last.pth"
    last.with_name("results.json").unlink()  # which knows these weights by their numbers
    (before,) = figures(copied).values()
    content = load_tensors(last)
    variance_K = content["model"]["layers.penultimate.bn.running_var"]
    content["model"]["layers.penultimate.bn.running_mean"] += 2 * variance_K.sqrt()
    variance_K *= 4
    save_tensors(last, content)
    last.with_name("results.json").unlink()
    (now,) = figures(copied).values()
    found, first = now["layers"]["penultimate"], before["layers"]["penultimate"]
    assert found["variance_ratio"] == pytest.approx(4 * first["variance_ratio"])
    assert found["mean_shift"] > 1 > first["mean_shift"]
    assert found["active"] < first["active"] / 2
    assert now["top1_own_statistics"] == before["top1_own_statistics"], "these images' own are the same"


def test_layers_without_a_teacher_have_the_figures_of_their_output(copied):
    name = "CIFAR100.resnetv1.RN110_RN32.FitNet-letKD"
    config = main_classification.default_config(name) | {
        "dataset": "digits", "teacher": "resnet8", "student": "resnet8", "teacher_experiment": "digits.RN8",
        "supervised": False, "published_weights": None, "localpath": str(copied), "cuda": False, "image_size": 8,
        "epochs": 1, "milestones": [], "allow_poor_teacher": True, "batch_size": 64, "num_words": 16,
        "subclasses_per_class": 2, "num_workers": 0,
    }  # fmt: skip
    run_config(config)
    (copied / "digits/RN8/last.pth").unlink()  # nobody asks for the teacher
    (measured,) = run_config(config | {"layers": True})["kd_layers"].values()
    assert set(measured["layers"]) == set(LOSSES)
    for found in measured["layers"].values():
        assert OF_SUPERVISION.isdisjoint(found) and found["output_share"] > 0 and "top1_without" in found


def test_results_keep_what_is_there_and_the_table_has_a_row_for_every_figure(copied, capsys):
    (copied / "mine").mkdir()
    directory = (copied / "digits/RN14_RN8/letKD-2").rename(copied / "mine/pair")
    results = directory / "results.json"
    before = json.loads(results.read_text())
    assert main_classification.main(["", "with", *words(copied), "layers=True"]) == 0
    after = json.loads(results.read_text())
    assert set(after) - set(before) == {"kd_layers"} and after["top1"] == before["top1"]
    lines = capsys.readouterr().out
    for row in ("templates active nowhere", "cosine of the two gradients", "divergence, off the formula"):
        assert row in lines
    figures(copied, best=True, name="mine.pair")
    assert set(json.loads(results.read_text())["kd_layers"]) == {"last", "best"}


def words(root: Path) -> list[str]:
    """The options of that student, for the entry; as one with another teacher it has a name of its own there."""
    told = configure("letKD-2", root) | {"name": "mine.pair"}
    keys = ("config", "name", "teacher", "teacher_experiment", "supervision", "num_words", "subclasses_per_class")
    return [f"{key}={told[key]}" for key in (*keys, "image_size", "cuda", "localpath")]


@pytest.mark.parametrize("method", ["classification", "QuEST"])
def test_a_student_without_layers_is_told_in_one_line(method, tmp_path):
    with pytest.raises(ValueError, match=r"^layers=True: the student of .* has no KD layers; .*letKD-2 have$"):
        run_config(configure(method, tmp_path, layers=True))
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_was_not_trained_names_the_command(folder):
    with pytest.raises(FileNotFoundError, match=r"has not been trained: .*train it: python main_classification"):
        figures(folder)


def test_words_that_are_missing_name_the_command(copied):
    (codebook,) = copied.glob("VQ/**/codebook_K16.pth")
    codebook.unlink()
    with pytest.raises(FileNotFoundError, match=r"make it: python main_classification.py with .*kmeans=16"):
        figures(copied)
