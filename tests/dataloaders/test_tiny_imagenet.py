"""Tiny-ImageNet from small trees: as the archive unpacks, as people rearrange it, and damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders import ImageTensors, load_dataset, make_eval_loader, make_train_loader
from dataloaders.decoding import MAX_RESIDENT_BYTES, MAX_RESIDENT_SIZE

WNIDS = ("n02124075", "n01443537", "n04067472")  # not sorted, as in wnids.txt
CLASSES = tuple(sorted(WNIDS))


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 64)).save(path)


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """data_dir of three classes with four training and two evaluation images each, and three test images."""
    data_dir = tmp_path_factory.mktemp("published")
    root = data_dir / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        files = [f"{wnid}_{index}.JPEG" for index in range(4)]
        for index, file in enumerate(files):
            save(root / "train" / wnid / "images" / file, seed=10 * label + index)
        boxes = "".join(f"{file}\t0\t10\t63\t58\n" for file in files)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    annotations = [(f"val_{index}.JPEG", WNIDS[(index + 1) % 3]) for index in range(6)]
    for index, (file, _) in enumerate(annotations):
        save(root / "val" / "images" / file, seed=100 + index)
        save(root / "test" / "images" / f"test_{index}.JPEG", seed=200 + index)
    lines = "".join(f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in annotations)
    (root / "val" / "val_annotations.txt").write_text(lines)
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\tsome, words\n" for wnid in WNIDS))
    return data_dir


@pytest.fixture
def root(published, tmp_path):
    """A copy of the tree's tiny-imagenet-200/ to change."""
    return Path(shutil.copytree(published / "tiny-imagenet-200", tmp_path / "data" / "tiny-imagenet-200"))


def load(data_dir, **options):
    return load_dataset("TinyImageNet", data_dir=data_dir, **options)


def annotated(root):
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    return [tuple(line.split("\t")[:2]) for line in lines]


def images_and_classes(dataset, split):
    split = dataset.split(split)
    return {
        (image.numpy().tobytes(), dataset.classes[label])
        for image, label in zip(split.images, split.labels, strict=True)
    }


def expected_val(root, folder):
    return {(pixels(folder / file).numpy().tobytes(), wnid) for file, wnid in annotated(root)}


# Layouts


def test_the_archive_is_understood_as_it_unpacks(published):
    dataset = load(published)
    root = published / "tiny-imagenet-200"
    assert dataset.name == "TinyImageNet" and dataset.classes == CLASSES and dataset.test is None
    assert isinstance(dataset.train, ImageTensors) and dataset.train.images.shape == (12, 64, 64, 3)
    expected = {(pixels(path).numpy().tobytes(), path.parts[-3]) for path in (root / "train").rglob("*.JPEG")}
    assert images_and_classes(dataset, "train") == expected and len(expected) == 12
    assert images_and_classes(dataset, "eval") == expected_val(root, root / "val" / "images")
    assert len(dataset.eval) == 6


def test_the_protocol(published):
    dataset = load(published)
    assert (dataset.image_size, dataset.padding, dataset.flip) == (64, 8, True)
    assert dataset.mean == (0.4802, 0.4481, 0.3975) and dataset.std == (0.2770, 0.2691, 0.2821)
    small = load(published, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    assert small.train.images.shape == (12, 32, 32, 3) and small.padding == 4 and small.mean == (0.5, 0.5, 0.5)


def test_the_whole_training_set_is_within_the_limit_of_resident_splits():
    assert MAX_RESIDENT_SIZE >= 64 and MAX_RESIDENT_BYTES >= 100_000 * 64 * 64 * 3


def test_batches_for_training_and_evaluation(published):
    dataset = load(published)
    batch = next(iter(make_train_loader(dataset, batch_size=5, device="cpu", seed=0)))
    assert batch.images.shape == (5, 3, 64, 64) and batch.labels.max() < 3
    assert sum(len(batch.labels) for batch in make_eval_loader(dataset, batch_size=4, device="cpu")) == 6


def test_data_dir_may_be_the_unpacked_folder_itself_or_the_default(published, monkeypatch, tmp_path):
    assert len(load(published / "tiny-imagenet-200", splits=("train",)).train) == 12
    (tmp_path / "data").symlink_to(published)
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("TinyImageNet", splits=("eval",)).eval) == 6


@pytest.mark.parametrize("target", ["val/{}", "val/{}/images", "val/images/{}"])
@pytest.mark.parametrize("keep_annotations", [True, False])
def test_a_rearranged_val_gives_the_same_split(published, root, target, keep_annotations):
    for file, wnid in annotated(root):
        folder = root / target.format(wnid)
        folder.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / file).rename(folder / file)
    if "val/images" not in target:
        (root / "val" / "images").rmdir()
    if not keep_annotations:
        (root / "val" / "val_annotations.txt").unlink()
    assert images_and_classes(load(root), "eval") == images_and_classes(load(published), "eval")


def test_a_half_rearranged_val_loses_no_image(published, root):
    for file, wnid in annotated(root)[:3]:
        folder = root / "val" / "images" / wnid
        folder.mkdir(exist_ok=True)
        (root / "val" / "images" / file).rename(folder / file)
    assert images_and_classes(load(root), "eval") == images_and_classes(load(published), "eval")


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_evaluation_needs_no_training_images(published, root, classes):
    shutil.rmtree(root / "train")
    dataset = load(root.parent, splits=("eval",), classes=classes)
    assert dataset.train is None and dataset.classes == CLASSES
    assert images_and_classes(dataset, "eval") == images_and_classes(load(published), "eval")


# Mistakes


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_there_is_no_labelled_test_split(published):
    with pytest.raises(ValueError, match=r"TinyImageNet has no split 'test': .*; choose from train, eval"):
        load(published, splits=("test",))


def test_a_missing_folder_says_what_to_unpack_where(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path)
    assert f"TinyImageNet is not in {tmp_path}: unpack tiny-imagenet-200.zip there" in one_line(error)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(root, split):
    shutil.rmtree(root / split)
    with pytest.raises(FileNotFoundError, match=rf"there is no folder .*tiny-imagenet-200/{split}:") as error:
        load(root)
    one_line(error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_9.JPEG\tn01443537\t0\t0\t1\t1", r"val_annotations\.txt lists val_9\.JPEG, which is not in .*val/images"),
        ("val_0.JPEG\tn01443537\t0\t0\t1\t1", r"val_annotations\.txt line 7 lists a file a second time: 'val_0"),
        ("val_9.JPEG", r"val_annotations\.txt line 7 is not a file and its class: 'val_9\.JPEG'"),
        ("", r"val_annotations\.txt line 7 is not a file and its class: ''"),
    ],
)
def test_a_wrong_annotation_line_is_named(root, line, message):
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message) as error:
        load(root)
    one_line(error)


def test_an_annotated_class_that_training_lacks_is_named(root):
    shutil.rmtree(root / "train" / "n04067472")
    with pytest.raises(
        ValueError, match=r"'n04067472', the class of .*val_1\.JPEG, is not one of the 2 training"
    ) as error:
        load(root)
    one_line(error)


def test_an_image_without_annotation_is_named(root):
    save(root / "val" / "images" / "val_9.JPEG", seed=9)
    with pytest.raises(ValueError, match=r"val_9\.JPEG is not listed in .*val_annotations\.txt; remove") as error:
        load(root)
    one_line(error)


def test_missing_annotations_are_named(root):
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*val_annotations\.txt.*unpack tiny-imagenet-200\.zip"):
        load(root)


def test_an_empty_images_folder_left_by_rearranging_is_named(root):
    for file, wnid in annotated(root):
        (root / "val" / wnid).mkdir(exist_ok=True)
        (root / "val" / "images" / file).rename(root / "val" / wnid / file)
    with pytest.raises(ValueError, match=r"val/images holds no images .*remove the folder"):
        load(root)


def test_other_classes_than_the_checkpoints_are_refused(published):
    with pytest.raises(ValueError, match="TinyImageNet has 3 classes where 2 are expected"):
        load(published, splits=("eval",), classes=CLASSES[:2])
