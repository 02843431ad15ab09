"""What every job shares: its configuration, device, directory and data."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.records import exclusive, is_watched, log, log_file
from dataloaders import Dataset, hold_out, load_dataset, make_eval_loader

Config = dict[str, Any]
Results = dict[str, Any]

# Where a job on experiment A.B.C puts its outputs: <localpath>/<this>/A/B/C.
OUTPUT_FOLDERS = {"train": "", "evaluate": "", "probe": "", "kmeans": "VQ", "LDA": "LDA"}
HOLD_OUT_SEED = 0  # not the run's: all trials, and the supervision they use, leave out the same images
PRECISIONS = ("fp32", "tf32", "bf16")


def output_directory(localpath: str, experiment: str, mode: str) -> Path:
    """The directory of one experiment's outputs in one mode."""
    return Path(localpath, OUTPUT_FOLDERS[mode], *experiment.split("."))


@dataclass(frozen=True)
class Requirement:
    """Something a job needs that is not there, and what makes it.

    `published` is the file that would serve, where there is one; otherwise the job is `experiment` with `options`.
    """

    what: str
    experiment: str
    options: dict[str, Any] = field(default_factory=dict)
    published: Path | None = None


class OutdatedError(ValueError):
    """A file was made from something else than what this run has; `remedy` makes it again."""

    def __init__(self, message: str, remedy: Requirement):
        super().__init__(message)
        self.remedy = remedy


class Algorithm:
    """A job on one experiment.

    Args:
        config: options of the entry and keys of the experiment, in one dictionary.
    """

    mode: ClassVar[str]
    writes_files: ClassVar[bool] = True  # beside its results: then it wants the directory for itself

    def __init__(self, config: Config):
        self.config = config
        self.directory = output_directory(config["localpath"], config["config"], self.mode)
        self.device = choose_device(config["cuda"])

    def missing_requirements(self) -> Iterator[Requirement]:
        """What the job needs and cannot find, in the order in which it has to be made."""
        yield from ()

    def run(self) -> Results:
        """Do the job, leave its files, and return what `results.json` holds."""
        set_precision(self.config["precision"])
        torch.manual_seed(self.config["seed"])
        with exclusive(self.directory) if self.writes_files else nullcontext(), log_file(self.directory):
            return self._run()

    def _run(self) -> Results:
        raise NotImplementedError

    def training_directory(self, experiment: str) -> Path:
        """Where another experiment's training leaves its checkpoints."""
        return output_directory(self.config["localpath"], experiment, "train")

    def autocast(self) -> torch.autocast:
        """The context a network's forward pass runs in: bfloat16 for `precision=bf16`, nothing otherwise."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config["precision"] == "bf16")

    def facts(self) -> Results:
        """What `results.json` says of any job."""
        keys = ("config", "method", "dataset", "seed", "precision")
        facts = {key: self.config[key] for key in keys}
        return facts | {"mode": self.mode, "device": device_name(self.device), "options": self.config}

    def open_training_data(self, data: dict[str, Any] | None = None) -> Dataset:
        """Training and evaluation images; with `val_split` the held-out images evaluate, and the rest is the test."""
        dataset = self.open_dataset("train", "eval", data=data)
        if not self.config["val_split"]:
            return dataset
        return hold_out(dataset, self.config["val_split"], seed=HOLD_OUT_SEED)

    def open_dataset(self, *splits: str, data: dict[str, Any] | None = None) -> Dataset:
        """Splits of the experiment's data set.

        Args:
            data: classes, image size and normalisation that a checkpoint was trained with; what the configuration says
                goes first.
        """
        config, known = self.config, data or {}
        return load_dataset(
            config["dataset"],
            splits=splits,
            data_dir=config["data_dir"],
            **{key: config[key] or known.get(key) for key in ("image_size", "mean", "std")},
            classes=known.get("classes"),
            num_workers=config["num_workers"],
            progress=is_watched(),
        )

    def loader(self, dataset: Dataset, split: str) -> Iterable[tuple[Tensor, Tensor]]:
        """All images of a split in order, without augmentation, on the device."""
        return make_eval_loader(
            dataset,
            split,
            batch_size=self.config["test_batch_size"],
            device=self.device,
            num_workers=self.config["num_workers"],
        )


def choose_device(cuda: bool) -> torch.device:
    """The GPU where one is wanted and present, else the CPU; says so when a wanted one is missing."""
    if cuda and not torch.cuda.is_available():
        log.info("no GPU here: running on the CPU (cuda=False says so beforehand)")
        cuda = False
    return torch.device("cuda" if cuda else "cpu")


def set_precision(precision: str) -> None:
    """Precision of float32 matrix products and convolutions; bf16 is applied where a step runs."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    reduced = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = reduced
    torch.backends.cudnn.allow_tf32 = reduced


def device_name(device: torch.device) -> str:
    """What a result was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """What a network must remember of the data it was trained on, as plain values."""
    return {
        "classes": list(dataset.classes),
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
