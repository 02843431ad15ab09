"""Architectures by name, after the conventions of timm.

resnet56               a network of this package, or of a file that calls `register_model`
timm/NAME              any classifier of timm; torchvision/NAME likewise
my.module:function     a function or class of your own that takes num_classes= and returns a network
NAME(width=2)          any of these with keyword arguments of its builder, as a call of Python
"""

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from architectures.calls import split_call
from architectures.on_meta import ShapesAlone

Builder = Callable[..., nn.Module]

NEAREST = 3  # names of a library in an error
# Arguments that the networks of libraries have, and that options say.
OF_WEIGHTS = "pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir weights weights_backbone"
SAID_ELSEWHERE = {
    "num_classes": "the images say how many classes there are",
    **dict.fromkeys(OF_WEIGHTS.split(), "weights are options of their own: weights=, teacher_weights=, init="),
}

_BUILDERS: dict[str, Builder] = {}
_LIBRARIES: dict[str, Builder] = {}
_LISTS: dict[str, Callable[[], list[str]]] = {}


def register_model(builder: Builder, name: str | None = None) -> Builder:
    """Makes `builder(num_classes=..., **kwargs)` available to `create_model`; returns it, so that it also decorates.

    Args:
        name: what users write; the builder's own name if left out.

    Raises:
        ValueError: the name is taken.
    """
    name = name or builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"architecture {name!r} is registered already; choose another name")
    _BUILDERS[name] = builder
    return builder


def register_library(prefix: str, names: Callable[[], list[str]]) -> Callable[[Builder], Builder]:
    """Decorates `builder(name, num_classes=..., image_size=...)`, which makes the networks called `prefix/name`.

    `image_size` is that of the images, for networks that have one size, or None for their own. It also gets those of
    `dropout` and `drop_path` that are given, and keyword arguments in a network's name.

    Args:
        names: of all networks of the library, none where it is not installed.
    """

    def register(builder: Builder) -> Builder:
        _LIBRARIES[prefix], _LISTS[prefix] = builder, names
        return builder

    return register


def create_model(
    name: str,
    num_classes: int = 100,
    *,
    image_size: int | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A freshly initialised network; further keywords go to its builder.

    Args:
        name: with or without keyword arguments for the builder.
        image_size: of the images that it shall see; read by networks of other libraries that have one size.
        dropout, drop_path: rates in training, of units and of whole residuals (stochastic depth); None for its own. A
            builder gets those that are given, and a library calls them by its own names.

    Raises:
        ValueError: no architecture has this name, its library is not installed, or it takes no such rate or argument.
    """
    rates = {key: rate for key, rate in (("dropout", dropout), ("drop_path", drop_path)) if rate is not None}
    plain, arguments = split_call(name)
    _check_arguments(plain, arguments, rates)
    try:
        return _create(plain, num_classes, image_size, **rates, **arguments, **kwargs)
    except TypeError as error:
        given = rates | arguments
        if given and "keyword argument" in str(error):
            refused = [key for key in given if f"'{key}" in str(error)] or given  # a library calls rates otherwise
            said = " and ".join(f"{key}={given[key]!r}" for key in refused)
            raise ValueError(f"{plain} does not take {said} ({error}); leave it out") from error
        _raise_what_arguments_do(name, error)
    except Exception as error:  # a library can refuse its arguments in any way
        _raise_what_arguments_do(name, error)


def _check_arguments(plain: str, arguments: Mapping[str, Any], rates: Mapping[str, float]) -> None:
    """Refuse arguments in a network's name that are options, or are said by one too.

    Raises:
        ValueError: names the first.
    """
    of_library = plain.partition("/")[0] in _LIBRARIES
    for key, value in arguments.items():
        if key in SAID_ELSEWHERE and (of_library or key == "num_classes"):
            raise ValueError(f"{plain}({key}={value!r}): {SAID_ELSEWHERE[key]}; leave {key} out")
        if key in rates:
            raise ValueError(f"{plain}({key}={value!r}) and {key}={rates[key]} are one rate; leave out one of them")


def _raise_what_arguments_do(name: str, error: Exception) -> NoReturn:
    """What went wrong while a network was built: in one line where its name has arguments, if not in one's own code."""
    plain, arguments = split_call(name)
    is_on_meta = torch.get_default_device().type == "meta"  # where it may only want numbers
    if not arguments or ":" in plain or (is_on_meta and isinstance(error, RuntimeError)):
        raise error
    reason = (str(error).splitlines() or [""])[0]
    raise ValueError(f"{name} cannot be built: {reason or type(error).__name__}") from error


def _create(name: str, num_classes: int, image_size: int | None, **options: Any) -> nn.Module:
    if name in _BUILDERS:
        return _BUILDERS[name](num_classes=num_classes, **options)
    prefix, slash, rest = name.partition("/")
    if slash and prefix in _LIBRARIES:
        return _LIBRARIES[prefix](rest, num_classes=num_classes, image_size=image_size, **options)
    if ":" in name:
        return _network_of_a_function(name, num_classes=num_classes, **options)
    others = [*(f"{library}/NAME" for library in _LIBRARIES), "my.module:function"]
    bare = rest or name  # behind another word for the library
    elsewhere = [f"{library}/{bare}" for library, names in _LISTS.items() if bare in names()]
    raise ValueError(f"{unknown_name(name, list_models(), also=elsewhere)}, {', '.join(others)}")


def renamed(keywords: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Keywords with those in `names` called as a library calls them."""
    return {names.get(key, key): value for key, value in keywords.items()}


def create_on_meta(name: str, num_classes: int = 100, **options: Any) -> nn.Module:
    """As `create_model`, without numbers in it where that is possible: to be looked at."""
    try:
        with torch.device("meta"), ShapesAlone():
            return create_model(name, num_classes, **options)
    except (NotImplementedError, RuntimeError):  # it computes with numbers while it is built
        return create_model(name, num_classes, **options)


def unknown_name(
    name: str, known: Iterable[str], *, also: Iterable[str] = (), nearest: int = 1, listed: str | None = None
) -> str:
    """What is said of a name that no architecture has.

    Args:
        also: names that may be meant too.
        nearest: so many of the known ones are named that are like it.
        listed: where the known ones are listed, if they are too many to be named.
    """
    known = list(known)
    meant = dict.fromkeys((*difflib.get_close_matches(name, known, n=nearest), *also))
    hint = f" did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    return f"unknown architecture {name!r};{hint} known: {listed or ', '.join(known)}"


def is_model(name: str) -> bool:
    return name in _BUILDERS


def list_models() -> list[str]:
    """All names of this package, numbers inside them in counting order: resnet8 before resnet14."""
    return sorted(_BUILDERS, key=_natural_order)


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _network_of_a_function(name: str, **options: Any) -> nn.Module:
    """What `my.module:function` returns; what goes wrong inside of it is shown as it is."""
    path, _, attribute = name.partition(":")
    must = "my.module:function names a function or class that takes num_classes= and returns a torch network"
    try:
        module = importlib.import_module(path)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        missing = getattr(error, "name", None)
        if missing and not f"{path}.".startswith(f"{missing}."):
            raise
        raise ValueError(f"{name!r}: there is no module {path!r}; {must}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{name!r}: {path} has no function {attribute!r}; {must}")
    network = function(**options)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name!r} returns a {type(network).__name__}; {must}")
    if not any(True for _ in network.parameters()):
        raise ValueError(f"{name!r} returns a network without parameters; {must}")
    return network
