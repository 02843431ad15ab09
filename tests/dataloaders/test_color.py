"""Operations on colours against torchvision, image by image, each with a number of its own."""

import pytest
import torch
import torchvision.transforms.v2.functional as F

from dataloaders import color


@pytest.fixture(scope="module")
def images():
    """Noise, noise of few and of dark values, ramps, a single colour, black, white, and greys."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (12, 20, 16, 3), generator=generator, dtype=torch.uint8)
    noise[3:5] //= 4
    noise[5:7] = noise[5:7] // 85 * 85
    noise[7] = torch.arange(20 * 16 * 3).view(20, 16, 3) % 256
    noise[8] = torch.tensor([200, 10, 90], dtype=torch.uint8)
    noise[9], noise[10] = 0, 255
    noise[11] = noise[11, :, :, :1]
    return noise.permute(0, 3, 1, 2).contiguous()


FACTORS = torch.tensor([0.0, 0.1, 0.3, 0.55, 0.73, 0.9, 1.0, 1.09, 1.27, 1.5, 1.9, 1.99])
CASES = {
    "brightness": (color.brightness, F.adjust_brightness, FACTORS),
    "saturation": (color.saturation, F.adjust_saturation, FACTORS),
    "contrast": (color.contrast, F.adjust_contrast, FACTORS),
    "sharpness": (color.sharpness, F.adjust_sharpness, FACTORS),
    "hue": (color.hue, F.adjust_hue, torch.linspace(-0.5, 0.5, 12)),
    "posterize": (color.posterize, F.posterize, torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 3, 2.0])),
    "solarize": (color.solarize, F.solarize, torch.linspace(0, 255, 12)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shift", [0, 5])
def test_an_image_is_what_torchvision_makes_of_it_with_its_number(name, shift, images):
    """But for 1 of 255, and that seldom: sums of fractions are rounded otherwise there."""
    ours, theirs, values = CASES[name]
    values, before = values.roll(shift), images.clone()
    found = ours(images, values)
    assert found.dtype == torch.uint8 and found.shape == images.shape and torch.equal(images, before)
    number = int if name == "posterize" else float
    expected = torch.stack([theirs(one, number(value)) for one, value in zip(images, values, strict=True)])
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= (0 if name in ("brightness", "posterize", "solarize") else 1)
    assert (apart > 0).float().mean() < 0.005


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_histograms_are_stretched_and_equalised_as_torchvision_does_bit_for_bit(name, images):
    before = images.clone()
    found = getattr(color, name)(images)
    assert found.dtype == torch.uint8 and torch.equal(images, before)
    assert torch.equal(found, getattr(F, name)(images))


def test_numbers_that_change_nothing_change_nothing(images):
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    for operation in (color.brightness, color.saturation, color.contrast, color.sharpness):
        assert torch.equal(operation(images, one), images)
    assert torch.equal(color.hue(images, zero), images)
    assert torch.equal(color.hue(color.hue(images, zero + 0.5), zero - 0.5)[11], images[11]), "greys have no hue"
    assert torch.equal(color.posterize(images, zero + 8), images)
    assert torch.equal(color.solarize(images, zero + 256), images)


def test_a_hue_is_turned_around_the_circle():
    """Red becomes green after a third and blue after two; half a turn is one of either direction."""
    red, green, blue = 255 * torch.eye(3, dtype=torch.uint8).view(3, 1, 3, 1, 1)
    third = torch.tensor([1 / 3])
    assert torch.equal(color.hue(red, third), green) and torch.equal(color.hue(red, -third), blue)
    assert torch.equal(color.hue(green, third), blue)
    assert torch.equal(color.hue(red, torch.tensor([0.5])), color.hue(red, torch.tensor([-0.5])))


@pytest.mark.parametrize("name", [*CASES, "autocontrast", "equalize"])
def test_an_image_has_the_same_bits_alone_and_in_any_batch(name, images):
    values = (CASES[name][2],) if name in CASES else ()
    operation = getattr(color, name)
    together = operation(images, *values)
    for part in (slice(0, 1), slice(3, 8), slice(11, 12)):
        assert torch.equal(operation(images[part], *(value[part] for value in values)), together[part])


def test_images_of_two_pixels_have_no_inside_to_sharpen():
    small = torch.tensor([0, 1, 2, 250, 3, 9] * 2, dtype=torch.uint8).view(1, 3, 2, 2)
    assert torch.equal(color.sharpness(small, torch.tensor([1.9])), small)
