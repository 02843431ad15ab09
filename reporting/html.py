"""HTML and SVG from Python: text is escaped unless it is `Html` already."""

from html import escape
from typing import Any

VOID = frozenset({"br", "circle", "img", "input", "line", "meta", "path", "polygon", "polyline", "rect"})


class Html(str):
    """Markup, to be put into a page as it is."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element, e.g. `tag("a", "text & more", href="#x")`.

    Args:
        children: markup, values that are shown as text, or lists of them; None is left out.
        attributes: `class_` and `for_` lose their underscore, others become hyphens (`data_x`, `aria_label`). True is
            an attribute without a value, None and False are left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        words.append(attribute if value is True else f'{attribute}="{escape(str(value))}"')
    opening = " ".join(words)
    if name in VOID:
        assert not children, f"<{name}> holds nothing"
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Children of an element one after the other."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, (list, tuple)):
        return join(*child)
    return escape(str(child))
