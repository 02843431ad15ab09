"""Names of networks with keyword arguments, as a call of Python: `timm/swin_tiny_patch4_window7_224(window_size=4)`.

The arguments are a part of the name: whatever builds, records or compares networks by their names does so with them.
"""

import ast
from typing import Any


def split_call(called: str) -> tuple[str, dict[str, Any]]:
    """The name of a network without keyword arguments, and these.

    Raises:
        ValueError: what is in brackets is no keyword arguments with plain values.
    """
    name, bracket, rest = called.partition("(")
    if not bracket:
        return called, {}
    try:
        match ast.parse(f"network({rest}", mode="eval").body:
            case ast.Call(func=ast.Name(), args=[], keywords=keywords) if all(each.arg for each in keywords):
                arguments = {each.arg: ast.literal_eval(each.value) for each in keywords}
                if len(arguments) == len(keywords):
                    return name, arguments
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass  # it is not as it must be
    raise ValueError(
        f"{called!r} must have different keyword arguments with plain values in its brackets, like {name}(width=2)"
    )
