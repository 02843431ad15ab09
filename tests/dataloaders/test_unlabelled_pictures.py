"""Pictures without classes in training batches: which, where, in which order, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders import Dataset, ImageTensors, hold_out, load_dataset, make_train_loader
from dataloaders import unlabelled as unlabelled_module
from dataloaders.decoding import ImageError
from dataloaders.loaders import passes_of
from dataloaders.unlabelled import (
    Unlabelled,
    check_parts,
    digest_of_pictures,
    find_pictures,
    numbers_of,
    open_pictures,
    refuse_evaluation,
    usable_pictures,
)
from letkd.processes import Member

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LABELLED, PICTURES = 12, 10
BATCH, SHARE, SEED = 8, 0.5, 3  # 4 and 4: three steps, which take 12 of 10 pictures


def numbered(first: int, count: int, labels: torch.Tensor) -> ImageTensors:
    """Images whose every pixel is their number."""
    numbers = torch.arange(first, first + count)
    return ImageTensors(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous(), labels)


@pytest.fixture
def dataset() -> Dataset:
    split = numbered(0, LABELLED, torch.arange(LABELLED))
    return Dataset("numbers", tuple(map(str, range(LABELLED))), 8, MEAN, STD, 1, True, train=split, eval=split)


@pytest.fixture
def beside() -> Unlabelled:
    return Unlabelled(numbered(100, PICTURES, torch.full((PICTURES,), -1)), SHARE)


def loader_of(beside: Unlabelled, dataset: Dataset, **options):
    usual = {"batch_size": BATCH, "device": "cpu", "seed": SEED, "accumulate": 1}
    return beside.make_train_loader(dataset, **(usual | options))


def epoch_of(loader, epoch: int, skip: int = 0) -> list:
    loader.set_epoch(epoch, skip=skip)
    return list(loader)


def painted(folder: Path, count: int, side: int = 8) -> Path:
    """Pictures of one grey each, some of them deeper."""
    for number in range(count):
        path = folder / ("deeper" if number % 2 else ".") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 10 * number, dtype=np.uint8)).save(path)
    return folder


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_labelled_images_and_pictures_behind_them(dataset, beside):
    loader = loader_of(beside, dataset)
    assert len(loader) == 3
    for batch in epoch_of(loader, 1):
        assert batch.images.shape == (BATCH, 3, 8, 8) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labelled.tolist() == [True] * 4 + [False] * 4
        assert (batch.labels >= 0).tolist() == batch.labelled.tolist() and batch.labels[4:].tolist() == [-1] * 4
        value = batch.images[:, 0, 0, 0].long()
        assert value[:4].tolist() == batch.labels[:4].tolist() == batch.index[:4].tolist()
        assert (value[4:] - 100).tolist() == (batch.index[4:] - LABELLED).tolist()
        assert batch.other_labels is None and batch.share is None


def test_the_labelled_images_are_those_of_a_run_without_pictures(dataset, beside):
    """Of the smaller batch: pictures change nothing of what is drawn for them."""
    alone = make_train_loader(dataset, batch_size=4, device="cpu", seed=SEED)
    for with_pictures, without in zip(epoch_of(loader_of(beside, dataset), 2), epoch_of(alone, 2), strict=True):
        assert torch.equal(with_pictures.images[:4], without.images)
        assert torch.equal(with_pictures.labels[:4], without.labels)


def test_an_epoch_is_a_pass_over_labelled_images_and_pictures_go_round(dataset, beside):
    loader, taken = loader_of(beside, dataset), []
    for epoch in range(5):
        batches = epoch_of(loader, epoch)
        labels = torch.cat([batch.labels[batch.labelled] for batch in batches])
        assert sorted(labels.tolist()) == list(range(LABELLED))
        taken += torch.cat([batch.index[~batch.labelled] for batch in batches]).tolist()
    assert len(taken) == 60
    passes = [taken[start : start + PICTURES] for start in range(0, 60, PICTURES)]
    assert all(sorted(each) == list(range(LABELLED, LABELLED + PICTURES)) for each in passes)
    assert len({tuple(each) for each in passes}) == 6


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_what_is_left_of_an_epoch_is_what_it_would_have_been(dataset, beside, skip):
    whole, rest = epoch_of(loader_of(beside, dataset), 4), epoch_of(loader_of(beside, dataset), 4, skip)
    assert len(rest) == 3 - skip
    for one, other in zip(whole[skip:], rest, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True) if pair[0] is not None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_have_parts_of_one_batch_and_each_part_its_share(dataset, beside, accumulate):
    whole = epoch_of(loader_of(beside, dataset), 1)
    ranks = [
        epoch_of(loader_of(beside, dataset, member=Member(rank, 2), accumulate=accumulate), 1) for rank in range(2)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        for part in parts:
            for small in part.labelled.chunk(accumulate):
                assert small.tolist() == [True] * (2 // accumulate) + [False] * (2 // accumulate)
        for known in (True, False):
            seen = torch.cat([part.index[part.labelled == known] for part in parts])
            assert torch.equal(seen, batch.index[batch.labelled == known])


def test_without_labelled_images_an_epoch_is_a_pass_over_the_pictures(dataset, beside):
    loader = loader_of(dataclasses.replace(beside, share=1.0), dataset, batch_size=3)
    assert len(loader) == 3  # the tenth picture is left out, as of labelled images
    batches = epoch_of(loader, 1)
    index = torch.cat([batch.index for batch in batches])
    assert len(index.unique()) == 9 and index.min() >= LABELLED
    assert not any(batch.labelled.any() for batch in batches) and {-1} == {int(each) for each in batches[0].labels}


def test_another_seed_is_another_order_and_labelled_images_have_another_than_the_pictures(dataset):
    as_many = Unlabelled(numbered(100, LABELLED, torch.full((LABELLED,), -1)), SHARE)
    batches = epoch_of(loader_of(as_many, dataset), 0)
    order = [torch.cat([batch.index[batch.labelled == known] for batch in batches]).tolist() for known in (True, False)]
    assert order[0] != [index - LABELLED for index in order[1]]
    other = epoch_of(loader_of(as_many, dataset, seed=SEED + 1), 0)
    assert order[1] != torch.cat([batch.index[~batch.labelled] for batch in other]).tolist()


@pytest.mark.parametrize("num_drawn, num_images", [(12, 10), (3, 10), (25, 10), (10, 10), (7, 1)])
def test_passes_follow_each_other_without_a_gap(num_drawn, num_images):
    places = [
        (number, place)
        for epoch in range(6)
        for number, part in passes_of(epoch, num_drawn, num_images)
        for place in part
    ]
    assert places == [divmod(place, num_images) for place in range(6 * num_drawn)]


def test_files_are_streamed_where_the_training_images_are(tmp_path):
    """Read in the order that follows from the epoch, each pass with another augmentation, by any number of workers."""
    root = tmp_path / "data"
    for name in ("a", "b"):
        painted(root / "train" / name, 6, side=110)
    (root / "val").symlink_to(root / "train")
    dataset = load_dataset("ImageFolder", data_dir=root, image_size=100, mean=MEAN, std=STD)
    pictures = open_pictures(painted(tmp_path / "pictures", 5, side=120), dataset)
    beside = Unlabelled(pictures, 0.5)
    loader = loader_of(beside, dataset, batch_size=4)
    first, again = epoch_of(loader, 1), epoch_of(loader, 1)
    other = epoch_of(loader_of(beside, dataset, batch_size=4, num_workers=1), 1)
    rest = epoch_of(loader, 1, skip=4)
    assert len(first) == 6 and [batch.labels[2:].tolist() for batch in first] == [[-1, -1]] * 6
    for one, *same in zip(first, again, other, strict=True):
        for each in same:
            assert all(torch.equal(*pair) for pair in zip(one, each, strict=True) if pair[0] is not None)
    assert torch.equal(first[4].index, rest[0].index) and torch.equal(first[4].images, rest[0].images)
    taken = [epoch_of(loader, epoch) for epoch in range(5)]
    index = torch.cat([batch.index[2:] for epoch in taken for batch in epoch])
    assert all(sorted(each.tolist()) == list(range(12, 17)) for each in index.split(5))


# --- the folder ------------------------------------------------------------------------------------------------------


def test_pictures_of_any_depth_and_size_are_prepared_as_the_training_images(dataset, tmp_path, caplog):
    folder = painted(tmp_path, 5, side=20)
    (folder / "notes.txt").write_text("no picture")
    with caplog.at_level("INFO", logger="letKD.run"):
        pictures = open_pictures(folder, dataset)
    assert pictures.images.shape == (5, 8, 8, 3) and pictures.labels.tolist() == [-1] * 5
    assert sorted(pictures.images[:, 0, 0, 0].tolist()) == [0, 10, 20, 30, 40]
    assert f"note: {folder} holds what is not used: 1 .txt" in caplog.text


def test_pictures_are_told_from_others(dataset, tmp_path):
    folder = painted(tmp_path, 3)
    facts, digest = Unlabelled(open_pictures(folder, dataset), 0.5).facts(), digest_of_pictures(folder)
    assert facts["number"] == 3
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "one more.png")
    assert Unlabelled(open_pictures(folder, dataset), 0.5).facts() != facts
    assert digest_of_pictures(folder) != digest


def test_a_damaged_picture_is_named(dataset, tmp_path):
    folder = painted(tmp_path, 3)
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"^cannot read image .*02\.png: .*; replace or remove it$"):
        open_pictures(folder, dataset)


@pytest.mark.parametrize("content, message", [
    (None, r"^unlabelled=.*/pictures: there is no such folder; it must hold image files, at any depth$"),
    ((), r"^unlabelled=.*/pictures holds no images \(\.jpg, \.png and what else Pillow reads\)$"),
    (("a.txt", "b.txt"), r"^unlabelled=.* holds no images \(.*; it has 2 \.txt\)$"),
])  # fmt: skip
def test_a_folder_without_images_is_refused(content, message, tmp_path):
    folder = tmp_path / "pictures"
    if content is not None:
        folder.mkdir()
        for name in content:
            (folder / name).write_text("no picture")
    with pytest.raises(ValueError, match=message):
        find_pictures(folder)


@pytest.mark.parametrize("folder", ["data", "data/val", "data/val/cat", "data/test"])
def test_images_that_evaluate_are_refused(folder, tmp_path):
    for place in ("train/cat", "val/cat", "test/cat"):
        (tmp_path / "data" / place).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^unlabelled=.* has images of .*/data/(val|test), which measure what is"):
        refuse_evaluation(tmp_path / folder, tmp_path / "data")


def test_training_images_are_pictures_too_unless_some_of_them_evaluate(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    refuse_evaluation(folder, tmp_path / "data")
    refuse_evaluation(folder, None)
    refuse_evaluation(tmp_path / "others", tmp_path / "data", val_split=10)
    with pytest.raises(ValueError, match=r"has images of .*/data/train, which measure"):
        refuse_evaluation(folder, tmp_path / "data", val_split=10)


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """ImageNet as Kaggle's archive unpacks."""
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    for name in ("train/n01", "train/n02", "val"):
        painted(root / name, 2)
    (tmp_path / "LOC_val_solution.csv").write_text("00,n01 1\n01,n02 1\n")
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".JPEG"))
    return tmp_path


def tiny(root: Path) -> Path:
    """Tiny-ImageNet, whose images are held in memory, as its archive unpacks."""
    for name in ("train/n01/images", "train/n02/images", "val/n01", "val/n02"):
        painted(root / "tiny-imagenet-200" / name, 2)
    return root


def test_evaluation_images_of_any_layout_are_refused(kaggle, tmp_path, monkeypatch):
    """Streamed or held, behind links, and also where no data_dir is given."""
    dataset = load_dataset("ImageNet", data_dir=kaggle)
    with pytest.raises(ValueError, match=r"images that measure .*, 2 of 6, like .*/val/00\.JPEG; choose a folder wi"):
        usable_pictures(kaggle / "ILSVRC", dataset)
    assert len(usable_pictures(kaggle / "ILSVRC/Data/CLS-LOC/train", dataset)[0]) == 4
    links = tmp_path / "links"
    links.mkdir()
    (links / "one.jpg").symlink_to(kaggle / "ILSVRC/Data/CLS-LOC/val/deeper/01.JPEG")
    with pytest.raises(ValueError, match=r"images that measure what is trained, 1 of 1, like .*/links/one\.jpg"):
        open_pictures(links, dataset)

    monkeypatch.setattr("dataloaders.tiny_imagenet.DEFAULT_DATA_DIR", tiny(tmp_path / "usual"))
    dataset = load_dataset("TinyImageNet")
    assert isinstance(dataset.eval, ImageTensors)
    with pytest.raises(ValueError, match=r"images that measure what is trained, 4 of 4, like .*/val/n01/00\.png"):
        open_pictures(tmp_path / "usual/tiny-imagenet-200/val", dataset)
    train = tmp_path / "usual/tiny-imagenet-200/train"
    assert len(open_pictures(train, dataset)) == 4
    with pytest.raises(ValueError, match=r"images that measure what is trained, 2 of 4"):
        open_pictures(train, hold_out(dataset, 2, seed=0))


def test_more_pictures_than_memory_is_for_are_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled_module, "MAX_RESIDENT_BYTES", 500)
    with pytest.raises(ValueError, match=r"^unlabelled=.*: 3 images of 8x8 need 0\.0 GiB, and at most 0 are held in"):
        usable_pictures(painted(tmp_path, 3), dataset)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, share, numbers", [
    (64, 0.5, (32, 32)), (64, 0.9, (6, 58)), (64, 1.0, (0, 64)), (64, 0.01, (63, 1)), (5, 0.5, (3, 2)),
    (7, 0.5, (3, 4)),
])  # fmt: skip
def test_a_share_is_a_number_of_images(batch_size, share, numbers):
    assert numbers_of(batch_size, share) == numbers


@pytest.mark.parametrize("share, kind", [(0.001, "unlabelled"), (0.999, "labelled")])
def test_a_share_that_leaves_no_image_of_a_kind_is_refused(share, kind):
    with pytest.raises(
        ValueError, match=rf"^unlabelled_share={share:g} of batch_size=64 leaves no {kind} image; choose"
    ):
        numbers_of(64, share)


def test_parts_that_are_not_equal_are_refused():
    check_parts(64, 0.5, 4, "accumulate=4 parts")
    with pytest.raises(
        ValueError, match=r"^batch_size=64 with unlabelled_share=0\.9 is 6 labelled and 58 other images, which accum"
    ):
        check_parts(64, 0.9, 4, "accumulate=4 parts")


@pytest.mark.parametrize("share, kind, number", [(0.5, "labelled", 12), (0.9, "unlabelled", 10)])
def test_more_images_in_a_batch_than_there_are_is_refused(dataset, beside, share, kind, number):
    beside = dataclasses.replace(beside, share=share)
    with pytest.raises(
        ValueError, match=rf" has \d+ {kind} images, and there are {number}; choose a smaller batch_size"
    ):
        loader_of(beside, dataset, batch_size=26)
