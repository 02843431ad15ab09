"""What options were called in earlier versions: their results and checkpoints are read, and configurations too."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

FORMER_NAMES = {"hint": "fitnet.hint", "hint_loss_coef": "fitnet.weight", "ksubset": "max_patches"}


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names that they have today; where both are there, the former one was put over the other."""
    former = {FORMER_NAMES[key]: value for key, value in options.items() if key in FORMER_NAMES}
    return {key: value for key, value in options.items() if key not in FORMER_NAMES} | former


def renamed_aloud(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same, and a notice.

    Args:
        source: where they stand.
    """
    for key in options:
        if key in FORMER_NAMES:
            say_renamed(key, source)
    return renamed(options)


@functools.cache
def say_renamed(former: str, source: str | None = None) -> None:
    """Mention, once, that an option has another name today."""
    where = f"{source}: " if source else ""
    print(f"note: {where}{former} is called {FORMER_NAMES[former]} now", file=sys.stderr)
