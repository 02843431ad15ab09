"""What `prepare=True` makes before a run: its steps are said and checked before the first of them starts.

A step is a job of its own, with the protocol of its own experiment: of the command it has what bears on data, device
and supervision. What is known of all steps, the run itself among them, is refused before the first long one: options
and names, data, batch sizes, numbers of words and sub-classes. How long a training takes is known from an earlier one
of its directory, or else by a few steps on noise. Many processes measure none: each would stop by its own clock, and a
loss of the whole batch waits for all of them.
"""

import copy
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from algorithms.base import Algorithm
from algorithms.teaching import drawn_objective, weights_so_far, with_inputs
from algorithms.train import Training
from algorithms.trials import wanted_seeds
from algorithms.unlabelled import steps_of_epoch
from config.options import OPTIONS, PATCHES, TRAIN, Augmentation, Protocol, Run
from config.schema import options_of
from dataloaders import Dataset, ImageFiles
from dataloaders.batch import noise
from dataloaders.facts import split_facts
from distillation.build import build_objective
from distillation.teacher_cache import TeacherCache, open_cache
from engine.numerics import device_name, set_numerics
from engine.optimization import make_optimizer
from engine.progress import within
from engine.records import PROGRESS, RESULTS, duration, log
from engine.step import TrainStep
from letkd.processes import member
from results.places import Requirement
from results.settings import JOBS, changed_settings
from storage.tensor_files import load_json

# What a training follows and one that prepares does not inherit, because its own experiment says it; but for the
# protocol, which is that of a method and pair.
TRAINING_OPTIONS = (
    *(key for key, said in options_of(Protocol).items() if key != "protocol" and not said.inherited),
    *options_of(Augmentation),
    *(key for key, said in options_of(Run).items() if said.jobs == TRAIN),
)
# What only jobs on the patches of a map inherit.
OFFLINE_OPTIONS = tuple(key for key, said in OPTIONS.items() if said.inherited and set(said.jobs) <= set(PATCHES))
# By the job: what it makes, and the options that say how much of it.
MADE = {
    "kmeans": ("codebook", ("kmeans",)),
    "LDA": ("decision scores", ("subclasses_per_class", "lda_components")),
    "class_means": ("class means", ()),
}
MEASURED_STEPS = 3
ENOUGH_SECONDS = 2.0  # one step that takes as long is measurement enough
FAILURES = (ValueError, OSError, FloatingPointError, MemoryError)  # that one line explains


@dataclass(frozen=True)
class Step:
    """Something that is missing, the job that makes it (None: a download), and the command that would do the same."""

    requirement: Requirement
    job: Algorithm | None
    command: str

    @property
    def product(self) -> tuple[str, str]:
        """What two steps have in common that make the same."""
        return ("download", str(self.requirement.published)) if self.job is None else (self.name, self.job.mode)

    @property
    def name(self) -> str:
        return self.requirement.options.get("name") or self.requirement.experiment


class Preparation:
    """The steps before a run.

    Args:
        steps: in the order in which they have to be done.
        run: the job that needs them.
        given: the options that its command sets.
    """

    def __init__(self, steps: list[Step], run: Algorithm, given: dict[str, Any]):
        self.steps, self.run, self.given = steps, run, given

    def announce(self) -> None:
        """A line for each step: what is made, with whose protocol, how long it takes; and options that reach none."""
        count = len(self.steps) + 1
        for number, step in enumerate(self.steps, 1):
            log.info("step %d of %d: %s; %s", number, count, describe(step), known_time(step.job))
        log.info("step %d of %d: %s; %s", count, count, _describe_run(self.run), known_time(self.run))
        for note in self._unreached():
            log.info("note: %s", note)

    def carry_out(self, make: Callable[[Step], Any]) -> None:
        """Do all steps; the downloads come first, and then what is known of the others is checked.

        Raises:
            ValueError: a step cannot work or has failed; names it, and the command for it alone where that may help.
        """
        numbered = sorted(enumerate(self.steps, 1), key=lambda pair: pair[1].job is not None)
        is_checked = False
        for number, step in numbered:
            if step.job is not None and not is_checked:
                self.check()
                is_checked = True
            count = len(self.steps) + 1
            log.info("step %d of %d begins: %s", number, count, step.name)
            with self._named(step), within("step", number, count):
                make(step)

    def check(self) -> None:
        """Open the images of every step, and refuse what cannot work on them; says how long trainings take."""
        opened: dict[str, Dataset] = {}
        for number, step in enumerate(self.steps, 1):
            if step.job is None:
                continue
            open_images = remembering(step.job, opened)
            with self._named(step):
                copy.copy(step.job).check_images(open_images)  # what it opens goes with the copy
            if isinstance(step.job, Training) and member().size == 1 and earlier_seconds(step.job) is None:
                log.info("step %d of %d: %s", number, len(self.steps) + 1, _measure(step.job, open_images(None)))
        try:
            self.run.check_images(remembering(self.run, opened))
        except FAILURES as error:
            raise ValueError(f"{self.run.options.job.run_name}: {error}") from error

    def _unreached(self) -> Iterator[str]:
        """Options that one might expect to reach steps that they do not reach."""
        for step in self.steps:
            if isinstance(step.job, Training) and (options := self._other_options(step)):
                own = _words({key: value for key, value in _training(step.job).items() if key in options})
                one = len(options) == 1
                if isinstance(self.run, Training):
                    where = f"{'is' if one else 'are'} for {self.run.options.job.run_name} alone"
                else:
                    where = f"{'reaches' if one else 'reach'} no step"
                yield (
                    f"{_words(options)} {where}; {step.name} is trained with {own}, "
                    f"or otherwise by a command of its own: {_command(step, options)}"
                )
        if not any(job and job.mode in PATCHES for job in [*(step.job for step in self.steps), self.run]):
            for key in OFFLINE_OPTIONS:
                if key in self.given:
                    yield f"{key}={self.given[key]} reaches no step: no codebook and no decision scores are made"

    def _other_options(self, step: Step) -> dict[str, Any]:
        """The options of training that the command sets and that this step has otherwise."""
        own = _training(step.job)
        return {key: self.given[key] for key, value in own.items() if self.given.get(key, value) != value}

    @contextmanager
    def _named(self, step: Step) -> Iterator[None]:
        """Let an error say in which step it was, and how to do a training with other options."""
        try:
            yield
        except FAILURES as error:
            message = f"preparing {step.name}: {error}"
            if isinstance(step.job, Training):
                options = self._other_options(step)
                message += f"; to train it with options of its own: {_command(step, options)}"
            raise ValueError(message) from error


def remembering(job: Algorithm, opened: dict[str, Dataset]) -> Callable[[dict[str, Any] | None], Dataset]:
    """The job's `open_training_data` for images that other jobs have not opened in the same way."""

    def open_images(known: dict[str, Any] | None) -> Dataset:
        key = json.dumps([asdict(job.options.data), job.options.run.data_dir, known])
        if key not in opened:
            opened[key] = job.open_training_data(known)
        return opened[key]

    return open_images


def describe(step: Step) -> str:
    if step.job is None:
        return f"download {step.requirement.published}"
    options = step.job.options
    if isinstance(step.job, Training):
        begun = "train" if options.job.checkpoint == 0 else "go on training"
        return f"{begun} {step.name} ({options.network.network}), {_protocol(options.protocol)}"
    what, said = MADE[step.job.mode]
    return ", ".join([f"{what} of {step.name}", *([" ".join(map(step.job.option, said))] if said else [])])


def _describe_run(run: Algorithm) -> str:
    options, seeds = run.options, wanted_seeds(run.options.job)
    protocol = f", {_protocol(options.protocol)}" if isinstance(run, Training) else ""
    repeated = f", with {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"the run itself, {options.job.run_name}{protocol}{repeated}"


def _protocol(protocol: Protocol) -> str:
    return _words({"epochs": protocol.epochs, "batch_size": protocol.batch_size})


def _training(job: Algorithm) -> dict[str, Any]:
    """The values of TRAINING_OPTIONS."""
    values = asdict(job.options.protocol) | asdict(job.options.augmentation) | asdict(job.options.run)
    return {key: values[key] for key in TRAINING_OPTIONS}


def _command(step: Step, told: dict[str, Any]) -> str:
    return " ".join([step.command, *(shlex.quote(word) for word in _words(told).split())])


def _words(told: dict[str, Any]) -> str:
    return " ".join(f"{key}={str(value).replace(' ', '')}" for key, value in told.items())


def known_time(job: Algorithm | None) -> str:
    """How long a job takes, as an earlier one of its directory tells."""
    seconds = None if job is None else earlier_seconds(job)
    if seconds is not None:
        return f"about {duration(seconds)}, as before"
    return "time not known before its first epoch" if isinstance(job, Training) else "time not known beforehand"


def earlier_seconds(job: Algorithm) -> float | None:
    """The time that an earlier job of the same settings and device took, for as many epochs as are to do now."""
    directory = job.directory
    folders = [directory, *directory.glob("seed*"), *directory.glob("replaced/*")]
    for path in (folder / file for folder in folders for file in (PROGRESS, RESULTS)):
        try:
            earlier = load_json(path)
        except (OSError, ValueError):
            continue
        options = earlier.get("options", {})
        if earlier.get("config") != job.options.job.run_name or earlier.get("mode") != job.mode:
            continue
        if earlier.get("device") != device_name(job.device) or _costs_otherwise(options, job.options.flat):
            continue
        if not isinstance(job, Training):
            return earlier["seconds"]
        if history := earlier.get("history"):
            done = earlier["epoch"] if path.name == PROGRESS and job.options.job.checkpoint else 0
            left = (job.options.protocol.epochs - done) * max(1, len(wanted_seeds(job.options.job)))
            return left * sum(epoch["seconds"] for epoch in history) / len(history)
    return None


def _costs_otherwise(earlier: dict[str, Any], now: Mapping[str, Any]) -> bool:
    jobs = any(earlier.get(key) != now.get(key) for key in JOBS | {"batch_size"})
    return jobs or not set(changed_settings(earlier, now)) <= set(TRAINING_OPTIONS)


def _measure(job: Training, dataset: Dataset) -> str:
    """How long the steps of a training take, from a few on noise."""
    try:
        seconds = step_seconds(job, dataset)
    except (MemoryError, RuntimeError):  # it begins next, and says what the matter is
        return "time not known: a step failed"
    steps = num_steps(job, dataset)
    reading = "reading images and evaluation" if isinstance(dataset.train, ImageFiles) else "evaluation"
    return f"about {duration(seconds * steps)} for its {steps} steps, {reading} not counted"


def num_steps(job: Training, dataset: Dataset) -> int:
    """Of a whole training."""
    return job.options.protocol.epochs * steps_of_epoch(job.options, dataset)


def step_seconds(job: Training, dataset: Dataset) -> float:
    """The time of a step, by a few on noise; teacher and supervision need not be there yet.

    The teacher runs in it unless all that it would say is in files, `teacher_cache=`.
    """
    options = job.options
    with torch.random.fork_rng(), set_numerics(options.run.precision, deterministic=options.run.deterministic):
        objective = drawn_objective(options, dataset).to(job.device, memory_format=torch.channels_last).train()
        optimizer = make_optimizer(objective, options.protocol)
        batch = noise(options.protocol.batch_size, dataset, job.device)
        if (cache := _whole_cache(job, dataset)) is not None:
            objective.without_teacher()
            batch = batch._replace(taught=cache.blank(len(batch.labels)))
        step = TrainStep(objective, optimizer, job.autocast, options.protocol.accumulate)
        for _ in range(1 + MEASURED_STEPS):  # the first also allocates and chooses kernels
            start = time.perf_counter()
            step(batch).loss.item()  # waits for the device
            seconds = time.perf_counter() - start
            if seconds > ENOUGH_SECONDS:
                break
    return seconds


def _whole_cache(job: Training, dataset: Dataset) -> TeacherCache | None:
    """What the teacher would say in a training, where all of it is in files."""
    options = job.options
    if options.pair is None or options.pair.teacher_cache is None:
        return None
    weights = weights_so_far(options)
    if weights is None:
        return None
    whole = job.open_dataset("train") if options.data.val_split else dataset
    cache = open_cache(
        options,
        build_objective(with_inputs(options), dataset, weights, drawn=True).without_teacher(),
        dataset,
        split_facts(whole.split("train")),
        device=job.device,
        autocast=job.autocast,
    )
    return cache if cache.is_whole(options.protocol.epochs) else None
