"""Jobs that make supervision of a trained network's map over all training images, without augmentation.

What is made of the patches is in `letkd.fit`; here is where they come from, where they are held, and what is left. Of
several processes each has a range of the images, and the first writes what all have made.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.base import Algorithm
from algorithms.teaching import for_new_network, missing_weights
from architectures import Input, InputConfig, Place, create_model, create_on_meta, outline
from dataloaders import Batch, Dataset, outline_dataset
from distillation.build import load_trained
from distillation.inputs import handed_on, images_of_data, input_of_student, mention, mention_other, role_of
from distillation.supervision_files import save_supervision
from engine.progress import Line, phase
from engine.records import log
from engine.weights import UnfinishedError, find_weights
from letkd.fit import Decisions, Follow, Progress, Words
from letkd.processes import by_first, member
from letkd.supervision import NetworkPatches, TeacherMap, supervise
from results.places import Requirement
from storage.state_dicts import Weights


class OfflineAlgorithm(Algorithm):
    """A job on a trained network: opens it and its training images, and reads the patches of one map."""

    takes_many = True
    fewer_patches: ClassVar[str]  # the option that holds fewer of them
    dataset: Dataset
    network: nn.Module
    weights: Weights
    seen: InputConfig  # what the network sees of the images

    def missing_requirements(self) -> Iterator[Requirement]:
        name, chosen = self.network_name, self.options.network.weights
        role = role_of(self.options)
        sees = handed_on(for_new_network(self.options, role), role)
        yield from missing_weights(self.options, network=name, experiment=self.trained_as, chosen=chosen, sees=sees)

    def check_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> None:
        """What `check_network` refuses, for weights that are there and for such as are still to be trained."""
        try:
            self.weights = self._find_weights()
        except (FileNotFoundError, UnfinishedError):
            self.weights = Weights({}, Path())
        self.dataset = self._open_images(open_images)
        self.network = create_on_meta(self.network_name, **self._size())
        self.check_network()

    def _open_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> Dataset:
        """The training images, as those that the network was trained on are prepared; other ones as they are usually.

        Their classes may be others: what is made here is of maps, and of the labels of these images.
        """
        known = self.weights.data
        dataset = open_images(known and {key: value for key, value in known.items() if key != "classes"})
        if known is not None and dataset.classes != tuple(known["classes"]):
            log.info("note: %s was trained on other classes than those of %s", self.weights.source, dataset.name)
            dataset = open_images(None)
        options = self.options if self.weights.state else for_new_network(self.options, role_of(self.options))
        self.seen = input_of_student(options, dataset, self.weights)
        return dataset

    def check_network(self) -> None:
        """Refuse images and network, which are open, where nothing can be made of them.

        Raises:
            ValueError: says what they lack.
        """
        self.check_patches()

    def check_patches(self) -> Place:
        """The place whose patches are wanted; images and network are open.

        Raises:
            ValueError: there is no such place, or it has too few patches of the training images.
        """
        raise NotImplementedError

    @property
    def network_name(self) -> str:
        return self.options.network.network

    @property
    def trained_as(self) -> str:
        """The experiment that trains the network."""
        return self.options.network.trained_as or self.options.job.run_name

    @property
    def downscale(self) -> int:
        """Side of the windows that maps are averaged over."""
        return self.options.network.downscale

    def place(self, name: str) -> Place:
        """A place of the network, by name or module path."""
        return outline(self.network, self.seen.image_size, self.network_name).place(name)

    def _size(self) -> dict[str, int]:
        num_classes = self.weights.num_classes or self.dataset.num_classes
        return {"num_classes": num_classes, "image_size": self.seen.image_size}

    def open(self) -> None:
        """Load weights, images and network.

        Raises:
            FileNotFoundError, ValueError: no weights, or weights of another network.
        """
        self.weights = self._find_weights()
        self.dataset = self._open_images(self.open_training_data)
        mention(role_of(self.options), self.seen, images_of_data(self.dataset))
        mention_other(self.options, role_of(self.options), self.seen, self.weights)
        size = self._size()
        self.network = create_model(self.network_name, **size)
        what = f"{self.network_name} with {size['num_classes']} classes"
        load_trained(self.network, self.network_name, self.weights, what=what)
        self.network.to(self.device, memory_format=torch.channels_last)
        log.info("network    %s from %s", self.network_name, self.weights.source)

    def _find_weights(self) -> Weights:
        return find_weights(
            experiment=self.trained_as,
            directory=self.training_directory(self.trained_as),
            chosen=self.options.network.weights,
            published=self.options.experiment.published_weights,
            network=self.network_name,
        )

    @property
    def max_patches(self) -> int | None:
        """So many patches are held at most; None for all."""
        return self.options.offline.max_patches or None

    def num_patches(self, tap: Place) -> int:
        """P, all patches of the training images at `tap`, after pooling."""
        return len(self.dataset.split("train")) * math.prod(self._grid(tap))

    def _grid(self, tap: Place) -> tuple[int, int]:
        height, width = tap.grid
        return height // self.downscale, width // self.downscale

    def teacher_map(self, tap: Place) -> TeacherMap:
        """The map of the trained network that supervision is made from."""
        size = self.seen.image_size
        return TeacherMap(
            path=tap.path, prefix=tap.prefix, channels_last=tap.channels_last, pooling=self.downscale,
            channels=tap.channels, grid=self._grid(tap), image_shape=(3, size, size),
            teacher=self.weights.fingerprint,
        )  # fmt: skip

    def source(self, of: TeacherMap) -> NetworkPatches:
        """The patches of a map: the network is run over all training images each time."""
        self.network.eval().requires_grad_(False)
        return NetworkPatches(self.network, {of.path: of}, self.images())

    def images(self) -> "_TrainingImages":
        """All training images in order, or the range of this process, as the network takes them, and their classes."""
        loader = self.loader(self.dataset, "train", member=member())
        return _TrainingImages(self.seen.module().to(self.device), loader, self.num_images)

    @property
    def num_images(self) -> int:
        """Training images of this process.

        Raises:
            ValueError: there are more processes than batches of them.
        """
        number, size = len(self.dataset.split("train")), self.options.protocol.test_batch_size
        if member().size > 1 and math.ceil(number / size) < member().size:
            raise ValueError(
                f"{number} training images in batches of {size} are too few for {member().size} processes; choose a "
                "smaller test_batch_size, or fewer processes"
            )
        return len(self.share(self.dataset, "train"))

    @contextmanager
    def followed(self, tap: Place) -> Iterator[Follow]:
        """Shows how far `fit_maps` is with the patches at `tap`: a line for each of its phases."""
        with ExitStack() as opened:
            line: Line

            def follow(now: Progress) -> None:
                nonlocal line
                if not now.done:
                    opened.close()  # the phase before is done
                    total = now.total or self.num_images * math.prod(self._grid(tap))
                    line = opened.enter_context(phase(now.what, total, number=now.number, count=now.count))
                    return
                if now.inertia is not None:
                    line.set_postfix(objective=f"{now.inertia:.6g}", refresh=False)
                line.update(now.done - line.n)

            yield follow

    def save(self, path: Path, of: TeacherMap, fitted: Words | Decisions) -> None:
        """Write what was made of a map, with what made it."""
        record = self.record() | {"patches": fitted.num_patches}
        record.pop("image_size", None)  # the map has it
        by_first(save_supervision, path, supervise(of, fitted, record))

    def record(self) -> dict[str, Any]:
        """What a file says of its making; what the map is of stands beside it."""
        options, data = self.options, self.options.data
        made = {
            "network": self.network_name, "dataset": data.dataset, "val_split": data.val_split,
            "num_images": len(self.dataset.split("train")),
            "lda_components": options.subclasses.lda_components, "max_patches": options.offline.max_patches,
            "seed": options.run.seed, "precision": options.run.precision,
        }  # fmt: skip
        images = outline_dataset(data.dataset, data_dir=options.run.data_dir)
        return made | images | self.seen.facts() | {"weights": str(self.weights.source)}

    def hold(self, num_patches: int, channels: int) -> Tensor:
        """Room for (P, C) float32 on the device, or with `memmap` in a file that has no name.

        Raises:
            ValueError: more than all memory of the device.
            OSError: no room for the file.
        """
        needed = 4 * num_patches * channels
        if not self.options.offline.memmap:
            there = memory_bytes(self.device)
            if needed > there:
                raise ValueError(
                    f"{num_patches} patches of {channels} channels need {needed / 2**30:.1f} GiB, "
                    f"the {self.device.type} has {there / 2**30:.1f}: hold them in a file (memmap=True), or fewer "
                    f"({self.fewer_patches}, in a command with {self.mode}=)"
                )
            return torch.empty(num_patches, channels, device=self.device)
        folder = Path(self.options.offline.memmap_dir or self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        log.info("features   %.1f GiB in a file in %s", needed / 2**30, folder)
        return torch.from_numpy(_map_file(folder, (num_patches, channels)))


class _TrainingImages:
    """Training images in order, as the network takes them, and their classes."""

    def __init__(self, network_input: Input, loader: Iterable[Batch], num_images: int):
        self.network_input = network_input
        self.loader = loader
        self.num_images = num_images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            if len(batch.labels):  # the last of a range may have none
                yield self.network_input(batch.images), batch.labels


def _map_file(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """A float32 array in a file of `folder` that has no name: it goes with the process, even with a killed one.

    Raises:
        OSError: there is no room. Asked beforehand, because a write to a mapping that finds none ends the process.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
    except OSError as error:
        raise OSError(error.errno, f"cannot hold the patches in {folder}: {error.strerror}") from error


def memory_bytes(device: torch.device) -> int:
    """All memory of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
