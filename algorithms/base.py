"""What every job shares: its options, device, directory and data."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from algorithms.teaching import largest_size
from config.options import Options
from dataloaders import Batch, Dataset, hold_out, load_dataset, make_eval_loader
from dataloaders.facts import data_facts
from dataloaders.image_folder import UnknownSizeError
from dataloaders.loaders import images_of
from engine.numerics import choose_device, device_name, set_numerics
from engine.progress import tracked
from engine.records import exclusive, log, log_file, missing_traces, removed_after_mistakes
from letkd.processes import ALONE, Member, by_first, member
from results.places import Requirement, output_directory, run_directory
from results.settings import PREPARATION

Results = dict[str, Any]

HOLD_OUT_SEED = 0  # not the run's: all trials, and the supervision they use, leave out the same images


class Algorithm:
    """A job on one experiment."""

    mode: ClassVar[str]
    writes_files: ClassVar[bool] = True  # beside its results: then it wants the directory for itself
    takes_many: ClassVar[bool] = False  # processes, of which the first keeps the records
    num_traces: ClassVar[int] = 0  # jobs of this process that have left something
    has_begun = False  # see `begin`

    def __init__(self, options: Options):
        self.options = self.given = options  # what was asked for, where a job itself decides otherwise
        self.directory = run_directory(options.run.localpath, options.job, self.mode)
        self.device = choose_device(options.run.cuda)
        self.given_as: dict[str, str] = {}  # see `Requirement`

    def missing_requirements(self) -> Iterator[Requirement]:
        """What the job needs and cannot find, in the order in which it has to be made."""
        yield from ()

    def check_processes(self) -> None:
        """Refuse what so many processes, of which there is more than one, cannot share; before anything is made.

        Raises:
            ValueError: names the option.
        """

    def check_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> None:
        """Refuse what cannot work on the training images, before anything that the job needs is made.

        Args:
            open_images: `open_training_data`, or what remembers its results.
        """

    def option(self, name: str) -> str:
        """An option and its value as the user gave it, for messages."""
        return f"{self.given_as.get(name, name)}={self.options.flat[name]}"

    def begin(self) -> None:
        """All is built, and the work begins: a mistake that ends the job before leaves nothing where nothing was.

        What leaves results alone need not say it.
        """
        self.has_begun = True
        Algorithm.num_traces += 1

    def run(self) -> Results:
        """Do the job, leave its files, and return what `results.json` holds."""
        self.has_begun = False
        numerics = set_numerics(self.options.run.precision, deterministic=self.options.run.deterministic)
        if not member().is_first:
            with numerics:
                torch.manual_seed(self.options.run.seed)
                return self._run()
        held = partial(exclusive, self.directory)
        lock, alone = (held, nullcontext) if self.writes_files else (nullcontext, held)
        traces = missing_traces(self.directory)
        if not traces:
            Algorithm.num_traces += 1  # lines in a log that is there
        cleared = removed_after_mistakes(traces, unless=lambda: self.has_begun, alone=alone)
        with numerics, lock(), cleared, log_file(self.directory):
            torch.manual_seed(self.options.run.seed)
            return self._run()

    def _run(self) -> Results:
        raise NotImplementedError

    def training_directory(self, experiment: str) -> Path:
        """Where another experiment's training leaves its checkpoints."""
        return output_directory(self.options.run.localpath, experiment, "train")

    def autocast(self) -> torch.autocast:
        """The context a network's forward pass runs in: bfloat16 for `precision=bf16`, nothing otherwise."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.options.run.precision == "bf16")

    def facts(self) -> Results:
        """What `results.json` says of any job."""
        run = self.options.run
        return {
            "config": self.options.job.run_name,
            "method": self.options.experiment.method,
            "dataset": self.options.data.dataset,
            "seed": run.seed,
            "precision": run.precision,
            "deterministic": run.deterministic,
            "mode": self.mode,
            "device": device_name(self.device),
            "options": self.options.flat,
        }

    def open_training_data(self, data: dict[str, Any] | None = None) -> Dataset:
        """Training and evaluation images; with `val_split` the held-out images evaluate, and the rest is the test."""
        return self.held_out(self.open_dataset("train", "eval", data=data))

    def held_out(self, dataset: Dataset) -> Dataset:
        """A data set as training has it: without the images that `val_split` holds out."""
        if not self.options.data.val_split:
            return dataset
        return hold_out(dataset, self.options.data.val_split, seed=HOLD_OUT_SEED)

    def open_dataset(self, *splits: str, data: dict[str, Any] | None = None) -> Dataset:
        """Splits of the experiment's data set.

        Args:
            data: classes, image size and normalisation that a checkpoint was trained with; what the configuration says
                goes first.
        """
        options, known = self.options, data or {}

        def load(preparation: dict[str, Any]) -> Dataset:
            try:
                return load_dataset(
                    options.data.dataset,
                    splits=splits,
                    data_dir=options.run.data_dir,
                    **{key: getattr(options.data, key) or preparation.get(key) for key in PREPARATION},
                    classes=known.get("classes"),
                    num_workers=options.run.num_workers,
                    progress=tracked,
                )
            except UnknownSizeError as error:
                if (found := largest_size(options)) is None:
                    raise
                size, name = found
                raise ValueError(f"{error.why}: pass image_size={size}, the size of {name}") from error

        if member().size == 1:
            return load(known)
        # The first downloads and measures, and the others are told.
        dataset = load(known) if member().is_first else None
        told = by_first(lambda: data_facts(dataset))
        return load(told) if dataset is None else dataset

    def loader(self, dataset: Dataset, split: str, *, member: Member = ALONE) -> Iterable[Batch]:
        """All images of a split in order, or a member's range of them, without augmentation, on the device."""
        return make_eval_loader(
            dataset,
            split,
            batch_size=self.options.protocol.test_batch_size,
            device=self.device,
            num_workers=self.options.run.num_workers,
            member=member,
        )

    def share(self, dataset: Dataset, split: str) -> range:
        """The images of a split that are this process's: all, or those of its range of batches."""
        return images_of(member(), len(dataset.split(split)), self.options.protocol.test_batch_size)[0]


def say_other_images(known: dict[str, Any], present: dict[str, Any]) -> None:
    """Mention splits whose images are others than when a network was trained.

    Args:
        known: `data` of its checkpoint; an older one does not tell.
        present: `data_facts` and `image_facts`. Of another size the pixels are others anyway, which is not mentioned.
    """
    if known.get("image_size") != present["image_size"]:
        return
    earlier = known.get("images", {})
    others = [(name, now) for name, now in present["images"].items() if earlier.get(name, now) != now]
    if others:
        listed = ", ".join(f"{name}: {earlier[name]['number']} then, {now['number']} now" for name, now in others)
        log.info("note: images were added, removed or replaced since the training (%s)", listed)
