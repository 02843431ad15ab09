"""Writes docs/options.md: every option, its default, what it means, and which jobs read it.

    python -m docs.make_options

All of it is said where options are described: `config/options.py`, and the files of losses.
"""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from algorithms import Training
from config.experiments import ENTRY_OPTIONS, load_experiment
from config.former_names import FORMER_NAMES
from config.options import OPTIONS, PUBLISHED_NAMES, Study
from config.schema import EVERY_JOB, JOBS, Option, options_of
from distillation.losses import find_loss, find_transform, list_losses, list_transforms
from main_classification import experiment

PAGE = Path(__file__).with_name("options.md")
NEARLY_ALL = 2  # so many jobs may lack, and the others are not counted up
ALONE = "networks alone"
EXAMPLES = {  # an experiment of every kind
    ALONE: "CIFAR100.resnetv1.RN56",
    "QuEST": "CIFAR100.resnetv1.RN56_RN20.QuEST",
    "letKD-1": "CIFAR100.resnetv1.RN56_RN20.letKD-1",
    "letKD-2": "CIFAR100.resnetv1.RN56_RN20.letKD-2",
    "FitNet": "CIFAR100.resnetv1.RN110_RN32.FitNet",
}
SHOWN = ("letKD-2", ALONE, "FitNet")  # the first that has an option gives the default that the page shows

HEAD = """# Every option

    python main_classification.py with config=A.B.C [option=value ...]
    python main_classification.py print_config with config=digits.RN14_RN8.letKD-2

The second command prints every option of an experiment with its value. A misspelt option, a wrong type, and a value or
combination that makes no sense are errors that say what is meant. A list is written in quotes and without blanks,
`milestones="[10,15]"`; nothing at all is `None`. What sacred adds, like `--name`, is in
`python main_classification.py --help`. `mongo` needs `pip install pymongo`; its address is recorded as it stands, so a
password in it is written as `$VARIABLE`.

{jobs}

A command is the first word: `python main_classification.py report`. Below, "all" are all jobs on one experiment: not
the report, and not studies. An option that says what shall be done (`best`, `checkpoint`, `images`) is refused by a job
that does not read it. One that says how (`cuda`, `disp_step`) is not, so that a command can be repeated with
`evaluate=True` behind it; the report reads {read_by_report} alone and refuses the others. This page is made from the
code by `python -m docs.make_options`.
"""


def render() -> str:
    """The page."""
    experiments = {kind: load_experiment(name) for kind, name in EXAMPLES.items()}
    keys = dict.fromkeys(key for config in experiments.values() for key in config if key in OPTIONS)

    first = [("option", "default", "meaning", "jobs that read it")]
    for key, default in ENTRY_OPTIONS.items():
        first.append((f"`{key}`", _written(default), _meaning(OPTIONS[key]), _jobs(OPTIONS[key].jobs)))
    of_studies = [("option", "default", "meaning")]
    for key, said in options_of(Study).items():
        of_studies.append((f"`{key}`", _written(said.default), _meaning(said)))
    second = [("option", "default", "meaning", "jobs that read it", "experiments")]
    for key in sorted(keys, key=lambda key: -sum(key in config for config in experiments.values())):
        kinds = [kind for kind, config in experiments.items() if key in config]
        default = next(experiments[kind][key] for kind in SHOWN if kind in kinds)
        said = OPTIONS[key]
        second.append((f"`{key}`", _written(default), _meaning(said), _jobs(said.jobs), _named(kinds)))
    read_by_report = " and ".join(
        f"`{key}`" for key, said in OPTIONS.items() if "report" in said.jobs and key != "config"
    )
    return f"""{HEAD.format(jobs=table(list(_of_jobs())), read_by_report=read_by_report)}
## Options of every command

{table(first)}

## Options that the experiment brings

Every experiment has its own defaults, which `print_config` shows. Here they are those of
{" or else of ".join(f"`{EXAMPLES[kind]}`" for kind in SHOWN)}.

{table(second)}

## Options of a study

[`study`](studies.md) reads these, `name`, `seeds`, `trials` and `localpath`; every other option is for its runs.

{table(of_studies)}

## Options of losses

`config=CIFAR100.resnetv1.RN56_RN20.letKD-2+DKD`, an experiment of one method or of a sum of methods, has those of its
losses, and train reads them. A weight is what a term of the sum is multiplied by. That of cross-entropy is the
published one where a method stands alone, and a pair with published values of its own has those. The weights of letKD
have their published names too, and either is understood. So are names of earlier versions, with a notice. A transform,
`ctkd:KD`, has options of its own; what it sets itself, there the temperature, is no option any more.

{table(list(_of_losses()))}
"""


def _of_jobs() -> Iterator[tuple[str, ...]]:
    """What every job is asked for by, and what it does as its option, its command or its class says it."""
    yield "job", "asked for by", "what it does"
    for job in JOBS:
        if job in OPTIONS:
            yield job, _asked_for(OPTIONS[job]), OPTIONS[job].help
        elif command := experiment.commands.get(job):
            yield job, f"the command `{job}`", _first_sentence(command)
        else:
            yield job, "nothing else", _first_sentence(Training)


def _asked_for(said: Option) -> str:
    """The values of an option that ask for a job; a number is anyone's choice."""
    if said.types == (bool,):
        return f"`{said.name}=True`"
    return ", ".join(f"`{said.name}={value}`" for value in said.choices or ("NUMBER", "PLACE")[: len(said.types)])


def _first_sentence(described: Any) -> str:
    sentence = inspect.getdoc(described).splitlines()[0].rstrip(".")
    return sentence[0].lower() + sentence[1:]  # as the help of options


def _of_losses() -> Iterator[tuple[str, ...]]:
    """Weights and options of every loss, in the order of summation, and options of what stands in front of losses."""
    published = {key: f"`{name}`" for key, name in PUBLISHED_NAMES.items()}
    yield "option", "default", "meaning", "published name"
    parts = [*map(find_loss, list_losses()), *map(find_transform, list_transforms())]
    for part in parts:
        for name, said in part.described().items():
            yield f"`{name}`", _written(said.default), _meaning(said), published.get(name, "")


def _meaning(said: Option) -> str:
    former = [f"formerly `{name}`" for name, key in FORMER_NAMES.items() if key == said.name]
    choices = f": {', '.join(map(str, said.choices))}" if said.choices else ""
    return "; ".join([said.help + choices, *former])


def _jobs(jobs: Iterable[str]) -> str:
    """In words; those that are not of one experiment aside where all others read it."""
    lacking = [job for job in EVERY_JOB if job not in jobs]
    if len(lacking) > NEARLY_ALL:
        return ", ".join(jobs)
    others = "".join(f", {job}" for job in jobs if job not in EVERY_JOB)
    return "all" + (f" but {', '.join(lacking)}" if lacking else "") + others


def table(rows: list[tuple[str, ...]]) -> str:
    title, *others = (f"| {' | '.join(cells)} |".replace("<", "&lt;") for cells in rows)
    return "\n".join([title, "|---" * len(rows[0]) + "|", *others])


def _written(default: Any) -> str:
    """A default as the command line takes it."""
    return f"`{str(default).replace(' ', '')}`"


def _named(kinds: list[str]) -> str:
    if ALONE not in kinds and len(kinds) == len(EXAMPLES) - 1:
        return "all pairs"
    return "all" if len(kinds) == len(EXAMPLES) else ", ".join(kinds)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
