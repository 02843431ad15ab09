"""Pictures: the files each command leaves, the numbers behind them, and what experiments without the parts are told."""

import csv
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digits_tools import NUM_EVAL
from objective_tools import open_networks, pooled_maps
from PIL import Image
from training_tools import differences

import main_classification
from config.options import Options
from distillation.prepared import open_codebook, open_subclasses
from engine.checkpoints import load_checkpoint, set_aside
from letkd import KDLayer
from reporting import style as look
from reporting.pictures import PICTURES, Picture, embedding, subclasses, templates
from reporting.pictures.base import Drawing
from reporting.pictures.confusion import draw_matrix, list_pairs, worst_pairs
from reporting.pictures.embedding import neighbours_of_own_class, semantic_vectors
from reporting.pictures.layers import active_layers, look_inside, measure_use
from reporting.pictures.subclasses import draw_decision, regions, typical_cell
from reporting.pictures.templates import draw_heat
from reporting.pictures.usage import perplexity, shares

pytestmark = pytest.mark.usefixtures("few_digits")

NUM_WORDS, NUM_SUBCLASSES = 16, 2
FAST = ("image_size=8", "cuda=False")
SUPERVISION = ("teacher=resnet8", "teacher_experiment=digits.RN8", "supervision=digits.RN8")
LETKD2 = (
    *("config=digits.RN14_RN8.letKD-2", "name=mine.RN8_RN8.letKD-2", *SUPERVISION),
    *(f"num_words={NUM_WORDS}", "subclasses_per_class=2", *FAST),
)
QUEST = ("config=digits.RN14_RN8.QuEST", "name=mine.RN8_RN8.QuEST", *SUPERVISION, f"num_words={NUM_WORDS}", *FAST)
PLACES = ["intermediate", "penultimate"]
ENDINGS = (".png", ".pdf", ".json")


def run(*words: str) -> int:
    return main_classification.main(["main_classification.py", *words])


@pytest.fixture(scope="module")
def trained(few_digits, supervision, tmp_path_factory) -> Path:
    """A teacher, its supervision, a letKD-2 run of two epochs that keeps an average, and a QuEST run of one."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(supervision, folder, dirs_exist_ok=True)
    for words in ((*LETKD2, "epochs=2", "average=True"), (*QUEST, "epochs=1")):
        assert run("with", *words, f"localpath={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def drawn(trained) -> Path:
    """Where `pictures` has left all pictures of the letKD-2 run, of fewer things than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subclasses, "NUM_EXAMPLES", 2)
        patch.setattr(embedding, "NUM_IMAGES", 40)
        patch.setattr(templates, "NUM_IMAGES", 3)
        patch.setattr(templates, "NUM_TEMPLATES", {2: 1})
        assert run("pictures", "with", *LETKD2, f"localpath={trained}") == 0
    return trained / "mine" / "RN8_RN8" / "letKD-2" / "pictures"


@pytest.fixture
def opened(trained) -> Callable[..., Picture]:
    """A picture of an experiment below `trained`, opened but not drawn."""

    def open_picture(name: str, words: tuple[str, ...] = LETKD2) -> Picture:
        given = dict(word.split("=", 1) for word in words)
        updates = {key: int(value) if value.isdigit() else value for key, value in given.items()}
        updates |= {key: True for key, value in given.items() if value == "True"}
        config = main_classification.default_config(given["config"]) | updates
        picture = PICTURES[name](Options.of(config | {"cuda": False, "localpath": str(trained)}), command="")
        picture.open()
        return picture

    return open_picture


def all_images(picture: Picture) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and classes."""
    batches = list(picture.loader(picture.dataset, "eval"))
    images = torch.cat([picture.input(batch.images) for batch in batches])
    return images, torch.cat([batch.labels for batch in batches])


def results_of(trained: Path, *experiment: str) -> dict:
    return json.loads(trained.joinpath(*experiment, "results.json").read_text())


class Told(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def told(trained, capsys) -> Callable[..., Told]:
    def command(*words: str, localpath: Path = trained) -> Told:
        capsys.readouterr()
        status = run(*words, f"localpath={localpath}")
        return Told(status, *capsys.readouterr())

    return command


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_leaves_a_png_a_vector_pdf_and_what_it_says(name, drawn, trained):
    with Image.open(drawn / f"{name}.png") as image:
        assert image.width == look.WIDTH * look.DPI
        grey = np.asarray(image.convert("L"), dtype=float)
    assert grey.std() > 10 and (grey < 250).mean() > 0.02
    pdf = (drawn / f"{name}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and (b"/TrueType" in pdf or b"/CIDFontType2" in pdf)
    about = json.loads((drawn / f"{name}.json").read_text())
    assert about["title"] and "\n" not in about["title"] and not about["title"].endswith(".")
    assert "mine.RN8_RN8.letKD-2" in about["caption"] and about["caption"].endswith(".")
    words = shlex.split(about["command"])
    assert words[:4] == ["python", "main_classification.py", f"picture_{name}", "with"]
    assert set(words[4:]) == {*LETKD2, f"localpath={trained}"}


def test_the_command_of_one_picture_draws_the_same(drawn):
    about = json.loads((drawn / "confusion.json").read_text())
    before = (drawn / "confusion.png").read_bytes()
    (drawn / "confusion.png").unlink()
    assert run(*shlex.split(about["command"])[2:]) == 0
    assert (drawn / "confusion.png").read_bytes() == before
    assert json.loads((drawn / "confusion.json").read_text()) == about


@pytest.mark.parametrize("name", PICTURES)
def test_the_network_sees_images_in_the_precision_of_the_run(name, opened, monkeypatch):
    """As in training and evaluation: of every convolution, also the teacher's."""
    for module, limits in (
        (subclasses, {"NUM_EXAMPLES": 1}),
        (embedding, {"NUM_IMAGES": 20, "NUM_VECTORS": 20}),
        (templates, {"NUM_IMAGES": 1, "NUM_TEMPLATES": {2: 1}}),
    ):
        for limit, value in limits.items():
            monkeypatch.setattr(module, limit, value)
    found = set()

    def record(module: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(module, torch.nn.Conv2d):
            found.add(output.dtype)

    picture = opened(name, (*LETKD2, "precision=bf16"))
    monkeypatch.setattr(picture, "open", lambda: None)  # it is open, and measuring outlines is no seeing of images
    monkeypatch.setattr("reporting.pictures.base.save_figure", lambda figure, place: None)  # nobody looks at it
    with torch.nn.modules.module.register_module_forward_hook(record):
        picture.run()
    assert found == {torch.bfloat16}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_the_average_of_the_weights_where_it_is_asked_for(name, opened):
    picture = opened(name, (*LETKD2, "average=True"))
    saved, shown = load_checkpoint(picture.checkpoint.path), picture.model.state_dict()
    equal = {part: differences(shown, saved[part]) == [] for part in ("average", "model")}
    assert equal == {"average": True, "model": False}


def test_the_picture_of_an_average_does_not_take_the_place_of_the_students(drawn, opened, trained):
    before = {path.name: path.read_bytes() for path in drawn.glob("confusion.*")}
    assert run("picture_confusion", "with", *LETKD2, "average=True", f"localpath={trained}") == 0
    assert {path.name: path.read_bytes() for path in drawn.glob("confusion.*")} == before
    names = {f"confusion_average{end}" for end in (*ENDINGS, ".csv")}
    assert {path.name for path in drawn.glob("confusion_average.*")} == names
    about = json.loads((drawn / "confusion_average.json").read_text())
    assert about["title"].endswith(", average of the weights") and "average=True" in shlex.split(about["command"])
    counts_NN = opened("confusion", (*LETKD2, "average=True")).count()
    top1 = 100 * counts_NN.trace().item() / counts_NN.sum().item()
    assert top1 == pytest.approx(results_of(trained, "mine", "RN8_RN8", "letKD-2")["average_top1"])


@pytest.mark.parametrize("name", ["confusion", "usage"])
def test_a_picture_of_a_run_that_has_begun_again_meanwhile_is_not_left(name, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "mine/RN8_RN8/letKD-2"
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    draw = PICTURES[name].draw

    def begin_again_and_draw(picture: Picture) -> Drawing:
        set_aside(folder)
        return draw(picture)

    monkeypatch.setattr(PICTURES[name], "draw", begin_again_and_draw)
    assert run(f"picture_{name}", "with", *LETKD2, f"localpath={tmp_path}") != 0
    assert not (folder / "pictures").exists()


# --- confusion -------------------------------------------------------------------------------------------------------


def test_confusion_counts_every_image_once(opened, trained):
    picture = opened("confusion")
    images, labels = all_images(picture)
    with torch.inference_mode():
        predicted = picture.model(images).argmax(dim=1)
    direct = torch.zeros(10, 10, dtype=torch.int64)
    for true, found in zip(labels.tolist(), predicted.tolist(), strict=True):
        direct[true, found] += 1
    assert torch.equal(picture.count(), direct)
    top1 = results_of(trained, "mine", "RN8_RN8", "letKD-2")["top1"]
    assert 100 * direct.trace().item() / NUM_EVAL == pytest.approx(top1)


def test_confusion_leaves_its_counts_as_a_table(opened, drawn):
    with (drawn / "confusion.csv").open(newline="") as file:
        title, *rows = csv.reader(file)
    classes = list(opened("confusion").dataset.classes)
    assert title == ["true class", *classes] and [row[0] for row in rows] == classes
    assert [[int(count) for count in row[1:]] for row in rows] == opened("confusion").count().tolist()


def test_confusion_names_the_worst_pairs(opened, drawn):
    counts = opened("confusion").count().numpy()
    wrong = counts - np.diag(np.diag(counts))
    true, found = np.unravel_index(wrong.argmax(), wrong.shape)
    caption = json.loads((drawn / "confusion.json").read_text())["caption"]
    assert f"Most frequent: {true} taken for {found} ({wrong.max()}, " in caption
    title = json.loads((drawn / "confusion.json").read_text())["title"]
    assert title.startswith(f"{100 * counts.trace() / counts.sum():.2f} % of {NUM_EVAL} ")


def test_worst_pairs_are_sorted_and_leave_out_the_diagonal():
    counts = np.array([[7, 3, 0], [1, 9, 0], [0, 5, 5]])
    assert worst_pairs(counts, 5) == [(2, 1, 5, 50.0), (0, 1, 3, 30.0), (1, 0, 1, 10.0)]


@pytest.mark.parametrize("num_classes", [2, 12, 100])
def test_a_matrix_of_any_size_names_all_classes(num_classes):
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes)
    classes = tuple(f"class {number}" for number in range(num_classes))
    with look.style():
        left, right = look.new_figure(height=7).subplots(1, 2)
        draw_matrix(left, counts, classes)
        list_pairs(right, worst_pairs(counts, 2), classes)
    for axis in (left.xaxis, left.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(classes)
    numbers = {text.get_text().split("\n")[0] for text in left.texts}
    assert numbers == ({str(count) for count in counts.flatten() if count} if num_classes <= 12 else set())
    last = num_classes - 1
    assert right.texts[0].get_text() == f"class {last} → class {last - 1}"


# --- sub-classes -----------------------------------------------------------------------------------------------------


def test_subclasses_are_the_teachers_and_the_histogram_is_its_decision_row(opened):
    picture = opened("subclasses")
    indices = picture.draw_lots(4, 4)
    images, labels = picture.images_at(indices)
    networks = open_networks(picture.options, picture.dataset, maps=PLACES)
    decisions = open_subclasses(picture.options, *networks)
    maps = pooled_maps(*networks, picture.input(images))
    rows_BHW = decisions.assign(maps["intermediate"], labels).view(4, 2, 2)
    for example, label, rows_HW in zip(picture.examples(indices), labels.tolist(), rows_BHW, strict=True):
        assert example.label == label
        np.testing.assert_array_equal(example.subclasses_HW, rows_HW.numpy() - label * NUM_SUBCLASSES)
        row = decisions.decisions[rows_HW[example.cell]]
        np.testing.assert_array_equal(example.decision_NS.flatten(), row.numpy())
        with look.style():
            axes = look.new_figure(height=2).subplots()
            draw_decision(axes, example, picture.dataset.classes, named=True)
        heights = [bar.get_height() for group in axes.containers for bar in group]
        np.testing.assert_allclose(heights, 100 * row.numpy(), rtol=1e-6)
        hatched = [bar for group in axes.containers for bar in group if bar.get_hatch()]
        own = row[label * NUM_SUBCLASSES + example.subclasses_HW[example.cell]]
        assert [bar.get_height() for bar in hatched] == [pytest.approx(100 * own.item())]


def test_the_histogram_of_many_classes_shows_the_ten_largest_and_counts_the_rest(opened):
    picture = opened("subclasses")
    example = picture.examples(picture.draw_lots(1, 1))[0]
    decision_NS = np.full((50, NUM_SUBCLASSES), 0.1 / 80)
    decision_NS[40:] = 0.9 / 20
    many = type(example)(example.pixels, 45, example.subclasses_HW, example.cell, decision_NS)
    with look.style():
        axes = look.new_figure(height=2).subplots()
        draw_decision(axes, many, tuple(f"class {number}" for number in range(50)), named=True)
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"class {number}" for number in range(40, 50)]
    assert axes.texts[-1].get_text() == "40 other classes: 10 %"


def test_the_shown_patch_is_of_the_most_frequent_subclass_and_central():
    assert typical_cell(np.array([[1, 1, 0], [0, 1, 0], [2, 2, 1]])) == (1, 1)
    assert typical_cell(np.zeros((3, 3), dtype=int)) == (1, 1)


def test_every_connected_region_gets_one_letter():
    grid = np.array([[0, 0, 1], [0, 0, 1], [1, 2, 2]])
    assert sorted(regions(grid, cell=(1, 1))) == [(0, 2, 1), (1, 1, 0), (2, 0, 1), (2, 1, 2)]
    assert [look.letter(number) for number in (0, 7, 25, 26)] == ["a", "h", "z", "27"]


# --- KD layers -------------------------------------------------------------------------------------------------------


def test_the_weights_shown_are_those_that_make_the_layers_output(opened):
    """The output follows from the weights by the layer's equation: f + alpha * scale_v * cos(a, V_c)."""
    picture = opened("templates")
    images, _ = picture.images_at(torch.arange(3))
    for place, view in look_inside(picture.model, picture.input(images), PLACES).items():
        layer: KDLayer = picture.model.layers[place]
        a_BHWK = view.weights_BKHW.permute(0, 2, 3, 1)
        values = layer.scale * F.normalize(a_BHWK, dim=-1) @ F.normalize(layer.semantic_vectors, dim=1).T
        expected = view.before_BCHW + layer.alpha * values.permute(0, 3, 1, 2)
        torch.testing.assert_close(view.after_BCHW, expected, rtol=1e-4, atol=1e-4)
        assert (view.weights_BKHW >= 0).all() and view.weights_BKHW.shape == (3, layer.bn.num_features, 2, 2)


def test_the_use_of_templates_is_that_of_all_images_at_once(opened):
    picture = opened("templates")
    images, labels = all_images(picture)
    use = measure_use(picture.model, picture.input, picture.loader(picture.dataset, "eval"), PLACES, 10)
    for place, view in look_inside(picture.model, images, PLACES).items():
        weights = view.weights_BKHW
        wins = F.one_hot(weights.argmax(dim=1), weights.shape[1]).float().mean(dim=(0, 1, 2))
        torch.testing.assert_close(use[place].largest_K, wins)
        torch.testing.assert_close(use[place].highest_K, weights.amax(dim=(0, 2, 3)))
        means = torch.stack([weights[labels == label].mean(dim=(0, 2, 3)) for label in range(10)])
        torch.testing.assert_close(use[place].means_NK, means)


def test_a_heat_map_is_smooth_between_the_centres_of_the_patches():
    heat = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    with look.style():
        axes = look.new_figure(height=2).subplots()
        draw_heat(axes, np.full((8, 8, 3), 0.5), heat)
    alpha = np.asarray(axes.images[-1].get_array())[..., 3] / 0.9
    corners = alpha[[0, 0, -1, -1], [0, -1, 0, -1]] ** 2
    np.testing.assert_allclose(corners, heat.flatten(), atol=1e-6)
    assert np.abs(np.diff(alpha**2, axis=1)).max() < 0.1
    borders = [line.get_xdata()[0] for line in axes.lines] + [line.get_ydata()[0] for line in axes.lines]
    assert 0.5 in borders


def test_layers_without_values_are_left_out():
    config = main_classification.default_config("digits.RN14_RN8.letKD-2")
    assert active_layers(Options.of(config)) == PLACES
    assert active_layers(Options.of(config | {"alpha_intermediate": 0.0})) == ["penultimate"]
    assert PICTURES["tsne"].lacks(Options.of(config | {"alpha_intermediate": 0.0, "alpha_penultimate": 0.0}))


def test_embedded_features_are_those_before_and_behind_the_layer(opened):
    picture = opened("tsne")
    indices = picture.draw_lots(20, 10)
    found = picture.features(indices, PLACES)
    images, _ = picture.images_at(indices)
    for place, view in look_inside(picture.model, picture.input(images), PLACES).items():
        for values, map_BCHW in zip(found[place], (view.before_BCHW, view.after_BCHW), strict=True):
            np.testing.assert_allclose(values, map_BCHW.mean(dim=(2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_semantic_vector_is_what_its_template_alone_adds():
    """Where a single template has weight, the value is its column of V times the scale, up to the sign of nothing."""
    torch.manual_seed(0)
    layer = KDLayer(channels=4, num_templates=3).eval()
    layer.bn.running_mean.copy_(torch.tensor([0.0, 100.0, 100.0]))  # only template 0 can be above its mean
    features = F.normalize(layer.scores.templates[0], dim=0).detach().view(1, 4, 1, 1)
    with torch.no_grad():
        added = (layer(features)[0] - features).flatten()
    torch.testing.assert_close(added, semantic_vectors(layer)[0])


def test_templates_belong_to_classes(opened):
    picture = opened("tsne")
    means_NK = torch.eye(10).repeat_interleave(NUM_SUBCLASSES, dim=1).flip(1)
    assert picture.owners("intermediate", means_NK).tolist() == [k // NUM_SUBCLASSES for k in range(20)]
    assert picture.owners("penultimate", means_NK).tolist() == [9 - k // NUM_SUBCLASSES for k in range(20)]


def test_neighbours_of_separate_classes_are_of_the_same_class():
    features = np.concatenate([np.zeros((12, 2)), np.ones((12, 2))]) + np.linspace(0, 0.1, 24)[:, None]
    assert neighbours_of_own_class(features, np.repeat([0, 1], 12)) == 100
    assert neighbours_of_own_class(features, np.arange(24)) == 0


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "keys"), [(LETKD2, ["words", "decisions"]), (QUEST, ["words"])], ids=["letKD-2", "QuEST"]
)
def test_the_use_of_words_is_counted_over_all_patches(words, keys, opened):
    """Nothing is built of the losses that have no part in a picture, like the cross-entropy."""
    picture = opened("usage", words)
    images, _ = all_images(picture)
    networks = open_networks(picture.options, picture.dataset, maps=["penultimate"])
    centroids = open_codebook(picture.options, *networks).centroids
    patches = pooled_maps(*networks, images)["penultimate"].permute(0, 2, 3, 1).reshape(-1, centroids.shape[1])
    nearest = torch.cdist(patches.double(), centroids.double()).argmin(dim=1)
    with torch.inference_mode():
        best = picture.objective.losses["words"].scores(picture.objective.network(images)).argmax(dim=1)
    teacher_K, student_K, agreement = picture.count()
    assert set(picture.objective.losses) == set(keys)
    assert teacher_K.sum() == student_K.sum() == NUM_EVAL * 4
    assert torch.equal(teacher_K, torch.bincount(nearest, minlength=NUM_WORDS))
    assert torch.equal(student_K, torch.bincount(best, minlength=NUM_WORDS))
    assert agreement.item() == pytest.approx((nearest == best).float().mean().item())


def test_the_curves_are_the_history_of_the_run(opened, trained):
    history = results_of(trained, "mine", "RN8_RN8", "letKD-2")["history"]
    found = opened("usage").history()
    assert [done["epoch"] for done in found] == [1, 2]
    assert [done["statistics"] for done in found] == [done["statistics"] for done in history]
    assert all(1 <= done["statistics"]["perplexity"] <= NUM_WORDS for done in found)
    assert all(0 <= done["statistics"]["dead_words"] < NUM_WORDS for done in found)


def test_perplexity_counts_words_that_are_used_alike():
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([0, 9])) == pytest.approx(1)
    np.testing.assert_array_equal(shares(np.array([1, 0, 3])), [25, np.nan, 75])


def test_a_run_without_history_is_told_to_train_again(opened, monkeypatch):
    picture = opened("usage")
    monkeypatch.setattr(picture, "checkpoint", {})
    with pytest.raises(ValueError, match=r"no record .* train it again by the command in .*log\.txt$"):
        picture.history()


# --- images ----------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_data_set(opened):
    picture = opened("confusion")
    indices = torch.tensor([5, 0, 77])
    images, labels = picture.images_at(indices)
    stored = picture.dataset.eval.images[indices].numpy() / 255
    np.testing.assert_array_equal(look.as_shown(images), stored)
    assert torch.equal(labels, picture.labels[indices])


def test_lots_follow_from_the_seed_and_are_spread_over_classes(opened):
    picture = opened("confusion")
    lots = picture.draw_lots(20, 10)
    assert torch.equal(lots, picture.draw_lots(20, 10)) and len(lots.unique()) == 20
    assert torch.bincount(picture.labels[lots]).tolist() == [2] * 10
    assert len(picture.labels[picture.draw_lots(6, 3)].unique()) == 3
    picture.options = picture.options.changed(seed=1)
    assert not torch.equal(lots, picture.draw_lots(20, 10))


# --- what cannot be drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("subclasses", "no sub-class decisions of a teacher"),
        ("tsne", "no KD layer whose values are used"),
        ("templates", "no KD layer whose values are used"),
    ],
)
def test_a_picture_of_something_else_names_experiments_that_have_it(name, lacking, told):
    outcome = told(f"picture_{name}", "with", *QUEST)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert f"picture_{name}: digits.RN14_RN8.QuEST has {lacking}; try config=" in outcome.err
    assert "digits.RN14_RN8.letKD-2" in outcome.err


def test_pictures_draws_what_applies_and_says_why_the_others_do_not(told, trained):
    outcome = told("pictures", "with", "config=digits.RN8", *FAST)
    assert outcome.status == 0, outcome.err
    assert {path.name for path in (trained / "digits" / "RN8" / "pictures").iterdir()} == {
        "confusion.png", "confusion.pdf", "confusion.json", "confusion.csv",
    }  # fmt: skip
    for name in PICTURES.keys() - {"confusion"}:
        assert f"no picture_{name}: digits.RN8 has no " in outcome.out


def test_options_that_cannot_work_are_refused_before_any_picture(told):
    outcome = told("pictures", "with", "config=digits.RN14_RN8.letKD-1", "intermediate=True")
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "intermediate=True needs a letKD-2 experiment" in outcome.err


def test_an_untrained_experiment_names_the_command_that_trains_it(told, tmp_path):
    outcome = told("picture_confusion", "with", *LETKD2, localpath=tmp_path)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "python main_classification.py with config=digits.RN14_RN8.letKD-2" in outcome.err


def test_missing_supervision_names_the_command_that_makes_it(told):
    words = [word.replace(f"num_words={NUM_WORDS}", "num_words=7") for word in LETKD2]
    outcome = told("picture_usage", "with", *words)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "no codebook of 7 words" in outcome.err and "kmeans=7" in outcome.err


def test_matplotlib_is_asked_for_by_name(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = told("picture_confusion", "with", "config=digits.RN8", *FAST)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "pip install matplotlib" in outcome.err


def test_names_that_would_be_mathematics_are_plain_text():
    with look.style():
        figure = look.new_figure(height=1)
        text = figure.text(0.5, 0.5, "a $x_1$ and $")
        figure.canvas.draw()
        assert not text.get_parse_math() or text._preprocess_math(text.get_text())[1] is False
    assert look.shortened("sixteen_characters") == "sixteen_chara…" and look.shortened("short") == "short"
