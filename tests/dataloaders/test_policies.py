"""What an epoch draws of policies, colour jitter and erasing, against torchvision, and its batches."""

import itertools

import pytest
import torch
import torchvision.transforms.v2 as T

from config.options import Augmentation
from dataloaders import Dataset, ImageTensors, color, geometry
from dataloaders.policies import (
    NUM_LEVELS,
    Plan,
    check_augmentation,
    draw,
    draw_windows,
    generator_of,
    randaugment_space,
    trivialaugment_space,
)

SIDE = 12
FILL = torch.tensor([1, 2, 3], dtype=torch.uint8)
EVERYTHING = Augmentation(auto_augment="randaugment", color_jitter=[0.4, 0.4, 0.4, 0.1], random_erasing=0.25)
SPACES = {
    "randaugment": (randaugment_space(SIDE), T.RandAugment()),
    "trivialaugment": (trivialaugment_space(), T.TrivialAugmentWide()),
}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (24, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def drawn(options, num_images, *, seed=0, epoch=0):
    return draw(options, num_images, side=SIDE, fill=FILL, seed=seed, epoch=epoch)


def kinds_of(applications, num_images):
    """The operations on each image in their order, with its values."""
    found = [[] for _ in range(num_images)]
    for operation, positions, values in applications:
        assert torch.equal(positions, positions.unique()), "each once, in order"
        for row, position in enumerate(positions.tolist()):
            found[position].append((operation, None if values is None else values[row]))
    return found


def one_by_one(images, applications):
    """Every image on its own."""
    result = []
    for single, kinds in zip(images.split(1), kinds_of(applications, len(images)), strict=True):
        made = single
        for operation, values in kinds:
            made = operation(made, *(() if values is None else (values[None],)))
        result.append(made)
    return torch.cat(result)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_every_kind_and_level_is_torchvisions(name, images):
    """What it makes of an image, within 1 of 255, with either sign."""
    space, theirs = SPACES[name]
    assert len(space) == len(theirs._AUGMENTATION_SPACE)
    for kind, (identifier, (levels_of, is_signed)) in zip(space, theirs._AUGMENTATION_SPACE.items(), strict=True):
        levels = levels_of(NUM_LEVELS, SIDE, SIDE)
        assert kind.is_signed == is_signed and (kind.values is None) == (levels is None)
        for level, sign in itertools.product((0, 7, 9, 16, 30), (1, -1) if is_signed else (1,)):
            magnitude = 0.0 if levels is None else sign * float(levels[level])
            image = images[level % len(images)]
            if kind.operation is None:
                ours = image
            else:
                values = () if kind.values is None else (kind.values(sign * kind.levels[[level]], SIDE).float(),)
                ours = kind.operation(image[None], *values)[0]
            expected = theirs._apply_image_or_video_transform(
                image, identifier, magnitude, interpolation=theirs.interpolation, fill=theirs._fill
            )
            apart = (ours.int() - expected.int()).abs()
            assert apart.max() <= 1 and (apart > 0).float().mean() < 0.05, (identifier, level)


def test_randaugment_draws_every_kind_as_often_and_twice():
    num_images = 14_000
    kinds = kinds_of(drawn(Augmentation(auto_augment="randaugment"), num_images), num_images)
    counts = torch.tensor([len(each) for each in kinds]).bincount().tolist()
    assert counts[2] / num_images == pytest.approx((13 / 14) ** 2, abs=0.01)
    assert counts[0] / num_images == pytest.approx((1 / 14) ** 2, abs=0.002)
    operations = [operation for each in kinds for operation, _ in each]
    for operation, share in ((geometry.affine, 5), (color.hue, 0), (color.equalize, 1), (color.sharpness, 1)):
        assert operations.count(operation) / num_images / 2 == pytest.approx(share / 14, abs=0.01)
    pairs = sum(each[0][0] is each[1][0] is geometry.affine for each in kinds if len(each) == 2)
    assert pairs / num_images == pytest.approx((5 / 14) ** 2, abs=0.01), "independent of each other"
    factors = torch.stack([values for each in kinds for operation, values in each if operation is color.contrast])
    assert sorted(set(factors.tolist())) == pytest.approx([1 - 0.27, 1 + 0.27])
    assert (factors > 1).float().mean() == pytest.approx(0.5, abs=0.03)


def test_trivialaugment_draws_one_kind_at_any_level():
    num_images = 20_000
    kinds = kinds_of(drawn(Augmentation(auto_augment="trivialaugment"), num_images), num_images)
    assert sum(len(each) == 1 for each in kinds) / num_images == pytest.approx(13 / 14, abs=0.01)
    assert {len(each) for each in kinds} == {0, 1}
    factors = torch.stack([values for each in kinds for operation, values in each if operation is color.brightness])
    steps = ((factors - 1) / (0.99 / 30)).round()
    assert steps.unique().tolist() == list(range(-30, 31)) and steps.mean().abs() < 1.5


def test_options_of_randaugment_are_heard(images):
    few = kinds_of(drawn(Augmentation(auto_augment="randaugment", randaugment_ops=1), 50), 50)
    assert {len(each) for each in few} == {0, 1}
    none = drawn(Augmentation(auto_augment="randaugment", randaugment_magnitude=0), 500)
    assert {values[0].item() for operation, _, values in none if operation is color.contrast} == {1.0}


# --- colour jitter ---------------------------------------------------------------------------------------------------


def test_colour_jitter_does_everything_once_in_any_order():
    num_images, strengths = 12_000, [0.4, 0.3, 1.5, 0.1]
    kinds = kinds_of(drawn(Augmentation(color_jitter=strengths), num_images), num_images)
    operations = (color.brightness, color.contrast, color.saturation, color.hue)
    orders = dict.fromkeys(itertools.permutations(operations), 0)
    for each in kinds:
        orders[tuple(operation for operation, _ in each)] += 1
    assert sum(orders.values()) == num_images and len(orders) == 24
    assert all(count / num_images == pytest.approx(1 / 24, abs=0.01) for count in orders.values())
    ranges = [(0.6, 1.4), (0.7, 1.3), (0.0, 2.5), (-0.1, 0.1)]
    for operation, (low, high) in zip(operations, ranges, strict=True):
        values = torch.stack([values for each in kinds for own, values in each if own is operation])
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.var().item() == pytest.approx((high - low) ** 2 / 12, rel=0.05), "uniform"


def test_what_has_no_strength_is_left_out():
    kinds = kinds_of(drawn(Augmentation(color_jitter=[0, 0.4, 0, 0.1]), 200), 200)
    assert {frozenset(operation for operation, _ in each) for each in kinds} == {frozenset((color.contrast, color.hue))}
    assert drawn(Augmentation(color_jitter=[0.0] * 4), 200) == []


# --- erasing ---------------------------------------------------------------------------------------------------------


def test_erasing_is_drawn_as_torchvision_draws_it():
    num_images, side = 8000, 32
    (found,) = draw(Augmentation(random_erasing=0.5), num_images, side=side, fill=FILL, seed=0, epoch=0)
    assert len(found.positions) / num_images == pytest.approx(0.5, abs=0.02)
    top, left, height, width = found.values.T
    assert (top + height <= side).all() and (left + width <= side).all() and (found.values >= 0).all()
    erasing = T.RandomErasing(p=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [erasing.make_params([torch.empty(3, side, side)]) for _ in range(4000)]
    theirs = torch.tensor([[float(one[key]) for key in "ijhw"] for one in theirs if one["v"] is not None])
    for figure in (lambda box: box[:, 0], lambda box: box[:, 2] * box[:, 3], lambda box: (box[:, 2] / box[:, 3]).log()):
        ours, other = figure(found.values.double()), figure(theirs.double())
        error = (ours.var() / len(ours) + other.var() / len(other)).sqrt()
        assert (ours.mean() - other.mean()).abs() < 4 * error


# --- windows ---------------------------------------------------------------------------------------------------------


def dataset_of(side=SIDE):
    images = torch.zeros(40, side, side, 3, dtype=torch.uint8)
    split = ImageTensors(images, torch.zeros(40, dtype=torch.int64))
    return Dataset("made up", ("a",), side, (0.5,) * 3, (0.5,) * 3, padding=2, flip=True, train=split)


@pytest.mark.parametrize(
    ("ratio", "window"), [([2.0, 3.0], (3, 0, 6, 12)), ([0.2, 0.5], (0, 3, 12, 6)), ([1.0, 1.0], (0, 0, 12, 12))]
)
def test_where_no_window_fits_the_largest_in_the_middle_is_taken(ratio, window):
    options = Augmentation(crop="resized", crop_scale=[1.0, 1.0], crop_ratio=ratio)
    draws = draw_windows(40, dataset_of(), options, seed=0, epoch=0)
    assert set(zip(*(values.tolist() for values in draws[1:5]), strict=True)) == {window}


# --- epochs and batches ----------------------------------------------------------------------------------------------


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.positions, b.positions)
        and (a.values is None) == (b.values is None)
        and (a.values is None or torch.equal(a.values, b.values))
        for a, b in zip(one, other, strict=True)
    )


def test_draws_depend_on_seed_and_epoch_and_nothing_else():
    torch.manual_seed(1)
    first, state = drawn(EVERYTHING, 64, seed=1, epoch=2), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, drawn(EVERYTHING, 64, seed=1, epoch=2))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "the global random state must not move"
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert not same(first, drawn(EVERYTHING, 64, seed=seed, epoch=epoch))


def test_each_kind_is_drawn_from_numbers_of_its_own():
    together = drawn(EVERYTHING, 64)
    alone = [
        *drawn(Augmentation(auto_augment="randaugment"), 64),
        *drawn(Augmentation(color_jitter=EVERYTHING.color_jitter), 64),
        *drawn(Augmentation(random_erasing=0.25), 64),
    ]
    assert same(together, alone)
    seeds = {generator_of(0, epoch, kind).initial_seed() for epoch in range(9) for kind in ("crop", "color_jitter")}
    assert len(seeds) == 18


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_batch_is_what_its_images_are_one_by_one(policy, images):
    """In batches and parts of any size, and of those alone that are asked for."""
    options = Augmentation(auto_augment=policy, color_jitter=[0.4, 0.4, 0.4, 0.1], random_erasing=0.5)
    applications = drawn(options, len(images))
    expected = one_by_one(images, applications)
    assert sum(torch.equal(one, other) for one, other in zip(images, expected, strict=True)) == 0
    for batch_size, size in ((24, 1), (8, 1), (8, 4), (6, 2), (1, 1), (7, 1)):
        for rank in range(size):
            part = range(rank * batch_size // size, (rank + 1) * batch_size // size)
            num_batches = len(images) // batch_size
            plan = Plan(
                applications, batch_size=batch_size, part=part, num_batches=num_batches, device=torch.device("cpu")
            )
            for number in reversed(range(num_batches)):
                some = slice(number * batch_size + part.start, number * batch_size + part.stop)
                assert torch.equal(
                    plan(images[some].contiguous(memory_format=torch.channels_last), number), expected[some]
                )


def test_nothing_is_done_where_nothing_is_asked_for(images):
    plan = Plan([], batch_size=8, part=range(8), num_batches=3, device=torch.device("cpu"))
    assert plan(images, 2) is images and drawn(Augmentation(), 50) == []


# --- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"crop_scale": [1.0, 0.5]}, "crop_scale=[1, 0.5] must have the smaller number first"),
        ({"crop_ratio": [2.0, 0.5]}, "crop_ratio=[2, 0.5] must have the smaller number first"),
        ({"color_jitter": [0, 0, 0, 0.6]}, "color_jitter=[0, 0, 0, 0.6] turns hues by more than half a circle"),
        ({"randaugment_ops": 3}, "randaugment_ops is for auto_augment=randaugment; say that too, or leave it out"),
        (
            {"auto_augment": "trivialaugment", "randaugment_magnitude": 5},
            "randaugment_magnitude is for auto_augment=randaugment; say that too",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given, reason):
    with pytest.raises(ValueError) as caught:
        check_augmentation(Augmentation(**given))
    assert str(caught.value).startswith(reason)
