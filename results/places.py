"""Where the outputs of experiments are, and what makes those that are missing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.options import Job
from storage.documents import load_json

# Where a job on experiment A.B.C puts its outputs: <localpath>/<this>/A/B/C.
OUTPUT_FOLDERS = {
    "train": "", "evaluate": "", "probe": "", "layers": "", "export": "", "kmeans": "VQ", "LDA": "LDA",
    "class_means": "class_means",
}  # fmt: skip
RECORDS = ("progress.json", "results.json")  # while a run goes on, and of a finished one


def folders_of(name: str) -> tuple[str, ...]:
    """The folders of a dotted name. The colon of a transform, lskd:KD, is a tilde there, lskd~KD: no folder of Windows
    has a colon, and rsync takes what stands before one for a host.
    """
    return tuple(name.replace(":", "~").split("."))


def output_directory(localpath: str, experiment: str, mode: str) -> Path:
    """The directory of one experiment's outputs in one mode."""
    return Path(localpath, OUTPUT_FOLDERS[mode], *folders_of(experiment))


def run_directory(localpath: str, job: Job, mode: str) -> Path:
    """The directory of a run's outputs: that of its name, or that of a trial in there, where `seeds` is one seed."""
    directory = output_directory(localpath, job.run_name, mode)
    return directory / f"seed{job.seeds[0]}" if len(job.seeds) == 1 else directory


def recorded_options(localpath: str, name: str) -> dict[str, Any] | None:
    """The options of the training that a run of this name has begun, as its records say them; None where there is none.

    Raises:
        ValueError: a record is damaged.
    """
    for record in RECORDS:
        path = output_directory(localpath, name, "train") / record
        options = load_json(path).get("options") if path.is_file() else None
        if isinstance(options, dict) and isinstance(options.get("config"), str):
            return options
    return None


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
