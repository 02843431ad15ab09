"""Options that a command line or a file sets: their names and types, and whether a job reads them."""

from collections.abc import Mapping
from typing import Any

from config.command_lines import command_line, options_for
from config.experiments import default_config, unknown, with_spelled_networks
from config.former_names import FORMER_NAMES, say_renamed
from config.options import GROUPS, OPTIONS, PUBLISHED_NAMES, Config, Options
from config.schema import EVERY_JOB, Option, like, options_of

# Weights of losses that have two names, each with the other.
OTHER_NAMES = PUBLISHED_NAMES | {name: key for key, name in PUBLISHED_NAMES.items()}


# Whose options are those of a group that not every experiment has.
WHOSE = {
    "network": "a network alone",
    "pair": "a student and its teacher, like config=digits.RN14_RN8.KD",
    "words": "methods with words, letKD and QuEST",
    "words_map": "networks alone, and methods with words, letKD and QuEST",
    "layers": "methods with KD layers, like letKD",
    "decisions": "methods with decisions, letKD-2",
    "subclasses": "networks alone, and methods with decisions, letKD-2",
    "control": "FitNet with KD layers",
}


def check_updates(updates: Config, defaults: Config) -> Config:
    """The options that are set, by the names that they have in `defaults`.

    Refuses keys that do not exist and values of a wrong type. Options of losses may be nested, {"dkd": {"nckd": 8.0}},
    and be called by any of their names, ce.weight or cls_loss_coef; a former one is mentioned.

    Raises:
        ValueError: names the key, and the nearest that exist.
    """
    found: Config = {}
    called: dict[str, str] = {}
    for given, value in flat(updates).items():
        key = known_as(given, defaults)
        if key is None:
            raise ValueError(_unknown_option(given, defaults))
        if key in found:
            raise ValueError(f"{called[key]} and {given} are one option; leave out one of them")
        if isinstance(value, dict):
            raise ValueError(f"{given}={value!r} must not be a dictionary")
        said = _said_of(key, defaults[key])
        if said.help or value is not None:  # whether one of the user's own may be None, nobody says
            said.check_type(value, called=given)
        if given not in defaults and given in FORMER_NAMES:
            say_renamed(given)
        found[key], called[key] = value, given
    return with_spelled_networks(found)


def known_as(given: str, defaults: Config) -> str | None:
    """What an option is called in `defaults` that is given by any of its names; None where it is not among them."""
    names = (given, OTHER_NAMES.get(given), FORMER_NAMES.get(given))
    return next((name for name in names if name in defaults), None)


def _said_of(key: str, default: Any) -> Option:
    """What is said of an option, of a loss's too; one that nobody describes is like its default."""
    if key in OPTIONS:
        return OPTIONS[key]
    if "." in key:
        from distillation.expressions import described  # whoever has such options has loaded it

        if (said := described(key)) is not None:
            return said
    return like(key, default)


def flat(options: Mapping[str, Any]) -> Config:
    """Options of losses by their dotted names: {"dkd": {"nckd": 8.0}} is {"dkd.nckd": 8.0}."""
    found: Config = {}
    for key, value in options.items():
        is_group = isinstance(value, dict) and value
        found |= {f"{key}.{name}": part for name, part in flat(value).items()} if is_group else {key: value}
    return found


def _unknown_option(key: str, defaults: Config) -> str:
    prefix, dot, _ = key.partition(".")
    if whose := next((said for group, said in WHOSE.items() if key in options_of(GROUPS[group])), None):
        return f"{defaults['config']} ({defaults['method']}) has no option {key}: it is one of {whose}"
    if not dot or not prefix:
        return unknown("option", key, sorted(defaults))
    if prefix in defaults:
        return f"{prefix} is an option of its own, and {key} is none"
    from distillation.expressions import parts_of

    losses = parts_of(Options.of(defaults))
    if prefix not in losses:
        return f"unknown option {key!r}: {defaults['config']} has no loss {prefix}; its losses: {', '.join(losses)}"
    names = {*defaults, *(OTHER_NAMES[own] for own in defaults if own in OTHER_NAMES)}
    known = sorted(name for name in names if name.startswith(f"{prefix}."))
    return unknown("option", key, known) if known else f"unknown option {key!r}: the loss {prefix} has no options here"


def check_command(job: str, config: Config) -> None:
    """Refuse options that a job would not read though they say what shall be done; the report reads few at all.

    Args:
        job: "train", or an option or command that asks for another.

    Raises:
        ValueError: names the first such option and the jobs that read it.
    """
    for key, default in default_config(config["config"]).items():
        said = OPTIONS.get(key)
        readers = said.jobs if said else EVERY_JOB
        if config[key] == default or job in readers:
            continue
        if job == "report":
            read = [name for name, own in OPTIONS.items() if job in own.jobs and name != "config"]
            raise ValueError(f"{key}={config[key]} is not for the report, which reads {' and '.join(read)} alone")
        if said.refused and readers == ("predict",):
            told = command_line({key: config[key]} | options_for("predict", config), command="predict")
            raise ValueError(f"{key} is for predict: {told}")
        if said.refused:
            raise ValueError(f"{key}={config[key]} concerns {' and '.join(readers)} only; leave it out")
    if job in ("predict", "pictures") and len(config["seeds"]) > 1:
        raise ValueError(f"seeds={config['seeds']} are several networks, and {job} takes one; choose its seed")
