"""Patches of a trained network's map over all training images, without augmentation: what supervision is made from."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm
from algorithms.teaching import missing_weights
from architectures import Tap, TappedNetwork, create_model
from dataloaders import Dataset
from engine.records import log, progress_bar
from engine.weights import UnfinishedError, find_weights
from letkd import LDA, FrozenTaps, pool_map, to_patches
from results.places import Requirement
from storage.state_dicts import Weights, load_strictly


class OfflineAlgorithm(Algorithm):
    """A job on a trained network: opens it and its training images, and streams the patches of one map."""

    fewer_patches: ClassVar[str]  # the option that holds fewer of them
    dataset: Dataset
    network: TappedNetwork
    weights: Weights

    def missing_requirements(self) -> Iterator[Requirement]:
        config = self.config
        yield from missing_weights(
            config, network=config["network"], experiment=self.trained_as, chosen=config["weights"]
        )

    def check_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> None:
        """What `check_patches` refuses, for weights that are there and for such as are still to be trained."""
        try:
            known = self._find_weights().data
        except (FileNotFoundError, UnfinishedError):
            known = None
        self.dataset = open_images(known)
        with torch.device("meta"):
            self.network = create_model(self.config["network"], num_classes=self.dataset.num_classes)
        self.check_patches()

    def check_patches(self) -> Tap:
        """The tap whose patches are wanted; images and network are open.

        Raises:
            ValueError: there is no such tap, or it has too few patches of the training images.
        """
        raise NotImplementedError

    @property
    def trained_as(self) -> str:
        """The experiment that trains the network."""
        return self.config["trained_as"] or self.config["config"]

    def open(self) -> None:
        """Load weights, images and network.

        Raises:
            FileNotFoundError, ValueError: no weights, or weights of another network.
        """
        config = self.config
        self.weights = self._find_weights()
        self.dataset = self.open_training_data(self.weights.data)
        self.network = create_model(config["network"], num_classes=self.dataset.num_classes)
        what = f"{config['network']} with {self.dataset.num_classes} classes"
        load_strictly(self.network, self.weights.state, source=self.weights.source, what=what)
        self.network.to(self.device, memory_format=torch.channels_last)
        log.info("network    %s from %s", config["network"], self.weights.source)

    def _find_weights(self) -> Weights:
        return find_weights(
            experiment=self.trained_as,
            directory=self.training_directory(self.trained_as),
            chosen=self.config["weights"],
            published=self.config["published_weights"],
        )

    def num_patches(self, tap: Tap) -> int:
        """P, all patches of the training images at `tap`, after pooling."""
        return len(self.dataset.split("train")) * self._grid(tap) ** 2

    def patches(self, tap: Tap) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of patches (R, C) float32 and the class of each patch's image (R,), on the device."""
        taps = FrozenTaps(self.network, {"map": tap.path})
        factor = self.config["downscale"]
        network_input, loader = self.input_of(self.dataset), self.loader(self.dataset, "train")
        with progress_bar(len(self.dataset.split("train")), "img", f"features {tap.path}") as bar:
            for batch in loader:
                features_RC = to_patches(pool_map(taps(network_input(batch.images))["map"], factor))
                yield features_RC, batch.labels.repeat_interleave(len(features_RC) // len(batch.labels))
                bar.update(len(batch.labels))

    @contextmanager
    def held_patches(
        self, tap: Tap, *, num_chosen: int | None = None, projection: LDA | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All patches (P, C) and their classes (P,): on the device, or with `memmap` in a file that has no name.

        Args:
            num_chosen: so many random ones instead, in the same order; the others are never held.
            projection: what is held instead are its projections (P, L).
        """
        total = self.num_patches(tap)
        chosen = None if num_chosen is None else self._draw(total, num_chosen)
        num_held = total if chosen is None else len(chosen)
        width = tap.channels if projection is None else projection.num_components
        with self.storage(num_held, width) as features_PC:
            labels_P = torch.empty(num_held, dtype=torch.int64, device=features_PC.device)
            seen = held = 0
            for features_RC, labels_R in self.patches(tap):
                if chosen is not None:
                    first, last = torch.searchsorted(chosen, torch.tensor([seen, seen + len(labels_R)])).tolist()
                    rows = (chosen[first:last] - seen).to(features_RC.device)
                    seen += len(labels_R)
                    features_RC, labels_R = features_RC[rows], labels_R[rows]  # noqa: PLW2901
                if projection is not None:
                    features_RC = projection.transform(features_RC)  # noqa: PLW2901
                features_PC[held : held + len(labels_R)] = features_RC
                labels_P[held : held + len(labels_R)] = labels_R
                held += len(labels_R)
            yield features_PC, labels_P

    def _draw(self, total: int, num_chosen: int) -> Tensor:
        """Indices of random patches, ascending, from the seed."""
        generator = torch.Generator().manual_seed(self.config["seed"])
        return torch.randperm(total, generator=generator)[:num_chosen].sort().values

    @contextmanager
    def storage(self, num_patches: int, channels: int) -> Iterator[Tensor]:
        """Room for (P, C) float32 on the device, or with `memmap` in a file that has no name.

        Raises:
            ValueError: more than all memory of the device.
            OSError: no room for the file.
        """
        needed = 4 * num_patches * channels
        if not self.config["memmap"]:
            there = memory_bytes(self.device)
            if needed > there:
                raise ValueError(
                    f"{num_patches} patches of {channels} channels need {needed / 2**30:.1f} GiB, "
                    f"the {self.device.type} has {there / 2**30:.1f}: hold them in a file (memmap=True), or fewer "
                    f"({self.fewer_patches}, in a command with {self.mode}=)"
                )
            yield torch.empty(num_patches, channels, device=self.device)
            return
        folder = Path(self.config["memmap_dir"] or self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        log.info("features   %.1f GiB in a file in %s", needed / 2**30, folder)
        yield torch.from_numpy(_map_file(folder, (num_patches, channels)))

    def _grid(self, tap: Tap) -> int:
        return math.ceil(self.dataset.image_size / tap.reduction) // self.config["downscale"]


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
