"""Methods by name, and sums of them: "letKD-2+DKD" is letKD-2 and DKD in one objective.

A method is a loss beside the cross-entropy, called by its own name, or one of the paper's: names of sums of the losses
`words` and `decisions`, each at its place, and of KD layers in the student. The canonical order of a sum is that of its
losses, whatever was written.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from config.options import PUBLISHED_NAMES
from config.schema import Option
from distillation.losses import find_loss, list_losses

ALONE = "classification"  # a network alone: cross-entropy and no teacher
PAPER = {"letKD-1": ("words",), "letKD-2": ("words", "decisions"), "QuEST": ("words",)}
PLACES = PENULTIMATE, INTERMEDIATE = "penultimate", "intermediate"  # of the words and the decisions

Config = Mapping[str, Any]


def list_methods() -> list[str]:
    """Names of all methods of a pair, in canonical order."""
    return [*PAPER, *(method for key in list_losses() if (method := find_loss(key).method))]


def brought_by(method: str) -> tuple[str, ...]:
    """Keys of the losses that a method brings."""
    return PAPER.get(method) or (method.lower(),)


def summands(expression: str) -> list[str]:
    """The methods of an expression in canonical order.

    Raises:
        ValueError: a method is missing, unknown, there twice, or two of them cannot be in one sum; names them.
    """
    names = expression.split("+")
    if not expression:
        raise ValueError("the name of a method is missing")
    for number, name in enumerate(names):
        if not name:
            where = "after '+'" if number else f"before '+{names[1]}'"
            raise ValueError(f"{expression}: a method is missing {where}")
        if name not in list_methods():
            raise ValueError(_unknown(name, known=[*list_methods(), ALONE]))
    for number, name in enumerate(names):
        for other in names[:number]:
            _check_pair(expression, other, name)
    return sorted(names, key=list_methods().index)


def _unknown(name: str, known: list[str]) -> str:
    lower = {method.lower(): method for method in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" did you mean {lower[near[0]]!r}?" if near else ""
    return f"unknown method {name!r};{hint} known: {', '.join(known)}"


def _check_pair(expression: str, one: str, other: str) -> None:
    if one == other:
        raise ValueError(f"{expression}: {one} is there twice")
    # A part that is also a method of its own stands once in a sum with it.
    shared = [key for key in brought_by(one) if key in brought_by(other) and key not in (one.lower(), other.lower())]
    if shared:
        raise ValueError(f"{expression}: {one} and {other} both bring the loss {shared[0]!r}; leave out one of them")
    if all(any(find_loss(key).replaces_classifier for key in brought_by(method)) for method in (one, other)):
        raise ValueError(f"{expression}: {one} and {other} both replace the classifier; leave out one of them")


def canonical(expression: str) -> str:
    """The expression with its methods in canonical order; errors as `summands`."""
    return expression if expression == ALONE else "+".join(summands(expression))


def supervises(config: Config, place: str) -> bool:
    """Whether an experiment's teacher supervises the scores at a place, "penultimate" or "intermediate"."""
    if config["method"] == ALONE or not config.get("supervised", True):
        return False
    return bool(config.get(place, place == "penultimate" and "QuEST" in config["method"].split("+")))


def losses_of(config: Config) -> list[str]:
    """Keys of the losses of an experiment, in canonical order.

    Raises:
        ValueError: the methods cannot be in one sum, or the scores are to be supervised and there are none.
    """
    if config.get("supervised") and not any(supervises(config, place) for place in PLACES):
        raise ValueError("supervised=True needs a KD layer: penultimate=True, intermediate=True or both")
    keys = {"ce"}
    if config["method"] != ALONE:
        keys |= {key for method in summands(config["method"]) for key in brought_by(method)}
    for key, place in zip(("words", "decisions"), PLACES, strict=True):
        keys.discard(key)
        if supervises(config, place):
            keys.add(key)
    return [key for key in list_losses() if key in keys]


def needs_teacher(config: Config) -> bool:
    """Whether a loss of an experiment reads a teacher."""
    return any(find_loss(key).needs_teacher for key in losses_of(config))


def option_of(config: Config, name: str, default: Any = None) -> Any:
    """The option `<loss>.<name>` of a configuration, whichever of its names it has there."""
    return config.get(name, config.get(PUBLISHED_NAMES.get(name), default))


def places_of(config: Config, key: str) -> tuple[str, str]:
    """Where a loss with one place reads the student and the teacher: names of places, or module paths."""
    usual = {field.name: field.default for field in find_loss(key).options()}
    return tuple(option_of(config, f"{key}.{name}", usual[name]) for name in ("place", "teacher_place"))


def described(name: str) -> Option | None:
    """An option of a loss, `dkd.nckd`; None for those of others."""
    key, dot, _ = name.partition(".")
    return find_loss(key).described().get(name) if dot and key in list_losses() else None


def weights_of(config: Config) -> dict[str, float]:
    """Weights of the terms by name, in canonical order."""
    losses = [find_loss(key) for key in losses_of(config)]
    return {
        loss.term_name(term): option_of(config, loss.weight_option(term), weight)
        for loss in losses
        for term, weight in loss.terms.items()
    }


def default_options(methods: list[str], teacher: str, student: str) -> dict[str, Any]:
    """Options and weights of the methods of a sum, by their names on the command line.

    Those of the paper's methods are in their recipes. Cross-entropy has the weight that is published with a method
    where that stands alone, and else 1.
    """
    options: dict[str, Any] = {}
    keys = {key for method in methods for key in brought_by(method)} - {"words", "decisions"}
    for key in (key for key in list_losses() if key in keys):
        loss = find_loss(key)
        own = loss.published.get((teacher, student), {})
        weights = {loss.weight_option(term): float(own[term]) for term in loss.terms if term in own}
        others = {f"{key}.{field.name}": own[field.name] for field in loss.options() if field.name in own}
        options |= {name: said.default for name, said in loss.described().items()} | weights | others
        if len(methods) == 1:
            options["ce.weight"] = float(own.get("ce", loss.ce))
    return options
