"""mixup and CutMix: what is drawn, the pixels and shares by hand, and loaders with and without them."""

import math
import statistics

import numpy as np
import pytest
import torch
from device_tools import OnMeta

from config.options import Protocol
from dataloaders import Batch, Dataset, ImageTensors, load_dataset, make_train_loader
from dataloaders.mixing import Mix, box, check_pairs, draw_mixes, mixed, with_mixing
from letkd.processes import ALONE, Member

HEIGHT, WIDTH = 6, 8
MIXUP, CUTMIX = Protocol(mixup=0.4), Protocol(cutmix=1.0)
BOTH = Protocol(mixup=0.4, cutmix=1.0, mix_probability=0.7)


@pytest.fixture
def batch() -> Batch:
    """Four images, whose labels are those of four classes."""
    pixels = torch.randint(256, (4, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(pixels.permute(0, 3, 1, 2), torch.tensor([5, 6, 7, 8]), torch.tensor([3, 1, 4, 0]))


def drawn(protocol: Protocol, number: int = 4000, **options: int) -> list[Mix]:
    return draw_mixes(protocol, number, **{"seed": 0, "epoch": 1} | options)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_those_of_the_beta_distribution(kind, alpha):
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), and symmetric quantiles; errors of the mean of 4000 below 0.03."""
    mixes = drawn(Protocol(**{kind: alpha}))
    assert {mix.kind for mix in mixes} == {kind}
    shares = sorted(mix.share for mix in mixes)
    assert shares[0] >= 0 and shares[-1] <= 1
    assert statistics.fmean(shares) == pytest.approx(0.5, abs=0.03)
    assert statistics.pvariance(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    assert shares[1000] == pytest.approx(1 - shares[3000], abs=0.03)


def test_the_centre_of_a_box_is_any_pixel():
    mixes = drawn(CUTMIX)
    for name in ("top", "left"):
        values = sorted(getattr(mix, name) for mix in mixes)
        assert values[0] >= 0 and values[-1] < 1
        assert values[1000] == pytest.approx(0.25, abs=0.03) and values[3000] == pytest.approx(0.75, abs=0.03)
    assert np.corrcoef([mix.top for mix in mixes], [mix.left for mix in mixes])[0, 1] == pytest.approx(0, abs=0.06)


def test_extreme_alphas_are_drawn_too():
    assert {mix.share for mix in drawn(Protocol(mixup=1e-30))} == {0.0, 1.0}
    assert all(mix.share == pytest.approx(0.5, abs=1e-3) for mix in drawn(Protocol(mixup=2.0**32 - 1)))


def test_probabilities_choose_between_batches():
    """Of all batches 70 % are mixed, of these a quarter is CutMix's; what else is drawn stays as it is."""
    both = drawn(BOTH, 4000)
    count = {kind: sum(mix.kind == kind for mix in both) for kind in (None, "mixup", "cutmix")}
    assert count[None] == pytest.approx(1200, abs=120)
    assert count["mixup"] == pytest.approx(1400, abs=120) and count["cutmix"] == pytest.approx(1400, abs=120)
    quarter = drawn(Protocol(mixup=0.4, cutmix=1.0, mix_switch=0.25))
    assert sum(mix.kind == "cutmix" for mix in quarter) == pytest.approx(1000, abs=120)
    always = drawn(Protocol(mixup=0.4, cutmix=1.0))
    assert all(one == other for one, other in zip(both, always, strict=True) if one.kind)
    assert all(mix == Mix(None, 1.0, 0.0, 0.0) for mix in drawn(Protocol(mixup=1.0, mix_probability=0.0)))
    assert {mix.kind for mix in drawn(Protocol(mixup=1.0, cutmix=1.0, mix_switch=0.0))} == {"mixup"}
    assert {mix.kind for mix in drawn(Protocol(mixup=1.0, cutmix=1.0, mix_switch=1.0))} == {"cutmix"}


def test_draws_follow_from_seed_and_epoch_alone():
    before = torch.random.get_rng_state()
    assert drawn(BOTH, 50) == drawn(BOTH, 50)
    assert drawn(BOTH, 50) != drawn(BOTH, 50, seed=1) and drawn(BOTH, 50) != drawn(BOTH, 50, epoch=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_known_draws_stay_what_they_are():
    """Runs go on with them: of seed 0 and epoch 1."""
    first, second = draw_mixes(Protocol(mixup=1.0), 2, seed=0, epoch=1)
    assert (first.share, second.share) == pytest.approx((0.1214006734692125, 0.861851324200641), abs=1e-12)


def test_nothing_is_mixed_after_the_last_epoch_of_mixing():
    protocol = Protocol(mixup=1.0, mix_off_epoch=2)
    assert all(mix.kind == "mixup" for epoch in (1, 2) for mix in drawn(protocol, 20, epoch=epoch))
    assert drawn(protocol, 20, epoch=3) == [Mix()] * 20


# --- pixels and shares, by hand --------------------------------------------------------------------------------------


def test_mixup_blends_neighbours(batch):
    before = batch.images.clone()
    found = mixed(batch, Mix("mixup", 0.7), blends=True)
    pixels, other = before.numpy().astype(np.float64), before.numpy().astype(np.float64)[[1, 0, 3, 2]]
    np.testing.assert_allclose(found.images.numpy(), 0.7 * pixels + 0.3 * other, rtol=1e-6, atol=1e-4)
    assert found.images.dtype == torch.float32 and found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.share.tolist() == pytest.approx([0.7] * 4) and found.share.dtype == torch.float32
    assert found.labels.tolist() == [5, 6, 7, 8] and found.other_labels.tolist() == [6, 5, 8, 7]
    assert found.index is batch.index and torch.equal(batch.images, before)


@pytest.mark.parametrize("blends", [False, True])
def test_cutmix_pastes_a_box_of_the_neighbour(blends, batch):
    """Sides of half the picture's around pixel (1, 6): rows 0 and 1 are left of three, columns 4 to 7 are whole."""
    before = batch.images.clone()
    mix = Mix("cutmix", 0.75, top=1.5 / HEIGHT, left=6 / WIDTH)
    found = mixed(batch, mix, blends=blends)
    expected = before.numpy().copy()
    expected[:, :, 0:2, 4:8] = before.numpy()[[1, 0, 3, 2], :, 0:2, 4:8]
    np.testing.assert_array_equal(found.images.numpy(), expected)
    assert found.images.dtype == (torch.float32 if blends else torch.uint8)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.share.tolist() == pytest.approx([1 - 2 * 4 / (HEIGHT * WIDTH)] * 4)
    assert found.other_labels.tolist() == [6, 5, 8, 7] and torch.equal(batch.images, before)


@pytest.mark.parametrize("share", np.linspace(0, 1, 7))
def test_a_box_is_the_published_one(share):
    """Of sides W sqrt(1 - l), halved downwards on both sides of the centre and cut off at the edges."""
    for centre in np.linspace(0, 0.999, 9):
        rows, columns = box(Mix("cutmix", share, centre, 0.5), 32, 20)
        half = int(32 * math.sqrt(1 - share)) // 2
        lowest, highest = np.clip([int(32 * centre) - half, int(32 * centre) + half], 0, 32)
        assert (rows.start, rows.stop) == (lowest, highest)
        half = int(20 * math.sqrt(1 - share)) // 2
        assert (columns.start, columns.stop) == (10 - half, 10 + half)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_all_of_one_image_is_that_image(share, batch):
    own = batch.images.float() if share else batch.images.float()[[1, 0, 3, 2]]
    assert torch.equal(mixed(batch, Mix("mixup", share), blends=True).images, own)
    pasted = mixed(batch, Mix("cutmix", share, 0.5, 0.5), blends=False)
    assert torch.equal(pasted.images.float(), own) and pasted.share.tolist() == [share] * 4


@pytest.mark.parametrize("blends", [False, True])
def test_a_batch_that_is_not_mixed_has_the_same_types(blends, batch):
    plain, other = (mixed(batch, mix, blends=blends) for mix in (Mix(), Mix("cutmix", 0.5, 0.5, 0.5)))
    types = ([(value.dtype, value.shape, value.stride()) for value in tensors(each)] for each in (plain, other))
    assert next(types) == next(types)
    assert torch.equal(plain.images.float(), batch.images.float()) and plain.share.tolist() == [1.0] * 4


@pytest.mark.parametrize("mix", [Mix(), Mix("mixup", 0.3), Mix("cutmix", 0.5, 0.5, 0.5)], ids=lambda mix: str(mix.kind))
def test_nothing_is_read_back_or_left_on_the_cpu(mix):
    batch = Batch(*(torch.empty(shape, device="meta") for shape in ((4, 3, HEIGHT, WIDTH), (4,), (4,))))
    with OnMeta():
        found = mixed(batch, mix, blends=True)
    assert {value.device.type for value in tensors(found)} == {"meta"}


# --- loaders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resident() -> Dataset:
    images = torch.randint(256, (22, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = ImageTensors(images, torch.arange(22))
    return Dataset("drawn", tuple(map(str, range(22))), 8, (0.5,) * 3, (0.25,) * 3, 1, True, train=split, eval=split)


@pytest.fixture(scope="module")
def streamed(photos) -> Dataset:
    return load_dataset("ImageFolder", data_dir=photos, image_size=100, mean=(0.5,) * 3, std=(0.25,) * 3)


def loader_of(dataset: Dataset, protocol: Protocol, batch_size: int = 4, member: Member = ALONE):
    loader = make_train_loader(dataset, batch_size=batch_size, device="cpu", seed=3, member=member)
    return with_mixing(loader, protocol, seed=3)


def batches_of(loader, epoch: int, skip: int = 0) -> list[Batch]:
    loader.set_epoch(epoch, skip=skip)
    return list(loader)


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(tensors(one), tensors(other), strict=True))


def tensors(batch: Batch) -> list[torch.Tensor]:
    """All that a batch of labelled images has."""
    assert batch.labelled is None
    return [value for value in batch if value is not None]


def test_without_options_it_is_the_loader_itself(resident):
    loader = make_train_loader(resident, batch_size=4, device="cpu", seed=3)
    assert with_mixing(loader, Protocol(), seed=3) is loader
    assert with_mixing(loader, Protocol(mix_probability=0.5, mix_switch=0.1, mix_off_epoch=3), seed=3) is loader


@pytest.mark.parametrize("protocol", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_the_batches_of_a_loader_are_mixed(name, protocol, request):
    """Each by its own draw; order, labels and the crops behind the mixture are those without."""
    dataset = request.getfixturevalue(name)
    plain, loader = (loader_of(dataset, each) for each in (Protocol(), protocol))
    found = batches_of(loader, 1)
    assert len(found) == len(loader) == len(plain)
    draws = draw_mixes(protocol, len(plain), seed=3, epoch=1)
    expected = [
        mixed(each, mix, blends=protocol.mixup > 0) for each, mix in zip(batches_of(plain, 1), draws, strict=True)
    ]
    assert same(found, expected)
    assert len({batch.share[0].item() for batch in found}) > 1


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_an_epoch_goes_on_behind_the_batches_that_are_done(name, request):
    dataset = request.getfixturevalue(name)
    whole = batches_of(loader_of(dataset, BOTH), 2)
    for skip in (1, 2):
        assert same(batches_of(loader_of(dataset, BOTH), 2, skip), whole[skip:])
    assert not same(whole, batches_of(loader_of(dataset, BOTH), 1))


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_parts_of_processes_are_those_of_one(name, request):
    dataset = request.getfixturevalue(name)
    parts = [batches_of(loader_of(dataset, BOTH, 12, Member(rank, 3)), 1) for rank in range(3)]
    whole = batches_of(loader_of(dataset, BOTH, 12), 1)
    joined = [Batch(*map(torch.cat, zip(*map(tensors, each), strict=True))) for each in zip(*parts, strict=True)]
    assert same(joined, whole)


@pytest.mark.parametrize(
    ("protocol", "size", "said"),
    [
        (Protocol(mixup=0.2, batch_size=63), 1, "mixup=0.2: .* batch_size=63 leaves one over; choose a multiple of 2"),
        (
            Protocol(mixup=0.2, cutmix=1.0, batch_size=6),
            2,
            "mixup=0.2 and cutmix=1: .* batch_size=6 leaves one over in each of 2 processes; choose a multiple of 4",
        ),
    ],
)
def test_a_batch_without_pairs_is_refused(protocol, size, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_pairs(protocol, size)


def test_batches_of_pairs_and_batches_that_are_not_mixed_are_not_refused():
    check_pairs(Protocol(mixup=0.2, batch_size=6), 3)
    check_pairs(Protocol(batch_size=63), 1)
