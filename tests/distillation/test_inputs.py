"""What each network of a pair sees: from options, its weights, its library, or the images of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import main_classification
from architectures import InputConfig, create_model
from config.options import Options
from dataloaders import Batch, Dataset, ImageTensors
from distillation.build import build_objective
from distillation.deployment import Resizing
from distillation.inputs import (
    changed_input,
    handed_on,
    images_of_data,
    input_of_student,
    mention,
    mention_other,
    network_input,
    own_input,
    told_by,
)
from distillation.places import pooling, table
from storage.state_dicts import Weights

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
OTHER_MEAN, OTHER_STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
PAIR = "digits.RN14_RN8.KD"


def dataset(image_size: int = 16) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    classes = tuple(map(str, range(10)))
    return Dataset("made up", classes, image_size, MEAN, STD, 2, True, train=ImageTensors(images, torch.arange(8)))


def options_of(name: str = PAIR, **updates: Any) -> Options:
    own = {"teacher_experiment": None, "published_weights": None} if name == PAIR else {}
    return Options.of(main_classification.default_config(name) | own | updates)


def checkpoint(size: int = 16, /, **own: Any) -> Weights:
    """Weights of a training here, whose network saw `own` of its images."""
    data = {"classes": dataset().classes, "image_size": size, "mean": OTHER_MEAN, "std": OTHER_STD}
    return Weights({}, Path("last.pth"), data | ({"input": own} if own else {}))


def seen_by_teacher(weights: Weights | None = None, **updates: Any) -> InputConfig:
    return network_input(options_of(**updates), "teacher", images_of_data(dataset()), weights)


IMAGES = InputConfig(16, 16, MEAN, STD)
TRAINED_ON = InputConfig(16, 16, tuple(OTHER_MEAN), tuple(OTHER_STD))


def of_size(base: InputConfig, image_size: int, interpolation: str = "bilinear") -> InputConfig:
    return InputConfig(16, image_size, base.mean, base.std, interpolation)


@pytest.mark.parametrize(
    ("weights", "updates", "expected"),
    [
        (None, {}, IMAGES),
        (Weights({}, Path("foreign.pth")), {}, IMAGES),
        (None, {"teacher_size": 8}, of_size(IMAGES, 8)),
        (checkpoint(), {}, TRAINED_ON),
        (checkpoint(32), {}, of_size(TRAINED_ON, 32)),
        (checkpoint(32), {"image_size": 16}, of_size(TRAINED_ON, 16)),
        (checkpoint(32, image_size=24), {"image_size": 16}, of_size(TRAINED_ON, 24)),
        (checkpoint(32), {"image_size": 16, "teacher_input": "own"}, of_size(TRAINED_ON, 32)),
        (checkpoint(32, image_size=24), {"teacher_input": "own"}, of_size(TRAINED_ON, 24)),
        (checkpoint(16, interpolation="bicubic"), {"teacher_size": 8}, of_size(TRAINED_ON, 8, "bicubic")),
        (checkpoint(32, image_size=24), {"teacher_input": "data"}, IMAGES),
        (checkpoint(32), {"teacher_input": "data", "teacher_size": 8}, of_size(IMAGES, 8)),
        (checkpoint(), {"mean": list(MEAN), "std": list(STD)}, IMAGES),
        (checkpoint(), {"mean": list(MEAN), "teacher_std": list(STD)}, IMAGES),
        (checkpoint(32), {"teacher_size": 8, "teacher_interpolation": "nearest"}, of_size(TRAINED_ON, 8, "nearest")),
    ],
)  # fmt: skip
def test_the_first_that_says_it_decides(weights, updates, expected):
    assert seen_by_teacher(weights, **updates) == expected


def test_a_network_that_begins_to_train_sees_the_images():
    options = options_of()
    assert input_of_student(options, dataset()) == IMAGES
    assert input_of_student(options_of("digits.RN8"), dataset()) == IMAGES
    assert input_of_student(options_of("digits.RN8", network_size=8), dataset()) == of_size(IMAGES, 8)
    assert input_of_student(options, dataset(), checkpoint(16, image_size=8)) == of_size(TRAINED_ON, 8)


def test_own_is_what_a_library_says_of_its_network():
    """Of timm the data config of the network's first weights, of torchvision the transforms of its default ones."""
    timm = pytest.importorskip("timm")
    cfg = timm.get_pretrained_cfg("resnet10t")
    found = seen_by_teacher(teacher="timm/resnet10t", teacher_input="own")
    assert found == InputConfig(16, cfg.input_size[-1], cfg.mean, cfg.std, cfg.interpolation)
    assert found.interpolation == "bicubic" and found.image_size == 176
    found = seen_by_teacher(teacher="torchvision/efficientnet_b3", teacher_input="own")
    assert found == InputConfig(16, 300, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    found = seen_by_teacher(teacher="timm/resnet10t", teacher_input="own", teacher_size=32)
    assert (found.image_size, found.interpolation) == (32, "bicubic")


def test_own_is_what_a_folder_of_weights_says_before_that():
    told = {"classes": ["a"], "image_size": 32, "mean": OTHER_MEAN, "std": OTHER_STD, "interpolation": "lanczos"}
    weights = Weights({}, Path("folder"), trained_with=told)
    assert seen_by_teacher(weights) == IMAGES
    assert seen_by_teacher(weights, teacher_input="own") == of_size(TRAINED_ON, 32)
    assert "interpolation" not in told_by("resnet8", weights)
    broken = Weights({}, Path("folder"), trained_with=told | {"mean": "grey"})
    with pytest.raises(ValueError, match="teacher_mean='grey' must be a list of three numbers"):
        seen_by_teacher(broken, teacher_input="own")


def test_own_of_what_nobody_tells_is_refused_with_the_options_that_say_it():
    with pytest.raises(ValueError) as caught:
        seen_by_teacher(teacher_input="own", teacher_size=32)
    assert str(caught.value) == (
        "teacher_input=own: nothing tells all of what resnet14 was trained on; give teacher_mean=, teacher_std="
    )
    given = {"teacher_size": 32, "teacher_mean": OTHER_MEAN, "teacher_std": OTHER_STD}
    assert seen_by_teacher(teacher_input="own", **given) == of_size(TRAINED_ON, 32)


@pytest.mark.parametrize(
    ("weights", "updates", "is_said"),
    [
        (checkpoint(), {}, False),
        (checkpoint(32), {"image_size": 16}, True),
        (checkpoint(32), {"image_size": 16, "teacher_size": 16}, False),
        (checkpoint(32), {"image_size": 16, "teacher_input": "data"}, False),
        (Weights({}, Path("last.pth")), {"teacher": "timm/resnet10t"}, False),
        (Weights({}, Path("last.pth"), trained_with={"image_size": 224}), {}, True),
        (Weights({}, Path("last.pth"), trained_with={"image_size": 16, "mean": list(MEAN)}), {}, False),
    ],
)
def test_a_teacher_that_sees_something_else_than_it_was_trained_on_is_mentioned(weights, updates, is_said, logged):
    options = options_of(**updates)
    seen = network_input(options, "teacher", images_of_data(dataset()), weights)
    mention_other(options, "teacher", seen, weights)
    assert ("; teacher_input=own shows it what it was trained on" in logged.text) == is_said
    assert ("note: last.pth was trained on images of" in logged.text) == is_said


@pytest.mark.parametrize(
    ("seen", "lines"),
    [
        (IMAGES, []),
        (InputConfig(16, 16, MEAN, STD, "bicubic"), []),
        (
            of_size(IMAGES, 8),
            ["teacher    sees images of 8 x 8 (bilinear from 16 x 16), mean 0.5, 0.4, 0.3, std 0.3, 0.25, 0.2"],
        ),
        (
            of_size(TRAINED_ON, 32, "bicubic"),
            [
                "teacher    sees images of 32 x 32 (bicubic from 16 x 16), mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6",
                "note: images of 16 x 16 are scaled up for the teacher; if their files are larger, give image_size=32",
            ],
        ),
    ],
)
def test_a_network_that_sees_something_else_than_the_images_is_mentioned(seen, lines, logged):
    mention("teacher", seen, IMAGES)
    assert list(dict.fromkeys(record.getMessage() for record in logged.records)) == lines


def test_a_job_on_the_teacher_alone_is_told():
    options = options_of(teacher_input="own", teacher_size=8, teacher_mean=OTHER_MEAN, student_size=4)
    told = {"network_input": "own", "network_size": 8, "network_mean": OTHER_MEAN}
    assert handed_on(options, "teacher") == told
    assert handed_on(options_of(), "teacher") == {}


def test_what_makes_another_measurement():
    alone = "digits.RN8"
    same = ({}, {"network_size": 8}, {"network_input": "own"}, {"network_mean": OTHER_MEAN}, {"image_size": 32})
    for updates in same:
        assert changed_input(options_of(alone, **updates), checkpoint(16, image_size=8)) == {}
    for updates, expected in (
        ({"network_size": 12}, {"network_size": (8, 12)}),
        ({"network_input": "data"}, {"network_size": (8, 16)}),
        ({"network_interpolation": "bicubic"}, {"network_interpolation": ("bilinear", "bicubic")}),
    ):
        assert changed_input(options_of(alone, **updates), checkpoint(16, image_size=8)) == expected


# --- what the networks get -------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """In place of a network that is called with images."""

    def __init__(self, network: nn.Module, found: list[Tensor]):
        super().__init__()
        network.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].clone()))


def prepared_by_hand(pixels: Tensor, seen: InputConfig) -> Tensor:
    images = pixels.float().contiguous()
    if seen.resizes:
        antialias = seen.interpolation != "nearest"
        mode = seen.interpolation if antialias else "nearest-exact"
        images = F.interpolate(images, (seen.image_size,) * 2, mode=mode, antialias=antialias).clamp(0, 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (seen.mean, seen.std))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_teacher_and_student_see_the_same_crop_at_their_own_sizes(interpolation):
    own = {"teacher_size": 24, "teacher_mean": OTHER_MEAN, "student_size": 8, "student_std": OTHER_STD}
    own |= {"teacher_interpolation": interpolation, "student_interpolation": interpolation}
    options, images = options_of(**own), dataset()
    state = create_model("resnet14", num_classes=10).state_dict()
    objective = build_objective(options, images, Weights(state, Path("teacher.pth")))
    found: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, network in (("teacher", objective.teacher.network.module), ("student", objective.student)):
        Remembering(network, found[name])
    pixels = images.train.images.permute(0, 3, 1, 2)
    objective(Batch(pixels, images.train.labels, torch.arange(8)))
    teacher = InputConfig(16, 24, tuple(OTHER_MEAN), STD, interpolation)
    student = InputConfig(16, 8, MEAN, tuple(OTHER_STD), interpolation)
    assert not objective.shares_input
    for name, seen in (("teacher", teacher), ("student", student)):
        (images_seen,) = found[name]
        torch.testing.assert_close(images_seen, prepared_by_hand(pixels, seen), atol=1e-5, rtol=0)
    assert objective.teacher.network.outline.place("penultimate").grid == (6, 6)
    assert objective.network.outline.place("penultimate").grid == (2, 2)


@pytest.mark.parametrize("sizes", [(16, 12), (16, 40), (7, 5), (5, 16)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_an_exported_network_resizes_by_two_products(interpolation, sizes):
    torch.manual_seed(0)
    pixels = torch.randint(256, (3, 3, sizes[0], sizes[0]), dtype=torch.uint8)
    pixels[0] = (pixels[0] > 127) * 255  # hard edges, which bicubic overshoots
    seen = InputConfig(*sizes, (0.0,) * 3, (1.0,) * 3, interpolation)
    torch.testing.assert_close(Resizing(seen)(pixels / 255), seen.module()(pixels), atol=2e-6, rtol=0)


def test_places_are_those_at_the_size_of_each_network():
    own = {"image_size": 32, "teacher_size": 64, "student_size": 16}
    options = options_of("digits.RN14_RN8.letKD-1", **own)
    assert pooling(options, "words") == 4
    lines = table(options).splitlines()
    assert lines[0].startswith("teacher resnet14, images of 64 x 64:")
    assert any(line.startswith("student resnet8, images of 16 x 16:") for line in lines)
    odd = options_of("digits.RN14_RN8.letKD-1", image_size=32, teacher_size=48)
    with pytest.raises(
        ValueError, match=r"\(12 x 12\) is no whole multiple of that of resnet8 \(8 x 8\); it sees images of 48"
    ):
        pooling(odd, "words")


def test_a_network_of_one_size_is_built_for_what_it_sees():
    pytest.importorskip("timm")
    options = options_of(teacher="timm/test_vit", teacher_size=32, image_size=16)
    weights = Weights(create_model("timm/test_vit", num_classes=10, image_size=32).state_dict(), Path("teacher.pth"))
    objective = build_objective(options, dataset(), weights)
    assert objective.teacher.network.module.patch_embed.img_size == (32, 32)
    own = own_input(options, "teacher", weights)
    assert own == {"image_size": 32}
