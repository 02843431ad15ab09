"""Parameters by pattern: which stay as they are, which learn faster or slower, and which weight decay leaves out.

A pattern names tensors as a checkpoint does: `backbone.conv1.weight` in a student with KD layers, which are
`layers.penultimate`, `conv1.weight` in a network alone, and `losses.fitnet.regressor.0.weight` in a loss. In it * is
anything, dots too. What it names may also be a module, and then is all that is in there: `backbone.layer1`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from config.options import Protocol

STUDENT = "student."  # what names in an objective begin with, and in a checkpoint do not
SHOWN = 8  # names in an error


def freeze(objective: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Let parameters have no gradient from now on.

    A BatchNorm whose running statistics a pattern names too, as `backbone.bn1` does and `backbone.bn1.weight` does not,
    keeps them, and normalises by them in training as well: a frozen part computes what it computed before, unless it
    has dropout or stochastic depth, which go on.

    Returns:
        These BatchNorms, which have to be in eval mode whenever the objective trains.

    Raises:
        ValueError: a pattern names nothing, or nothing is left to train.
    """
    parameters = _named_parameters(objective)
    norms = {
        f"{_own_name(path)}.running_mean": module
        for path, module in objective.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    for pattern in patterns:
        _refuse_unknown("freeze", pattern, [*parameters, *norms])
    for name in _fitting(parameters, patterns):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"freeze={list(patterns)} leaves nothing that trains")
    return [norms[name] for name in _fitting(norms, patterns)]


def parameter_groups(objective: nn.Module, protocol: Protocol) -> list[dict[str, Any]]:
    """What trains, for an optimizer: for each factor of the learning rate a group of what decays and one of what is
    left out of weight decay, in order. Another `weight_decay`, 0 too, makes no other groups.

    Raises:
        ValueError: `learning_rates` are no patterns with factors, or one names nothing that trains.
    """
    trains = {name: each for name, each in _named_parameters(objective).items() if each.requires_grad}
    factors = {}
    for pattern, factor in rate_factors(protocol.learning_rates):
        _refuse_unknown("learning_rates", pattern, trains)
        factors |= dict.fromkeys(_fitting(trains, [pattern]), factor)
    exempt = set() if protocol.decay_norms_and_biases else _without_decay(objective)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trains.items():
        groups[name in exempt, factors.get(name, 1.0)].append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if is_exempt else protocol.weight_decay, "rate_factor": factor}
        for (is_exempt, factor), params in groups.items()
    ]


def rate_factors(said: Iterable[str]) -> list[tuple[str, float]]:
    """Patterns and factors of `learning_rates`.

    Raises:
        ValueError: one is no pattern with a factor above 0 behind it.
    """
    found = []
    for text in said:
        pattern, _, factor = text.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = 0.0
        if not (pattern and 0 < value < float("inf")):
            raise ValueError(f"learning_rates: {text!r} must be a pattern and a factor above 0, like 'backbone.*=0.1'")
        found.append((pattern, value))
    return found


def _named_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    return {_own_name(name): parameter for name, parameter in objective.named_parameters()}


def _own_name(name: str) -> str:
    return name.removeprefix(STUDENT)


def _fitting(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _without_decay(objective: nn.Module) -> set[str]:
    """Names of all parameters of one dimension at most, and of those that `no_weight_decay` of a network lists, as of
    timm's.
    """
    listed = {
        _own_name(f"{path}.{name}")
        for path, module in objective.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }
    return listed | {name for name, parameter in _named_parameters(objective).items() if parameter.ndim <= 1}


def _refuse_unknown(option: str, pattern: str, names: Iterable[str]) -> None:
    """Raise `ValueError` where a pattern names nothing; says what there is, by its modules."""
    names = list(names)
    if _fitting(names, [pattern]):
        return
    modules = list(dict.fromkeys(".".join(name.split(".")[:-1][:2]) or name for name in names))
    more = f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else ""
    raise ValueError(f"{option}: nothing here is called {pattern!r}; there are {', '.join(modules[:SHOWN])}{more}")
