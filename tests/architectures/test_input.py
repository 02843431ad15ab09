"""What stands in front of a network: the arithmetic of every published number, sizes, and where it computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import nn

from architectures import Input, InputConfig, create_model
from architectures.input import resize

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def pixels_of(*shape: int) -> torch.Tensor:
    images_BHWC = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images_BHWC.permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_an_image_is_its_pixels_times_scale_plus_shift_rounded_once_to_float32(kind, layout):
    """One multiplication and one addition of float32: either fused, and rounded once, or rounded twice."""
    pixels = pixels_of(6, 32, 20, 3)
    images = Input(MEAN, STD)(pixels.to(kind).contiguous(memory_format=layout))
    scale, shift = ((1 / (255 * np.array(STD))), -np.array(MEAN) / np.array(STD))
    scale, shift = (values.astype(np.float32).reshape(3, 1, 1) for values in (scale, shift))
    twice = pixels.numpy().astype(np.float32) * scale + shift
    once = (pixels.numpy().astype(np.float64) * scale + shift).astype(np.float32)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    assert ((images.numpy() == once) | (images.numpy() == twice)).all()


def test_it_is_the_arithmetic_that_loaders_had():
    """Bit for bit: mean and deviation as rows of an image's width, and one addcmul."""
    pixels = pixels_of(9, 32, 32, 3)
    mean_C, std_C = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    scale, shift = (1 / (255 * std_C)).float().repeat(32), (-mean_C / std_C).float().repeat(32)
    rows = pixels.permute(0, 2, 3, 1).flatten(2).float()
    expected = torch.addcmul(shift, rows, scale).view(9, 32, 32, 3).permute(0, 3, 1, 2)
    assert torch.equal(Input(MEAN, STD)(pixels), expected)


def test_it_divides_by_255_subtracts_the_mean_and_divides_by_the_deviation():
    pixels = pixels_of(6, 8, 8, 3)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(
        Input(MEAN, STD)(pixels).double(), (pixels.double() / 255 - mean) / std, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 20, 28, 3)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_images_of_another_size_are_resized_before_they_are_normalised(size, shape):
    pixels = pixels_of(*shape)
    images = Input(MEAN, STD, image_size=size)(pixels)
    assert images.shape == (2, 3, size, size) and images.is_contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(pixels.float().contiguous(), (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(images, Input(MEAN, STD)(resized), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [12, 48])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_as_torchvision_resizes_tensors(interpolation, size):
    """Black and white pixels, which bicubic overshoots."""
    pixels = (255 * (pixels_of(2, 32, 32, 3) > 127)).float().contiguous()
    resized = resize(pixels, size, interpolation)
    mode = TF.InterpolationMode(interpolation)
    expected = TF.resize(pixels, [size, size], mode, antialias=True)
    assert (expected.min() < -1 and expected.max() > 256) == (interpolation == "bicubic" and size > 32)
    torch.testing.assert_close(resized, expected.clamp(0, 255), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [12, 48])
def test_bilinear_is_what_pillow_does_but_for_its_rounding(size):
    """Twice to whole values, of rows and of columns."""
    (pixels,) = pixels_of(1, 32, 32, 3)
    mode = TF.InterpolationMode.BILINEAR
    expected = TF.pil_to_tensor(TF.resize(TF.to_pil_image(pixels), [size, size], mode))
    assert (resize(pixels[None].float(), size, "bilinear")[0] - expected).abs().max() < 1.5


@pytest.mark.parametrize("size", [16, 64])
def test_the_nearest_pixel_is_the_one_that_pillow_picks(size):
    (pixels,) = pixels_of(1, 32, 32, 3)
    expected = TF.pil_to_tensor(TF.resize(TF.to_pil_image(pixels), [size, size], TF.InterpolationMode.NEAREST))
    assert torch.equal(resize(pixels[None].float(), size, "nearest")[0], expected.float())


def test_what_a_network_sees_is_said_in_words_and_plain_values():
    seen = InputConfig(32, 64, MEAN, STD, "bicubic")
    assert str(seen) == (
        "images of 64 x 64 (bicubic from 32 x 32), mean 0.5071, 0.4867, 0.4408, std 0.2675, 0.2565, 0.2761"
    )
    facts = {"crop_size": 32, "image_size": 64, "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"}
    assert seen.facts() == facts and seen.module().key == Input(MEAN, STD, 64, "bicubic").key
    same = InputConfig(64, 64, MEAN, STD, "bicubic")
    assert same.facts() == {"image_size": 64, "mean": list(MEAN), "std": list(STD)}
    assert same.module().key == Input(MEAN, STD).key and "from" not in str(same)


def test_a_smaller_image_averages_what_it_leaves_out():
    """Antialiasing: the columns 0, 255, 0, 255, ... become grey, where plain bilinear sampling could keep a stripe."""
    striped = torch.tensor([0, 255], dtype=torch.uint8).repeat(16).expand(1, 3, 32, 32)
    images = Input((0.5,) * 3, (0.5,) * 3, image_size=8)(striped)
    assert images[..., 1:-1].abs().max() < 0.01


def test_images_of_its_own_size_are_not_resized(monkeypatch):
    monkeypatch.setattr(F, "interpolate", None)
    pixels = pixels_of(2, 32, 32, 3)
    assert torch.equal(Input(MEAN, STD, image_size=32)(pixels), Input(MEAN, STD)(pixels))


def test_equal_inputs_have_equal_keys():
    assert Input(list(MEAN), list(STD)).key == Input(MEAN, STD).key
    assert Input(MEAN, STD, interpolation="bicubic").key == Input(MEAN, STD).key  # nothing is resized
    others = [Input(STD, MEAN), Input(MEAN, (0.2,) * 3), Input(MEAN, STD, 32), Input(MEAN, STD, 32, "bicubic")]
    assert len({Input(MEAN, STD).key, *(other.key for other in others)}) == 5


def test_a_network_saves_the_same_weights_behind_an_input():
    network = create_model("resnet8", num_classes=10)
    model = nn.Sequential(Input(MEAN, STD, image_size=32), network)
    assert [name.removeprefix("1.") for name in model.state_dict()] == list(network.state_dict())
    assert len(list(model.parameters())) == len(list(network.parameters()))


@pytest.mark.parametrize("size", [None, 16])
def test_everything_can_be_on_the_meta_device(size):
    """A tensor that stayed behind, or a value that is read, raises."""
    model = nn.Sequential(Input(MEAN, STD, image_size=size), create_model("resnet8", num_classes=10)).to("meta")
    assert model(pixels_of(4, 32, 32, 3).to("meta")).shape == (4, 10)


@pytest.mark.parametrize("size", [None, 16])
def test_autocast_leaves_images_in_float32(size):
    pixels, network_input = pixels_of(4, 32, 32, 3), Input(MEAN, STD, image_size=size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = network_input(pixels)
    assert images.dtype == torch.float32 and torch.equal(images, network_input(pixels))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [None, 16])
def test_a_gpu_computes_the_same_and_nobody_waits_for_it(size):
    pixels, on_cpu = pixels_of(4, 32, 32, 3), Input(MEAN, STD, image_size=size)
    on_gpu, there = Input(MEAN, STD, image_size=size).cuda(), pixels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = on_gpu(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(images.cpu(), on_cpu(pixels), atol=1e-5, rtol=0)
