"""Which files are images: what Pillow decodes, upright, of every real folder once, regular and not hidden."""

import logging
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from dataloaders import load_dataset, make_train_loader, outline_dataset
from dataloaders.decoding import ImageError, SquarePixels, read_rgb, read_size
from dataloaders.image_files import image_endings, image_formats, images_below, shown

ODD = os.fsdecode(b"\xff\n\x1b.png")


def noise(seed, size=(16, 16)):
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, seed=0, size=(16, 16), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """train and val with two images of each of the classes ant and bee."""
    for number, folder in enumerate(("train/ant", "train/bee", "val/ant", "val/bee")):
        for index in range(2):
            save(tmp_path / "set" / folder / f"{index}.png", seed=2 * number + index)
    return tmp_path / "set"


def load(tree, **options):
    return load_dataset("ImageFolder", data_dir=tree, **options)


def notices(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "letKD.run"]


# Which formats


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPG", ".gif", ".avif", ".jp2", ".tga", ".webp", ".pgm", ".mpo"])
def test_whatever_pillow_decodes_is_an_image(ending, tree):
    if ending.lower() not in image_endings():
        pytest.skip(f"this Pillow does not read {ending}")
    save(tree / "train" / "bee" / f"more{ending}")
    assert load(tree).train.labels.tolist() == [0, 0, 1, 1, 1]


def test_what_runs_a_program_or_is_not_decoded_is_no_image(tmp_path, monkeypatch):
    assert not {"EPS", "MPEG", "WMF", "HDF5", "GRIB", "BUFR", "PDF"} & set(image_formats())
    assert not {".eps", ".ps", ".pdf", ".mpg", ".wmf", ".h5", ".txt", ""} & image_endings()
    run = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **options: run.append(given))
    path = tmp_path / "page.png"
    Image.fromarray(noise(0)).save(path, "EPS")
    with pytest.raises(ImageError, match=r"page\.png: it is of no format that is read"):
        read_rgb(path)
    assert not run


# Which way is up


FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def tagged(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_read_upright(name, orientation, tmp_path):
    if name not in image_formats():
        pytest.skip(f"this Pillow does not read {name}")
    path = tmp_path / "picture"
    save(path, size=(20, 12), format=name, exif=tagged(orientation))
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(upright))
    assert read_size(path) == upright.size == ((12, 20) if 5 <= orientation <= 8 else (20, 12))


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00", b"Exif\x00\x00MM\x00*", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"x"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_tags_do_not_take_a_picture_away(exif, tmp_path):
    save(tmp_path / "plain.png", size=(20, 12))
    save(tmp_path / "damaged.png", size=(20, 12), exif=exif)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "damaged.png")), noise(0, (20, 12)))
    assert read_size(tmp_path / "damaged.png") == (20, 12)


@pytest.mark.parametrize("image_size", [16, 128], ids=["resident", "streamed"])
def test_classes_that_differ_by_which_way_is_up_can_be_told_apart(image_size, tmp_path):
    """Every picture is bright at its top in one class, at its bottom in the other; the files lie in all eight ways."""
    stored = (1, 2, 3, 4, 5, 6, 7, 8)
    turned_back = {5: 5, 6: 8, 7: 7, 8: 6}  # the tag whose turn undoes that of another; the others undo themselves
    for name, top in (("high", 255), ("low", 0)):
        upright = Image.new("L", (32, 32), 255 - top)
        upright.paste(top, (0, 0, 32, 16))
        for tag in stored:
            upright.getexif()[ExifTags.Base.Orientation] = turned_back.get(tag, tag)
            file = ImageOps.exif_transpose(upright)
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            file.save(tmp_path / "train" / name / f"{tag}.png", exif=tagged(tag))
    dataset = load(tmp_path, splits=("train",), image_size=image_size)
    read = SquarePixels(image_size)
    paths = sorted(str(path) for path in (tmp_path / "train").rglob("*.png"))
    images = dataset.train.images if image_size == 16 else torch.from_numpy(np.stack([read(path) for path in paths]))
    brighter = images[:, : image_size // 4].float().mean((1, 2, 3)) > images[:, -image_size // 4 :].float().mean(
        (1, 2, 3)
    )
    assert torch.equal(brighter, dataset.train.labels == 0)
    if image_size == 128:  # crops of any place: the rows of a training image still go from bright to dark, or are alike
        batch = next(iter(make_train_loader(dataset, batch_size=16, device="cpu", seed=0)))
        augmented, labels = batch.images / 255, batch.labels
        falls = augmented[..., 0, :].mean((1, 2)) - augmented[..., -1, :].mean((1, 2))
        assert (falls[labels == 0] >= -1e-3).all() and (falls[labels == 1] <= 1e-3).all() and (falls.abs() > 0.5).any()


def test_files_made_from_pictures_as_they_were_read_earlier_do_not_fit(tree, monkeypatch):
    now = outline_dataset("ImageFolder", data_dir=tree)
    monkeypatch.setattr("dataloaders.folders.READING", b"")
    assert outline_dataset("ImageFolder", data_dir=tree)["images"] != now["images"]


# Which files and folders


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/0.png", "@eaDir/0.png", "deep/.trash/deeper/0.png", ".0.png"])
def test_what_is_hidden_is_read_at_no_depth(hidden, tree, caplog):
    save(tree / "train" / "ant" / hidden)
    with caplog.at_level(logging.INFO, logger="letKD.run"):
        assert len(load(tree).train) == 4
    assert not notices(caplog), "nobody asks for them"


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "{tree}/train/bee", "{outside}"])
def test_a_link_to_a_folder_is_followed_nowhere_below_a_class(target, tree, tmp_path, caplog):
    save(tmp_path / "elsewhere" / "0.png")
    (tree / "train" / "ant" / "deep").mkdir()
    for folder in (".", "deep"):
        (tree / "train" / "ant" / folder / "link").symlink_to(target.format(tree=tree, outside=tmp_path / "elsewhere"))
    with caplog.at_level(logging.INFO, logger="letKD.run"):
        assert load(tree).train.labels.tolist() == [0, 0, 1, 1]
    assert notices(caplog) == [f"note: {tree / 'train'} holds what is not used: 2 link to a folder"]


def test_a_class_may_be_a_link_to_a_folder_and_an_image_a_link_to_a_file(tree, tmp_path):
    (tree / "train" / "bee").rename(tmp_path / "bees")
    (tree / "train" / "bee").symlink_to(tmp_path / "bees")
    save(tmp_path / "pool.png", seed=9)
    (tree / "train" / "bee" / "2.png").symlink_to(tmp_path / "pool.png")
    train = load(tree).train
    assert train.labels.tolist() == [0, 0, 1, 1, 1] and np.array_equal(train.images[4], noise(9))


@pytest.mark.parametrize("target", ["ant", ".", "..", "ant/deep"])
def test_a_picture_has_one_class(target, tree):
    save(tree / "train" / "ant" / "deep" / "0.png")
    (tree / "train" / "again").symlink_to(target)
    with pytest.raises(ValueError, match=r"'(ant|again)' are those of|again is a link to .*, which holds it"):
        load(tree)


def special(kind, path):
    """Returns what must stay open."""
    if kind == "pipe":
        return os.mkfifo(path)
    if kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        return server
    return path.symlink_to({"device": "/dev/zero", "nowhere": "nothing.png", "itself": path.name}[kind])


@pytest.fixture
def short(tmp_path_factory):
    """A folder whose path a socket can have: 100 characters at most."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("s")
        patch.chdir(folder)
        yield Path()


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "nowhere", "itself"])
def test_only_regular_files_are_read(kind, short):
    save(short / "a.png")
    opened = special(kind, short / "b.png")
    unused = {}
    assert [Path(path) for path in images_below(short, unused)] == [Path("a.png")]
    assert list(unused.values()) == [".png (no regular file)"]
    for read in (read_rgb, read_size):
        with pytest.raises(ImageError, match=r"there is no image b\.png|cannot read image b\.png: "):
            read("b.png")
    del opened


# What is said


def test_what_a_folder_holds_and_is_not_used_is_named_once(tree, caplog):
    for number in range(3):
        (tree / "train" / "ant" / f"{number}.heic").write_text("")
    (tree / "train" / "bee" / "README").write_text("")
    save(tree / "train" / "loose.png")
    with caplog.at_level(logging.INFO, logger="letKD.run"):
        load(tree)
        outline_dataset("ImageFolder", data_dir=tree)
    rest = "3 .heic, 1 images beside the class folders, 1 without ending"
    assert notices(caplog) == [f"note: {tree / 'train'} holds what is not used: {rest}"]


def test_a_class_that_cannot_be_used_says_what_it_has(tree):
    for file in (tree / "train" / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(ValueError, match=r"train/bee holds no images \(.*; it has 2 \.heic\); add some or remove"):
        load(tree)


def test_a_class_that_evaluation_lacks_is_named(tree, caplog):
    for file in (tree / "val" / "bee").iterdir():
        file.unlink()
    (tree / "val" / "bee").rmdir()
    with caplog.at_level(logging.INFO, logger="letKD.run"):
        assert load(tree).eval.labels.tolist() == [0, 0]
    assert notices(caplog) == ["note: the split 'eval' has no images of 1 of 2 classes: 'bee'"]


def test_names_that_are_no_text_are_read_and_shown(tree):
    (tree / "train" / "bee").rename(tree / "train" / ODD)
    (tree / "val" / "bee").rename(tree / "val" / ODD)
    dataset = load(tree)
    assert dataset.classes == ("ant", ODD) and len(outline_dataset("ImageFolder", data_dir=tree)["images"]) == 64
    path = Path(dataset.name, ODD)
    with pytest.raises(ImageError, match=r"\Athere is no image ImageFolder/\\udcff\\n\\x1b\.png\Z"):
        read_rgb(path)
    assert shown("Käfer 7.png") == "Käfer 7.png"


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_picture_with_an_odd_name_is_a_line_that_can_be_written(content, tree):
    path = tree / "train" / "bee" / ODD
    path.write_bytes(content if content is not None else (tree / "train" / "ant" / "0.png").read_bytes()[:60])
    with pytest.raises(ImageError) as error:
        load(tree, image_size=16)
    assert str(error.value).encode().isascii() and str(error.value).isprintable()
    assert r"\udcff\n\x1b.png" in str(error.value)


def test_no_user_of_that_name():
    with pytest.raises(ValueError, match=r"data_dir=~nobody-here/x: there is no user of that name"):
        load("~nobody-here/x")
    with pytest.raises(ValueError, match="there is no user"):
        outline_dataset("ImageFolder", data_dir="~nobody-here/x")
