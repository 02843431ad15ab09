"""Trains what is left of a study, and keeps what came out: `study.json` in its directory (`results/studies.py`).

    python main_classification.py study with pairs=digits.RN14_RN8 methods=KD,letKD-1 seeds=[0,1,2]

Teachers, words and decisions are made first, each once; what cannot be made fails the runs that need it. What is done
is left alone, what was broken off goes on, and a run that fails ends no other: so the same command does the rest,
whatever has ended it.

Of a search the value is taken whose runs have the highest accuracy on the held-out training images after the last
epoch, as the mean over seeds. The runs that are compared have it, and train on all training images. The evaluation
images choose nothing.
"""

import copy
import itertools
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from algorithms.base import Results
from algorithms.cluster import Item, Queue
from algorithms.jobs import make_algorithm
from algorithms.prepare import FAILURES, Step, describe, remembering
from algorithms.run import make_step, steps_before
from algorithms.study_plan import Member, Mistakes, Run, Study
from algorithms.tasks import Task, carry_out, file_name
from algorithms.teaching import drawn_objective
from algorithms.train import Training
from algorithms.trials import check_alike
from config.command_lines import command_line
from config.options import Config, Options, names
from dataloaders import Dataset
from engine.progress import phase
from engine.records import exclusive, log, log_file, now, results_to_itself
from results.studies import DONE, FAILED, NOT_RUN, STUDY, TAUGHT_BY
from storage.documents import first_line
from storage.tensor_files import save_json

TRIES = 2  # jobs of a value of a search that may fail, one behind the other
SEARCH_FAILED = "no value of its search has been trained with all seeds"
# Of a run, as it says them itself.
FIGURES = ("top1", "best_top1", "average_top1", "seconds", "classifier", "num_images")


def run_study(study: Study, train: Callable[[Config], Any], show: Callable[[Results], None]) -> list[str]:
    """Do what is left of a study, or with `cluster=` give it to a queue.

    Args:
        train: does the run that some options ask for, in this process.
        show: is given what `study.json` holds when all is done, or was stopped.

    Returns:
        The runs that failed.

    Raises:
        ValueError: the images do not fit, which is seen before anything is made; or another process does this study.
    """
    queue = None if study.options.cluster is None else Queue(study.options, study.directory.parent)
    _check_images(study)
    with exclusive(study.directory), log_file(study.directory):
        for note in study.notes():
            log.info("note: %s", note)
        doing = _Doing(study, train) if queue is None else _Submitting(study, queue)
        doing.save("running")
        state = "stopped"
        try:
            doing.search()
            doing.carry_out(doing.compared())
            state = "running" if doing.goes_on() else "finished"
        finally:
            show(doing.save(state))
    return [f"{name}, seed {seed}" for name, seed in doing.errors]


def _check_images(study: Study) -> None:
    opened: dict[str, Dataset] = {}
    with Mistakes() as mistakes:
        for member in study.known:
            if study.is_left(member):
                steps = (step.job for step in study.needed[member])
                for job in [*filter(None, steps), make_algorithm(member.config)]:
                    with mistakes.noted(job.options.job.run_name):
                        copy.copy(job).check_images(remembering(job, opened))  # what it opens goes with the copy
    with Mistakes() as mistakes:
        for member in itertools.chain.from_iterable(study.candidates.values()):
            with mistakes.noted(member.name):
                _check_classifier(make_algorithm(member.config), opened)


def _check_classifier(job: Training, opened: dict[str, Dataset]) -> None:
    """Refuse a search among accuracies that say nothing, as those of labelled images alone never are.

    Raises:
        ValueError: nothing would train the classifier.
    """
    if job.options.data.unlabelled is None:
        return
    with torch.random.fork_rng(devices=[]):
        objective = drawn_objective(job.options, remembering(job, opened)(None))
    if not objective.trains_classifier:
        raise ValueError("nothing would train its classifier, so no accuracy could choose: leave out search=")


class _Doing:
    """A study that goes on.

    Attributes:
        errors: of the runs that failed, by their names and seeds.
        chosen: what a search has chosen for a member; None where it has failed.
        done: what `study.json` says of runs that have ended; their files are read once, whatever else ends behind them.
    """

    def __init__(self, study: Study, train: Callable[[Config], Any]):
        self.study, self.train = study, train
        self.errors: dict[tuple[str, int], str] = {}
        self.chosen: dict[Member, Member | None] = {}
        self.done: dict[tuple[str, int], Results] = {}

    def search(self) -> None:
        """Train the candidates of all searches, and choose."""
        self.carry_out([one for candidates in self.study.candidates.values() for one in candidates])
        for member, candidates in self.study.candidates.items():
            if self._is_awaited(candidates):
                continue
            accuracy = {one: self._held_out(one) for one in candidates}
            whole = {one: statistics.fmean(found.values()) for one, found in accuracy.items() if self._is_whole(found)}
            best = max(whole, key=whole.__getitem__, default=None)  # the first of equals
            self.chosen[member] = None if best is None else member.with_values(best.values)
            log.info("search: %s takes %s", member.name, SEARCH_FAILED if best is None else best.values)

    def compared(self) -> list[Member]:
        """The members with what has been chosen for them; without those whose search has failed, or goes on."""
        return [found for member in self.study.members if (found := self._own(member))]

    def _own(self, member: Member) -> Member | None:
        return self.chosen.get(member, None if member in self.study.candidates else member)

    def _is_awaited(self, candidates: list[Member]) -> bool:
        """Whether what a search chooses by is still made by others."""
        return False

    def carry_out(self, members: list[Member]) -> None:
        """Do the runs that are left, and before them what they share."""
        self._prepare(members)
        runs = [run for run in self.study.runs_of(members) if run.is_left() and _key(run) not in self.errors]
        tasks = {Task(run.title, command_line(run.options), partial(self.train, run.options)): run for run in runs}
        if not tasks:
            return
        with phase(f"{len(tasks)} runs", len(tasks)) as line:
            for task, error in self._tasks(list(tasks), kind="run"):
                if error:
                    self._fail(tasks[task], error)
                self.save("running")  # for the report, which may be watched
                line.update()

    def _prepare(self, members: list[Member]) -> None:
        needed = {member: self._needed(member) for member in members if self.study.is_left(member)}
        count = len({step.command for steps in needed.values() for step in steps})
        errors: dict[str, str | None] = {}  # of what has been tried, by command
        for member, steps in needed.items():
            for step in steps:
                if step.command not in errors:
                    task = Task(f"{step.name}, {describe(step)}", step.command, partial(make_step, step))
                    ((_, error),) = self._tasks([task], kind="preparation", first=len(errors) + 1, count=count)
                    errors[step.command] = error
                if error := errors[step.command]:
                    self._fail_all(member, f"preparing {step.name}: {error}")
                    break
            else:
                try:
                    check_alike(Options.of(member.config), self.study.seeds)
                except FAILURES as error:
                    self._fail_all(member, first_line(error))

    def _needed(self, member: Member) -> list[Step]:
        """What the study knows, or for a member with values of a search what is missing now."""
        known = self.study.needed.get(member)
        return self.study.steps_before(member) if known is None else known

    def _tasks(self, tasks: list[Task], **numbering: Any) -> Iterator[tuple[Task, str | None]]:
        return carry_out(tasks, jobs=self.study.num_jobs, folder=self.study.directory / "output", **numbering)

    def _fail_all(self, member: Member, error: str) -> None:
        for run in self._runs(member):
            if run.is_left():
                self._fail(run, error)

    def _fail(self, run: Run, error: str) -> None:
        error = error.removeprefix(f"seed {run.seed}: ")  # which trials say, and the table too
        log.info("failed: %s: %s", run.title, error)
        self.errors[_key(run)] = error

    def _runs(self, member: Member) -> list[Run]:
        return [Run(member, seed) for seed in self.study.seeds]

    def _held_out(self, candidate: Member) -> dict[int, float]:
        """Top-1 on the held-out training images after the last epoch, of the runs that are done.

        One whose file does not say it has failed.
        """
        found = {}
        for run in self._runs(candidate):
            if run.is_left() or _key(run) in self.errors:
                continue
            try:
                found[run.seed] = run.held_out_top1()
            except ValueError as error:
                self._fail(run, first_line(error))
        return found

    def _is_whole(self, found: dict[int, float]) -> bool:
        return len(found) == len(self.study.seeds)

    def goes_on(self) -> bool:
        """Whether others still do runs of the study."""
        return False

    # --- what study.json holds ---------------------------------------------------------------------------------------

    def save(self, state: str) -> Results:
        study = self.study
        content = {
            "name": study.name,
            "command": shlex.join(sys.argv),
            "updated": now(),
            "state": state,
            "pairs": study.options.pairs,
            "methods": study.options.methods,
            "seeds": study.seeds,
            "against": study.against,
            "options": study.given,
            "members": [self._member(member) for member in study.members],
            "search": self._search() if study.search else None,
        }
        save_json(study.directory / STUDY, content)
        return content

    def _member(self, member: Member) -> Results:
        if (own := self._own(member)) is not None:
            return self._described(own, [self._run(run) for run in self._runs(own)])
        failed = {"state": FAILED, "error": SEARCH_FAILED} if member in self.chosen else {"state": NOT_RUN}
        return self._described(member, [{"seed": seed} | failed for seed in self.study.seeds])

    def _described(self, member: Member, runs: list[Results]) -> Results:
        about = {"pair": member.pair, "method": member.method, "experiment": member.name, "values": member.values}
        return about | {"runs": runs}

    def _run(self, run: Run) -> Results:
        if _key(run) not in self.done and not run.is_left():
            results = run.results()
            figures = {key: results.get(key) for key in (*FIGURES, *TAUGHT_BY)}
            self.done[_key(run)] = {"seed": run.seed, "state": DONE} | figures
        return self.done.get(_key(run)) or self._lacking(run)

    def _lacking(self, run: Run) -> Results:
        """What is said of a run without figures."""
        if error := self.errors.get(_key(run)):
            return {"seed": run.seed, "state": FAILED, "error": error}
        return {"seed": run.seed, "state": NOT_RUN}

    def _search(self) -> Results:
        """Its candidates with their accuracy on the held-out images as `top1`."""
        told = []
        for member, candidates in self.study.candidates.items():
            chosen = self.chosen.get(member)
            for one in candidates:
                held_out = self._held_out(one)
                runs = [
                    self._run(run) | {"top1": held_out[run.seed]} if run.seed in held_out else self._lacking(run)
                    for run in self._runs(one)
                ]
                is_chosen = chosen is not None and chosen.values == one.values
                told.append(self._described(one, runs) | {"is_chosen": is_chosen})
        return {"options": self.study.search, "val_split": self.study.val_split, "candidates": told}


class _Submitting(_Doing):
    """Gives to a queue what is left, and waits for nothing: the same command does the rest, and says how all is."""

    def __init__(self, study: Study, queue: Queue):
        super().__init__(study, lambda options: None)
        self.queue = queue
        self.last_errors: dict[str, str] = {}  # of runs that are tried again

    def carry_out(self, members: list[Member]) -> None:
        """Give to the queue the runs that are left, and what they share."""
        with results_to_itself(self.study.directory.parent, self._say_waiting):  # other studies do the same
            self.queue.look()
            items = self._shared(members)
            found = {run: self._item(run, items) for run in self.study.runs_of(members) if self._is_to_do(run)}
            self.queue.submit([*itertools.chain.from_iterable(items.values()), *found.values()])

    def _say_waiting(self) -> None:
        what = "submits, or with cluster=local makes what it shares"
        log.info("waits for another study below %s, which %s", self.study.directory.parent, what)

    def _needed(self, member: Member) -> list[Step]:
        """What is missing now: a job may have ended since the study was planned."""
        return self.study.steps_before(member)

    def _shared(self, members: list[Member]) -> dict[str, list[Item]]:
        """What is made before the runs of a member, by its name; downloads are done here, where there is a network."""
        found: dict[str, list[Item]] = {}
        for member in members:
            try:
                steps = self._needed(member)
                for step in steps:
                    if step.job is None:
                        make_step(step)
                if not steps:
                    check_alike(Options.of(member.config), self.study.seeds)
            except FAILURES as error:
                self._fail_all(member, first_line(error))
                steps = []
            found[member.name] = [self._item_of(step) for step in steps if step.job is not None]
        return found

    def _item_of(self, step: Step) -> Item:
        words = [word for word in shlex.split(step.command) if not word.startswith("checkpoint=")]
        if isinstance(step.job, Training):
            words.append("checkpoint=-1")
        needed = [self._item_of(before).key for before in steps_before(step.job) if before.job is not None]
        title = f"{step.name}, {describe(step)}"
        return Item(_product(step), title, shlex.join(words), self._output(title), frozenset(needed))

    def _item(self, run: Run, shared: dict[str, list[Item]]) -> Item:
        needed = shared[run.member.name]
        errors = (f"preparing {item.title}: {error}" for item in needed if (error := self.queue.error(item.key)))
        if error := next(errors, self.queue.error(_place(run))):
            self.last_errors[_place(run)] = error
            log.info("failed, and tried again: %s: %s", run.title, error)
        after = frozenset(item.key for item in needed)
        return Item(_place(run), run.title, command_line(run.options), self._output(run.title), after)

    def _output(self, title: str) -> Path:
        return self.study.directory / "output" / file_name(title)

    def _is_to_do(self, run: Run) -> bool:
        """Of a search a value that fails again and again by itself has failed: else its search would never end."""
        if not run.is_left() or _key(run) in self.errors or _place(run) in self.queue.states:
            return False
        is_candidate = any(run.member in candidates for candidates in self.study.candidates.values())
        error = self.queue.error(_place(run))
        if is_candidate and error and self.queue.failures(_place(run)) >= TRIES:
            again = f"to have it tried again, remove {self.queue.records[_place(run)]['output']}"
            self._fail(run, f"{error}; it has failed {TRIES} times: {again}")
            return False
        return True

    def goes_on(self) -> bool:
        self.queue.look()
        members = [*self.compared(), *itertools.chain.from_iterable(self.study.candidates.values())]
        count = sum(_place(run) in self.queue.states and run.is_left() for run in self.study.runs_of(members))
        if count:
            log.info("%d runs are in the queue; the same command says how they are, and submits what is missing", count)
        return count > 0

    def _is_awaited(self, candidates: list[Member]) -> bool:
        return any(_place(run) in self.queue.states for one in candidates for run in self._runs(one))

    def _lacking(self, run: Run) -> Results:
        state = self.queue.states.get(_place(run))
        if state is None:
            return super()._lacking(run)
        error = self.last_errors.get(_place(run)) or self.queue.error(_place(run))
        return {"seed": run.seed, "state": state} | ({"error": f"last try: {error}"} if error else {})


def _product(step: Step) -> str:
    """What something shared is called in a queue: where it lies, and what it is made of and how large where one place
    has several. Options that bear on no result are no part of it: studies that differ in them share it.
    """
    place = f"{step.job.mode} {step.job.directory.absolute()}"
    if isinstance(step.job, Training):
        return place
    told = {key: value for key, value in step.requirement.options.items() if key not in names(bears="nothing")}
    return " ".join([place, *(f"{key}={value}" for key, value in sorted(told.items()))])


def _place(run: Run) -> str:
    """What a run is called in a queue."""
    return str(run.directory.absolute())


def _key(run: Run) -> tuple[str, int]:
    return run.member.name, run.seed
