"""Methods by name, and sums of them: "letKD-2+DKD" is letKD-2 and DKD in one objective.

A method is a loss beside the cross-entropy, called by its own name, or one of the paper's: names of sums of the losses
`words` and `decisions`, each at its place, and of KD layers in the student. In front of one on logits may stand
transforms, "ctkd:lskd:KD". The canonical order of a sum is that of its losses, and of transforms the one in which they
act, whatever was written.
"""

import difflib
import re
from typing import Any

from config.options import ALONE, EMA, Options, Pair
from config.schema import Option
from distillation.losses import LogitLoss, Paper, find_loss, find_transform, list_losses, list_transforms
from distillation.losses.base import INTERMEDIATE, PENULTIMATE

PLUS_PLUS = "KDPP"  # KD++, because + stands between methods
LETKD = Paper("Gorgun, Gurbuz, Alatan", "Knowledge Distillation Layer that Lets the Student Decide", "BMVC", 2023)
PAPER = {"letKD-1": ("words",), "letKD-2": ("words", "decisions"), "QuEST": ("words",)}
SOURCES = {
    "letKD-1": LETKD,
    "letKD-2": LETKD,
    "QuEST": Paper(
        "Jain, Gidaris, Komodakis, Pérez, Cord",
        "QuEST: Quantized Embedding Space for Transferring Knowledge",
        "ECCV",
        2020,
    ),
}
PLACES = PENULTIMATE, INTERMEDIATE  # of the words and the decisions


def list_methods() -> list[str]:
    """Names of all methods of a pair, in canonical order."""
    return [*PAPER, *(method for key in list_losses() if (method := find_loss(key).method))]


def paper_of(method: str) -> Paper | None:
    """Where a method was published; None for one of one's own."""
    return SOURCES[method] if method in PAPER else find_loss(method.lower()).paper


def parts(summand: str) -> tuple[tuple[str, ...], str]:
    """The transforms of a summand as they are written, and its method: ("ctkd", "lskd"), "KD" of "ctkd:lskd:KD"."""
    *transforms, method = summand.split(":")
    return tuple(transforms), method


def brought_by(summand: str) -> tuple[str, ...]:
    """Keys of the losses that a method brings, with transforms in front of it or without."""
    _, method = parts(summand)
    return PAPER.get(method) or (method.lower(),)


def split(expression: str) -> list[str]:
    """What stands between the pluses; parentheses are read as colons, lskd(KD) as lskd:KD."""
    while (plain := re.sub(r"(\w+)\(([^()+]*)\)", r"\1:\2", expression)) != expression:
        expression = plain
    return expression.split("+")


def summands(expression: str) -> list[str]:
    """The methods of an expression in canonical order, with their transforms in theirs.

    Raises:
        ValueError: a method is missing, unknown, there twice, or two of them cannot be in one sum, or a transform is
            unknown or cannot stand there; names them.
    """
    names = split(expression)
    if not expression:
        raise ValueError("the name of a method is missing")
    for number, name in enumerate(names):
        if not name:
            where = "after '+'" if number else f"before '+{names[1]}'"
            raise ValueError(f"{expression}: a method is missing {where}{_meant(expression)}")
        transforms, method = parts(name)
        if method not in list_methods():
            raise ValueError(_unknown("method", method, known=[*list_methods(), ALONE]))
        for transform in transforms:
            if transform not in list_transforms():
                raise ValueError(_unknown("transform", transform, known=list_transforms()))
        _check_transforms(transforms, method)
    for number, name in enumerate(names):
        for other in names[:number]:
            _check_pair(expression, other, name)
    return sorted(map(_ordered, names), key=lambda name: list_methods().index(parts(name)[1]))


def _ordered(summand: str) -> str:
    transforms, method = parts(summand)
    return ":".join([*sorted(transforms, key=list_transforms().index), method])


def _unknown(kind: str, name: str, known: list[str]) -> str:
    lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" did you mean {lower[near[0]]!r}?" if near else ""
    return f"unknown {kind} {name!r};{hint} known: {', '.join(known)}"


def _meant(expression: str) -> str:
    """A hint where a name ends in ++: KD++ is called KDPP here, and its sums, like DKD++, are sums with it."""

    def named(found: re.Match[str]) -> str:
        return PLUS_PLUS if found[1] == "KD" else f"{found[1]}+{PLUS_PLUS}"

    meant = re.sub(r"([\w:-]+)\+\+(?=\+|$)", named, expression)
    return "" if meant == expression else f"; did you mean {meant!r}?"


def _check_transforms(transforms: tuple[str, ...], method: str) -> None:
    for number, name in enumerate(transforms):
        said = f"{name}:{method}"
        if name in transforms[:number]:
            raise ValueError(f"{':'.join([*transforms, method])}: {name} is there twice")
        loss = None if method in PAPER else find_loss(method.lower())
        if loss is None or not issubclass(loss, LogitLoss):
            others = (find_loss(key) for key in list_losses())
            known = ", ".join(other.method for other in others if issubclass(other, LogitLoss) and other.method)
            raise ValueError(f"{said}: {name} stands in front of a loss on logits, and {method} is none; try {known}")
        transform = find_transform(name)
        if lacking := set(transform.replaces) - set(loss.defaults()):
            raise ValueError(f"{said}: {name} sets the {min(lacking)}, and {method} has none; leave out {name}")
        if transform.weighs_rows and not loss.per_sample:
            raise ValueError(
                f"{said}: {name} weighs what {method} compares, which is no mean over samples; leave it out"
            )
        for option in transform.replaces:
            if both := [other for other in transforms[:number] if option in find_transform(other).replaces]:
                raise ValueError(
                    f"{':'.join([*transforms, method])}: {both[0]} and {name} both set the {option}; "
                    "leave out one of them"
                )


def _check_pair(expression: str, one: str, other: str) -> None:
    if parts(one)[1] == parts(other)[1]:
        raise ValueError(f"{expression}: {parts(one)[1]} is there twice")
    # A part that is also a method of its own stands once in a sum with it.
    shared = [key for key in brought_by(one) if key in brought_by(other) and key not in (one.lower(), other.lower())]
    if shared:
        raise ValueError(f"{expression}: {one} and {other} both bring the loss {shared[0]!r}; leave out one of them")
    if all(any(find_loss(key).replaces_classifier for key in brought_by(method)) for method in (one, other)):
        raise ValueError(f"{expression}: {one} and {other} both replace the classifier; leave out one of them")


def canonical(expression: str) -> str:
    """The expression with its methods in canonical order; errors as `summands`."""
    return expression if expression == ALONE else "+".join(summands(expression))


def alphas_of(options: Options) -> dict[str, float]:
    """The KD layers of an experiment by their places: the weights of their values."""
    layers, found = options.layers, {}
    if layers and layers.penultimate:
        found[PENULTIMATE] = layers.alpha_penultimate
    if layers and layers.intermediate:
        found[INTERMEDIATE] = options.decisions.alpha_intermediate
    return found


def supervises(options: Options, place: str) -> bool:
    """Whether an experiment's teacher supervises the scores at a place, "penultimate" or "intermediate"."""
    method = options.experiment.method
    if method == ALONE or (options.control and not options.control.supervised):
        return False
    if options.layers is None:
        return place == PENULTIMATE and "QuEST" in method.split("+")
    return place in alphas_of(options)


def losses_of(options: Options) -> list[str]:
    """Keys of the losses of an experiment, in canonical order.

    Raises:
        ValueError: the methods cannot be in one sum, or the scores are to be supervised and there are none.
    """
    if options.control and options.control.supervised and not any(supervises(options, place) for place in PLACES):
        raise ValueError("supervised=True needs a KD layer: penultimate=True, intermediate=True or both")
    method, keys = options.experiment.method, {"ce"}
    if method != ALONE:
        keys |= {key for name in summands(method) for key in brought_by(name)}
    for key, place in zip(("words", "decisions"), PLACES, strict=True):
        keys.discard(key)
        if supervises(options, place):
            keys.add(key)
    return [key for key in list_losses() if key in keys]


def transforms_of(method: str) -> dict[str, tuple[str, ...]]:
    """Transforms in front of losses, in the order in which they act, by the keys of these losses."""
    if method == ALONE:
        return {}
    found = {brought_by(name)[0]: parts(name)[0] for name in summands(method)}
    return {key: transforms for key, transforms in found.items() if transforms}


def parts_of(options: Options) -> list[str]:
    """Keys of all that has options of its own, with a point behind them: losses and transforms."""
    there = {name for transforms in transforms_of(options.experiment.method).values() for name in transforms}
    return [*losses_of(options), *(name for name in list_transforms() if name in there)]


def needs_teacher(options: Options) -> bool:
    """Whether a loss of an experiment reads a teacher."""
    return any(find_loss(key).needs_teacher for key in losses_of(options))


def needs_weights(options: Options) -> bool:
    """Whether that teacher has weights of its own, which were trained before."""
    return needs_teacher(options) and options.pair.teacher != EMA


def teacher_network(pair: Pair) -> str | None:
    """The network that the teacher is; the average of a student is one like it."""
    return pair.student if pair.teacher == EMA else pair.teacher


def check_teacher(options: Options) -> None:
    """Refuse to train with methods that need a teacher and no teacher, or with the average of the student as one where
    it cannot be it.

    Raises:
        ValueError: says what is missing or what does not fit.
    """
    method, pair = options.experiment.method, options.pair
    if needs_teacher(options) and pair.teacher is None:
        raise ValueError(
            f"{method} needs a teacher, and {options.job.config} has none: teacher=ema is the average of the student, "
            "which the run makes itself; another network is one in a pair"
        )
    if pair is None or pair.teacher != EMA:
        return
    if not needs_teacher(options):
        raise ValueError(f"{method} reads no teacher: leave out teacher=ema; average=True keeps the average beside it")
    losses = {key: find_loss(key) for key in losses_of(options)}
    if built := [loss.method or key for key, loss in losses.items() if loss.prepared or loss.reads_weights]:
        raise ValueError(
            f"teacher=ema: {built[0]} is built from the weights of a trained teacher, and the average of the student "
            "is trained by the run itself; choose another teacher, or a method like KD, DKD, FitNet or AT"
        )
    given = {
        "teacher_experiment": pair.teacher_experiment,
        "teacher_weights": pair.teacher_weights,
        "published_weights": options.experiment.published_weights,
    }
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"teacher=ema has the weights of the run alone; leave out {option}={value}")


def places_of(options: Options, key: str) -> tuple[str, str]:
    """Where a loss with one place reads the student and the teacher: names of places, or module paths."""
    usual = {field.name: field.default for field in find_loss(key).options()}
    return tuple(options.of_loss(f"{key}.{name}", usual[name]) for name in ("place", "teacher_place"))


def described(name: str) -> Option | None:
    """An option of a loss or transform, `dkd.nckd`; None for those of others."""
    key, dot, _ = name.partition(".")
    if not dot or key not in (*list_losses(), *list_transforms()):
        return None
    return (find_loss(key) if key in list_losses() else find_transform(key)).described().get(name)


def weights_of(options: Options) -> dict[str, float]:
    """Weights of the terms by name, in canonical order."""
    losses = [find_loss(key) for key in losses_of(options)]
    return {
        loss.term_name(term): options.of_loss(loss.weight_option(term), weight)
        for loss in losses
        for term, weight in loss.terms.items()
    }


def default_options(methods: list[str], teacher: str, student: str) -> dict[str, Any]:
    """Options and weights of the methods of a sum, by their names on the command line.

    Those of the paper's methods are in their recipes. Cross-entropy has the weight that is published with a method
    where that stands alone, and else 1; a term that yields to a loss on logits has 0 beside one.
    """
    options: dict[str, Any] = {}
    by_key = {key: method for method in methods for key in brought_by(method) if method not in PAPER}
    on_logits = {key for key in by_key if issubclass(find_loss(key), LogitLoss)}
    for key in (key for key in list_losses() if key in by_key):
        loss, (transforms, _) = find_loss(key), parts(by_key[key])
        own = published(by_key[key], teacher, student)
        if on_logits - {key}:
            own |= dict.fromkeys(loss.yields, 0.0)
        weights = {loss.weight_option(term): float(own[term]) for term in loss.terms if term in own}
        options |= {name: said.default for name, said in loss.described().items()} | weights
        for part in (loss, *map(find_transform, transforms)):
            defaults = part.defaults()
            options |= {f"{part.key}.{name}": own.get(name, default) for name, default in defaults.items()}
        for replaced in (name for each in transforms for name in find_transform(each).replaces):
            del options[f"{key}.{replaced}"]
        if len(methods) == 1:
            options["ce.weight"] = float(own.get("ce", loss.ce))
    return options


def published(summand: str, teacher: str, student: str) -> dict[str, Any]:
    """What is published for a method and its transforms, of a pair: terms and options by their own names, and "ce"."""
    transforms, inner = parts(summand)
    found = dict(find_loss(inner.lower()).published.get((teacher, student), {}))
    for name in reversed(transforms):
        known = find_transform(name).published.get(inner, {})
        found |= {**known.get(None, {}), **known.get((teacher, student), {})}
        inner = f"{name}:{inner}"
    return found
