"""What a study is of: every method of every pair with every seed, checked before anything is made.

A run is the command `config=PAIR.METHOD seeds=[SEED]` with those of the study's other options that its experiment has.
It lies where that command leaves it: what is done already, by a study or by hand, is part of the study.

With `search=` each method first trains with every value of one or two options, in runs that leave out `val_split`
training images and lie below the study's own directory, as do teachers and words that have not seen these images.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from algorithms.base import Results
from algorithms.jobs import check_run, make_algorithm
from algorithms.options import check_seeds
from algorithms.prepare import (
    FAILURES,
    Step,
    describe,
    earlier_seconds,
    known_time,
    num_steps,
    remembering,
    step_seconds,
)
from algorithms.run import steps_before
from algorithms.train import Training
from algorithms.trials import check_alike, finished_training
from config.command_lines import read_value
from config.experiments import (
    ENTRY_OPTIONS,
    changed_networks,
    default_config,
    default_configs,
    defaults_for,
    trains_alone,
)
from config.option_files import is_option_value
from config.options import OPTIONS, Config, Options, names
from config.options import Study as StudyOptions
from config.schema import filled, options_of
from config.updates import check_updates, known_as
from dataloaders import Dataset
from distillation.cache_options import can_read_cache
from distillation.labels import learns_without_labels
from engine.checkpoints import NEWEST, find_state
from engine.progress import rough, tracked
from engine.records import RESULTS
from results.places import output_directory
from results.settings import UNTRAINED
from results.studies import STUDIES
from storage.documents import first_line

ALONE = "alone"  # the method of a student without a teacher
DEFAULT_SEEDS = [0, 1, 2]
LARGEST_SEARCH = 2  # options
OWN = (*options_of(StudyOptions), "name", "seeds", "trials", "localpath", "seed")  # the others are of its runs
SAID_OTHERWISE = names(bears="job") | {"config", "checkpoint", "prepare"}
NAME = re.compile(r"[\w+-][\w.+-]*")
NO_NAME = re.compile(r"[^\w+:-]+")  # what cannot stand in the last part of a run's name
OF_PICTURES = ("unlabelled", "unlabelled_share")
OF_CACHE = ("teacher_cache", "teacher_cache_top", "teacher_cache_dir")
NOT_USED = {  # why a method is compared without options that others have, by these; the first is of what they are
    OF_PICTURES: "as all that it minimises reads labels; its batches are labelled images alone",
    OF_CACHE: "as it reads nothing of a teacher, or more than is kept; a cache of logits changes results by its "
    "rounding only, and by what teacher_cache_top leaves out",
}
BETWEEN_OPTIONS = re.compile(r"\s+(?=[\w.]+=)")
OPENING = ("'", '"', "[", "(", "{")
SEARCH, TUNED = "search", "tuned"  # the first part of the names of runs with values that a search tries, and takes


@dataclass(frozen=True, eq=False)
class Member:
    """A method of a pair: runs that differ in their seed alone.

    Attributes:
        options: what the command of a run says beside its seed, `config` first.
        values: those of them that a search tries, or has chosen.
        unused: options that its experiment has and its method cannot use.
    """

    pair: str
    method: str
    options: Config
    values: Config = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @cached_property
    def defaults(self) -> Config:
        return default_config(self.options["config"])

    @cached_property
    def config(self) -> Config:
        return defaults_for(self.defaults, self.options) | self.options

    @cached_property
    def name(self) -> str:
        return Options.of(self.config).job.run_name

    def has(self, option: str) -> bool:
        return known_as(option, self.defaults) is not None and option not in self.unused

    def without(self, options: tuple[str, ...]) -> "Member":
        """The same without options that its method cannot use."""
        kept = {key: value for key, value in self.options.items() if key not in options}
        return replace(self, options=kept, unused=self.unused + options)

    def with_values(self, values: Config, first: str = TUNED, **options: Any) -> "Member":
        """The same with values of a search, in runs whose name says them, so that none is in the way of another."""
        said = "_".join(f"{key}-{value}" for key, value in values.items())
        folder, _, last = self.name.rpartition(".")
        name = f"{first}.{folder}.{NO_NAME.sub('-', f'{last}_{said}')}"
        return replace(self, options=self.options | values | {"name": name} | options, values=values)


@dataclass(frozen=True, eq=False)
class Run:
    """A member with a seed."""

    member: Member
    seed: int

    @cached_property
    def config(self) -> Config:
        return self.member.config | {"seed": self.seed, "seeds": [self.seed], "trials": 0}

    @property
    def options(self) -> Config:
        """What its command says."""
        return self.member.options | {"seeds": [self.seed]}

    @property
    def directory(self) -> Path:
        return output_directory(self.member.config["localpath"], self.member.name, "train") / f"seed{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.member.name}, seed {self.seed}"

    def results(self) -> Results | None:
        """What it has left; None as long as it is not finished. Raises ValueError where that is damaged."""
        return finished_training(self.directory)

    def held_out_top1(self) -> float:
        """Of a finished run with `val_split`, top-1 on the held-out images after the last epoch.

        Raises:
            ValueError: its file does not say it, or nothing has trained its classifier.
        """
        results = self.results()
        if results.get("classifier") == UNTRAINED:
            raise ValueError(f"nothing has trained the classifier of {self.directory}, so its accuracy chooses nothing")
        try:
            top1 = results["history"][-1]["eval"]["top1"]
        except (KeyError, IndexError, TypeError):
            top1 = None
        if not isinstance(top1, (int, float)) or not math.isfinite(top1):
            raise ValueError(
                f"{self.directory / RESULTS} is damaged: it has no top-1 on the held-out images after the last epoch; "
                "move its folder away"
            )
        return top1

    def is_left(self) -> bool:
        try:
            return self.results() is None
        except ValueError:  # which it says itself
            return True

    def estimate(self) -> float | None:
        """Seconds that it takes, by the epochs of its own or of an earlier run that differs in the seed alone."""
        seconds = earlier_seconds(make_algorithm(self.config | {"checkpoint": NEWEST}))
        if seconds is None:
            seconds = earlier_seconds(make_algorithm(self.member.config))
        return seconds


class Mistakes:
    """Notes mistakes, and raises all of them in one line when it is left."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    def __enter__(self) -> "Mistakes":
        return self

    @contextmanager
    def noted(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            self.found[f"{where}: {first_line(error)}" if where else first_line(error)] = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None and self.found:
            raise ValueError("; ".join(self.found))


class Study:
    """What a command asks for.

    Args:
        config: the options of the study, and those of its runs that are given.

    Attributes:
        members: a method of a pair each, in the order of both.
        candidates: of members that a search is for, the same with each of its values.
        search: the values of options that are searched.
        needed: what has to be made for those whose runs are known beforehand.

    Raises:
        ValueError: an option, a pair or a method is a mistake, or a run is there with other settings; names all.
    """

    def __init__(self, config: Config):
        own = {key: _listed(key, config[key]) for key in options_of(StudyOptions)}
        for key, value in own.items():
            OPTIONS[key].check(value)
            if key in ("pairs", "methods") and not value:
                raise ValueError(f"a study needs {key}=, a list of {OPTIONS[key].elements}")
        if said := next((key for key in config if key in SAID_OTHERWISE), None):
            raise ValueError(f"{said}={config[said]} is not for a study: it trains what its pairs and methods say")
        self.options = filled(StudyOptions, own)
        if self.options.cluster_options and self.options.cluster is None:
            raise ValueError(
                "cluster_options= is for the jobs of a queue; give cluster=slurm or cluster=local, or leave it out"
            )
        self.localpath = config["localpath"]
        self.seeds = _seeds(config)
        self.given = {key: value for key, value in config.items() if key not in OWN}
        self.search = _searched(self.options.search)
        self.val_split = self.given.pop("val_split", 0) if self.search else 0
        self.members = self._members()
        self.against = self._against()
        self.name = self._name(config.get("name"))
        self.directory = Path(self.localpath, STUDIES, self.name)
        self._check_search()
        self.candidates = {member: found for member in self.members if (found := self._candidates(member))}
        self._check_runs()

    @property
    def num_jobs(self) -> int:
        """Runs at once on this machine."""
        return self.options.jobs or 1

    @property
    def known(self) -> list[Member]:
        """Those whose runs are known beforehand: in the place of a member that is searched for are its candidates."""
        return [one for member in self.members for one in self.candidates.get(member, [member])]

    def runs_of(self, members: list[Member]) -> list[Run]:
        """Pair by pair and seed by seed, so that what is broken off can be compared.

        Each once: two members may be one experiment, the student alone of two pairs.
        """
        runs = (
            Run(member, seed)
            for _, group in itertools.groupby(members, key=lambda member: member.pair)
            for seed, member in itertools.product(self.seeds, list(group))
        )
        return list({run.directory: run for run in runs}.values())

    def is_left(self, member: Member) -> bool:
        return any(Run(member, seed).is_left() for seed in self.seeds)

    def steps_before(self, member: Member) -> list[Step]:
        """What has to be made for the runs of a member that are left, as it is now."""
        return steps_before(make_algorithm(member.config)) if self.is_left(member) else []

    def notes(self) -> Iterator[str]:
        """Options that are for some of the methods."""
        for key, value in self.given.items():
            members = (member for member in self.members if known_as(key, member.defaults) is None)
            if lacking := dict.fromkeys(member.method for member in members):
                yield f"{key}={value} is no option of {', '.join(lacking)}"
        for (key, *_), reason in NOT_USED.items():
            if without := dict.fromkeys(member.method for member in self.members if key in member.unused):
                yield f"{', '.join(without)}: without {key}={self.given[key]}, {reason}"

    def listing(self) -> Iterator[str]:
        """All that is to do, with the time that earlier runs of the same settings and device tell, or else a few steps,
        which are taken behind a line that says so.
        """
        yield from (f"note: {note}" for note in self.notes())
        steps = {step.command: step for steps in self.needed.values() for step in steps}
        runs = self.runs_of(self.known)
        earlier = {run: run.estimate() for run in runs if run.is_left()}
        jobs: dict[str | Member, Training] = {
            command: step.job
            for command, step in steps.items()
            if isinstance(step.job, Training) and earlier_seconds(step.job) is None
        }
        jobs |= {run.member: make_algorithm(run.member.config) for run, time in earlier.items() if time is None}
        if jobs:
            yield (
                f"measuring a few steps of {len(jobs)} trainings of which there is no earlier run; evaluation, and "
                "reading images from files, are not counted"
            )
        measured = _by_steps(jobs)
        for command, step in steps.items():
            time = _told(measured[command]) if command in jobs else known_time(step.job)
            yield f"prepare: {describe(step)}; {time}"
        for run in runs:
            if run not in earlier:
                yield f"{run.title}: done"
                continue
            time = _told(measured[run.member]) if earlier[run] is None else f"about {rough(earlier[run])}"
            yield f"{run.title}: {'goes on, ' if find_state(run.directory, NEWEST) else ''}{time}"
        for member in self.candidates:
            yield f"{member.name} with what the search chooses, {len(self.seeds)} seeds: about as long as one of these"
        seconds = [measured[run.member] if time is None else time for run, time in earlier.items()]
        known = [time for time in seconds if time is not None]
        if self.options.cluster is None:
            hours, at_once = rough(sum(known) / self.num_jobs), f", with jobs={self.num_jobs}"
        else:
            hours, at_once = f"{rough(sum(known))} of jobs in all", ""
        total = f"about {hours} for {len(known)}" if known else "not measured"
        yield f"study {self.name}: {len(earlier)} of {len(runs)} runs are left; {total}{at_once}"

    # --- from options ------------------------------------------------------------------------------------------------

    def _members(self) -> list[Member]:
        members: dict[tuple[str, str], Member] = {}
        with Mistakes() as mistakes:
            for pair, method in itertools.product(self.options.pairs, self.options.methods):
                with mistakes.noted():
                    member = self._member(pair, method)
                    if members.setdefault((pair, member.options["config"]), member) is not member:
                        raise ValueError(f"{member.options['config']} is asked for twice; leave out one of them")
        found = _able(list(members.values()), self.given, OF_PICTURES, learns_without_labels)
        found = _able(found, self.given, OF_CACHE, can_read_cache)
        with Mistakes() as mistakes:
            for key, value in (self.given | self.search).items():
                with mistakes.noted():
                    if not any(member.has(key) for member in found):
                        check_updates({key: value}, found[0].defaults)  # which says what it might be
        return found

    def _member(self, pair: str, method: str) -> Member:
        """With those of the options that its experiment has: `kd.temperature` is for KD alone."""
        defaults = default_config(self._student_alone(pair) if method == ALONE else f"{pair}.{method}")
        own = {key: value for key, value in self.given.items() if known_as(key, defaults)}
        options = {"config": defaults["config"]} | check_updates(own, defaults)
        if (protocol := options.get("protocol", defaults.get("protocol"))) != defaults.get("protocol"):
            options["name"] = f"{protocol}.{defaults['config']}"  # beside the runs by the experiment's own
        if self.localpath != ENTRY_OPTIONS["localpath"]:
            options["localpath"] = self.localpath
        return Member(pair, method if method == ALONE else defaults["config"].removeprefix(f"{pair}."), options)

    def _student_alone(self, pair: str) -> str:
        taught = default_config(f"{pair}.{next((name for name in self.options.methods if name != ALONE), 'KD')}")
        alike = {name: own for name, own in default_configs()[0].items() if own["dataset"] == taught["dataset"]}
        found = trains_alone(taught["student"], alike, folder=pair.rpartition(".")[0])
        if found is None:
            raise ValueError(
                f"no module of config/ trains {taught['student']} alone on {taught['dataset']}; write one, "
                f"config/mine/NAME.py with classification(dataset={taught['dataset']!r}, network=...), as "
                f"docs/own-network.md shows, or leave out {ALONE}"
            )
        return found

    def _against(self) -> str:
        """The method that the others are compared with, as members call it."""
        called = dict(zip(self.options.methods, (member.method for member in self.members), strict=False))
        against = self.options.against or self.members[0].method
        if against not in (*called, *called.values()):
            raise ValueError(f"against={against} must be one of the methods: {', '.join(called)}")
        return called.get(against, against)

    def _name(self, given: Any) -> str:
        """What is given, or else what follows from all that is compared; more seeds are the same study."""
        if given is not None:
            if not isinstance(given, str) or not NAME.fullmatch(given):
                raise ValueError(f"name={given!r} must be the name of a folder: letters, digits, -, _, + and points")
            return given
        bearing = {key: value for key, value in self.given.items() if key not in names(bears="nothing")}
        compared = [[(member.pair, member.method) for member in self.members], bearing, self.search, self.val_split]
        digits = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.members[0].pair.rpartition('.')[2]}-{digits}"

    def _check_search(self) -> None:
        if both := next((key for key in self.search if key in self.given), None):
            raise ValueError(f"{both} is searched; leave out {both}={self.given[both]}")
        if self.search and not self.val_split:
            raise ValueError("search= needs val_split=, the number of training images that it holds out and chooses by")

    def _candidates(self, member: Member) -> list[Member]:
        """With each combination of the values that a search has for its options; none where it has no such option."""
        own = {key: values for key, values in self.search.items() if member.has(key)}
        apart = {"val_split": self.val_split, "localpath": str(self.directory / "search")}
        found: dict[str, Member] = {}
        for values in itertools.product(*own.values()) if own else ():
            chosen = check_updates(dict(zip(own, values, strict=True)), member.defaults)
            candidate = member.with_values(chosen, SEARCH, **apart)
            if found.setdefault(candidate.name, candidate) is not candidate:
                raise ValueError(f"search={self.options.search}: two values would be called {candidate.name}")
        return list(found.values())

    def _check_runs(self) -> None:
        self.needed: dict[Member, list[Step]] = {}
        with Mistakes() as mistakes:
            for member in self.known:
                with mistakes.noted():
                    _check_networks(member)
                    check_run(member.config)
                    check_alike(Options.of(member.config), self.seeds, is_prepared=False)
                    self.needed[member] = self.steps_before(member)
            for member, candidates in self.candidates.items():
                for one in candidates:  # the runs of any may follow: not refused when days have gone into the search
                    with mistakes.noted():
                        tuned = member.with_values(one.values)
                        check_alike(Options.of(tuned.config), self.seeds, is_prepared=False)


def _able(
    members: list[Member], given: Config, options: tuple[str, ...], can_use: Callable[[Options], bool]
) -> list[Member]:
    """Those that cannot use what others can, without it; where none can it stays, and is refused.

    Args:
        options: that mean one thing, which the first of them asks for.
    """
    if given.get(options[0]) is None:
        return members
    have = [member for member in members if member.has(options[0])]
    unable = [member for member in have if not can_use(Options.of(member.config))]
    return [member.without(options) if member in unable and unable != have else member for member in members]


def _check_networks(member: Member) -> None:
    """Refuse another network than those of a pair, whose runs would lie where the pair's own do.

    Raises:
        ValueError: names the option, and how to have such a pair.
    """
    if other := [f"{key}={value}" for key, value in changed_networks(member.config).items()]:
        raise ValueError(
            f"{' '.join(other)} is another network than that of {member.pair}: a study takes networks by the names of "
            "pairs; write one, config/mine/PAIR/__init__.py with a dictionary `pair` (docs/own-network.md)"
        )


def _by_steps(jobs: dict[Any, Training]) -> dict[Any, float | None]:
    """Seconds that the steps of trainings take; None where they cannot be taken, which the run says itself."""
    opened: dict[str, Dataset] = {}
    found = {}
    for key, job in tracked(jobs.items(), len(jobs), "measuring"):
        try:
            dataset = remembering(job, opened)(None)
            found[key] = step_seconds(job, dataset) * num_steps(job, dataset)
        except (*FAILURES, RuntimeError):
            found[key] = None
    return found


def _told(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"about {rough(seconds)} by its steps"


def _listed(key: str, value: Any) -> Any:
    """A text as the list that it stands for: `methods=KD,DKD`, and what a shell has made of `methods=[KD,DKD]`."""
    if not isinstance(value, str) or not OPTIONS[key].is_list:
        return value
    if key in ("search", "cluster_options"):
        return _options_in(value.strip())
    return [part.strip(" '\"") for part in value.strip("[] ").split(",")]


def _options_in(text: str) -> list[str]:
    """The options of a text, `partition=gpu setup="export A=1"`: a value in quotes or brackets goes to their end."""
    cuts = [*(match.span() for match in BETWEEN_OPTIONS.finditer(text)), (len(text), len(text))]
    found, start = [], 0
    while cuts:
        number = next((n for n, (end, _) in enumerate(cuts) if _is_whole(text[start:end])), 0)
        end, following = cuts[number]
        found.append(text[start:end])
        start, cuts = following, cuts[number + 1 :]
    return found


def _is_whole(option: str) -> bool:
    """Whether the quote or bracket that its value begins with, if one does, ends with it."""
    value = option.partition("=")[2].strip()
    return not value.startswith(OPENING) or read_value(value) is not value


def _seeds(config: Config) -> list[int]:
    seeds, trials = config.get("seeds", []), config.get("trials", 0)
    OPTIONS["seeds"].check(seeds)
    OPTIONS["trials"].check(trials)
    check_seeds(trials, seeds)
    if config.get("seed"):
        raise ValueError(f"a study has seeds=, {DEFAULT_SEEDS} unless they are given; leave out seed={config['seed']}")
    return seeds or list(range(trials)) or DEFAULT_SEEDS


def _searched(texts: list[str]) -> dict[str, list[Any]]:
    """The values of a search by option: ["kd.temperature=[2,4,8]"] is {"kd.temperature": [2, 4, 8]}."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, _, written = (part.strip() for part in text.partition("="))
        values = read_value(written)
        if not isinstance(values, list) or len(values) < 2 or not all(map(is_option_value, values)):
            raise ValueError(f"search={text!r} must be an option with several values, like kd.temperature=[2,4,8]")
        if key in found:
            raise ValueError(f"search={texts} has {key} twice; leave out one of them")
        found[key] = values
    if len(found) > LARGEST_SEARCH:
        raise ValueError(f"search={texts} must be of {LARGEST_SEARCH} options at most")
    return found
