"""A folder of images a class: layout, colour modes, geometry, measurements, and every mistake named in one line."""

import shutil

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dataloaders import ImageFiles, ImageTensors, load_dataset, outline_dataset
from dataloaders.decoding import ImageError, fit_square, read_rgb, to_rgb

KNOWN = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def noise(seed, size=(16, 16)):
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, seed=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).save(path)


@pytest.fixture
def tree(tmp_path):
    """train/{ant,bee} with 3 and 2 images, val/{ant,bee} and test/bee with 1 a class; the file name is the seed."""
    files = ["train/ant/0", "train/ant/1", "train/ant/deep/2", "train/bee/3", "train/bee/4", "val/ant/5", "val/bee/6"]
    for file in [*files, "test/bee/7"]:
        save(tmp_path / f"{file}.png", seed=int(file[-1]))
    return tmp_path


def load(tree, **options):
    return load_dataset("ImageFolder", data_dir=tree, **options)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# Layout


def test_classes_are_the_training_folders_in_order_and_images_are_found_at_any_depth(tree):
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "ant" / "notes.txt").write_text("not an image")
    (tree / "train" / "ant" / "._0.png").write_text("what macOS leaves beside 0.png")
    dataset = load(tree)
    assert dataset.classes == ("ant", "bee") and dataset.name == "ImageFolder"
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1] and dataset.eval.labels.tolist() == [0, 1]
    assert torch.equal(dataset.train.images, torch.from_numpy(np.stack([noise(seed) for seed in range(5)])))
    assert (dataset.image_size, dataset.padding, dataset.flip) == (16, 2, True)


def test_val_evaluates_and_test_is_extra_but_alone_test_evaluates(tree):
    dataset = load(tree, splits=("train", "eval", "test"))
    assert torch.equal(dataset.eval.images[0], torch.from_numpy(noise(5)))
    assert torch.equal(dataset.test.images[0], torch.from_numpy(noise(7))) and dataset.test.labels.tolist() == [1]
    (tree / "val").rename(tree / "elsewhere")
    assert torch.equal(load(tree).eval.images[0], torch.from_numpy(noise(7)))
    with pytest.raises(FileNotFoundError, match="no val/; use the split 'eval'"):
        load(tree, splits=("test",))


def test_evaluation_alone_needs_no_training_folder(tree):
    (tree / "train").rename(tree / "elsewhere")
    dataset = load(tree, splits=("eval",), classes=("ant", "bee"), **KNOWN)
    assert dataset.train is None and dataset.eval.labels.tolist() == [0, 1] and dataset.mean == KNOWN["mean"]


def test_evaluation_alone_asks_for_what_only_training_images_tell(tree):
    with pytest.raises(ValueError, match="without its split 'train' needs std, classes, or load 'train'") as error:
        load(tree, splits=("eval",), image_size=16, mean=(0.5, 0.5, 0.5))
    one_line(error)


# What tells a folder from another


def test_an_outline_knows_the_images_without_decoding_them(tree):
    found = outline_dataset("ImageFolder", data_dir=tree)
    assert set(found) == {"images", "image_size"} and found["image_size"] == load(tree).image_size
    given = outline_dataset("ImageFolder", data_dir=tree, **KNOWN)
    assert given == {"images": found["images"], "image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    copy = shutil.copytree(tree, tree.parent / "copy")
    assert outline_dataset("ImageFolder", data_dir=copy) == found, "it may be moved"
    assert outline_dataset("ImageFolder", image_size=8) == {"image_size": 8}, "what is not there is not known"


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda tree: save(tree / "train/bee/8.png", seed=8), True),
        (lambda tree: (tree / "train/bee/4.png").rename(tree / "train/ant/4.png"), True),
        (lambda tree: save(tree / "train/bee/4.png", size=(16, 12)), True),
        (lambda tree: (tree / "train/bee").rename(tree / "train/wasp"), True),
        (lambda tree: save(tree / "val/bee/9.png", seed=9), False),
        (lambda tree: (tree / "train/bee/notes.txt").write_text("not an image"), False),
    ],
    ids=["one more", "of another class", "another picture", "another name", "to evaluate", "no image"],
)
def test_an_outline_changes_with_the_training_images(change, matters, tree):
    before = outline_dataset("ImageFolder", data_dir=tree)["images"]
    change(tree)
    assert (outline_dataset("ImageFolder", data_dir=tree)["images"] != before) == matters


# Colour


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_colour_mode_becomes_rgb(mode):
    image = Image.fromarray(noise(0)).convert(mode)
    assert to_rgb(image).mode == "RGB"


def test_grey_is_repeated_and_transparency_dropped(tmp_path):
    grey = noise(0)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "grey.png")), np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(np.dstack([noise(1), grey])).save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "alpha.png")), noise(1))


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path, recwarn):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=b"\x80\x00")
    assert np.asarray(read_rgb(tmp_path / "palette.png")).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert not recwarn.list


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    Image.fromarray(np.array([[0, 128, 129, 32768, 65535]], dtype=np.uint16)).save(tmp_path / name)
    assert np.asarray(read_rgb(tmp_path / name))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: floating-point pixels have no known range"):
        read_rgb(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match=r"wide\.tif: integer pixels in 70000\.\.70000 are not 16-bit"):
        read_rgb(tmp_path / "wide.tif")


# Geometry and measurements


def test_geometry_scales_the_shorter_side_and_crops_the_centre():
    image = Image.fromarray(noise(0, (300, 250)))
    small = T.Compose([T.Resize(64), T.CenterCrop(64)])(image)
    large = T.Compose([T.Resize(int(112 * 256 / 224)), T.CenterCrop(112)])(image)
    assert np.array_equal(np.asarray(fit_square(image, 64)), np.asarray(small))
    assert np.array_equal(np.asarray(fit_square(image, 112)), np.asarray(large))
    native = Image.fromarray(noise(0))
    assert np.array_equal(np.asarray(fit_square(native, 16)), noise(0))


def test_mean_and_std_are_those_of_the_training_pixels(tree):
    pixels = np.concatenate([noise(seed).reshape(-1, 3) for seed in range(5)]) / 255
    dataset = load(tree)
    assert dataset.mean == pytest.approx(pixels.mean(0), abs=1e-9)
    assert dataset.std == pytest.approx(pixels.std(0), abs=1e-9)
    given = load(tree, mean=(0.5, 0.5, 0.5))
    assert given.mean == (0.5, 0.5, 0.5) and given.std == dataset.std


def test_a_common_size_close_to_square_is_the_image_size(tmp_path):
    for index in range(4):
        save(tmp_path / "train" / "ab"[index % 2] / f"{index}.png", index, (18, 16))
    dataset = load(tmp_path, splits=("train",))
    assert dataset.image_size == 16
    assert torch.equal(dataset.train.images[1], torch.from_numpy(noise(2, (18, 16))[:, 1:17]))


def test_sizes_that_differ_or_are_not_square_ask_for_image_size(tree):
    save(tree / "train" / "bee" / "5.png", size=(20, 16))
    with pytest.raises(ValueError, match=r"sizes differ \(.*0.png is 16x16, .*5.png 20x16\): pass image_size") as error:
        load(tree)
    one_line(error)
    assert load(tree, image_size=12).train.images.shape == (6, 12, 12, 3)
    for path in (tree / "train").rglob("*.png"):
        save(path, size=(20, 16))
    with pytest.raises(ValueError, match="are 20x16, not square: pass image_size"):
        load(tree)


def test_a_split_is_resident_while_small_and_streamed_beyond(tree, monkeypatch):
    assert isinstance(load(tree, image_size=96).train, ImageTensors)
    streamed = load(tree, image_size=97)
    assert isinstance(streamed.train, ImageFiles) and streamed.train.labels.tolist() == [0, 0, 0, 1, 1]
    monkeypatch.setattr("dataloaders.folders.MAX_RESIDENT_BYTES", 4 * 16 * 16 * 3)
    dataset = load(tree)
    assert isinstance(dataset.train, ImageFiles) and isinstance(dataset.eval, ImageTensors)
    pixels = np.concatenate([noise(seed).reshape(-1, 3) for seed in range(5)]) / 255
    assert dataset.mean == pytest.approx(pixels.mean(0), abs=1e-9)


def test_a_large_streamed_split_is_measured_on_evenly_spaced_images(tree, monkeypatch):
    monkeypatch.setattr("dataloaders.folders.MAX_RESIDENT_BYTES", 0)
    monkeypatch.setattr("dataloaders.image_folder.MEASURED_IMAGES", 3)
    pixels = np.concatenate([noise(seed).reshape(-1, 3) for seed in (0, 2, 4)]) / 255
    assert load(tree).mean == pytest.approx(pixels.mean(0), abs=1e-9)


def test_worker_processes_and_progress_change_nothing_but_the_display(tree, capsys):
    told = []

    def show(items, total, what):
        told.append((what, total))
        return items

    alone, helped = load(tree), load(tree, num_workers=2, progress=show)
    assert torch.equal(alone.train.images, helped.train.images) and alone.mean == helped.mean
    assert told == [("image sizes", 1), ("decoding train", 1), ("decoding eval", 1)], "a batch of files each"
    assert capsys.readouterr().err == ""


def test_loading_leaves_the_global_random_state_alone(tree):
    before = torch.get_rng_state()
    load(tree)
    assert torch.equal(before, torch.get_rng_state())


# Mistakes


def test_missing_folders_are_named(tree, tmp_path):
    with pytest.raises(ValueError, match="ImageFolder needs data_dir"):
        load_dataset("ImageFolder")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    (tree / "val").rename(tree / "a")
    (tree / "test").rename(tree / "b")
    with pytest.raises(FileNotFoundError, match=r"has neither val/ nor test/"):
        load(tree)
    (tree / "train").rename(tree / "c")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*train"):
        load(tree, splits=("train",))


def test_no_class_or_one_class_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train must hold at least two class folders, it has none"):
        load(tmp_path, splits=("train",))
    save(tmp_path / "train" / "ant" / "0.png")
    with pytest.raises(ValueError, match="it has only 'ant'"):
        load(tmp_path, splits=("train",))


def test_a_class_without_images_is_named(tree):
    (tree / "train" / "cat").mkdir()
    (tree / "train" / "cat" / "readme.txt").write_text("none yet")
    with pytest.raises(ValueError, match=r"train/cat holds no images \(\.jpg"):
        load(tree)


def test_an_evaluation_folder_without_classes_is_named(tree):
    for path in sorted((tree / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(ValueError, match="val holds no class folders"):
        load(tree)


def test_an_evaluation_class_that_training_lacks_is_named(tree):
    save(tree / "val" / "bees" / "0.png")
    with pytest.raises(
        ValueError,
        match=r"'bees', the class of .*val/bees/0\.png, is not one of the 2 training classes; did you mean 'bee'\?",
    ) as error:
        load(tree)
    one_line(error)


def test_other_classes_than_the_checkpoints_are_refused(tree):
    with pytest.raises(ValueError, match="class 1 is 'bee', expected 'cow'"):
        load(tree, classes=("ant", "cow"))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"<html>", lambda data: data[: len(data) // 2]])
def test_an_image_that_cannot_be_read_is_named_in_one_line(tree, damage, num_workers):
    victim = tree / "train" / "bee" / "3.png"
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read image .*bee/3\.png: .*; replace or remove it") as error:
        load(tree, num_workers=num_workers, **KNOWN)
    one_line(error)


def test_images_of_one_colour_cannot_be_normalised(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "0.png")
    with pytest.raises(ValueError, match=r"std .* of ImageFolder must be three numbers above 0"):
        load(tmp_path, splits=("train",))
