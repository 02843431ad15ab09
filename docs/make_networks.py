"""Writes docs/networks.md: pairs of networks of timm and torchvision, what they were run with, and where maps are.

    python -m docs.make_networks

What was measured is in `benchmarks/networks.json`, where `python -m benchmarks.networks --write` leaves it.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.networks import DEFAULT, FILE, KINDS, METHODS, PAIRS, Pair, cell, told
from docs.make_options import table

PAGE = Path(__file__).with_name("networks.md")
UNKNOWN, NONE = "not measured", "—"

HEAD = """# Networks of timm and torchvision

Teacher and student can be any classifier of timm or torchvision, by name, or a function of
[your own](own-network.md); their weights come [from anywhere](weights.md). Which maps methods read is found by showing
the network an image. `print_outline` lists the places with channels, grid and kind:

    OPTIONS="name=mine.pair teacher=timm/resnet18d student=timm/mobilenetv3_small_050 image_size=64"
    python main_classification.py print_outline with config=digits.RN14_RN8.letKD-2 $OPTIONS

A name can have keyword arguments of the network, as a call of Python; quotes keep it together in a shell:

    OPTIONS="config=digits.RN14_RN8.letKD-2 name=mine.pair teacher=timm/resnet18d image_size=64"
    python main_classification.py print_outline with $OPTIONS "student=timm/vit_tiny_patch16_224(patch_size=32,depth=6)"

They are numbers, texts, True, False, None, and lists, tuples or dictionaries of these. They belong to the name, so that
they are recorded with it, compared when a run goes on, and known to evaluation, export and prediction; in which order
and with which spaces they are written makes no difference. What a network does not take is an error of one line before
anything is written. The number of classes and weights are said by other options. `img_size` of networks that are built
for one size is that of the images where it is not said.

Grids that differ are averaged by a whole factor, as letKD does with the teacher's, or resized where a method says so
(ReviewKD; AT and others average the larger of two maps); otherwise the pair is refused with both sizes. A transformer
has patches of one size, so that a CNN's last map may be coarser than its student's: name an earlier place of the
teacher, `words_teacher_place=stage3`, or give the student larger patches, `patch_size=32`. Both are below.
"""


def render() -> str:
    """The page."""
    sections = "\n\n".join(f"### {kind}\n\n{table(list(_rows(pairs)))}" for kind, pairs in KINDS.items())
    return f"""{HEAD}
## What was run

Some steps of each pair with {_listed(METHODS)}: all terms stayed finite where a time stands. The networks are
the smallest of their families and untrained, images are random pixels, and supervision is random numbers, so that the
table says what goes together and what a step takes, and nothing of accuracies. {_measured()}

{sections}

## What was refused

{_refusals()}

## Where maps are

The default places, for images of the same size. `penultimate` is the last map that the logits depend on, and
`intermediate` the first block at the final resolution, or of the last quarter where all blocks have one resolution.

{table(list(_networks()))}
"""


def _measured() -> str:
    measured = _found().get("measured")
    if measured is None:
        return (
            f"`python -m benchmarks.networks --write` measures them, which is {UNKNOWN.removesuffix('measured')}done."
        )
    return (
        f"`python -m benchmarks.networks --write`: {measured}. Times are medians, in milliseconds of the processor. "
        "Other work went on beside it, and two runs of the first pair differed by up to a quarter: the times show what "
        "a pair costs, and not which of two methods is faster."
    )


def _rows(pairs: tuple[Pair, ...]) -> Iterator[tuple[str, ...]]:
    yield "teacher", "student", "options", *METHODS
    for pair in pairs:
        options = " ".join(f"`{key}={value}`" for key, value in pair.options.items()) or NONE
        yield f"`{pair.teacher}`", f"`{pair.student}`", options, *(_cell(pair, method) for method in METHODS)


def _cell(pair: Pair, method: str) -> str:
    row = _of(pair).get(method)
    return UNKNOWN if row is None else cell(row)


def _refusals() -> str:
    """What methods said, a line each."""
    lines = []
    for pair in PAIRS:
        for method in METHODS:
            if said := _of(pair).get(method, {}).get("refused"):
                lines.append(f"- `{pair.teacher}` to `{pair.student}`, {method}: {said}")
    return "\n".join(lines) or "Nothing."


def _networks() -> Iterator[tuple[str, ...]]:
    yield "network", "parameters", *DEFAULT
    for name in sorted({name for pair in PAIRS for name in (pair.teacher, pair.student)}):
        found = _found().get("networks", {}).get(name)
        if found is None:
            yield f"`{name}`", *[UNKNOWN] * (1 + len(DEFAULT))
            continue
        yield f"`{name}`", f"{found['parameters']:,}", *(told(found["places"][place]) for place in DEFAULT)


def _of(pair: Pair) -> Mapping[str, Any]:
    """What was measured of a pair with its options, by method."""
    own = {"teacher": pair.teacher, "student": pair.student, "options": dict(pair.options)}
    rows = _found().get("pairs", [])
    return next((row["methods"] for row in rows if own == {key: row[key] for key in own}), {})


@cache
def _found() -> Mapping[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
