"""Experiments by name.

`config=A.B.C` is the module config/A/B/C.py where there is one. Otherwise the last part is a method or a sum of methods
for a pair: the package config/A/B/ holds a dictionary `pair`, and `A.B.letKD-2+DKD` needs no file of its own. So it is
behind a network alone, `A.RN8.LS` and `A.RN8.KD` with teacher=ema, which is a pair whose teacher is not said. What a
method brings is asked of `distillation`, which takes a second to import and is left alone where there is a module.

A run with other networks than its experiment's, or by another protocol, has a name of its own, `name=mine.pair`, and
so its own directory.
"""

import copy
import difflib
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import config as config_package
from config import network_names, recipes
from config.former_names import renamed_aloud
from config.options import (
    ALONE,
    EMA,
    ENTRY,
    PUBLISHED_NAMES,
    Augmentation,
    Config,
    Data,
    Protocol,
    names,
    values_of,
)
from config.protocols import published_options
from config.schema import options_of
from storage.documents import first_line

ENTRY_OPTIONS = values_of(*ENTRY)  # of every command, with their defaults
# Recipes of the methods that have options beside those of losses: what a sum with one of them is made of.
OF_THE_PAPER = {"QuEST": recipes.quest, "letKD-1": recipes.letkd1, "letKD-2": recipes.letkd2}


NETWORKS = ("teacher", "student", "network")
# What networks see, by the options that begin with what the network is called.
INPUTS = {role: tuple(key for key in names(bears="input") if key.startswith(f"{role}_")) for role in NETWORKS}
# What an experiment says of its network or teacher, and what is not so of another one, or of one trained elsewhere.
OF_THE_NETWORK = {
    "teacher": ("teacher_experiment", "supervision", "published_weights", *INPUTS["teacher"]),
    "teacher_experiment": ("supervision", "published_weights"),
    "student": INPUTS["student"],
    "network": ("trained_as", "published_weights", "published_top1", *INPUTS["network"]),
}
DEFAULT_RATE = values_of(Protocol)["learning_rate"]
NAME = re.compile(r"[\w+:-]+(\.[\w+:-]+)+")  # every part a folder
NO_FOLDERS = re.compile(
    r"vq|lda|class_means|sacred|report|replaced|studies|tensorboard|pictures|export|variants|weights|seed\d+"
)


class NoExperimentError(ValueError):
    """A module below config/ that only helps others."""


def default_config(name: str) -> Config:
    """Options of every command and of the experiment `name`, as they are before anything is overridden."""
    return copy.deepcopy(ENTRY_OPTIONS) | load_experiment(name) | {"config": canonical_name(name)}


def default_configs() -> tuple[dict[str, Config], dict[str, str]]:
    """The options of all experiments by name, and the files below config/ that are no use, with the error."""
    configs, unreadable = {}, {}
    for name in list_experiments():
        try:
            own = default_config(name)
        except NoExperimentError:
            continue
        except Exception as error:  # a module of the user's own can fail in any way
            unreadable[config_file(name)] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if isinstance(own.get("method"), str) and isinstance(own.get("dataset"), str):
            configs[name] = own
        else:
            unreadable[config_file(name)] = "its config names no method and dataset; config/recipes.py makes whole ones"
    return configs, unreadable


def composed_config(name: str) -> Config | None:
    """The options of a sum of methods, which has no module; None where there is no such experiment, or no longer."""
    try:
        return default_config(name)
    except Exception:  # as there
        return None


def list_experiments() -> list[str]:
    """Names of all experiments that have a module below config/."""
    root = Path(config_package.__path__[0])
    files = (path.relative_to(root) for path in root.glob("*/**/*.py"))
    return sorted(".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py")


def load_experiment(name: str) -> Config:
    """The dictionary of an experiment.

    Raises:
        ValueError: there is no such experiment; names the nearest.
    """
    module = _module(name)
    if _is_experiment(module):
        return with_spelled_networks(renamed_aloud(copy.deepcopy(module.config), config_file(name)))
    if module is not None and name in list_experiments():
        raise NoExperimentError(f"{config_file(name)} is no experiment: it holds no dictionary `config`")
    return with_spelled_networks(_composed(*_split(name)))


def with_spelled_networks(config: Config) -> Config:
    """Options with one spelling of the networks that they name."""
    said = {key: config[key] for key in NETWORKS if isinstance(config.get(key), str)}
    return config | {key: network_names.spelled(name) for key, name in said.items()}


def canonical_name(name: str) -> str:
    """The name of an experiment with its methods in canonical order: A.B.DKD+letKD-2 is A.B.letKD-2+DKD.

    Raises:
        ValueError: there is no such experiment; names the nearest.
    """
    if _is_experiment(_module(name)) or name in list_experiments():
        return name
    prefix, methods = _split(name)
    return f"{prefix}.{'+'.join(methods)}"


def defaults_for(defaults: Config, updates: Config) -> Config:
    """The options of an experiment as they are before the rest is set: some of them decide others.

    Nothing is known of what has trained another teacher: its weights or its experiment are to be given. What is
    published for a pair or a student, coefficients and the learning rate, is that of the networks of the run; a value
    that is not the one for the experiment's own networks stays. A published protocol brings optimisation, images, and
    the coefficients of the method for the pair.

    Raises:
        ValueError: `protocol=published` is not known for this method, pair and data set.
    """
    found = dict(defaults)
    changed = {key for key in defaults if updates.get(key, defaults[key]) != defaults[key]}
    for key in changed & set(OF_THE_NETWORK):
        found |= {other: None for other in OF_THE_NETWORK[key] if other in defaults}
    others = {key: updates[key] for key in NETWORKS if key in changed}
    if others:
        found |= _published_for(others, defaults)
    if updates.get("protocol", defaults.get("protocol")) == "published":
        given = others | {"dataset": updates.get("dataset", defaults["dataset"])}
        published = published_options(defaults | given)
        if defaults["method"] != ALONE:
            found |= _loss_options(defaults["method"].split("+"), defaults | given)
        found |= published
    return found


def _published_for(networks: Config, defaults: Config) -> Config:
    """Coefficients and learning rate of other networks, where an experiment has those published for its own."""

    def published(config: Config) -> Config:
        rate = {"learning_rate": DEFAULT_RATE} | recipes.learning_rate(config.get("student") or config.get("network"))
        return rate if config["method"] == ALONE else rate | _loss_options(config["method"].split("+"), config)

    own = published(defaults)
    return {key: value for key, value in published(defaults | networks).items() if defaults.get(key) == own[key]}


def trains_alone(network: str | None, configs: Mapping[str, Config], *, folder: str) -> str | None:
    """The experiment that trains a network alone, in a folder of config/ if there is one; None where there is none.

    Args:
        configs: the options of experiments, by name.
    """
    names = [
        name
        for name, config in configs.items()
        if config["method"] == ALONE and config.get("network") == network and not config.get("trained_as")
    ]
    return min(names, key=lambda name: (name.rpartition(".")[0] != folder, name), default=None)


def own_options(config: Config) -> Config:
    """The options of a run that are not what its experiment says: what a command has to say, so that it is that run."""
    usual = defaults_for(default_config(config["config"]), config)
    return {key: value for key, value in config.items() if key in usual and value != usual[key]}


def is_experiment(name: str) -> bool:
    """Whether this is an experiment of config/, and not only the name of a run."""
    try:
        return canonical_name(name) is not None
    except ValueError:
        return False


def check_name(config: Config) -> None:
    """Refuse a run of other networks or another protocol than its experiment's that has no name of its own, and a name
    that cannot be one.

    Raises:
        ValueError: says what is needed.
    """
    own, name = load_experiment(config["config"]), config["name"]
    if name is None:
        if other := [f"{key}={network}" for key, network in changed_networks(config).items()]:
            raise ValueError(
                f"{' '.join(other)} is another network than that of {config['config']}: such a run needs a name of its "
                "own, name=mine.pair for example"
            )
        if config.get("protocol") != own.get("protocol"):
            raise ValueError(
                f"protocol={config['protocol']} is another training than that of {config['config']}: such a run needs "
                f"a name of its own, name={config['protocol']}.{config['config']} for example"
            )
        return
    if not NAME.fullmatch(name):
        raise ValueError(f"name={name!r} must be names of folders with dots between them, like mine.pair.letKD-2")
    if taken := [part for part in name.split(".") if NO_FOLDERS.fullmatch(part.lower())]:
        raise ValueError(f"name={name!r}: the program itself has folders called {taken[0]!r}; choose another name")
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if is_experiment(prefix := ".".join(parts[:end])):
            where = "is" if end == len(parts) else f"lies in the folder of {prefix},"
            raise ValueError(f"name={name!r} {where} an experiment of config/; choose another name")
    if Path(config_package.__path__[0], *parts).is_dir():
        raise ValueError(f"name={name!r} is the folder of experiments of config/; choose another name")


def changed_networks(config: Config) -> dict[str, str]:
    """The networks of a run that are others than its experiment's, by option."""
    own = load_experiment(config["config"])
    changed = {key: config[key] for key in NETWORKS if key in own and config[key] != own[key]}
    if own.get("teacher", EMA) is None and changed.get("teacher") == EMA:  # a network alone has no other teacher
        del changed["teacher"]
    return changed


def config_file(name: str) -> str:
    """Where the module of an experiment is."""
    return f"config/{name.replace('.', '/')}.py"


def _module(name: str) -> ModuleType | None:
    """The module or package config.<name>; None where there is none."""
    if not isinstance(name, str) or not all(name.split(".")):
        return None
    module = f"config.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return None


def _is_experiment(module: ModuleType | None) -> bool:
    return isinstance(getattr(module, "config", None), dict)


def _pair_of(module: ModuleType | None) -> Config | None:
    """The dictionary `pair` of a package; of a network alone what it says of one, in which nothing is a teacher yet."""
    if _is_experiment(module) and module.config.get("method") == ALONE:
        groups = (Data, Augmentation, Protocol)
        shared = [key for group in groups for key in options_of(group) if key in module.config]
        sees = {f"student{key.removeprefix('network')}": module.config.get(key) for key in INPUTS["network"]}
        own = {"teacher": None, "student": module.config["network"]} | sees
        return own | {key: module.config[key] for key in shared}
    pair = getattr(module, "pair", None) if hasattr(module, "__path__") else None
    return pair if isinstance(pair, dict) else None


def _split(name: str) -> tuple[str, list[str]]:
    """The longest prefix that is a pair or a network alone, and the methods behind it in canonical order."""
    if _pair_of(_module(name)):
        example = next((own for own in list_experiments() if own.startswith(f"{name}.")), f"{name}.letKD-2")
        raise ValueError(f"config={name} is a pair, and a method is missing behind it; try config={example}")
    parts = str(name).split(".")
    for end in range(len(parts) - 1, 0, -1) if all(parts) else ():
        prefix, expression = ".".join(parts[:end]), ".".join(parts[end:])
        module = _module(prefix)
        if _pair_of(module):
            return prefix, _summands(prefix, expression)
    raise ValueError(unknown("config", str(name), list_experiments()))


def _summands(prefix: str, expression: str) -> list[str]:
    """The methods of an expression behind a pair or a network alone, in canonical order.

    Raises:
        ValueError: one is missing or unknown, or they do not make a sum.
    """
    from distillation.expressions import list_methods, parts, split, summands

    known = list_methods()
    names = split(expression)

    def nearest(name: str) -> list[str]:
        transforms, method = parts(name)
        return [":".join([*transforms, other]) for other in _nearest(method, known)]

    for number, name in enumerate(names):
        _, method = parts(name)
        if name and method not in known:
            if not (near := nearest(name)):
                raise ValueError(
                    f"unknown method {method!r} in {f'{prefix}.{expression}'!r}; known: {', '.join(known)}"
                )
            rest = [next(iter(nearest(other)), other) for other in names]
            meant = (f"{prefix}.{'+'.join([*rest[:number], other, *rest[number + 1 :]])}" for other in near)
            raise ValueError(f"unknown method {method!r}; did you mean config={' or '.join(map(repr, meant))}?")
    return summands(expression)


def _composed(prefix: str, methods: list[str]) -> Config:
    """The dictionary of a sum of methods for a pair, or for a network alone.

    Options of the paper's methods are those of the pair's own module, where it has one; the losses bring their own,
    their weights by their published names where they have such.
    """
    pair = _pair_of(_module(prefix))
    of_the_paper = next((method for method in methods if method in OF_THE_PAPER), None)
    module = _module(f"{prefix}.{of_the_paper}")
    if of_the_paper is None:
        found = recipes.taught(**pair)
    else:
        found = copy.deepcopy(module.config) if _is_experiment(module) else OF_THE_PAPER[of_the_paper](**pair)
    return found | _loss_options(methods, found) | {"method": "+".join(methods)}


def _loss_options(methods: list[str], config: Config) -> Config:
    """What the losses of methods bring for the pair of a dictionary, by the names that options have there."""
    from distillation.expressions import default_options

    options = {"ce.weight": 1.0} | default_options(methods, config["teacher"], config["student"])
    if "cls_loss_coef" in config:
        del options["ce.weight"]  # which has this name there
    published = {key: name for key, name in PUBLISHED_NAMES.items() if key != "ce.weight"}
    return {published.get(key, key): value for key, value in options.items()}


def unknown(kind: str, name: str, known: list[str]) -> str:
    """What is said of a name that does not exist."""
    if near := _nearest(name, known):
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known)}"


def _nearest(name: str, known: list[str]) -> list[str]:
    lower = {choice.lower(): choice for choice in known}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]
