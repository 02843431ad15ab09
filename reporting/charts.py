"""Pictures as SVG. The first quantity is drawn here and stands without a script; `page.js` adds hovering and switches.

A figure has the epochs of all its pictures once, and each picture the values of its series at them, and its axis:

    <figure data-epochs="1 3 5" data-x="44 386 1 5 0">            positions of the first and the last, both, linear
    <svg data-quantity="eval top1" data-y="204 12 60 80 0">       likewise; 1 at the end for a logarithmic axis
    <g data-series="0" data-values="60.1 ; 71.2 70.3 72.1">       mean, and lowest and highest of several runs

From the values the script draws the lines of the other quantities when they are asked for.

Text keeps a readable size on a phone: the view is as wide as a small screen and grows little. Series differ in colour,
in the pattern of their line and in their mark.
"""

import math
from dataclasses import dataclass

from reporting import curves
from reporting.html import Html, join, tag
from reporting.tables import METHODS, STUDENT, TEACHER, Cell, Section, Statistic
from results.collect import Run

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 26
SIGN = 6  # half of a series' sign, which is whole at the lowest value too
PAIR, LANE = 30, 16  # heights of a pair's name and of a method below it
LONG, STEEP = 50, 0.1  # from so many epochs on, this share of them may reach beyond the picture
NUM_STYLES = 8  # of lines and marks, in page.css
ORDER = (TEACHER, STUDENT, *METHODS)


@dataclass(frozen=True)
class Series:
    """Runs that are drawn as one line; `key` stays the same while they go on, for a page that loads itself again."""

    name: str
    key: str
    style: int
    runs: list[Run]


def style_of(column: str, position: int = 0) -> int:
    """The look of a method, the same in every picture; `position` tells those beyond the known ones apart."""
    return ORDER.index(column) if column in ORDER else other_style(position)


def other_style(position: int) -> int:
    """The looks that no known method has, in turn."""
    return len(ORDER) + position % (NUM_STYLES - len(ORDER))


def learning_curves(title: str, key: str, series: list[Series]) -> Html | None:
    """One figure with a picture for each quantity, the first of which is shown; None where nothing was recorded.

    Args:
        key: like that of a series.
    """
    names = curves.quantities([run for one in series for run in one.runs])
    if not names:
        return None
    series = [one for one in series if any(run.courses for run in one.runs)]
    epochs = curves.chosen_epochs([one.runs for one in series])
    x = Axis(epochs[0], epochs[-1], LEFT, WIDTH - RIGHT)
    pictures = [_line_picture(name, series, epochs, x, is_first=name == names[0]) for name in names]
    options = [tag("option", curves.label(name), value=name) for name in names]
    legend = [
        tag(
            "li",
            tag(
                "button", swatch(one.style), tag("span", one.name), type="button", aria_pressed="true", data_key=one.key
            ),
            tag("output", _last_value(curves.course(one.runs, names[0], epochs), names[0])),
        )
        for one in series
    ]
    return tag(
        "figure",
        tag(
            "figcaption", title, tag("label", "Quantity ", tag("select", options, autocomplete="off"), class_="script")
        ),
        tag("p", curves.label(names[0]), class_="quantity"),
        pictures,
        tag("p", "last epoch", class_="epoch", aria_live="polite"),
        tag("ul", legend, class_="legend"),
        class_="curves",
        data_key=key,
        data_epochs=" ".join(map(str, epochs)),
        data_x=x.data,
    )


def swatch(style: int, *, line: bool = True) -> Html:
    """A series' mark, on a piece of its line."""
    piece = tag("line", x1=1, y1=8, x2=33, y2=8, class_="line") if line else None
    return tag("svg", piece, mark(style, 17, 8), class_=f"swatch s{style}", viewBox="0 0 34 16", aria_hidden="true")


def mark(style: int, x: float, y: float) -> Html:
    """A series' sign at a place."""
    shapes = {
        0: "M0-5.5 5 3.5-5 3.5Z",  # triangle
        2: "M-4-4H4V4H-4Z",  # square
        3: "M0-5.5 5.5 0 0 5.5-5.5 0Z",  # diamond
        5: "M0 5.5 5-3.5-5-3.5Z",  # triangle on its tip
        6: "M-4.5-4.5 4.5 4.5M4.5-4.5-4.5 4.5",  # cross
        7: "M0-5.5V5.5M-5.5 0H5.5",  # plus
    }
    at = f"translate({x:.1f} {y:.1f})"
    if style in shapes:
        return tag("path", d=shapes[style], transform=at, class_="mark")
    return tag("circle", r=4.5, transform=at, class_="mark")


class Axis:
    """Maps values to positions, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False):
        self.logarithmic = logarithmic and low > 0
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-9 * max(1, abs(high)):
            pad = abs(high) * 0.1 or 1.0
            low, high = low - pad, high + pad
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def data(self) -> str:
        """For the script: positions of both ends, and what lies there."""
        return f"{self.start} {self.end} {self.low:.6g} {self.high:.6g} {int(self.logarithmic)}"

    def ticks(self, count: int) -> list[float]:
        """About `count` round values within the axis."""
        if self.logarithmic and self.high - self.low >= 1:
            return [10.0**n for n in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]
        low, high = (10**self.low, 10**self.high) if self.logarithmic else (self.low, self.high)
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _line_picture(quantity: str, series: list[Series], epochs: list[int], x: Axis, *, is_first: bool) -> Html:
    courses = [curves.course(one.runs, quantity, epochs) for one in series]
    points = [point for course in courses for point in course]
    # The steep beginning of a long training would leave no height for what comes after it.
    begin = epochs[-1] * STEEP if epochs[-1] >= LONG else 0
    later = [point for point in points if point.epoch > begin] or points
    low, high = min(point.low for point in later), max(point.high for point in later)
    y = Axis(low, high, HEIGHT - BOTTOM - SIGN, TOP, logarithmic=quantity in curves.LOGARITHMIC)
    lines = [
        tag(
            "g",
            _line(course, x, y) if is_first else (tag("polygon", class_="band"), tag("polyline", class_="line")),
            mark(one.style, x(course[-1].epoch), y(course[-1].mean)),
            class_=f"series s{one.style}",
            data_series=i,
            data_values=_values(course, epochs),
        )
        for i, (one, course) in enumerate(zip(series, courses, strict=True))
        if course
    ]
    told = ", ".join(f"{one.name} {_last_value(course, quantity)}" for one, course in zip(series, courses, strict=True))
    return tag(
        "svg",
        _grid(x, y),
        tag(
            "svg",
            lines,
            x=LEFT,
            width=WIDTH - LEFT,
            height=HEIGHT - BOTTOM + 1,
            viewBox=f"{LEFT} 0 {WIDTH - LEFT} {HEIGHT - BOTTOM + 1}",
            overflow="hidden",
        ),
        tag("line", y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor", visibility="hidden"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=f"{curves.label(quantity)} by epoch, {epochs[0]} to {epochs[-1]}: {told}",
        data_quantity=quantity,
        data_label=curves.label(quantity),
        data_y=y.data,
        data_digits=2 if quantity in curves.PERCENTAGES else None,
        hidden=not is_first,
    )


def _grid(x: Axis, y: Axis) -> Html:
    lines = []
    for value in y.ticks(5):
        at = f"{y(value):.1f}"
        lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        lines.append(tag("text", number(value), x=LEFT - 6, y=at, dy=".35em", text_anchor="end"))
    for value in x.ticks(6):
        if value == int(value):
            lines.append(tag("text", int(value), x=f"{x(value):.1f}", y=HEIGHT - 8, text_anchor="middle"))
    return join(lines)


def _line(course: list[curves.Point], x: Axis, y: Axis) -> Html:
    """The mean, and around it the range of several runs."""
    line = " ".join(f"{x(point.epoch):.1f},{y(point.mean):.1f}" for point in course)
    around = [(x(point.epoch), y(point.high)) for point in course]
    around += [(x(point.epoch), y(point.low)) for point in reversed(course)]
    spread = any(point.low < point.high for point in course)
    band = " ".join(f"{a:.1f},{b:.1f}" for a, b in around) if spread else None
    return join(tag("polygon", points=band, class_="band"), tag("polyline", points=line, class_="line"))


def _values(course: list[curves.Point], epochs: list[int]) -> str:
    """What stands in `data-values`: nothing for epochs without a value."""
    known = {point.epoch: point for point in course}
    return ";".join(_figures(known[epoch]) if epoch in known else "" for epoch in epochs)


def _figures(point: curves.Point) -> str:
    figures = point[1:] if point.low < point.high else point[1:2]
    return " ".join(map(number, figures))


def _last_value(course: list[curves.Point], quantity: str) -> str:
    if not course:
        return "none"
    mean, low, high = (f"{value:.2f}" if quantity in curves.PERCENTAGES else number(value) for value in course[-1][1:])
    return mean if low == high else f"{mean} ({low} to {high})"


def number(value: float) -> str:
    """Four digits that matter, in as few letters as possible."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def accuracy_strips(section: Section) -> Html | None:
    """A lane for each method of each pair: its mean with the standard deviation, and a line at what was published.

    Experiments with settings of their own alone: nothing that would have to be marked.
    """
    pairs = []
    for row in section.rows:
        cells = [(column, row.cells[column]) for column in section.columns if column in row.cells]
        if row.prefix and (lanes := [(column, cell) for column, cell in cells if cell.is_measured]):
            pairs.append((row.label, lanes))
    lanes = [lane for _, found in pairs for lane in found]
    if len(lanes) < 2:  # nothing to compare
        return None
    values = [value for _, cell in lanes for value in _reach(cell)]
    pad = (max(values) - min(values)) * 0.08 or 1.0
    x = Axis(min(values) - pad, max(values) + pad, LEFT // 4, WIDTH - LEFT // 4)
    drawn, told, top = [], [], 0
    for label, found in pairs:
        drawn.append(tag("text", label, x=LEFT // 4, y=top + 14, class_="pair"))
        for i, (column, cell) in enumerate(found):
            drawn.append(_lane(style_of(column, section.columns.index(column)), cell, x, top + PAIR + LANE * i))
        told.append(label + ": " + ", ".join(f"{column_title(column)} {_mean(cell)}" for column, cell in found))
        top += PAIR + LANE * len(found)
    grid = [
        (
            tag("line", x1=f"{x(value):.1f}", x2=f"{x(value):.1f}", y1=PAIR - 8, y2=top, class_="grid"),
            tag("text", number(value), x=f"{x(value):.1f}", y=top + 16, text_anchor="middle"),
        )
        for value in x.ticks(5)
    ]
    columns = sorted({column for column, _ in lanes}, key=section.columns.index)
    legend = [(swatch(style_of(name, section.columns.index(name)), line=False), column_title(name)) for name in columns]
    if any(cell.published for _, cell in lanes):
        legend.append((_published_swatch(), "published"))
    return tag(
        "figure",
        tag("figcaption", "Top-1 of the last epoch, %"),
        tag("svg", grid, drawn, viewBox=f"0 0 {WIDTH} {top + BOTTOM}", role="img", aria_label="; ".join(told)),
        tag("ul", [tag("li", sign, tag("span", name)) for sign, name in legend], class_="legend"),
        class_="strips",
    )


def _protocol_mean(cell: Cell) -> Statistic:
    return next(group for group in cell.groups if group.is_protocol).statistic("top1")


def _mean(cell: Cell) -> str:
    return number(_protocol_mean(cell).mean)


def _reach(cell: Cell) -> list[float]:
    """All values that a lane shows."""
    found = _protocol_mean(cell)
    std = found.std or 0.0
    return [found.mean - std, found.mean + std, *([cell.published.top1] if cell.published else [])]


def _lane(style: int, cell: Cell, x: Axis, y: float) -> Html:
    found = _protocol_mean(cell)
    low, high = (x(found.mean + sign * (found.std or 0.0)) for sign in (-1, 1))
    bar = tag("line", x1=f"{low:.1f}", x2=f"{high:.1f}", y1=y, y2=y, class_="deviation") if found.std else None
    line = None
    if cell.published:
        at = f"{x(cell.published.top1):.1f}"
        line = tag("line", x1=at, x2=at, y1=y - 6, y2=y + 6, class_="published")
    return tag("g", line, bar, mark(style, x(found.mean), y), class_=f"s{style}")


def _published_swatch() -> Html:
    line = tag("line", x1=17, y1=2, x2=17, y2=14, class_="published")
    return tag("svg", line, class_="swatch", viewBox="0 0 34 16", aria_hidden="true")


def column_title(column: str) -> str:
    return {TEACHER: "Teacher", STUDENT: "Student alone"}.get(column, column)
