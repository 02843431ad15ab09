"""Images of every kind train; what is no image, or does not fit, is named before training begins."""

import pickle
import random
import re
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from fault_tools import damages, short_and_long
from PIL import Image

import main_classification
from dataloaders import load_dataset
from dataloaders.decoding import ImageError, read_rgb, read_size

SIZE = 16
RUN = "ImageFolder/RN8"


def pixels(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def sixteen_bits(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.astype(np.uint16) * 257)


def as_kind(kind: str, seed: int) -> Image.Image:
    colour = Image.fromarray(pixels(seed))
    return sixteen_bits(np.asarray(colour.convert("L"))) if kind == "16-bit" else colour.convert(kind)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes; every training image is of another kind."""
    kinds = ("RGB", "L", "RGBA", "P", "LA", "16-bit", "1")
    for name in ("cat", "dog"):
        for split, number in (("train", len(kinds)), ("val", 2)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                as_kind(kinds[index], seed=len(name) * 10 + index).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def train(tree: Path, tmp_path: Path, capsys):
    """Runs a training on the tree; returns its status and what it says of a mistake."""

    def train(*words: str) -> tuple[int, str]:
        argv = ["main.py", "with", "config=ImageFolder.RN8", f"data_dir={tree}", "epochs=1", "milestones=[]"]
        argv += ["batch_size=4", "cuda=False", "num_workers=0", f"localpath={tmp_path}", *words]
        status = main_classification.main(argv)
        captured = capsys.readouterr()
        if status:
            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
            assert "epoch 1" not in captured.out and not (tmp_path / RUN / "last.pth").exists(), "training has begun"
        return status, captured.err

    return train


def test_images_of_every_kind_train(train):
    assert train() == (0, "")


@pytest.mark.parametrize("classes", [2, 6])
def test_top5_is_printed_where_it_says_something(classes, tree, tmp_path, capsys):
    for number in range(2, classes):
        for split in ("train", "val"):
            shutil.copytree(tree / split / "dog", tree / split / f"class{number}")
    words = [
        "main.py",
        "with",
        "config=ImageFolder.RN8",
        f"data_dir={tree}",
        "epochs=1",
        "milestones=[]",
        "batch_size=4",
    ]
    words += ["cuda=False", "num_workers=0", f"localpath={tmp_path}"]
    assert main_classification.main(words) == main_classification.main([*words, "evaluate=True"]) == 0
    out = capsys.readouterr().out
    assert out.count("top-1") == 3 and out.count("top-5") == (2 if classes > 5 else 0)


def test_kinds_of_one_picture_are_one_picture(tmp_path):
    grey = pixels(0)[..., 0]
    picture = Image.fromarray(grey)
    kinds = {kind: picture.convert(kind) for kind in ("L", "LA", "RGB", "RGBA", "P")} | {"16-bit": sixteen_bits(grey)}
    for kind, image in kinds.items():
        image.save(tmp_path / f"{kind}.png")
        shown = np.asarray(read_rgb(str(tmp_path / f"{kind}.png")))
        assert np.array_equal(shown, np.repeat(grey[..., None], 3, axis=2)), kind


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", lambda data: data[: len(data) // 2], lambda data: data[:20]],
    ids=["empty", "page", "half", "short"],
)
def test_a_file_that_is_no_image_is_named(content, split, tree, train):
    path = tree / split / "dog" / "1.png"
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    status, error = train()
    assert status == 1 and str(path) in error


def test_a_class_that_training_lacks_is_named(tree, train):
    shutil.copytree(tree / "val" / "dog", tree / "val" / "dgo")
    status, error = train()
    assert status == 1 and "'dgo'" in error and "did you mean 'dog'?" in error


def test_a_class_that_only_the_third_split_has_is_named(tree, train, tmp_path, capsys):
    assert train()[0] == 0
    shutil.copytree(tree / "val", tree / "test")
    (tree / "test" / "dog").rename(tree / "test" / "bird")
    argv = ["main.py", "with", "config=ImageFolder.RN8", f"data_dir={tree}", "cuda=False", f"localpath={tmp_path}"]
    assert main_classification.main([*argv, "num_workers=0", "evaluate=True", "testset=True"]) == 1
    assert "'bird'" in capsys.readouterr().err


def test_images_of_different_sizes_ask_for_one(tree, train):
    Image.fromarray(pixels(1, (20, 12))).save(tree / "train" / "cat" / "0.png")
    status, error = train()
    assert status == 1 and re.search(r"image sizes differ .* pass image_size, like image_size=64$", error.strip())
    for words, said in [
        (("network_size=48",), r"pass image_size=48, the size of resnet8$"),
        (("network=timm/resnet10t",), r"pass image_size=176, the size of timm/resnet10t$"),
        (("network=timm/mobilenetv3_small_050", "network_input=own"), r"pass image_size=224, the size of timm/mobilen"),
        (("network=timm/resnet10t", "network_size=32"), r"pass image_size=32, the size of timm/resnet10t$"),
    ]:
        status, error = train(*words, "name=mine.sizes")
        assert status == 1 and re.search(said, error.strip())
    assert train("image_size=16") == (0, "")


# --- files of CIFAR, the only ones that hold labels as numbers, and pickles -------------------------------------------


@pytest.fixture
def batches(tmp_path: Path) -> list[Path]:
    """CIFAR-10 in its published layout, four images a file."""
    source = torchvision.datasets.CIFAR10
    folder = tmp_path / source.base_folder
    folder.mkdir()
    names = {"label_names": list("abcdefghij")}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(names))
    paths = [folder / name for name, _ in (*source.train_list, *source.test_list)]
    for seed, path in enumerate(paths):
        path.write_bytes(pickle.dumps(batch(seed)))
    return paths


def batch(seed: int, labels: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, Any]:
    return {"data": pixels(seed, (4, 1024)).reshape(4, 3072), "labels": list(labels)}


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("code was run"),)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (batch(0, labels=(0, 1, 2, 10)), "labels up to 10"),
        (batch(0, labels=(0, 1, 2, -1)), "labels up to 2"),
        (batch(0, labels=(0, 1, 2)), "3 labels"),
        (batch(0) | {"labels": ["0", "1", "2", "3"]}, "its labels not integers"),
        (batch(0) | {"data": np.zeros((4, 3072))}, "its pixels are not bytes"),
        ({"labels": [0]}, "KeyError"),
        (RunsCode(), "could run code"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_a_file_of_cifar_must_not_hold(content, complaint, batches, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    batches[2].write_bytes(pickle.dumps(content))
    argv = ["main.py", "with", "config=CIFAR10.resnetv1.RN8", f"data_dir={tmp_path}", f"localpath={tmp_path}"]
    assert main_classification.main([*argv, "cuda=False"]) == 1
    error = capsys.readouterr().err
    assert f"{batches[2]} is damaged" in error and complaint in error and error.count("\n") == 1
    assert not Path("code was run").exists()


@short_and_long("number", 20, 200)
def test_a_damaged_file_of_cifar_is_at_most_refused(number, batches, tmp_path):
    """The archive has a checksum, which is compared when it is unpacked; the files of it have none."""
    for damaged in damages(batches[0].read_bytes(), number, seed=3):
        batches[0].write_bytes(damaged)
        try:
            load_dataset("CIFAR10", data_dir=tmp_path)
        except ValueError as error:
            assert str(batches[0]) in str(error) and "\n" not in str(error), error


# --- damaged images --------------------------------------------------------------------------------------------------


@short_and_long("number", 20, 200)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
def test_a_damaged_image_is_an_image_or_an_error_of_one_line(suffix, number, tmp_path):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels(2, (24, 24))).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of files that it reads nonetheless
        for damaged in damages(path.read_bytes(), number, seed=random.Random(suffix).randrange(2**31)):
            path.write_bytes(damaged)
            try:
                assert read_rgb(str(path)).mode == "RGB"
            except ImageError as error:
                assert str(path) in str(error) and "\n" not in str(error), error


def test_a_texture_of_no_known_format_is_an_error_of_one_line(tmp_path):
    """Pillow reads more kinds of files than are taken for images by their names, and each fails in its own way."""
    path = tmp_path / "texture.png"
    Image.fromarray(pixels(2)).save(path, "DDS")
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)  # the flags of its pixel format
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"\Acannot read image [^\n]*texture\.png: [^\n]*\Z"):
        read_rgb(str(path))


@pytest.mark.parametrize(
    "error", [struct.error("short"), zlib.error("Error -3"), KeyError("mode"), IndexError(), TypeError()]
)
@pytest.mark.parametrize("read", [read_rgb, read_size])
def test_whatever_a_decoder_raises_is_an_error_of_one_line(read, error, tmp_path, monkeypatch):
    """Pillow catches most of these itself, in most of its readers."""

    def fail(path: str, **options: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=r"\Acannot read image a\.png: [^\n]*\Z"):
        read("a.png")
