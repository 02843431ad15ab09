"""Held-out training images: even over the classes, drawn from the seed, and nothing lost or doubled."""

import dataclasses

import pytest
import torch

from dataloaders import Dataset, ImageFiles, ImageTensors, hold_out, make_eval_loader


def make_dataset(train_labels, num_eval=5, streamed=False):
    """Every image is its number: in all its pixels, or as its file name."""

    def make_split(labels, start):
        numbers = range(start, start + len(labels))
        if streamed:
            return ImageFiles(tuple(str(number) for number in numbers), torch.tensor(labels))
        pixels = torch.tensor([divmod(number, 256) for number in numbers], dtype=torch.uint8)
        images = torch.zeros(len(labels), 4, 4, 3, dtype=torch.uint8)
        images[..., :2] = pixels[:, None, None, :]
        return ImageTensors(images, torch.tensor(labels))

    return Dataset(
        name="numbers",
        classes=tuple(str(label) for label in range(max(train_labels) + 1)),
        image_size=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        padding=1,
        flip=True,
        train=make_split(train_labels, 0),
        eval=make_split([0] * num_eval, len(train_labels)),
    )


def numbers(split):
    if isinstance(split, ImageFiles):
        return [int(path) for path in split.paths]
    return (split.images[:, 0, 0, 0].long() * 256 + split.images[:, 0, 0, 1]).tolist()


def counts(split):
    return split.labels.bincount(minlength=4).tolist()


BALANCED = [index % 4 for index in range(100)]


@pytest.mark.parametrize("streamed", [False, True])
def test_training_is_divided_and_evaluation_becomes_the_test(streamed):
    whole = make_dataset(BALANCED, streamed=streamed)
    divided = hold_out(whole, 20, seed=0)
    assert sorted(numbers(divided.train) + numbers(divided.eval)) == list(range(100)) and len(divided.eval) == 20
    assert divided.test is whole.eval and len(whole.train) == 100
    for split in (divided.train, divided.eval):
        assert split.labels.tolist() == [BALANCED[number] for number in numbers(split)]
        assert numbers(split) == sorted(numbers(split))
    kept = [field.name for field in dataclasses.fields(Dataset) if field.name not in ("train", "eval", "test")]
    assert all(getattr(divided, name) == getattr(whole, name) for name in kept)


def test_held_out_images_are_evaluated_without_augmentation():
    divided = hold_out(make_dataset(BALANCED), 20, seed=0)
    batch = next(iter(make_eval_loader(divided, batch_size=20, device="cpu")))
    assert torch.equal(batch.images, divided.eval.images.permute(0, 3, 1, 2))
    assert torch.equal(batch.labels, divided.eval.labels)


def test_classes_give_equally_many_or_one_more():
    assert counts(hold_out(make_dataset(BALANCED), 20, seed=0).eval) == [5, 5, 5, 5]
    favoured = set()
    for seed in range(20):
        given = counts(hold_out(make_dataset(BALANCED), 21, seed=seed).eval)
        assert sorted(given) == [5, 5, 5, 6]
        favoured.add(given.index(6))
    assert favoured == {0, 1, 2, 3}, "chance decides which class gives more"


def test_small_classes_give_all_but_one_and_the_others_the_rest():
    labels = [0] * 3 + [1] * 50 + [2] * 2 + [3] * 1
    assert counts(hold_out(make_dataset(labels), 23, seed=1).eval) == [2, 20, 1, 0]
    assert counts(hold_out(make_dataset(labels), 6, seed=1).eval) == [2, 3, 1, 0]
    assert counts(hold_out(make_dataset(labels), 52, seed=1).train) == [1, 1, 1, 1]


def test_the_draw_depends_on_the_seed_and_nothing_else():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = numbers(hold_out(make_dataset(BALANCED), 20, seed=3).eval)
    assert torch.equal(before, torch.get_rng_state()), "the global random state must not move"
    torch.manual_seed(2)
    assert numbers(hold_out(make_dataset(BALANCED, streamed=True), 20, seed=3).eval) == first
    assert numbers(hold_out(make_dataset(BALANCED), 20, seed=4).eval) != first


def test_every_image_is_as_likely_to_be_held_out():
    held = torch.zeros(100)
    for seed in range(400):
        held[numbers(hold_out(make_dataset(BALANCED), 20, seed=seed).eval)] += 1
    assert held.min() > 45 and held.max() < 120  # expected 80, standard deviation 8


def test_a_training_split_alone_is_divided_too():
    divided = hold_out(dataclasses.replace(make_dataset(BALANCED), eval=None), 20, seed=0)
    assert len(divided.eval) == 20 and divided.test is None


@pytest.mark.parametrize("num_images", [-1, 0, 3, 97, 100, 1000])
def test_too_few_or_too_many_are_refused_in_one_line(num_images):
    message = (
        rf"\Acannot hold out {num_images} of the 100 training images of numbers: "
        r"choose 4 \(one of each class\) to 96 \(one of each class remains\)\Z"
    )
    with pytest.raises(ValueError, match=message):
        hold_out(make_dataset(BALANCED), num_images, seed=0)


def test_a_dataset_that_cannot_be_divided_is_refused():
    whole = make_dataset(BALANCED)
    with pytest.raises(ValueError, match="numbers is loaded with a split 'test'"):
        hold_out(dataclasses.replace(whole, test=whole.eval), 20, seed=0)
    with pytest.raises(ValueError, match="numbers is loaded without a split 'train'"):
        hold_out(dataclasses.replace(whole, train=None), 20, seed=0)
