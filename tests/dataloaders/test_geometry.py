"""Shears, translations, rotations, erasing and resized crops against torchvision, image by image."""

import math

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F

from dataloaders import geometry
from dataloaders.geometry import ResizedCropFlip, draw_boxes

SIDE = 20
AMOUNTS = torch.tensor([-0.95, -0.3, -0.09, 0.0, 0.033, 0.27, 0.66], dtype=torch.float64)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (7, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def sheared(image, shear):
    shear = [math.degrees(math.atan(amount)) for amount in shear]
    return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def translated(image, pixels):
    return F.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0])


CASES = {
    "shear_x": (AMOUNTS, lambda image, value: sheared(image, [value, 0.0])),
    "shear_y": (AMOUNTS, lambda image, value: sheared(image, [0.0, value])),
    "translate_x": (10.7 * AMOUNTS, lambda image, value: translated(image, [int(value), 0])),
    "translate_y": (10.7 * AMOUNTS, lambda image, value: translated(image, [0, int(value)])),
    "rotate": (torch.tensor([-135.0, -90.0, -9.0, 0.0, 30.0, 90.0, 121.5], dtype=torch.float64), F.rotate),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_come_from_where_torchvision_takes_them(name, images):
    values, theirs = CASES[name]
    found = geometry.affine(images, getattr(geometry, name)(values, SIDE).float())
    expected = torch.stack([theirs(image, value) for image, value in zip(images, values.tolist(), strict=True)])
    assert found.dtype == torch.uint8 and not torch.equal(found[0], images[0])
    assert torch.equal(found, expected)


def test_images_of_several_kinds_are_moved_at_once(images):
    """Each as alone."""
    matrices = torch.cat([getattr(geometry, name)(values[:1], SIDE) for name, (values, _) in CASES.items()]).float()
    together = geometry.affine(images[:5], matrices)
    for number in range(5):
        part = slice(number, number + 1)
        assert torch.equal(geometry.affine(images[:5][part], matrices[part])[0], together[number])
    assert len({image.numpy().tobytes() for image in together}) == 5


def test_a_box_of_each_image_is_erased(images):
    boxes = torch.tensor([[0, 0, 3, 5], [10, 4, 10, 1], [19, 19, 1, 1.0]])
    fill = torch.tensor([7, 8, 9], dtype=torch.uint8)
    before = images.clone()
    found = geometry.erase(images[:3], boxes, color=fill)
    for image, box, one in zip(images, boxes.int().tolist(), found, strict=False):
        assert torch.equal(one, F.erase(image, *box, v=fill.view(3, 1, 1)))
    assert torch.equal(images, before)


def test_a_window_is_resized_as_torchvision_does_it(images):
    """Within 1 of 255: its weights on uint8 are rounded, these are not."""
    boxes = [(0, 0, SIDE, SIDE), (2, 5, 7, 13), (19, 0, 1, 20), (0, 19, 20, 1), (11, 12, 3, 4), (4, 4, 16, 16)]
    crop = ResizedCropFlip(images.permute(0, 2, 3, 1).contiguous())
    picks = torch.tensor([3, 0, 6, 6, 1, 2])
    for flip in (0, 1):
        found = crop(picks, *torch.tensor(boxes).T, torch.full((6,), flip))
        assert found.dtype == torch.uint8 and found.shape == (6, SIDE, SIDE, 3)
        for one, pick, box in zip(found, picks, boxes, strict=True):
            expected = F.resized_crop(images[pick], *box, size=[SIDE, SIDE], antialias=True)
            expected = F.hflip(expected) if flip else expected
            exact = F.resized_crop(images[pick].double(), *box, size=[SIDE, SIDE], antialias=True)
            exact = F.hflip(exact) if flip else exact
            assert (one.permute(2, 0, 1).int() - expected.int()).abs().max() <= 1
            assert (one.permute(2, 0, 1) - exact).abs().max() <= 0.5 + 1e-4
    whole = crop(picks[:1], *torch.tensor(boxes[:1]).T, torch.tensor([0]))
    assert torch.equal(whole.permute(0, 3, 1, 2), images[3:4])


def drawn(num_images, **options):
    generator = torch.Generator().manual_seed(0)
    usual = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "largest": SIDE}
    return draw_boxes(num_images, SIDE, **usual | options, generator=generator)


def test_windows_are_drawn_as_torchvision_draws_them():
    """The means of area, ratio and place, those of its own draws within their errors."""
    num_images = 4000
    boxes, found = drawn(num_images)
    crop = T.RandomResizedCrop(SIDE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn_by_torchvision = [crop.make_params([torch.empty(3, SIDE, SIDE)]) for _ in range(num_images)]
    theirs = torch.tensor(
        [[float(one[key]) for key in ("top", "left", "height", "width")] for one in drawn_by_torchvision]
    )
    top, left, height, width = boxes.T
    assert found.float().mean() > 0.99
    assert (boxes == boxes.round()).all() and (boxes >= 0).all()
    assert (top + height <= SIDE).all() and (left + width <= SIDE).all() and (height >= 1).all() and (width >= 1).all()
    for figure in (
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: (width / height).log(),
        lambda top, left, height, width: (width / height).log().abs(),
    ):
        ours, other = figure(*boxes[found].T), figure(*theirs.double().T)
        error = (ours.var() / len(ours) + other.var() / len(other)).sqrt()
        assert (ours.mean() - other.mean()).abs() < 4 * error


def test_boxes_that_never_fit_are_said():
    _, found = drawn(50, scale=(1.0, 1.0), ratio=(2.0, 2.0))
    assert not found.any()
    boxes, found = drawn(50, scale=(0.5, 1.0), ratio=(1.0, 1.0), largest=SIDE - 1)
    assert found.any() and boxes[found][:, 2:].max() <= SIDE - 1
