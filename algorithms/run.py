"""A configuration from its check to its results: what the job needs is made or named, and its failures explained."""

import copy

from algorithms.base import Algorithm, Results
from algorithms.commands import command_for, handed_on, is_torchvision
from algorithms.jobs import make_algorithm
from algorithms.options import check_options
from algorithms.prepare import Preparation, Step
from algorithms.trials import run_trials, wanted_seeds
from config.experiments import default_config, defaults_for, own_options
from config.options import Config, Options
from engine.progress import within
from engine.stopping import lost_stops_again
from letkd.processes import by_first, member, wait_for_all
from results.places import OutdatedError, Requirement
from storage.documents import first_line

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # what torch says: on a GPU, on the CPU


def run_config(config: Config) -> Results:
    """Do what a complete configuration asks for, and before it what it needs where `prepare` is set."""
    check_options(config)
    with lost_stops_again():
        algorithm = make_algorithm(config)
        check_processes(algorithm)
        count = 1 + provide(algorithm)
        with within("step", count, count):
            if wanted_seeds(algorithm.options.job):
                return run_trials(algorithm.options, lambda trial: run_job(type(algorithm)(trial)))
            return run_job(algorithm)


def check_processes(algorithm: Algorithm) -> None:
    """Refuse many processes where a job takes one or cannot be shared by so many, or where there are several jobs.

    Raises:
        ValueError: names the job, or the option.
    """
    if member().size == 1:
        return
    job = algorithm.options.job
    several = next(
        (f"{key}={value}" for key, value in {"trials": job.trials, "seeds": job.seeds}.items() if value), None
    )
    if several or not algorithm.takes_many:
        raise ValueError(f"{several or algorithm.mode} is for one process; start it by python in place of torchrun")
    algorithm.check_processes()


def run_job(algorithm: Algorithm) -> Results:
    """Do a job whose needs are there.

    Raises:
        ValueError: a file was made from something else; names the command that makes it again.
        MemoryError: there is too little; says what needs less.
    """
    try:
        return algorithm.run()
    except OutdatedError as error:
        raise ValueError(f"{error}; make it again: {command_for(error.remedy, algorithm.options)}") from error
    except (MemoryError, RuntimeError) as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY) and not isinstance(error, MemoryError):
            raise
        remedy = "a smaller batch_size, test_batch_size or image_size, or memmap=True for kmeans and LDA"
        raise MemoryError(f"memory does not suffice ({first_line(error)}); try {remedy}") from error


def provide(algorithm: Algorithm) -> int:
    """Make what a job needs and cannot find where `prepare` is set.

    Returns:
        How many steps that were.

    Raises:
        FileNotFoundError: something is missing, and it is not; names the command that makes it.
    """
    options = algorithm.options
    if not options.job.prepare:
        for requirement in algorithm.missing_requirements():
            raise FileNotFoundError(f"{requirement.what}; make it: {command_for(requirement, options)}")
        return 0
    steps = steps_before(algorithm)
    wait_for_all()  # each has looked for what is there, before the first makes any of it
    if steps:
        preparation = Preparation(steps, algorithm, own_options(options.flat))
        preparation.announce()
        preparation.carry_out(make_step)
    return len(steps)


def steps_before(algorithm: Algorithm) -> list[Step]:
    """What a job needs and cannot find, and what that needs, in the order in which it has to be made."""
    steps: dict[tuple[str, str], Step] = {}
    for requirement in algorithm.missing_requirements():
        step = _step(requirement, algorithm.options)
        needed = [] if step.job is None else steps_before(step.job)
        for each in (*needed, step):
            steps.setdefault(each.product, each)
    return list(steps.values())


def _step(requirement: Requirement, options: Options) -> Step:
    command = command_for(requirement, options)
    if is_torchvision(requirement):
        raise FileNotFoundError(f"{requirement.what}; make it: {command}")
    if requirement.published is not None:
        return Step(requirement, None, command)
    experiment, updates = handed_on(requirement, options)
    own = defaults_for(default_config(experiment), updates) | updates
    try:
        check_options(own)
        job = make_algorithm(own)
        check_processes(job)
    except ValueError as error:
        alone = f"to make it with options of its own: {command}"
        raise ValueError(f"preparing {requirement.experiment}: {error}; {alone}") from error
    job.given_as = requirement.given_as
    return Step(requirement, job, command)


def make_step(step: Step) -> None:
    if step.job is not None:
        run_job(copy.copy(step.job))  # what it opens goes with the copy
        wait_for_all()  # the first has written what it made
        return
    import download_cifar100_teacher

    if by_first(download_cifar100_teacher.main, [step.requirement.published.parent.name]):
        raise FileNotFoundError(f"{step.requirement.what}, and the download failed")
