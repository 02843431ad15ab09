"""Writes docs/options.md: every option, its default, what it means, and which jobs read it.

    python -m docs.make_options

All of it is in the code. A meaning is the comment behind an option, in the dictionary that gives it its default; what
stands before a colon in it are the jobs that read the option, where not all do:

    "keep_every": 0,  # train: also keep the checkpoint of every n-th epoch
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import main_classification
from config import recipes
from distillation.losses import find_loss, list_losses

PAGE = Path(__file__).with_name("options.md")
SOURCES = (Path(main_classification.__file__), Path(recipes.__file__))
JOBS = ("train", "evaluate", "export", "probe", "kmeans", "LDA", "predict", "pictures", "report")
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

| job | asked for by | what it does |
|---|---|---|
| train | nothing else | trains, and evaluates after every epoch |
| evaluate | `evaluate=True` | measures a trained network; needs neither teacher nor supervision |
| export | `export=onnx`, `export=pt2` | writes a trained network to [a file of its own](export.md) |
| probe | `probe=True` | measures a linear classifier on the intermediate map, before and behind the KD layer |
| kmeans | `kmeans=4096` | makes the codebook of a network alone, or of the teacher of a pair |
| LDA | `LDA=5`, `LDA=layer3.0` | makes its decision scores; 5 is the stage, `layer3` of a small ResNet |
| predict | the command `predict` | prints the classes of image files |
| pictures | the command `pictures`, or one of `picture_*` | draws pictures of a trained network |
| report | the command `report` | writes a page of all results; reads `localpath` and `watch` alone |

A command is the first word: `python main_classification.py report`. Below, "all" are all jobs but the report. An option
that says what shall be done (`best`, `checkpoint`, `images`) is refused by a job that does not read it. One that says
how (`cuda`, `disp_step`) is not, so that a command can be repeated with `evaluate=True` behind it; the report refuses
everything that it does not read. This page is made from the code by `python -m docs.make_options`.
"""


class Meaning(NamedTuple):
    text: str
    jobs: str = "all"


def meanings(sources: Iterable[Path]) -> dict[str, Meaning]:
    """What the comments behind the keys of dictionaries say, by key.

    Raises:
        ValueError: a key is explained twice.
    """
    found: dict[str, Meaning] = {}
    for source in sources:
        for key, comment in re.findall(r'^ +"(\w+)": .*  # (.+)$', source.read_text(encoding="utf-8"), re.MULTILINE):
            if key in found:
                raise ValueError(f"{source.name} explains {key!r} again; once is enough: {comment!r}")
            found[key] = _split(comment)
    return found


def _split(comment: str) -> Meaning:
    job = "|".join(JOBS)
    jobs = re.match(rf"((?:all but )?(?:{job})(?:, (?:{job}))*): ", comment)
    return Meaning(comment[jobs.end() :], jobs[1]) if jobs else Meaning(comment)


def render() -> str:
    """The page.

    Raises:
        ValueError: an option is not explained.
    """
    explained = meanings(SOURCES)
    experiments = {kind: main_classification.load_experiment(name) for kind, name in EXAMPLES.items()}
    keys = dict.fromkeys(key for config in experiments.values() for key in config)
    if missing := [key for key in (*main_classification.OPTIONS, *keys) if key not in explained]:
        raise ValueError(f"no comment behind the option {missing[0]!r} says what it means")

    first = [("option", "default", "meaning", "jobs that read it")]
    for option, default in main_classification.OPTIONS.items():
        first.append((f"`{option}`", _written(default), *explained[option]))
    second = [("option", "default", "meaning", "jobs that read it", "experiments")]
    for key in sorted(keys, key=lambda key: -sum(key in config for config in experiments.values())):
        kinds = [kind for kind, config in experiments.items() if key in config]
        default = next(experiments[kind][key] for kind in SHOWN if kind in kinds)
        second.append((f"`{key}`", _written(default), *explained[key], _named(kinds)))
    return f"""{HEAD}
## Options of every command

{_table(first)}

## Options that the experiment brings

Every experiment has its own defaults, which `print_config` shows. Here they are those of
{" or else of ".join(f"`{EXAMPLES[kind]}`" for kind in SHOWN)}.

{_table(second)}

## Options of losses

`config=CIFAR100.resnetv1.RN56_RN20.letKD-2+DKD`, an experiment of one method or of a sum of methods, has those of its
losses, and train reads them. A weight is what a term of the sum is multiplied by. That of cross-entropy is the
published one where a method stands alone, and a pair with published values of its own has those. The published
experiments call some options otherwise; either name is understood.

{_table(list(_of_losses()))}
"""


def _of_losses() -> Iterator[tuple[str, ...]]:
    """Weights and options of every loss, in the order of summation."""
    yield "option", "default", "meaning", "published name"
    for loss in map(find_loss, list_losses()):
        for term, weight in loss.terms.items():
            yield _of_loss(loss.weight_option(term), float(weight), f"weight of the term `{loss.term_name(term)}`")
        for field in loss.options():
            choices = ", ".join(map(str, field.metadata.get("choices", ())))
            meaning = field.metadata["help"] + (f": {choices}" if choices else "")
            yield _of_loss(f"{loss.key}.{field.name}", field.default, meaning)


def _of_loss(option: str, default: Any, meaning: str) -> tuple[str, ...]:
    published = recipes.PUBLISHED_NAMES.get(option)
    return f"`{option}`", _written(default), meaning, f"`{published}`" if published else ""


def _table(rows: list[tuple[str, ...]]) -> str:
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
