"""Batches of training loaders with augmentation beyond crop and flip, resident and streamed."""

import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from device_tools import OnMeta

from config.options import Augmentation
from dataloaders import Dataset, ImageTensors, load_dataset, make_train_loader
from dataloaders.augmentation import ReflectCropFlip, derive_seed, draw_epoch
from dataloaders.decoding import read_rgb
from letkd.processes import Member

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NOTHING = Augmentation()
CHANGES = {"auto_augment": "randaugment", "color_jitter": [0.4, 0.4, 0.4, 0.1], "random_erasing": 0.5}
EVERYTHING = Augmentation(**CHANGES)
RESIZED = Augmentation(crop="resized", **CHANGES)


@pytest.fixture(scope="module")
def resident():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (22, 9, 9, 3), generator=generator, dtype=torch.uint8)
    split = ImageTensors(images, torch.arange(22))
    return Dataset("numbers", tuple(map(str, range(22))), 9, MEAN, STD, 1, True, train=split)


@pytest.fixture(scope="module")
def streamed(photos):
    return load_dataset("ImageFolder", data_dir=photos, image_size=100, mean=MEAN, std=STD)


CASES = [("resident", EVERYTHING), ("resident", RESIZED), ("streamed", EVERYTHING)]
CASES = [pytest.param(*case, id="-".join([case[0], case[1].crop or "usual"])) for case in CASES]


@pytest.fixture
def dataset(request):
    return request.getfixturevalue(request.param)


def train_loader(dataset, augmentation=EVERYTHING, **options):
    usual = {"batch_size": 4, "device": "cpu", "seed": 0}
    return make_train_loader(dataset, **usual | options, augmentation=augmentation)


def epoch_of(loader, epoch, skip=0):
    loader.set_epoch(epoch, skip=skip)
    return [batch[:3] for batch in loader]


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(one, other)
        for batch, theirs in zip(batches, others, strict=True)
        for one, other in zip(batch, theirs, strict=True)
    )


def test_without_it_resident_images_are_cropped_and_flipped_as_ever(resident):
    draws = draw_epoch(22, padding=1, flip=True, seed=3, epoch=2)
    expected = ReflectCropFlip(resident.train.images, 1)(*draws).permute(0, 3, 1, 2)
    batches = epoch_of(train_loader(resident, NOTHING, seed=3), 2)
    assert torch.equal(torch.cat([images for images, _, _ in batches]), expected[:20])


def test_without_it_streamed_images_are_what_torchvision_draws(streamed):
    batches = epoch_of(train_loader(streamed, NOTHING, seed=3), 2)
    transform = T.Compose([T.RandomResizedCrop(100), T.RandomHorizontalFlip()])
    for images, _, index in batches:
        for image, number in zip(images, index.tolist(), strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(3, 2, number))
                expected = np.array(transform(read_rgb(streamed.train.paths[number])))
            assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected))


@pytest.mark.parametrize(("dataset", "augmentation"), CASES, indirect=["dataset"])
def test_order_and_labels_stay_and_images_change(dataset, augmentation):
    plain, changed = (epoch_of(train_loader(dataset, options), 1) for options in (NOTHING, augmentation))
    for (before, *known), (after, *others) in zip(plain, changed, strict=True):
        assert all(map(torch.equal, known, others))
        assert after.shape == before.shape and after.dtype == torch.uint8
        assert after.is_contiguous(memory_format=torch.channels_last)
        assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("dataset", "augmentation"), CASES, indirect=["dataset"])
def test_an_epoch_repeats_from_seed_and_epoch_and_goes_on_behind_what_is_done(dataset, augmentation):
    before, torch_state = dataset.train, torch.get_rng_state()
    loader = train_loader(dataset, augmentation)
    whole = epoch_of(loader, 1)
    for skip in (1, 2, len(loader)):
        assert same(epoch_of(train_loader(dataset, augmentation), 1, skip=skip), whole[skip:])
    assert not same(epoch_of(loader, 2), whole)
    assert same(epoch_of(loader, 1), whole), "resident images stay as they are"
    assert dataset.train is before and torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(("dataset", "augmentation"), CASES, indirect=["dataset"])
def test_the_parts_of_ranks_are_the_batches_of_one_process(dataset, augmentation):
    whole = epoch_of(train_loader(dataset, augmentation, batch_size=6), 1, skip=1)
    parts = [
        epoch_of(train_loader(dataset, augmentation, batch_size=6, member=Member(rank, 3)), 1, skip=1)
        for rank in range(3)
    ]
    joined = [[torch.cat(values) for values in zip(*batch, strict=True)] for batch in zip(*parts, strict=True)]
    assert same(joined, whole)


@pytest.mark.parametrize(("dataset", "augmentation"), CASES, indirect=["dataset"])
def test_augmentation_follows_the_image_whatever_the_size_of_a_batch(dataset, augmentation):
    (large, small) = (epoch_of(train_loader(dataset, augmentation, batch_size=size), 1) for size in (12, 2))
    found = torch.cat([images for images, _, _ in small])
    images, _, index = large[0]
    assert torch.equal(torch.cat([index for _, _, index in small])[:12], index)
    assert torch.equal(found[:12], images)


def test_workers_change_nothing(streamed):
    assert same(epoch_of(train_loader(streamed, num_workers=1), 1), epoch_of(train_loader(streamed), 1))


def test_windows_of_files_have_the_scale_that_is_said(streamed):
    """All of an image: the same picture but for flips, in every epoch."""
    options = Augmentation(crop_scale=[1.0, 1.0], crop_ratio=[12 / 11, 12 / 11])
    loader = train_loader(dataclasses.replace(streamed, flip=False), options, batch_size=13)
    first, second = (
        [image for images, _, index in epoch_of(loader, epoch) for image in images[index.argsort()]] for epoch in (0, 1)
    )
    assert len(first) == 13 and all(map(torch.equal, first, second))


def test_a_resident_step_reads_nothing_back(resident):
    """Behind the first batch, with which the draws of the epoch are brought to the device."""
    batches = iter(train_loader(resident, RESIZED, device="meta", batch_size=11))
    next(batches)
    with OnMeta():
        rest = list(batches)
    assert len(rest) == 1 and rest[0].images.is_meta and rest[0].images.shape == (11, 3, 9, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [EVERYTHING, RESIZED])
def test_a_step_never_waits_for_the_gpu_and_equals_the_cpu(augmentation, resident):
    batches = iter(train_loader(resident, augmentation, device="cuda"))
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip([first, *rest], train_loader(resident, augmentation), strict=True):
        assert (ours.images.cpu().int() - theirs.images.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("streamed", {"crop": "padded"}, "crop=padded is for images that are held in memory; those of ImageFolder are"),
        (
            "resident",
            {"crop_scale": [0.5, 1.0]},
            "crop_scale is for crop=resized, and the images of numbers are padded",
        ),
        ("resident", {"crop": "padded", "crop_ratio": [0.5, 1.0]}, "crop_ratio is for crop=resized, and the images of"),
        ("resident", {"crop": "resized", "crop_scale": [1.0, 0.5]}, "crop_scale=[1, 0.5] must have the smaller number"),
    ],
)
def test_crops_that_cannot_be_are_refused(name, options, reason, request):
    with pytest.raises(ValueError) as caught:
        train_loader(request.getfixturevalue(name), Augmentation(**options))
    assert str(caught.value).startswith(reason)


def test_a_window_has_no_padding(resident):
    with pytest.raises(ValueError, match="padding_mode=zeros is for crop=padded, and crop=resized pads nothing"):
        train_loader(resident, RESIZED, padding_mode="zeros")
