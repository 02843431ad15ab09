"""One spelling of a network with keyword arguments, so that names can be compared: `timm/vit(depth=4, width=8)`."""

import ast


def spelled(name: str) -> str:
    """A network's name with its keyword arguments in alphabetical order, as Python writes them.

    What is no call stays as it is: `architectures` refuses it.
    """
    plain, bracket, rest = name.partition("(")
    if not bracket:
        return name
    try:
        call = ast.parse(f"network({rest}", mode="eval").body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return name
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return name
    call.keywords.sort(key=lambda each: each.arg or "")
    return plain + ast.unparse(call).removeprefix("network")
