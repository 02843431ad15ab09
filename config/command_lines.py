"""Command lines that messages and pages print: pasted into a shell, they set these options and no others."""

import ast
import shlex
from typing import Any

from config.experiments import own_options
from config.options import OPTIONS, Config


def command_line(options: Config, *, command: str | None = None) -> str:
    """The command line that sets options.

    Args:
        command: its first word, where the job is asked for by one; None where options do it.
    """
    words = (shlex.quote(f"{key}={typed(value)}") for key, value in options.items())
    return " ".join(["python main_classification.py", *([command] if command else []), "with", *words])


def options_for(job: str, config: Config) -> Config:
    """What the command of a job says of a run: its experiment, and what is otherwise; what the job refuses is left out.

    Args:
        config: all options of the run.
    """
    own = own_options(config)
    if config["seeds"]:  # they say which; a trial has both
        own.pop("seed", None)
    refused = {key for key, said in OPTIONS.items() if job not in said.jobs and (said.refused or job == "report")}
    return {key: value for key, value in ({"config": config["config"]} | own).items() if key not in refused}


def typed(value: Any) -> str:
    """The value of an option as it is typed, before a shell's quotes: what sacred reads as this value."""
    if isinstance(value, str):
        return value if _is_read_as_text(value) else repr(value)
    is_of_numbers = isinstance(value, list) and not any(isinstance(part, str) for part in value)
    return str(value).replace(" ", "") if is_of_numbers else str(value)


def read_value(text: str) -> Any:
    """What sacred reads the value of an option as: one of Python's literals, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _is_read_as_text(text: str) -> bool:
    """Whether this is the text that is read where it stands without quotes; 5 is a number, and None nothing."""
    return read_value(text) is text and text == text.strip()
