"""Crop, flip and normalisation against torchvision, and the random numbers of an epoch."""

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF

from dataloaders.augmentation import CROPS, ReflectCropFlip, derive_seed, draw_epoch

SIZE, PADDING = 32, 4
OFFSETS = 2 * PADDING + 1


def random_images(num_images, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_images, size, size, 3), generator=generator, dtype=torch.uint8)


def chi_square(counts):
    """Divided by its degrees of freedom: near 1 for uniform draws."""
    expected = counts.sum() / counts.numel()
    return float((counts - expected).square().sum() / expected / (counts.numel() - 1))


@pytest.mark.parametrize(("mode", "name"), [("reflect", "reflect"), ("zeros", "constant")])
def test_every_offset_and_flip_equals_torchvision_bit_for_bit(mode, name):
    images = random_images(5)
    cells = torch.cartesian_prod(torch.arange(OFFSETS), torch.arange(OFFSETS), torch.arange(2))
    top, left, flip = cells.T
    picks = torch.arange(len(cells)) % len(images)
    out = CROPS[mode](images, PADDING)(picks, top, left, flip)

    assert out.dtype == torch.uint8 and out.shape == (len(cells), SIZE, SIZE, 3)
    for index, (offset_y, offset_x, mirrored) in enumerate(cells.tolist()):
        padded = TF.pad(images[picks[index]].permute(2, 0, 1), [PADDING] * 4, padding_mode=name)
        expected = TF.crop(padded, offset_y, offset_x, SIZE, SIZE)
        expected = TF.hflip(expected) if mirrored else expected
        assert torch.equal(out[index].permute(2, 0, 1), expected), (offset_y, offset_x, mirrored)


def test_an_image_is_drawn_from_the_distribution_of_torchvision_random_crop_and_flip():
    ramp = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 8, 8, 3)
    draws = draw_epoch(4000, padding=1, flip=True, seed=0, epoch=0)
    ours = ReflectCropFlip(ramp, 1)(torch.zeros(4000, dtype=torch.int64), draws.top, draws.left, draws.flip)
    theirs = T.Compose([T.RandomCrop(8, padding=1, padding_mode="reflect"), T.RandomHorizontalFlip()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = {
            theirs(ramp[0].permute(2, 0, 1)).permute(1, 2, 0).contiguous().numpy().tobytes() for _ in range(400)
        }
    seen, counts = ours.flatten(1).unique(dim=0, return_counts=True)
    assert len(reference) == 18  # 3 x 3 windows, mirrored or not
    assert {row.numpy().tobytes() for row in seen} == reference
    assert 0.4 < chi_square(counts.double()) < 2.0


def test_without_padding_and_flip_the_images_come_back():
    images = random_images(3, size=7)
    draws = draw_epoch(3, padding=0, flip=False, seed=0, epoch=0)
    assert torch.equal(ReflectCropFlip(images, 0)(*draws), images[draws.order])


def test_draws_of_an_epoch_are_a_permutation_with_uniform_independent_offsets_and_flips():
    draws = draw_epoch(60_000, padding=PADDING, flip=True, seed=3, epoch=5)
    assert torch.equal(draws.order.sort().values, torch.arange(60_000))
    cells = (draws.top * OFFSETS + draws.left) * 2 + draws.flip
    counts = cells.bincount(minlength=2 * OFFSETS**2).double()
    assert len(counts) == 2 * OFFSETS**2
    assert 0.7 < chi_square(counts) < 1.35  # uniform over all triples: each uniform, and independent of one another
    columns = torch.stack([value.double() for value in draws])
    neighbours = torch.cat([columns, columns.roll(1, dims=1)])
    correlation = torch.corrcoef(neighbours) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 0.02  # neither each other nor the image before


def test_no_flip_means_none():
    assert draw_epoch(500, padding=2, flip=False, seed=0, epoch=0).flip.sum() == 0


def test_draws_depend_on_seed_and_epoch_and_nothing_else():
    options = {"padding": PADDING, "flip": True}
    torch.manual_seed(1)
    first = draw_epoch(64, **options, seed=1, epoch=2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = draw_epoch(64, **options, seed=1, epoch=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.order, draw_epoch(64, **options, seed=2, epoch=2).order)
    assert not torch.equal(first.order, draw_epoch(64, **options, seed=2, epoch=1).order)
    assert not torch.equal(first.order, draw_epoch(64, **options, seed=1, epoch=3).order)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "the global random state must not move"


def test_seeds_of_neighbouring_runs_and_epochs_never_meet():
    seeds = {derive_seed(seed, epoch) for seed in range(50) for epoch in range(100)}
    assert len(seeds) == 50 * 100
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(1) != derive_seed(1, 0)


@pytest.mark.gpu
def test_the_gpu_augments_as_the_cpu_does():
    images = random_images(256)
    draws = draw_epoch(256, padding=PADDING, flip=True, seed=0, epoch=0)
    on_gpu = ReflectCropFlip(images.cuda(), PADDING)(*(values.cuda() for values in draws))
    assert torch.equal(on_gpu.cpu(), ReflectCropFlip(images, PADDING)(*draws))
