"""Loaders: batches of pixels, labels and indices on the training device.

Every loader yields `Batch`es: the pixels as uint8, which each network's own `architectures.Input` normalises. A
training loader repeats an epoch exactly from (seed, epoch) alone: `set_epoch` before iterating, resume by setting the
epoch and the number of its batches that are done: they are neither read nor augmented again. Over a resident split a
step moves nothing between host and device and waits for nothing.

Of a run of R processes every rank draws the same epoch, and rank r takes part r of each batch, whose size is that of
all parts together: what an image looks like in an epoch does not depend on R. In evaluation a rank has a range of the
batches that one process has.
"""

import atexit
import functools
import math
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from config.options import Augmentation
from dataloaders.augmentation import CROPS, derive_seed, draw_epoch
from dataloaders.batch import Batch
from dataloaders.dataset import Dataset, ImageFiles, ImageTensors
from dataloaders.decoding import Reader, SquarePixels, checked, collate, read_rgb
from dataloaders.geometry import ResizedCropFlip
from dataloaders.policies import Transforms, check_augmentation, draw_windows
from letkd.processes import ALONE, Member

PREFETCH_BATCHES = 4  # per worker
CROP_AND_FLIP = Augmentation()  # and nothing else

Sample = tuple[np.ndarray, int, int]  # an image (H, W, 3) uint8, its label, and its position in the split


def make_train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    device: torch.device | str,
    seed: int,
    num_workers: int = 0,
    padding_mode: str = "reflect",
    augmentation: Augmentation = CROP_AND_FLIP,
    member: Member = ALONE,
    steps: int | None = None,
) -> "ResidentTrainLoader | StreamedTrainLoader":
    """Shuffled, augmented batches of the training split; the last incomplete batch is dropped.

    Resident images: random crop of the padded image, or random resized crop, and flip. Streamed ones: random resized
    crop and flip, read by `num_workers` processes, whose number does not change the result. Then, on the device, what
    `policies` draws.

    Args:
        batch_size: of all ranks together.
        padding_mode: what is around a resident image, one of `CROPS`.
        member: whose part of each batch is wanted.
        steps: batches of an epoch that is no pass over the images, but goes on where the epoch before has ended (see
            `passes_of`); None for a pass.

    Raises:
        ValueError: no training split is loaded, or batch_size is not between 1 and its number of images or has no equal
            parts, or what is said of augmentation does not go together or with these images.
    """
    check_train_batch(dataset, batch_size, padding_mode, augmentation)
    check_shares(batch_size, member.size)
    split = dataset.split("train")
    device = torch.device(device)
    if isinstance(split, ImageTensors):
        of_images = padding_mode, augmentation
        return ResidentTrainLoader(dataset, split, batch_size, device, seed, *of_images, member, steps)
    options = {"batch_size": batch_size, "device": device, "num_workers": num_workers, "member": member, "steps": steps}
    return StreamedTrainLoader(dataset, split, seed=seed, augmentation=augmentation, **options)


def make_eval_loader(
    dataset: Dataset,
    split_name: str = "eval",
    *,
    batch_size: int,
    device: torch.device | str,
    num_workers: int = 0,
    member: Member = ALONE,
) -> "ResidentEvalLoader | StreamedEvalLoader":
    """All images of a split, the training split too, in order and without augmentation; the last batch may be smaller.

    Args:
        member: whose range of the batches is wanted. All ranks have as many batches: where there is none left for one,
            its last has no images.

    Raises:
        ValueError: that split is not loaded, or batch_size is below 1.
    """
    split = dataset.split(split_name)
    _check_batch_size(batch_size)
    device = torch.device(device)
    if isinstance(split, ImageTensors):
        return ResidentEvalLoader(dataset, split, batch_size, device, member)
    options = {"batch_size": batch_size, "device": device, "num_workers": num_workers}
    return StreamedEvalLoader(dataset, split, member=member, **options)


def check_train_batch(
    dataset: Dataset,
    batch_size: int,
    padding_mode: str = "reflect",
    augmentation: Augmentation = CROP_AND_FLIP,
) -> None:
    """Raise `ValueError` where a training step cannot have so many or such images, or no training split is loaded."""
    num_images = len(dataset.split("train"))
    _check_batch_size(batch_size)
    check_augmentation(augmentation)
    _check_crop(dataset, padding_mode, augmentation)
    if batch_size > num_images:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {num_images} training images of {dataset.name}; choose less"
        )


def _check_crop(dataset: Dataset, padding_mode: str, augmentation: Augmentation) -> None:
    is_resident = isinstance(dataset.split("train"), ImageTensors)
    if not is_resident and augmentation.crop == "padded":
        raise ValueError(
            f"crop=padded is for images that are held in memory; those of {dataset.name} are read from files in every "
            "epoch, leave it out"
        )
    if padding_mode != "reflect" and not is_resident:
        raise ValueError(
            f"padding_mode={padding_mode} is for images that are padded; those of {dataset.name} are cropped without, "
            "leave it out"
        )
    if augmentation.crop == "resized":
        if padding_mode != "reflect":
            raise ValueError(f"padding_mode={padding_mode} is for crop=padded, and crop=resized pads nothing; drop one")
    elif is_resident:
        for key in ("crop_scale", "crop_ratio"):
            if getattr(augmentation, key) != getattr(CROP_AND_FLIP, key):
                raise ValueError(
                    f"{key} is for crop=resized, and the images of {dataset.name} are padded; say that too, or leave "
                    "it out"
                )


def check_shares(batch_size: int, size: int) -> None:
    """Raise `ValueError` where a training batch has no equal parts for so many processes."""
    if batch_size % size:
        raise ValueError(
            f"batch_size={batch_size} cannot be shared equally by {size} processes; choose a multiple of {size}"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")


class ResidentTrainLoader:
    """Training batches gathered from a split that lies whole on the device."""

    def __init__(
        self,
        dataset: Dataset,
        split: ImageTensors,
        batch_size: int,
        device: torch.device,
        seed: int,
        padding_mode: str,
        augmentation: Augmentation,
        member: Member,
        steps: int | None = None,
    ):
        self.batch_size, self.device, self.seed, self.steps = batch_size, device, seed, steps
        self.part = member.share(batch_size)
        self.labels = split.labels.to(device)
        images, num_images = split.images.to(device), len(split)
        if augmentation.crop == "resized":
            self.augment = ResizedCropFlip(images)
            self.draw = functools.partial(draw_windows, num_images, dataset, augmentation)
        else:
            self.augment = CROPS[padding_mode](images, dataset.padding)
            self.draw = functools.partial(draw_epoch, num_images, padding=dataset.padding, flip=dataset.flip)
        num_places = places_of(num_images, batch_size, steps)
        self.transforms = Transforms(augmentation, dataset, num_places, batch_size, self.part, device)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size if self.steps is None else self.steps

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[Batch]:
        order, *windows = (values.to(self.device) for values in self._drawn())
        transform = self.transforms.of_epoch(self.seed, self.epoch)
        labels = self.labels[order]
        for number in range(self.skip, len(self)):
            start = number * self.batch_size
            batch = slice(start + self.part.start, start + self.part.stop)
            index = order[batch]
            images_BHWC = self.augment(index, *(values[batch] for values in windows))
            yield Batch(transform(images_BHWC.permute(0, 3, 1, 2), number), labels[batch], index)

    def _drawn(self) -> Iterable[Tensor]:
        """The order of the epoch's images, and what their windows are, each of every place."""
        if self.steps is None:
            return self.draw(seed=self.seed, epoch=self.epoch)
        passes = passes_of(self.epoch, self.steps * self.batch_size, len(self.labels))
        drawn = [
            [values[places.start : places.stop] for values in self.draw(seed=self.seed, epoch=number)]
            for number, places in passes
        ]
        return map(torch.cat, zip(*drawn, strict=True))


def places_of(num_images: int, batch_size: int, steps: int | None) -> int:
    """Places in the order of an epoch, which is a pass over the images or has `steps` batches."""
    return num_images if steps is None else steps * batch_size


def passes_of(epoch: int, num_drawn: int, num_images: int) -> Iterator[tuple[int, range]]:
    """The passes over some images that an epoch has a part of, and which part of their permutations.

    Epochs follow each other without a gap: every image is seen once before any is seen again.

    Args:
        num_drawn: images of an epoch.
    """
    place, stop = epoch * num_drawn, (epoch + 1) * num_drawn
    while place < stop:
        number, first = divmod(place, num_images)
        last = min(num_images, first + stop - place)
        yield number, range(first, last)
        place += last - first


class ResidentEvalLoader:
    """Slices of a split that lies whole on the device."""

    def __init__(self, dataset: Dataset, split: ImageTensors, batch_size: int, device: torch.device, member: Member):
        self.batch_size = batch_size
        share, self.num_batches = images_of(member, len(split), batch_size)
        images, labels = (values[share.start : share.stop] for values in (split.images, split.labels))
        self.images, self.labels = images.to(device).permute(0, 3, 1, 2), labels.to(device)
        self.index = torch.arange(share.start, share.stop, device=device)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.num_batches * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield Batch(self.images[batch], self.labels[batch], self.index[batch])


def images_of(member: Member, num_images: int, batch_size: int) -> tuple[range, int]:
    """The images of the batches that are a rank's, and how many batches the rank with the most has."""
    num_batches = math.ceil(num_images / batch_size)
    share = member.share(num_batches)
    first, last = (min(batch * batch_size, num_images) for batch in (share.start, share.stop))
    return range(first, last), math.ceil(num_batches / member.size)


class StreamedLoader:
    """Batches of files that worker processes read, in the order of `keys`."""

    def __init__(
        self,
        *,
        read: Callable[[Any], Sample],
        keys: Sized,
        batch_size: int,
        device: torch.device,
        num_workers: int,
    ):
        self.device = device
        self.batches = DataLoader(
            Reader(read),
            batch_size=batch_size,
            sampler=keys,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCH_BATCHES if num_workers > 0 else None,
            worker_init_fn=_outlast_stop_signals,
            generator=torch.Generator(),  # its own: iterating must not advance the global random state
        )
        _OPEN.add(self)
        self.process = os.getpid()
        weakref.finalize(self, _end_workers, self.batches, self.process).atexit = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in checked(self.batches):
            images_BHWC, labels, index = (values.to(self.device, non_blocking=True) for values in batch)
            yield Batch(images_BHWC.permute(0, 3, 1, 2), labels, index)


class StreamedEvalLoader(StreamedLoader):
    """Files in order, in the geometry of evaluation."""

    def __init__(
        self,
        dataset: Dataset,
        split: ImageFiles,
        *,
        batch_size: int,
        device: torch.device,
        num_workers: int,
        member: Member,
    ):
        self.image_size = dataset.image_size
        share, self.num_batches = images_of(member, len(split), batch_size)
        super().__init__(
            read=EvalSample(split, dataset.image_size),
            keys=share,
            batch_size=batch_size,
            device=device,
            num_workers=num_workers,
        )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        yield from super().__iter__()
        for _ in range(self.num_batches - len(self.batches)):
            pixels = torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8, device=self.device)
            nothing = torch.empty(0, dtype=torch.int64, device=self.device)
            yield Batch(pixels, nothing, nothing)


# Those whose workers are told to end at the exit of Python.
_OPEN: "weakref.WeakSet[StreamedLoader]" = weakref.WeakSet()


def _end_workers(batches: DataLoader, process: int) -> None:
    """End the workers that stay between epochs, by the message that they wait for.

    torch does it when the last reference to them goes, which is too late in two cases: the cycle collector has closed
    the queue of messages by then, and at the exit of Python torch leaves them to multiprocessing, whose one SIGTERM
    they outlast, and which would wait for them for ever.

    Args:
        process: whose they are; a fork of it leaves them alone.
    """
    if batches._iterator is not None and process == os.getpid():
        batches._iterator._shutdown_workers()
        batches._iterator = None  # the next iteration starts workers anew


@atexit.register  # behind torch's own function, therefore called before it
def _end_all_workers() -> None:
    for loader in list(_OPEN):
        _end_workers(loader.batches, loader.process)


def _outlast_stop_signals(worker: int) -> None:
    """Let a worker live through a Ctrl-C of the terminal, and the signals of a batch system, which reach every process.

    The main process finishes its step first, for which it needs its workers. It ends them by a message or, should one
    hang, by SIGTERM, twice.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


class StreamedTrainLoader(StreamedLoader):
    """Shuffled batches of files, each image augmented from (seed, epoch, its index)."""

    def __init__(
        self,
        dataset: Dataset,
        split: ImageFiles,
        *,
        batch_size: int,
        device: torch.device,
        seed: int,
        num_workers: int,
        augmentation: Augmentation,
        member: Member,
        steps: int | None = None,
    ):
        self.batch_size = batch_size
        self.order = EpochOrder(len(split), seed, batch_size, member.share(batch_size), steps)
        num_places = places_of(len(split), batch_size, steps)
        self.transforms = Transforms(augmentation, dataset, num_places, batch_size, self.order.part, device)
        super().__init__(
            read=TrainSample(split, dataset.image_size, dataset.flip, seed, augmentation),
            keys=self.order,
            batch_size=len(self.order.part),
            device=device,
            num_workers=num_workers,
        )

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `skip` batches."""
        self.order.epoch, self.order.skip = epoch, skip

    def __iter__(self) -> Iterator[Batch]:
        transform = self.transforms.of_epoch(self.order.seed, self.order.epoch)
        for number, batch in enumerate(super().__iter__(), start=self.order.skip):
            yield batch._replace(images=transform(batch.images, number))


class EpochOrder(Sampler):
    """Yields (epoch, index), shuffled: of all whole batches but the first `skip` those of one part.

    The epoch travels along because the workers outlive it; with `steps` it is the pass over the images.
    """

    def __init__(self, num_images: int, seed: int, batch_size: int, part: range, steps: int | None = None):
        self.num_images, self.seed, self.batch_size, self.part = num_images, seed, batch_size, part
        self.steps = num_images // batch_size if steps is None else steps
        self.goes_on = steps is not None
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.steps * len(self.part)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        num_drawn = self.steps * self.batch_size
        passes = [(self.epoch, range(num_drawn))]
        if self.goes_on:
            passes = list(passes_of(self.epoch, num_drawn, self.num_images))
        index = torch.cat([self._shuffled(number)[places.start : places.stop] for number, places in passes])
        epochs = torch.cat([torch.full((len(places),), number) for number, places in passes])
        batches = (values.view(-1, self.batch_size)[self.skip :] for values in (epochs, index))
        yield from zip(
            *(values[:, self.part.start : self.part.stop].flatten().tolist() for values in batches), strict=True
        )

    def _shuffled(self, epoch: int) -> Tensor:
        """The images in the order of an epoch, or of a pass."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.num_images, generator=generator)


class TrainSample:
    """Callable: (epoch, index) to the sample of one augmented image."""

    def __init__(self, files: ImageFiles, image_size: int, flip: bool, seed: int, augmentation: Augmentation):
        import torchvision.transforms as T  # takes two seconds, and resident images need none

        self.files, self.seed = files, seed
        crop = T.RandomResizedCrop(image_size, tuple(augmentation.crop_scale), tuple(augmentation.crop_ratio))
        self.transform = T.Compose([crop, T.RandomHorizontalFlip(0.5 if flip else 0.0)])

    def __call__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image = read_rgb(self.files.paths[index])
        # torchvision draws from the global CPU generator: lend it this image's seed, then put its state back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            return np.array(self.transform(image)), int(self.files.labels[index]), index


class EvalSample:
    """Callable: index to the sample of one image in the geometry of evaluation."""

    def __init__(self, files: ImageFiles, image_size: int):
        self.files = files
        self.pixels = SquarePixels(image_size)

    def __call__(self, index: int) -> Sample:
        return self.pixels(self.files.paths[index]), int(self.files.labels[index]), index
