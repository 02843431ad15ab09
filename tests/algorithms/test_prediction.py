"""`predict`: files to classes, by a training and by an export of it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from export_tools import leave_training, normalized
from PIL import Image

import main_classification
from algorithms import export, run_config
from algorithms.predict import Prediction, find_images
from architectures import create_model
from config.options import Options
from dataloaders import Dataset, load_dataset
from dataloaders.decoding import fit_square
from engine.checkpoints import BEST, LAST

NAME = "digits.RN8"
WORDS = ("cuda=False", "num_workers=0")
NUM_IMAGES = 120


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, dataset) -> Path:
    """A localpath with a network as if it were trained, and images/<class>/<number>.png of evaluation digits."""
    root = tmp_path_factory.mktemp("predict")
    leave_training(main_classification.default_config(NAME) | {"localpath": str(root)}, dataset)
    for number, (pixels, label) in enumerate(zip(dataset.eval.images, dataset.eval.labels[:NUM_IMAGES], strict=False)):
        path = root / "images" / dataset.classes[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return root


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def predict(folder, capsys):
    """Runs `predict` on images in this process."""

    def run(images: object, *words: str) -> Outcome:
        capsys.readouterr()
        argv = ["main_classification.py", "predict", "with", f"config={NAME}", *WORDS, f"localpath={folder}"]
        status = main_classification.main([*argv, f"images={images}", *words])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def exported(folder) -> Path:
    """The network as an ONNX file, alone in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "TIMED_SECONDS", 0)
        words = [f"config={NAME}", *WORDS, f"localpath={folder}", "export=onnx"]
        assert main_classification.main(["main_classification.py", "with", *words]) == 0
    made = folder / "digits" / "RN8" / "export" / f"{NAME}-last.onnx"
    return Path(shutil.copy(made, folder / "student.onnx"))


def test_a_folder_of_class_folders_gives_the_accuracy_of_evaluation(predict, folder, dataset):
    outcome = predict(folder / "images", "format=json", "top=10")
    assert outcome.status == 0 and outcome.err == ""
    model = create_model("resnet8", num_classes=10)
    model.load_state_dict(torch.load(folder / "digits/RN8/last.pth", weights_only=True)["model"])
    with torch.no_grad():
        images = dataset.eval.images[:NUM_IMAGES].permute(0, 3, 1, 2) / 255
        expected = model.eval()(normalized(images, dataset)).softmax(dim=1)
    found = {int(Path(image["image"]).stem): image for image in outcome.json["images"]}
    for number, probabilities in enumerate(expected):
        predictions = found[number]["predictions"]
        by_class = torch.tensor(
            [next(p["probability"] for p in predictions if p["class"] == str(c)) for c in range(10)]
        )
        torch.testing.assert_close(by_class, probabilities, atol=1e-5, rtol=0)
        assert predictions == sorted(predictions, key=lambda guess: -guess["probability"])
        assert found[number]["label"] == str(dataset.eval.labels[number].item())
    hits = (expected.argmax(dim=1) == dataset.eval.labels[:NUM_IMAGES]).float().mean().item()
    assert outcome.json["top1"] == pytest.approx(100 * hits)
    assert len(expected.argmax(dim=1).unique()) > 2, "the network must tell images apart"


def test_the_table_has_a_line_for_each_image(predict, folder):
    outcome = predict(folder / "images" / "3", "top=2")
    lines = outcome.out.splitlines()
    count = len(list((folder / "images" / "3").iterdir()))
    assert outcome.status == 0 and len(lines) == 1 + count + 1
    assert lines[0].split() == ["image", "label", "1.", "2."]
    assert len({len(line) for line in lines[:-1]}) == 1, "columns are aligned"
    name, label, first, likely, second, less = lines[1].split()
    assert name.endswith(".png") and label == "3" and first != second
    assert float(likely.rstrip("%")) >= float(less.rstrip("%"))
    assert lines[-1].endswith(f"% of the {count} images in folders named like a class are predicted so")


def test_the_best_epoch_is_another_network(predict, folder):
    last, best = (predict(folder / "images", "format=json", *words).json for words in ((), ("best=True",)))
    assert last["network"].endswith(LAST) and best["network"].endswith(BEST)
    assert last["images"] != best["images"]


def test_an_exported_file_predicts_the_same_without_the_experiment(predict, folder, exported, tmp_path):
    trained = predict(folder / "images", "format=json").json
    outcome = predict(folder / "images", "format=json", f"export_file={exported}", f"localpath={tmp_path}")
    assert outcome.status == 0 and outcome.json["network"] == str(exported)
    for ours, theirs in zip(trained["images"], outcome.json["images"], strict=True):
        assert ours["image"] == theirs["image"]
        assert [guess["probability"] for guess in ours["predictions"]] == pytest.approx(
            [guess["probability"] for guess in theirs["predictions"]], abs=1e-4
        )
    assert outcome.json["top1"] == trained["top1"]
    assert not any(tmp_path.iterdir()), "predict writes nothing"


def test_colour_modes_and_sizes_are_brought_to_the_network_as_in_evaluation(predict, folder, dataset, tmp_path):
    pixels = dataset.eval.images[7].numpy()
    rgb = Image.fromarray(pixels)
    large = rgb.resize((40, 24), Image.Resampling.BICUBIC)
    variants = {
        "a-rgb": rgb,
        "b-grey": rgb.convert("L"),
        "c-rgba": rgb.convert("RGBA"),
        "d-16bit": Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257),
        "e-palette": rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "f-large": large,
        "g-fitted": fit_square(large, 8),
    }
    for name, image in variants.items():
        image.save(tmp_path / f"{name}.png")
    images = predict(tmp_path, "format=json").json["images"]
    found = {Path(image["image"]).stem: image["predictions"] for image in images}
    assert list(found) == list(variants) and {image["label"] for image in images} == {None}
    assert all(found[name] == found["a-rgb"] for name in ("b-grey", "c-rgba", "d-16bit", "e-palette"))
    assert found["f-large"] == found["g-fitted"] != found["a-rgb"]


def test_unreadable_files_are_named_and_the_others_predicted(predict, folder, tmp_path):
    good = sorted((folder / "images" / "5").iterdir())[0]
    shutil.copy(good, tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    missing = tmp_path / "missing.png"
    outcome = predict([str(tmp_path), str(missing)], "format=json")
    assert outcome.status == 1
    assert [Path(image["image"]).name for image in outcome.json["images"]] == ["good.png"]
    assert [Path(failure["image"]).name for failure in outcome.json["unreadable"]] == [
        "cut.png", "text.jpg", "missing.png",
    ]  # fmt: skip
    assert all(failure["image"] in failure["error"] for failure in outcome.json["unreadable"])
    assert outcome.json["unreadable"][-1]["error"] == f"there is no image {missing}"
    assert outcome.err.startswith("error: 3 of 4 images cannot be read") and outcome.err.count("\n") == 1
    table = predict(tmp_path, "top=1").out
    assert "good.png" in table and f"cannot read image {tmp_path / 'cut.png'}" in table


def test_images_are_files_folders_patterns_or_a_list_of_them(folder):
    images = folder / "images"
    first, *others = sorted((images / "4").iterdir())
    assert find_images(str(first)) == [first]
    assert find_images(str(images / "4")) == [first, *others]
    assert find_images(str(images / "4" / "*.png")) == [first, *others]
    assert set(find_images(str(images / "[45]"))) == {first, *others, *(images / "5").iterdir()}
    assert find_images([str(images / "4"), str(first)]) == [first, *others, first]
    assert len(find_images(str(images))) == NUM_IMAGES


@pytest.fixture
def mixed(folder, tmp_path) -> Path:
    """photos/ with two pictures of 4, and below and beside them what is hidden, linked, special, or no image."""
    photos = tmp_path / "photos"
    first, second, *_ = sorted((folder / "images" / "4").iterdir())
    for number, place in enumerate(
        ("a.png", "deep/b.jfif", ".hidden.png", ".ipynb_checkpoints/a.png", "deep/@eaDir/b.png")
    ):
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(second if number == 1 else first).save(photos / place)
    os.mkfifo(photos / "pipe.png")
    (photos / "raw.heic").touch()
    (photos / "deep" / "notes.txt").touch()
    for link, target in (("up", ".."), ("itself", "."), ("disk", "/"), ("deep/again", "../deep")):
        (photos / link).symlink_to(target)
    return photos


@pytest.mark.parametrize(
    "pattern", ["photos", "photos/*", "photos/**", "photos/**/*", "ph?tos", "./**/photos/../photos"]
)
def test_folders_and_patterns_find_every_image_once_and_count_the_rest(pattern, mixed, monkeypatch):
    monkeypatch.chdir(mixed.parent)
    unused = {}
    assert [path.name for path in find_images(pattern, unused)] == ["a.png", "b.jfif"]
    assert sorted(unused.values()) == [".heic", ".png (no regular file)", ".txt", *["link to a folder"] * 4]
    assert find_images("photos/*.png") == [Path("photos/a.png")]
    assert find_images("photos/*/*.jfif") == find_images("photos/**/b.*") == [Path("photos/deep/b.jfif")]
    for hidden in ("photos/.*", "photos/*/*/*.jfif", "photos/up*", "photos/.ipynb*/a.png"):
        with pytest.raises(ValueError, match="has no images"):
            find_images(hidden)


def test_what_a_folder_holds_besides_is_listed(predict, mixed):
    found = predict(mixed, "format=json")
    assert found.status == 0 and [Path(image["image"]).name for image in found.json["images"]] == ["a.png", "b.jfif"]
    assert found.json["unused"] == {"link to a folder": 4, ".heic": 1, ".png (no regular file)": 1, ".txt": 1}
    listed = "not used: 4 link to a folder, 1 .heic, 1 .png (no regular file), 1 .txt"
    assert listed in predict(mixed).out.splitlines()
    alone = predict(mixed / "a.png", "format=json")
    assert alone.json["unused"] == {}


@pytest.mark.parametrize("kind", ["pipe.png", "/dev/zero"])
def test_what_is_no_regular_file_is_unreadable_and_nobody_waits_for_it(kind, predict, mixed):
    found = predict([str(mixed / kind), str(mixed / "a.png")], "format=json")
    assert found.status == 1 and len(found.json["images"]) == 1
    assert "it is no regular file" in found.json["unreadable"][0]["error"]


ODD = (os.fsdecode(b"\xff.png"), "two\nlines.png", "\x1b[31mred\x07.png", "line\u2028separator.png", "tab\t.png")


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_odd_name_takes_no_other_line_of_the_table(name, predict, folder, tmp_path):
    good = sorted((folder / "images" / "5").iterdir())[0]
    for file in ("good.png", name):
        shutil.copy(good, tmp_path / file)
    (tmp_path / f"cut {name}").write_bytes(good.read_bytes()[:60])
    table = predict(tmp_path, "top=1")
    lines = table.out.splitlines()
    assert len(lines) == 4 and sum("good.png" in line for line in lines) == 1, lines
    assert table.out.replace("\n", "").isprintable() and table.err.count("\n") == 1
    found = predict(tmp_path, "top=1", "format=json").json
    assert sorted(image["image"] for image in found["images"]) == sorted(
        str(tmp_path / file) for file in ("good.png", name)
    )
    assert found["unreadable"][0]["image"] == str(tmp_path / f"cut {name}"), "the path as it is opened"


def test_a_home_that_does_not_exist_is_a_missing_image(predict, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = sorted((folder / "images" / "5").iterdir())[0]
    shutil.copy(good, "~photo.png")
    found = predict(["~nouser/x.png", "~photo.png"], "format=json")
    assert found.status == 1 and found.json["unreadable"][0]["error"] == "there is no image ~nouser/x.png"
    assert [image["image"] for image in found.json["images"]] == ["~photo.png"], "a name may begin so"


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul\0.png"], ids=["long", "nul"])
def test_a_name_that_no_file_can_have_is_unreadable(name, folder):
    good = sorted((folder / "images" / "5").iterdir())[0]
    assert find_images([str(good), name]) == [good, Path(name)]


@pytest.mark.parametrize("wanted", [None, [], 5, [5], ""])
def test_without_images_there_is_nothing_to_do(wanted):
    with pytest.raises(ValueError, match="must be an image file, a folder, a pattern in quotes, or a list"):
        find_images(wanted)


def test_a_folder_or_pattern_without_images_is_an_error(predict, tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    assert f"images={tmp_path} has no images" in predict(tmp_path).err
    assert "has no images" in predict(tmp_path / "*.png").err


@pytest.mark.parametrize(("word", "error"), [("format=yaml", "table or json"), ("top=0", "top=0 must be at least 1")])
def test_impossible_options_are_refused(word, error, predict, folder):
    outcome = predict(folder / "images", word)
    assert outcome.status == 1 and error in outcome.err


def test_weights_beside_an_exported_file_are_refused(predict, folder):
    outcome = predict(folder / "images", "export_file=a.onnx", "weights=b.pth")
    assert outcome.status == 1 and "export_file=a.onnx is the network; leave out weights=b.pth" in outcome.err


def test_only_predict_takes_images(folder):
    config = main_classification.default_config(NAME) | {"localpath": str(folder), "images": "photos"}
    with pytest.raises(ValueError, match=r"images is for predict: python main_classification\.py predict with images="):
        run_config(config)


def test_what_was_not_trained_is_an_error(predict, folder, tmp_path):
    outcome = predict(folder / "images", f"localpath={tmp_path}")
    assert outcome.status == 1 and f"no weights of {NAME}" in outcome.err


def test_a_published_network_takes_what_it_must_know_from_its_data_set(folder, tmp_path, dataset):
    torch.manual_seed(0)
    config = main_classification.default_config(NAME) | {"cuda": False, "image_size": 8, "num_workers": 0}
    torch.save({"model": create_model("resnet8", num_classes=10).state_dict()}, tmp_path / "published.pth")
    config |= {"weights": str(tmp_path / "published.pth"), "images": str(folder / "images" / "2"), "top": 3}
    result = Prediction(Options.of(config | {"localpath": str(tmp_path)})).run()
    assert {len(image["predictions"]) for image in result["images"]} == {3}
    assert {guess["class"] for image in result["images"] for guess in image["predictions"]} <= set(dataset.classes)


def test_other_files_are_no_exports(predict, folder, exported, tmp_path):
    images = folder / "images" / "1"
    foreign = onnx.load(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:5000])
    damaged = bytearray(exported.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(damaged)
    record = folder / "digits" / "RN8" / "export" / f"{NAME}-last.onnx.json"
    shutil.copy(record, tmp_path / "damaged.onnx.json")
    (tmp_path / "student.pt2").write_bytes(b"")
    for name, error in {
        "foreign.onnx": "was not written by export=onnx",
        "cut.onnx": "onnxruntime cannot read it",
        "damaged.onnx": "is damaged: its checksum in damaged.onnx.json does not fit",
        "student.pt2": "is no .onnx file",
        "none.onnx": "no file",
    }.items():
        outcome = predict(images, f"export_file={tmp_path / name}")
        assert outcome.status == 1 and error in outcome.err and outcome.out == "", name
        assert outcome.err.count("\n") == 1, name
