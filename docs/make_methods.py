"""Writes docs/methods.md: every method, what it reads, weighs, adds to a network, and the accuracy published for it.

    python -m docs.make_methods

Losses say all of it themselves, but for accuracies: they are in `reporting/published_methods.json`, and those of
letKD's paper in `reporting/published.json`. The published protocols are in `config/protocols.py`.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from architectures import create_model
from config.experiments import default_config
from config.options import Options
from config.protocols import ALONE, COMMON, KNOWN, Protocol
from distillation.build import build_network, values_for
from distillation.complexity import count_parameters
from distillation.expressions import PAPER, brought_by, list_methods, paper_of, parts, summands, weights_of
from distillation.losses import (
    Data,
    Loss,
    Paper,
    Transform,
    Wanted,
    find_loss,
    find_transform,
    list_losses,
    list_transforms,
)
from distillation.losses.base import Part
from distillation.mixing import does_with_mixed
from distillation.objective import union
from distillation.signals import Network, measured
from docs.make_options import table
from letkd import Codebook, SubclassTargets
from reporting.tables import METHOD_FIGURES, published_value
from reporting.text import kind, published
from results.studies import Paired, paired, top1_of

PAGE = Path(__file__).with_name("methods.md")
PAIR = "CIFAR100.resnetv1.RN56_RN20"
NETWORKS = ("CIFAR100", "resnet56", "resnet20")
IMAGE_SIZE, DATA = 32, Data(num_images=50_000, num_classes=100)
UNKNOWN, NONE = "not measured", "—"
COSTS = PAGE.parents[1] / "benchmarks" / "methods.json"
STUDY = PAGE.parents[1] / "experiments" / "published" / "numbers" / "study.json"
READS = {  # fields of `Wanted`
    "logits": "logits",
    "pooled": "pooled vectors",
    "head": "classifier",
    "maps": "maps",
    "preact": "maps before the activation",
    "inner": "scores of KD layers",
}

HEAD = """# Every method

    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.DKD
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2+DKD
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.lskd:DKD

**Which one to pick?** By the protocol of the paper nothing has been measured on CIFAR-100 with this code yet, so this
page cannot say it for good. What has been measured says: begin with KD. It asks nothing of the networks, adds no
parameter and costs a forward pass of the teacher. On [two-digit numbers](#on-two-digit-numbers), a small task of four
epochs, it is sixteen points above the student alone, most methods are within two points of it, and five do not help: LS
and TfKD, which have no teacher, CC, and AT and FT, whose published weights are too much for that learning rate. On a
[fifth of CIFAR-100](../experiments/README.md#cifar-10010k), three seeds, KD has 37.8 %, letKD-1 37.2, letKD-2 36.2,
QuEST 35.9 and the student alone 32.8, and letKD is told apart from the student alone, and not from KD or QuEST. On
[all of it](../experiments/README.md#cifar-100-twelve-epochs), twelve epochs and one seed, QuEST has 58.8 %, letKD-1 and
letKD-2 58.7, which are not told apart, and the student alone 56.3; KD was not run.
Sums of letKD-2 with another method are above letKD-2 alone on the numbers. With a pretrained teacher and 3,000
photographs it is letKD-2: in [the example](../experiments/README.md#result-of-the-example), three seeds, it has 61.3 %,
DIST 58.7, KD 57.2 and the student alone 56.9. So try both: what decides between them is not known, and letKD-2's
student is a little larger.

The published figures below do not decide it either: some are of the last epoch and some of the best one, which is about
0.3 higher by itself; those of the older methods are five runs of 2019 each, which later tables copy; a difference below
0.3 is within the spread of runs; and letKD's students are larger than the others. What is certain is what a method asks
for. Those on logits ask nothing of the networks and add no parameter. Those on features and relations read maps or
pooled vectors, which not every network has. What needs a file needs a job before, which `prepare=True` starts. Those
without a teacher need neither.

A network alone takes methods too: those without a teacher, and most others with the average of the student's own
weights as teacher, which the run makes as it goes:

    python main_classification.py with config=CIFAR100.resnetv1.RN20.LS
    python main_classification.py with config=CIFAR100.resnetv1.RN20.KD teacher=ema ema_decay=0.999

After every step the average takes 1 - `ema_decay` of the weights (more in the first steps), running means and variances
of BatchNorm included; it teaches in eval mode. It is no teacher for what the table says to need a file or a trained
teacher. Any other run keeps such an average with `average=True`; it is
[measured, saved and exported](runs.md#the-average-of-weights) beside the student.

The weights of terms below are for trained teachers, and too large for an average that begins as the untrained student.
ResNet-8 on the digits, 8 epochs, one seed: 96.8 % alone; with `teacher=ema` KD reaches 48.8 %, DKD does not learn and
FitNet diverges, while `KD ce.weight=1 kd.weight=0.1` and `FitNet fitnet.weight=1` reach 96.3 %. What Mean Teacher does
about it, a weight that rises over the first epochs, is not added: of the methods here none is published with an average
as teacher, and those that are published with such a rise (`warmup` of DKD, ReviewKD, KDPP) have it with any teacher.

Any two methods make a sum, `letKD-2+DKD`, and any more do, but for two of letKD-1, letKD-2 and QuEST, which all bring
the words. Formulas, and where coefficients come from, are in the file of each in `distillation/losses/`;
[options](options.md#options-of-losses) have a table of their own. This page is made from the code by
`python -m docs.make_methods`.
"""


@dataclass(frozen=True)
class Built:
    """A method for the networks of the pair.

    Attributes:
        losses: without the cross-entropy.
        training, inference: parameters beyond the student's own.
    """

    losses: list[Loss]
    training: int
    inference: int


def render() -> str:
    """The page."""
    methods = {method: built(method) for method in list_methods()}
    sources = "\n".join(f"- {name}: {said}" for name, said in METHOD_FIGURES["sources"].items())
    known = dict.fromkeys(name for table in METHOD_FIGURES["tables"] for name in table["top1"])
    behind = {name: built(name) for name in known if ":" in name and published_value(PAIR, name, NETWORKS)}
    return f"""{HEAD}
## What they are

{table(list(_described(methods)))}

Methods that need the whole batch compare its samples with each other.

## Mixed images

    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.KD mixup=0.2
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.KD cutmix=1.0

[`mixup=` and `cutmix=`](recipes.md#mixup-and-cutmix) mix pairs of training images; the teacher sees the same mixture.
Such an image has two labels, whose shares l and 1 - l add up to 1. What each loss makes of that:

{table(list(_mixed()))}

A loss that weighs both labels is computed for either, sample by sample, and the mean is of l times one and 1 - l times
the other: cross-entropy, all terms of DKD and NKD, the virtual teacher of TfKD, the term `kdpp.nd` with the means of
both classes. That is so of whatever stands behind `sdd` too, which compares with the label where it weighs regions; the
other transforms read none. A sum with a refused loss stops in one line before anything is made; of one's own losses
those do that say `takes_mixed = False`. Accuracy in training counts a guess by the share of its label. These losses
compare the samples of a batch with each other, and so the two mixtures of a pair, which are of the same two images:
{_listed(_of_samples())}.

Published for KD on CIFAR-100, top-1 in percent:

{table(list(_mixed_figures()))}

- KD: {METHOD_FIGURES["sources"][METHOD_FIGURES["mixed"]["plain"]]}
- with mixup and with CutMix: {METHOD_FIGURES["mixed"]["source"]}

By these figures either gives KD {_gains()} points, more than most methods do. The parameters of the Beta distributions,
the number of runs and of which epoch the figures are is not known here. With this code it is not measured on CIFAR-100.
In the four epochs of the [two-digit numbers](../experiments/README.md#mixup-and-cutmix-on-two-digit-numbers) mixing
makes KD worse, 94.15 without, 90.30 with `mixup=0.2` and 90.08 with `cutmix=1.0`, means of three seeds: it is for long
trainings.

## Transforms

They stand in front of a method on logits, `lskd:KD`, and several in front of each other, `ctkd:lskd:KD`.

{table(list(_transforms()))}

## Weights

Those of a method that stands alone. In a sum cross-entropy has the weight 1, the others theirs.

{table(list(_weights(methods)))}

Pairs with published values of their own have these, which `print_config` shows; the others have the defaults.

{table(list(_by_pair()))}

## Published protocols

    python main_classification.py print_config with config=CIFAR100.resnetv1.RN56_RN20.KD protocol=published

`protocol=published` trains a method as its authors did, as far as that is known for the pair, with their coefficients,
and in a directory of its own, `name=published.CIFAR100.resnetv1.RN56_RN20.KD`. It is refused where it is not known.
What a source does not state (—) stays as it is in the protocol of letKD's paper, `protocol=paper`, which all methods
share by default; so does normalisation but for {_listed(_normalised())}. Options of the command line go before either.
ShuffleNets and MobileNetV2 have the learning rate in parentheses. A published figure of the best epoch is of one that
was chosen on the test images; `results.json` and the report have the last and the best epoch of every training.

{table(list(_protocols()))}

The 13 pairs are {", ".join(" ".join(pair) for pair in COMMON)}.

## On ResNet-56 and ResNet-20

Teacher and student of `{PAIR}`. Parameters are those beyond the student's {built_alone():,}:
in training connectors and KD layers, at inference what stays in the student: **larger** students are not the plain one.
"Copied" is a figure that its source has from elsewhere; the report has those of all pairs.{timed()}

{table(list(_measured({**methods, **behind})))}

{sources}

## On two-digit numbers

ResNet-14 to ResNet-8 on the pictures of [the demonstration](demo.md), four epochs, by one protocol that was written
down before: [what ran, and when](../experiments/README.md#every-method-on-two-digit-numbers). Means over the seeds,
with their sample deviation; the difference from the student alone is that of runs with the same seed, with its 95 %
interval. ReviewKD and KDPP have about a point more since their warm-up no longer takes a whole one of so few epochs.

{table(list(_on_numbers()))}
"""


def built(summand: str) -> Built:
    """A method with its transforms, for untrained networks and empty files."""
    options = _options_of(summand)
    student, teacher = _student(), _teacher()
    if parts(summand)[1] in PAPER:
        student = build_network(options, DATA.num_classes, IMAGE_SIZE)
    losses = [_built_loss(find_loss(key), options, student, teacher) for key in brought_by(summand)]
    if transforms := parts(summand)[0]:
        found = {name: find_transform(name) for name in transforms}
        losses[0].behind(
            {name: cls.build(student, teacher, DATA, **values_for(cls, options)) for name, cls in found.items()}
        )
    inference = count_parameters(student.module)["parameters"] - built_alone()
    connectors = sum(parameter.numel() for loss in losses for parameter in loss.parameters())
    return Built(losses, inference + connectors, inference)


def built_alone() -> int:
    """Parameters of the student without any method."""
    return count_parameters(_student().module)["parameters"]


def _options_of(method: str) -> Options:
    return Options.of(default_config(f"{PAIR}.{method}"))


def _built_loss(cls: type[Loss], options: Options, student: Network, teacher: Network) -> Loss:
    files = {name: _empty(name, options, teacher) for name in cls.prepared}
    return cls.build(student, teacher if cls.needs_teacher else None, DATA, **values_for(cls, options), **files)


def _empty(name: str, options: Options, teacher: Network) -> Any:
    """What is read from a file, of the right size."""
    outline = teacher.outline
    if name == "codebook":
        return Codebook(torch.zeros(options.words.num_words, outline.place("penultimate").channels))
    if name == "means":
        return torch.zeros(DATA.num_classes, outline.num_features)
    channels, num_subclasses = outline.place("intermediate").channels, options.subclasses.subclasses_per_class
    rows = DATA.num_classes * num_subclasses
    tensors = (torch.zeros(shape) for shape in ((channels, 1), (channels,), (rows, 1), (rows, rows)))
    return SubclassTargets(*tensors, num_subclasses=num_subclasses)


@cache
def _student() -> Network:
    return build_network(_options_of("KD"), DATA.num_classes, IMAGE_SIZE)


@cache
def _teacher() -> Network:
    name = _options_of("KD").pair.teacher
    return measured(create_model(name, num_classes=DATA.num_classes, image_size=IMAGE_SIZE), IMAGE_SIZE, name)


# --- tables ----------------------------------------------------------------------------------------------------------


def _described(methods: Mapping[str, Built]) -> Iterator[tuple[str, ...]]:
    yield "method", "paper", "kind", "reads", "needs"
    for method, found in methods.items():
        kinds = dict.fromkeys(loss.kind for loss in found.losses)
        needs = union(side for loss in found.losses for side in (loss.needs.student, loss.needs.teacher))
        yield f"`{method}`", _cited(paper_of(method)), ", ".join(kinds), _read(needs), _needed(found.losses)


def _read(wanted: Wanted) -> str:
    return _listed(name for field, name in READS.items() if getattr(wanted, field))


def _needed(losses: list[Loss]) -> str:
    files = [f"`{name}` file" for loss in losses for name in loss.prepared]
    whole_batch = ["the whole batch"] * any(loss.needs.whole_batch for loss in losses)
    trained = ["a trained teacher"] * any(loss.reads_weights for loss in losses)
    one_label = ["images that are not mixed"] * (not all(loss.takes_mixed for loss in losses))
    return _listed([*files, *trained, *whole_batch, *one_label])


def _mixed() -> Iterator[tuple[str, ...]]:
    """What losses do with mixed images, those that do the same in one row."""
    yield "with mixed images a loss", "losses"
    rows: dict[str, list[str]] = {}
    for key in list_losses():
        rows.setdefault(does_with_mixed(find_loss(key)), []).append(f"`{key}`")
    for does, keys in rows.items():
        yield does, _listed(keys)


def _of_samples() -> Iterator[str]:
    """Losses that compare samples with each other."""
    found = (find_loss(key) for key in list_losses())
    is_of_samples = (loss.kind == "relations" or not getattr(loss, "per_sample", True) for loss in found)
    return (f"`{key}`" for key, is_so in zip(list_losses(), is_of_samples, strict=True) if is_so)


def _mixed_figures() -> Iterator[tuple[str, ...]]:
    mixed, pairs = METHOD_FIGURES["mixed"]["top1"], METHOD_FIGURES["pairs"]
    yield "teacher and student", "KD", *mixed, "here"
    for pair, alone in _plain_kd().items():
        yield " ".join(pairs[pair]), f"{alone:.2f}", *(f"{figures[pair]:.2f}" for figures in mixed.values()), UNKNOWN


def _plain_kd() -> dict[str, float]:
    """KD without mixing on the pairs that there are figures with it for."""
    mixed = METHOD_FIGURES["mixed"]
    tables = [table["top1"]["KD"] for table in METHOD_FIGURES["tables"] if table["source"] == mixed["plain"]]
    known = {pair: figure for figures in tables for pair, figure in figures.items()}
    return {pair: known[pair] for pair in next(iter(mixed["top1"].values()))}


def _gains() -> str:
    """From the least to the largest."""
    alone = _plain_kd()
    gains = [figures[pair] - alone[pair] for figures in METHOD_FIGURES["mixed"]["top1"].values() for pair in alone]
    return f"{min(gains):.1f} to {max(gains):.1f}"


def _transforms() -> Iterator[tuple[str, ...]]:
    yield "transform", "paper", "stands in front of", "sets itself", "options"
    for key in list_transforms():
        cls = find_transform(key)
        options = (f"`{name}={value}`".replace(" ", "") for name, value in _named(cls, None, cls.defaults()).items())
        yield f"`{key}`", _cited(cls.paper), _listed(_behind(key)), _listed(cls.replaces), _listed(options)


def _behind(transform: str) -> Iterator[str]:
    """The methods that a transform may stand in front of."""
    for method in list_methods():
        with suppress(ValueError):
            summands(f"{transform}:{method}")
            yield f"`{method}`"


def _weights(methods: Iterable[str]) -> Iterator[tuple[str, ...]]:
    yield "method", "loss"
    for method in methods:
        if method in PAPER:
            weights = weights_of(_options_of(method))
        else:
            cls = find_loss(method.lower())
            weights = {"ce": cls.ce} | {cls.term_name(term): weight for term, weight in cls.terms.items()}
        yield f"`{method}`", " + ".join(f"{weight:g} `{term}`" for term, weight in weights.items())


def _by_pair() -> Iterator[tuple[str, ...]]:
    """Values that are published for some pairs, equal ones in one row."""
    yield "method", "options", "teacher and student"
    for loss in map(find_loss, list_losses()):
        yield from _grouped(loss.method, None, loss, loss.published)
    for transform in map(find_transform, list_transforms()):
        for inner, known in transform.published.items():
            yield from _grouped(f"{transform.key}:{inner}", transform, find_loss(parts(inner)[1].lower()), known)


def _grouped(
    name: str | None,
    transform: type[Transform] | None,
    loss: type[Loss],
    published: Mapping[tuple[str, str] | None, Mapping[str, Any]],
) -> Iterator[tuple[str, ...]]:
    pairs: dict[str, list[str]] = {}
    rest = "all others" if len(published) > 1 else "all"
    for pair, values in published.items():
        named = _named(loss, transform, {**published.get(None, {}), **values})
        options = [f"{key}={value}".replace(" ", "") for key, value in named.items()]
        pairs.setdefault(f"`{' '.join(options)}`", []).append(" ".join(pair) if pair else rest)
    for options, those in pairs.items():
        yield f"`{name}`", options, ", ".join(those)


def _named(part: type[Part], transform: type[Transform] | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Terms and options by their names on the command line."""
    named = {}
    for name, value in values.items():
        if name == "ce":
            named["ce.weight"] = value
        elif transform is not None and name in transform.defaults():
            named[f"{transform.key}.{name}"] = value
        elif issubclass(part, Loss) and name in part.terms:
            named[part.weight_option(name)] = value
        else:
            named[f"{part.key}.{name}"] = value
    return named


def _normalised() -> Iterator[str]:
    """The methods whose source normalises images otherwise than the data set's own statistics do."""
    return (f"`{method}`" for method, known in KNOWN.items() if "mean" in known.protocol.options)


def _protocols() -> Iterator[tuple[str, ...]]:
    """What is known of the published protocols, methods of one source and pairs in one row."""
    yield (
        "method", "as in", "epochs", "learning rate", "falls after", "batch", "Nesterov", "weight decay", "padding",
        "pairs",
    )  # fmt: skip
    rows: dict[tuple[str, ...], list[str]] = {}
    for method, known in KNOWN.items():
        name = "a network alone" if method == ALONE else f"`{method}`"
        rows.setdefault((*_said(known.protocol), _known_for(method, known.pairs)), []).append(name)
    for cells, names in rows.items():
        yield _listed(names), *cells


def _known_for(method: str, pairs: tuple[tuple[str, ...], ...]) -> str:
    """Pairs in as few words as they take."""
    if method == ALONE:
        return "the networks of the 13 pairs"
    inside, lacking = ([pair for pair in COMMON if (pair in pairs) == is_in] for is_in in (True, False))
    few = f"all 13 but {_pairs(lacking)}" if lacking else "all 13"
    told = few if len(lacking) < len(inside) else _pairs(inside)
    return "; also ".join(filter(None, [told, _pairs(pair for pair in pairs if pair not in COMMON)]))


def _pairs(pairs: Iterable[tuple[str, ...]]) -> str:
    return ", ".join(" ".join(pair) for pair in pairs)


def _said(protocol: Protocol) -> tuple[str, ...]:
    """What a source states."""

    def said(key: str) -> str:
        value = protocol.options.get(key, NONE)
        return {True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, list) else str(value)[1:-1]

    rate = said("learning_rate") + (f" ({protocol.small_steps})" if protocol.small_steps else "")
    keys = ("milestones", "batch_size", "nesterov", "weight_decay", "padding_mode")
    return protocol.source, said("epochs"), rate, *map(said, keys)


def _measured(methods: Mapping[str, Built]) -> Iterator[tuple[str, ...]]:
    yield (
        "method", "parameters in training", "at inference", "published top-1 %", "by", "top-1 % here, last epoch",
        "best epoch", "time of a step against KD's",
    )  # fmt: skip
    for method, found in methods.items():
        figure = published_value(PAIR, method, NETWORKS)
        shown = (published(figure), kind(figure)) if figure else ("none known", NONE)
        more = f"{found.inference:,}" + (" (**larger**)" if found.inference else "")
        yield f"`{method}`", f"{found.training:,}", more, *shown, UNKNOWN, UNKNOWN, cost(method)


def _on_numbers() -> Iterator[tuple[str, ...]]:
    """The runs of the published study, the highest mean first."""
    study = json.loads(STUDY.read_text(encoding="utf-8"))
    members = {member["method"]: member for member in study["members"]}
    alone = top1_of(members[study["against"]])
    yield "method", "top-1 %, last epoch", "best epoch", f"against {study['against']}", "seeds"
    for method, member in sorted(members.items(), key=lambda item: -statistics.fmean(top1_of(item[1]).values())):
        last, best = top1_of(member), top1_of(member, "best_top1")
        difference = NONE if method == study["against"] else _difference(paired(last, alone))
        failed = len(member["runs"]) - len(last)
        seeds = f"{len(last)}, {failed} failed" if failed else str(len(last))
        yield f"`{method}`", _spread(last), _spread(best), difference, seeds


def _spread(top1: Mapping[int, float]) -> str:
    deviation = f" ± {statistics.stdev(top1.values()):.2f}" if len(top1) > 1 else ""
    return f"{statistics.fmean(top1.values()):.2f}{deviation}"


def _difference(found: Paired) -> str:
    bounds = " ({:+.2f} to {:+.2f})".format(*found.interval) if found.interval else ""
    return f"{found.mean:+.2f}{bounds}"


def cost(method: str) -> str:
    """The time of a step against one of KD, with its interval, as `python -m benchmarks.methods --write` left it."""
    if (found := _costs().get("steps", {}).get(method)) is None:
        return UNKNOWN
    bounds = " ({:.2f} to {:.2f})".format(*found["interval"]) if found["interval"] else ""
    return f"{found['ratio']:.2f}{bounds}"


def timed() -> str:
    """What times were measured with; nothing where none are."""
    measured = _costs().get("measured")
    return f"\n\nTimes of a step, with 95 % intervals: `python -m benchmarks.methods`, {measured}." if measured else ""


def _costs() -> dict[str, Any]:
    return json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.is_file() else {}


def _cited(paper: Paper | None) -> str:
    return f"{paper.authors}: *{paper.title}*. {paper.venue}, {paper.year}" if paper else NONE


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or NONE


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
