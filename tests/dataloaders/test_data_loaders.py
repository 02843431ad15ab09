"""Batches: shapes, order, exact repetition, resident and streamed."""

import atexit
import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from dataloaders import Dataset, ImageTensors, load_dataset, loaders, make_eval_loader, make_train_loader
from dataloaders.decoding import SquarePixels, read_rgb
from letkd.processes import Member

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


@pytest.fixture
def resident():
    """22 images whose every pixel is ten times the image's number, which is also its label."""
    numbers = torch.arange(22)
    images = (numbers * 10).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    split = ImageTensors(images, numbers)
    return Dataset("numbers", tuple(map(str, range(22))), 8, MEAN, STD, 1, True, train=split, eval=split)


@pytest.fixture(scope="module")
def streamed(photos):
    return load_dataset("ImageFolder", data_dir=photos, image_size=100, mean=MEAN, std=STD)


def epoch_of(loader, epoch):
    """All images, labels and indices."""
    loader.set_epoch(epoch)
    return tuple(map(torch.cat, zip(*(known(batch) for batch in loader), strict=True)))


def known(batch):
    assert batch.other_labels is None and batch.share is None, "nothing is mixed"
    return batch.images, batch.labels, batch.index


def train_loader(dataset, **options):
    return make_train_loader(dataset, **({"batch_size": 4, "device": "cpu", "seed": 0} | options))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_batch_format(batch, batch_size, image_size):
    images, labels, index = known(batch)
    assert images.shape == (batch_size, 3, image_size, image_size) and images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == index.shape == (batch_size,) and labels.dtype == index.dtype == torch.int64


def test_resident_images_are_padded_with_zeros_on_demand(resident):
    """The same windows of the same images, black where the others are reflected."""
    (reflected, *known_B), (zeros, *others_B) = (
        epoch_of(train_loader(resident, padding_mode=mode), 1) for mode in ("reflect", "zeros")
    )
    assert same(known_B, others_B) and not torch.equal(reflected, zeros)
    assert ((zeros == reflected) | (zeros == 0)).all()


def test_streamed_images_have_no_padding(streamed):
    with pytest.raises(ValueError, match="padding_mode=zeros is for images that are padded; those of ImageFolder"):
        train_loader(streamed, padding_mode="zeros")


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_training_drops_the_last_incomplete_batch_and_shows_an_image_once(name, request):
    dataset = request.getfixturevalue(name)
    loader = train_loader(dataset)
    batches = list(loader)
    assert len(batches) == len(loader) == len(dataset.train) // 4
    for batch in batches:
        assert_batch_format(batch, 4, dataset.image_size)
    index = torch.cat([batch.index for batch in batches])
    assert len(index.unique()) == len(index)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), dataset.train.labels[index])


def test_images_keep_their_labels_and_none_comes_twice(resident):
    images, labels, index = epoch_of(train_loader(resident), 0)
    assert len(labels.unique()) == len(labels) == 20
    assert torch.equal(labels, index)
    assert torch.equal(images, (10 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand_as(images))


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_an_epoch_repeats_exactly_from_seed_and_epoch(name, request):
    dataset = request.getfixturevalue(name)
    loader = train_loader(dataset)
    uninterrupted = [epoch_of(loader, epoch) for epoch in range(3)]
    assert same(epoch_of(train_loader(dataset), 2), uninterrupted[2]), "resumption at an epoch boundary"
    assert not torch.equal(uninterrupted[0][1], uninterrupted[1][1])
    assert not torch.equal(uninterrupted[0][1], epoch_of(train_loader(dataset, seed=1), 0)[1])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_an_epoch_goes_on_behind_the_batches_that_are_done(name, workers, request):
    loader = train_loader(request.getfixturevalue(name), num_workers=workers)
    whole = {epoch: epoch_of(loader, epoch) for epoch in (1, 2)}
    for skip in (1, len(loader)):
        loader.set_epoch(1, skip=skip)
        rest = list(loader)
        assert len(rest) == len(loader) - skip
        for number, batch in enumerate(rest, start=skip):
            assert same(known(batch), [values[4 * number : 4 * number + 4] for values in whole[1]])
    assert same(epoch_of(loader, 2), whole[2]), "the next epoch is whole"


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_ranks_share_every_batch_of_an_epoch(name, request):
    """Its parts, one behind the other, are the batch of one process, also behind batches that are done."""
    dataset = request.getfixturevalue(name)
    parts_of = [train_loader(dataset, batch_size=6, member=Member(rank, 3)) for rank in range(3)]
    whole = train_loader(dataset, batch_size=6)
    for skip in (0, 1):
        for loader in (whole, *parts_of):
            loader.set_epoch(2, skip=skip)
        assert {len(loader) for loader in parts_of} == {len(whole)} == {len(dataset.train) // 6}
        for batch, *parts in zip(whole, *parts_of, strict=True):
            assert_batch_format(parts[0], 2, dataset.image_size)
            assert same(known(batch), map(torch.cat, zip(*map(known, parts), strict=True)))


def test_a_batch_that_ranks_cannot_share_is_refused(resident):
    with pytest.raises(ValueError, match=r"^batch_size=8 cannot be shared equally by 3 processes; choose"):
        train_loader(resident, batch_size=8, member=Member(0, 3))


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_ranks_share_the_batches_of_an_evaluation(name, size, request):
    """Each batch of one process is one rank's; all have as many, and the last may have no images."""
    dataset = request.getfixturevalue(name)
    options = {"batch_size": 3, "device": "cpu"}
    whole = [known(batch) for batch in make_eval_loader(dataset, **options)]
    ranks = [make_eval_loader(dataset, **options, member=Member(rank, size)) for rank in range(size)]
    shares = [[known(batch) for batch in loader] for loader in ranks]
    assert {len(share) for share in shares} == {len(loader) for loader in ranks} == {-(-len(whole) // size)}
    found = [batch for share in shares for batch in share if len(batch[1])]
    assert all(same(batch, other) for batch, other in zip(found, whole, strict=True))


def test_what_is_done_is_not_read_again(streamed, monkeypatch):
    read = []
    monkeypatch.setattr(loaders, "read_rgb", lambda path: read.append(path) or read_rgb(path))
    loader = train_loader(streamed)
    epoch_of(loader, 1)
    first, last = read[:8], read[8:]
    assert len(last) == 4
    read.clear()
    loader.set_epoch(1, skip=2)
    list(loader)
    assert read == last and not set(read) & set(first)


def test_workers_outlast_the_signals_that_stop_a_run(streamed, request):
    loader = train_loader(streamed, num_workers=1)
    expected = epoch_of(loader, 1)
    (worker,) = loader.batches._iterator._workers
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert same(epoch_of(loader, 1), expected)
    assert worker.is_alive()
    # torch's own handler raises in the main process when a worker dies of a signal, unless it was waited for by then.
    watching = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGCHLD, watching))
    worker.terminate()  # what torch does with one that hangs
    worker.join(5)
    assert not worker.is_alive()


def test_workers_end_by_their_message_when_the_cycle_collector_frees_the_loader(streamed):
    """A loader goes so that belongs to an object which refers to itself, as a run does by its bound methods."""
    loader = train_loader(streamed, num_workers=2)
    epoch_of(loader, 1)
    workers = loader.batches._iterator._workers
    loader.itself = loader
    del loader
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_fork_leaves_the_workers_of_its_parent_alone(streamed):
    loader = train_loader(streamed, num_workers=1)
    expected = epoch_of(loader, 1)
    process = multiprocessing.get_context("fork").Process(target=loaders._end_all_workers)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert same(epoch_of(loader, 1), expected)


EXITING = """
import sys
from dataloaders import load_dataset, make_train_loader

dataset = load_dataset("ImageFolder", data_dir=sys.argv[1], image_size=100, mean=[0.5] * 3, std=[0.2] * 3)
loader = make_train_loader(dataset, batch_size=4, device="cpu", seed=0, num_workers=1)
loader.itself = loader  # nothing but the exit frees it
for batch in loader:
    pass
print("done", flush=True)
"""


def as_a_fork(root: str) -> int:
    """The exit status of a process that does it with torch loaded, and then what Python does at the end of one."""

    def work() -> None:
        for own in (weakref.finalize._registry, loaders._OPEN):
            own.clear()  # what is ended with this process stays
        sys.argv = ["-c", root]
        names: dict[str, object] = {}
        exec(EXITING, names)
        atexit._run_exitfuncs()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode


def as_a_program(root: str) -> int:
    command, place = [sys.executable, "-c", EXITING, root], Path(loaders.__file__).parents[1]
    return subprocess.run(command, cwd=place, timeout=100, check=False).returncode


@pytest.mark.parametrize("run", [as_a_fork, pytest.param(as_a_program, marks=pytest.mark.slow)])
def test_a_process_ends_though_its_workers_outlast_signals(run, streamed, capfd):
    root = Path(streamed.train.paths[0]).parents[2]
    assert (run(str(root)), *capfd.readouterr()) == (0, "done\n", "")


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_loaders_neither_use_nor_move_the_global_random_state(name, request):
    dataset = request.getfixturevalue(name)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = epoch_of(train_loader(dataset), 1)
    list(make_eval_loader(dataset, batch_size=4, device="cpu"))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert same(first, epoch_of(train_loader(dataset), 1))


@pytest.mark.parametrize("name", ["resident", "streamed"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_evaluation_is_every_image_in_order(name, split, request):
    dataset = request.getfixturevalue(name)
    loader = make_eval_loader(dataset, split, batch_size=5, device="cpu")
    batches = list(loader)
    num_images = len(dataset.split(split))
    sizes = [5] * (num_images // 5) + [num_images % 5]
    assert len(loader) == len(sizes)
    for batch, size in zip(batches, sizes, strict=True):
        assert_batch_format(batch, size, dataset.image_size)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), dataset.split(split).labels)
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(num_images))


def test_resident_evaluation_is_the_pixels(resident):
    batches = make_eval_loader(resident, "train", batch_size=8, device="cpu")
    assert torch.equal(torch.cat([batch.images for batch in batches]), resident.train.images.permute(0, 3, 1, 2))


def test_the_index_of_a_streamed_image_is_its_files_position(streamed):
    """Labels alternate, so they say little: the pixels tell."""
    stored = torch.stack([torch.from_numpy(SquarePixels(100)(path)) for path in streamed.eval.paths])
    part = dataclasses.replace(streamed, eval=streamed.eval.take(torch.tensor([7, 2, 11])))
    (batch,) = make_eval_loader(part, batch_size=3, device="cpu", num_workers=2)
    assert torch.equal(batch.index, torch.arange(3)), "of the split as it is"
    assert torch.equal(batch.images, stored[[7, 2, 11]].permute(0, 3, 1, 2))


def test_the_number_of_workers_changes_nothing(streamed):
    alone = [epoch_of(train_loader(streamed), epoch) for epoch in (0, 1)]
    helped = train_loader(streamed, num_workers=2)
    assert same(alone[0], epoch_of(helped, 0))
    assert same(alone[1], epoch_of(helped, 1)), "persistent workers must see the new epoch"
    calm = [list(make_eval_loader(streamed, batch_size=5, device="cpu", num_workers=workers)) for workers in (0, 2)]
    assert all(same(known(a), known(b)) for a, b in zip(*calm, strict=True))


def test_streamed_augmentation_belongs_to_epoch_and_image_not_to_its_place(streamed):
    def image_seen(batch_size, epoch):
        images, _, index = epoch_of(train_loader(streamed, batch_size=batch_size), epoch)
        return images[index == 3]

    assert torch.equal(image_seen(13, 0), image_seen(1, 0))
    assert not torch.equal(image_seen(13, 0), image_seen(13, 1))


def test_a_streamed_set_that_must_not_be_flipped_is_not(streamed):
    flipping, steady = train_loader(streamed), train_loader(dataclasses.replace(streamed, flip=False))
    mirrored = 0
    for epoch in range(3):
        for one, other in zip(epoch_of(flipping, epoch)[0], epoch_of(steady, epoch)[0], strict=True):
            mirrored += int(torch.equal(one, other.flip(2)))
            assert torch.equal(one, other) or torch.equal(one, other.flip(2))
    assert 8 <= mirrored <= 28  # of 36


def test_a_file_damaged_after_loading_is_named_in_one_line(streamed, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"gone")
    files = dataclasses.replace(streamed.eval, paths=(*streamed.eval.paths[:-1], str(broken)))
    loader = make_eval_loader(dataclasses.replace(streamed, eval=files), batch_size=5, device="cpu", num_workers=1)
    with pytest.raises(ValueError, match=r"\Acannot read image [^\n]*broken\.png[^\n]*\Z"):
        list(loader)


def test_batch_sizes_that_cannot_work_are_refused(resident):
    with pytest.raises(ValueError, match="batch_size 23 exceeds the 22 training images of numbers"):
        train_loader(resident, batch_size=23)
    with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
        train_loader(resident, batch_size=0)
    with pytest.raises(ValueError, match="batch_size -1 must be at least 1"):
        make_eval_loader(resident, batch_size=-1, device="cpu")
    with pytest.raises(ValueError, match="loaded without a split 'test'; it has train, eval"):
        make_eval_loader(resident, "test", batch_size=4, device="cpu")


@pytest.mark.gpu
def test_a_resident_step_never_waits_for_the_gpu_and_equals_the_cpu(resident):
    loader = train_loader(resident, device="cuda")
    batches = iter(loader)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip([first, *rest], train_loader(resident), strict=True):
        assert all(values.is_cuda for values in known(ours))
        assert same([values.cpu() for values in known(ours)], known(theirs))
