"""What every job shares: its configuration, device, directory and data."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from algorithms.records import exclusive, is_watched, log, log_file
from architectures import Input
from dataloaders import Batch, Dataset, hold_out, load_dataset, make_eval_loader
from dataloaders.dataset import SPLIT_NAMES, ImageTensors, Split

Config = dict[str, Any]
Results = dict[str, Any]

# Where a job on experiment A.B.C puts its outputs: <localpath>/<this>/A/B/C.
OUTPUT_FOLDERS = {"train": "", "evaluate": "", "probe": "", "export": "", "kmeans": "VQ", "LDA": "LDA"}
HOLD_OUT_SEED = 0  # not the run's: all trials, and the supervision they use, leave out the same images
PRECISIONS = ("fp32", "tf32", "bf16")
CUBLAS_VARIABLE, CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # as cuBLAS documents it


def output_directory(localpath: str, experiment: str, mode: str) -> Path:
    """The directory of one experiment's outputs in one mode."""
    return Path(localpath, OUTPUT_FOLDERS[mode], *experiment.split("."))


def run_directory(config: Config, mode: str) -> Path:
    """The directory of a run's outputs: its experiment's, or that of a trial in there, where `seeds` is one seed."""
    directory = output_directory(config["localpath"], config["config"], mode)
    return directory / f"seed{config['seeds'][0]}" if len(config["seeds"]) == 1 else directory


@dataclass(frozen=True)
class Requirement:
    """Something a job needs that is not there, and what makes it.

    `published` is the file that would serve, where there is one; otherwise the job is `experiment` with `options`. What
    an option is called where the user gave it, if it has another name there, is in `given_as`.
    """

    what: str
    experiment: str
    options: dict[str, Any] = field(default_factory=dict)
    published: Path | None = None
    given_as: dict[str, str] = field(default_factory=dict)


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
        self.directory = run_directory(config, self.mode)
        self.device = choose_device(config["cuda"])
        self.given_as: dict[str, str] = {}  # see `Requirement`

    def missing_requirements(self) -> Iterator[Requirement]:
        """What the job needs and cannot find, in the order in which it has to be made."""
        yield from ()

    def check_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> None:
        """Refuse what cannot work on the training images, before anything that the job needs is made.

        Args:
            open_images: `open_training_data`, or what remembers its results.
        """

    def option(self, name: str) -> str:
        """An option and its value as the user gave it, for messages."""
        return f"{self.given_as.get(name, name)}={self.config[name]}"

    def run(self) -> Results:
        """Do the job, leave its files, and return what `results.json` holds."""
        numerics = set_numerics(self.config["precision"], deterministic=self.config["deterministic"])
        with numerics, exclusive(self.directory) if self.writes_files else nullcontext(), log_file(self.directory):
            torch.manual_seed(self.config["seed"])
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
        keys = ("config", "method", "dataset", "seed", "precision", "deterministic")
        facts = {key: self.config[key] for key in keys}
        return facts | {"mode": self.mode, "device": device_name(self.device), "options": self.config}

    def open_training_data(self, data: dict[str, Any] | None = None) -> Dataset:
        """Training and evaluation images; with `val_split` the held-out images evaluate, and the rest is the test."""
        return self.held_out(self.open_dataset("train", "eval", data=data))

    def held_out(self, dataset: Dataset) -> Dataset:
        """A data set as training has it: without the images that `val_split` holds out."""
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

    def loader(self, dataset: Dataset, split: str) -> Iterable[Batch]:
        """All images of a split in order, without augmentation, on the device."""
        return make_eval_loader(
            dataset,
            split,
            batch_size=self.config["test_batch_size"],
            device=self.device,
            num_workers=self.config["num_workers"],
        )

    def input_of(self, dataset: Dataset) -> Input:
        """What stands in front of a network that sees images normalised as the data set's, on the device."""
        return Input(dataset.mean, dataset.std).to(self.device)


def choose_device(cuda: bool) -> torch.device:
    """The GPU where one is wanted and present, else the CPU; says so when a wanted one is missing."""
    if cuda and not torch.cuda.is_available():
        _say_no_gpu()
        cuda = False
    return torch.device("cuda" if cuda else "cpu")


@functools.cache
def _say_no_gpu() -> None:
    """Once a process: a command may have many jobs."""
    log.info("no GPU here: running on the CPU (cuda=False says so beforehand)")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without instructions for it imitates it, far more slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()  # there is no public question of all versions that letKD runs on


@contextmanager
def set_numerics(precision: str, *, deterministic: bool) -> Iterator[None]:
    """How float32 is computed as long as the context is open; what was set before comes back.

    Args:
        precision: of matrix products and convolutions; bf16 is applied where a step runs.
        deterministic: a GPU repeats its results bit for bit too, more slowly; an operation that cannot is an error.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    reduced = precision != "fp32"
    with ExitStack() as stack:
        stack.enter_context(_changed(torch.backends.cuda.matmul, allow_tf32=reduced))
        stack.enter_context(_changed(torch.backends.cudnn, allow_tf32=reduced))
        if deterministic:
            stack.enter_context(_changed(torch.backends.cudnn, benchmark=False, deterministic=True))
            stack.enter_context(_deterministic_algorithms())
        yield


@contextmanager
def _changed(owner: Any, **settings: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """cuBLAS reads its variable when it starts, which is after this."""
    before, variable = torch.get_deterministic_debug_mode(), os.environ.get(CUBLAS_VARIABLE)
    torch.use_deterministic_algorithms(True)
    os.environ[CUBLAS_VARIABLE] = CUBLAS_DETERMINISTIC
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        if variable is None:
            del os.environ[CUBLAS_VARIABLE]
        else:
            os.environ[CUBLAS_VARIABLE] = variable


def device_name(device: torch.device) -> str:
    """What a result was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def image_facts(dataset: Dataset) -> dict[str, Any]:
    """What tells the `images` of each split from others: their number, and a digest of them and their labels.

    A resident split is told by its pixels, a streamed one by its files' names and sizes.
    """
    loaded = {name: split for name in SPLIT_NAMES if (split := getattr(dataset, name)) is not None}
    return {"images": {name: {"number": len(split), "sha256": _digest(split)} for name, split in loaded.items()}}


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.labels.numpy())
    if isinstance(split, ImageTensors):
        digest.update(split.images.contiguous().numpy())
    else:
        for path in map(Path, split.paths):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


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


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """What a network must remember of the data it was trained on, as plain values."""
    return {
        "classes": list(dataset.classes),
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
