"""Learning curves and accuracy strips, drawn by matplotlib as SVG inside a page, where style sheets colour them.

Learning curves show their first metric without a script. `page.js` draws the others into the same axes, from `data`:

    {"epochs": [1, 3, 5], "x": [54, 376], "y": [204, 12],                 pixels of first and last epoch; of both limits
     "metrics": {"eval top1": {"label": "Top-1 ...", "about": "for screen readers", "digits": 2, "is_log": false,
                               "limits": [60, 80], "ticks": [[60, "60"], ...],
                               "series": [[[60.1], null, [71.2, 70.3, 72.1]], ...]}}}    mean, and range of several runs

Series differ in colour, in the dashes of their line and in the marker at its end.
"""

import functools
import io
import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from reporting import curves
from reporting.style import FAINT, GRID, INK, MARKERS, PALETTE, style
from reporting.tables import METHODS, STUDENT, TEACHER, Cell, Section, Statistic
from reporting.text import column_title, number
from results.collect import Config, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 400, 230  # pixels, as wide as a small screen: text keeps a readable size on a phone
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 26
MARKER_SIZE = 8
PAIR, LANE = 30, 16  # heights of a pair's name and of a method below it
LONG, STEEP = 50, 0.1  # from so many epochs on, this share of them may lie outside the axes
ORDER = (TEACHER, STUDENT, *METHODS)
DASHES = ((), (2, 3), (9, 3, 2, 3), (7, 3), (4, 3), (12, 3), (2, 2, 6, 2), (1, 4))
NUM_STYLES = len(DASHES)
SIGNS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=False))  # what markers are called in a text
PUBLISHED_SIGN = "|"
COLOURS = {colour.lower(): f"var(--s{i})" for i, colour in enumerate(PALETTE)}
COLOURS |= {INK: "currentColor", FAINT: "var(--quiet)", GRID: "var(--line)"}


@dataclass(frozen=True)
class Series:
    """Runs that are drawn as one line; `key` stays the same while they go on, for a page that loads itself again."""

    name: str
    key: str
    style: int
    runs: list[Run]


@dataclass(frozen=True)
class Label:
    """A line of a legend."""

    name: str
    sign: str
    style: int | None = None
    dashes: str = ""
    key: str = ""
    value: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend, and for learning curves the names and labels of all metrics, and what they show."""

    title: str
    key: str
    svg: Markup
    legend: list[Label]
    metrics: dict[str, str] = field(default_factory=dict)
    data: str = ""


def style_of(column: str, position: int = 0) -> int:
    """The look of a method, the same in every chart; `position` tells those beyond the known ones apart."""
    return ORDER.index(column) if column in ORDER else other_style(position)


def other_style(position: int) -> int:
    """The looks that no known method has, in turn."""
    return len(ORDER) + position % (NUM_STYLES - len(ORDER))


# --- learning curves -------------------------------------------------------------------------------------------------


def learning_curves(title: str, key: str, series: list[Series], *, salt: str) -> Chart | None:
    """All metrics of these runs; None where nothing was recorded.

    Args:
        key: like that of a series.
        salt: no other chart of the page has it.
    """
    names = curves.quantities([run for one in series for run in one.runs])
    if not names:
        return None
    series = [one for one in series if any(run.courses for run in one.runs)]
    epochs = curves.chosen_epochs([one.runs for one in series])
    metrics = {name: _metric(name, series, epochs) for name in names}
    first = metrics[names[0]]
    legend = [
        Label(
            one.name, SIGNS[MARKERS[one.style]], one.style, " ".join(map(str, DASHES[one.style])), one.key,
            _last_value(values, first["digits"]),
        )
        for one, values in zip(series, first["series"], strict=True)
    ]  # fmt: skip
    svg = draw_curves(salt, json.dumps({"epochs": epochs, "styles": [one.style for one in series]} | first))
    pad = _pad(epochs[0], epochs[-1])
    shift = (WIDTH - LEFT - RIGHT) * pad / (epochs[-1] - epochs[0] + 2 * pad)
    data = {
        "epochs": epochs,
        "x": [LEFT + shift, WIDTH - RIGHT - shift],
        "y": [HEIGHT - BOTTOM, TOP],
        "metrics": metrics,
    }
    labels = {name: metric["label"] for name, metric in metrics.items()}
    return Chart(title, key, svg, legend, labels, json.dumps(data, separators=(",", ":")))


def _metric(name: str, series: list[Series], epochs: list[int]) -> Config:
    """What a chart shows of one metric."""
    courses = [curves.course(one.runs, name, epochs) for one in series]
    points = [point for course in courses for point in course]
    # The steep beginning of a long training would leave no height for what comes after it.
    begin = epochs[-1] * STEEP if epochs[-1] >= LONG else 0
    later = [point for point in points if point.epoch > begin] or points
    low, high = min(point.low for point in later), max(point.high for point in later)
    is_log = name in curves.LOGARITHMIC and low > 0
    if is_log:
        pad = _pad(math.log10(low), math.log10(high))
        limits = [low / 10**pad, high * 10**pad]
    else:
        pad = _pad(low, high)
        limits = [low - pad, high + pad]
    digits = 2 if name in curves.PERCENTAGES else None
    values = [_values(course, epochs) for course in courses]
    told = ", ".join(f"{one.name} {_last_value(found, digits)}" for one, found in zip(series, values, strict=True))
    label = curves.label(name)
    return {
        "label": label,
        "about": f"{label} by epoch, {epochs[0]} to {epochs[-1]}: {told}",
        "digits": digits,
        "is_log": is_log,
        "limits": limits,
        "ticks": [[value, number(value)] for value in _ticks(*limits, is_log=is_log)],
        "series": values,
    }


def _pad(low: float, high: float) -> float:
    """Room beside the values, so that markers are whole."""
    return 0.05 * (high - low) or 0.1 * abs(high) or 1.0


def _ticks(low: float, high: float, *, is_log: bool = False) -> list[float]:
    """About five round values."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator = LogLocator(numticks=6) if is_log and high / low >= 10 else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    return [float(f"{value:.12g}") for value in locator.tick_values(low, high) if low <= value <= high]


def _values(course: list[curves.Point], epochs: list[int]) -> list[list[float] | None]:
    """Four digits of mean, lowest and highest at every epoch; the mean alone where there is no range."""
    known = {
        point.epoch: [float(f"{value:.4g}") for value in (point[1:] if point.low < point.high else point[1:2])]
        for point in course
    }
    return [known.get(epoch) for epoch in epochs]


def _last_value(values: list[list[float] | None], digits: int | None) -> str:
    found = next((value for value in reversed(values) if value), None)
    if found is None:
        return "none"
    mean, *span = (f"{value:.{digits}f}" if digits else number(value) for value in found)
    return f"{mean} ({span[0]} to {span[1]})" if span else mean


@functools.lru_cache(maxsize=1024)  # a watched report draws the unfinished runs alone
def draw_curves(salt: str, shown: str) -> Markup:
    """The axes with one metric.

    Args:
        shown: `data`'s entry of the metric, the epochs, and the series' styles, as JSON.
    """
    from matplotlib.ticker import MaxNLocator

    shown = json.loads(shown)
    epochs = shown["epochs"]
    with style(svg_salt=salt):
        figure, axes = _figure(HEIGHT, left=LEFT, right=RIGHT, bottom=BOTTOM)
        pad = _pad(epochs[0], epochs[-1])
        axes.set(xlim=(epochs[0] - pad, epochs[-1] + pad), yscale="log" if shown["is_log"] else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_yticks(*zip(*shown["ticks"], strict=True))
        axes.minorticks_off()
        axes.set_ylim(shown["limits"])
        axes.grid(axis="y")
        for i, (look, values) in enumerate(zip(shown["styles"], shown["series"], strict=True)):
            known = [(epoch, *value) for epoch, value in zip(epochs, values, strict=True) if value]
            spans = [(epoch, span[0], span[1]) for epoch, _, *span in known if span]
            empty = (epochs[0], shown["limits"][0])  # the script may move it
            band = [(x, low) for x, low, _ in spans] + [(x, high) for x, _, high in reversed(spans)]
            axes.fill(*zip(*band or [empty], strict=True), color=PALETTE[look], alpha=0.15, lw=0, gid=f"band-{i}")
            axes.plot(
                *zip(*[point[:2] for point in known] or [empty], strict=True),
                color=PALETTE[look],
                linestyle=(0, DASHES[look]) if DASHES[look] else "-",
                marker=MARKERS[look],
                markersize=MARKER_SIZE,
                markevery=[-1],
                gid=f"line-{i}" if known else f"empty-{i}",
            )
        return _inline(figure, shown["about"])


# --- accuracy strips -------------------------------------------------------------------------------------------------


def accuracy_strips(section: Section) -> Chart | None:
    """A lane for each method of each pair: its mean with the standard deviation, and a line at what was published.

    Experiments with their default settings alone: nothing that would have to be marked.
    """
    pairs = []
    for row in section.rows:
        cells = [(column, row.cells[column]) for column in section.columns if column in row.cells]
        if row.prefix and (lanes := [(column, cell) for column, cell in cells if cell.is_measured]):
            pairs.append((row.label, lanes))
    lanes = [lane for _, found in pairs for lane in found]
    if len(lanes) < 2:  # nothing to compare
        return None
    looks = {column: style_of(column, position) for position, column in enumerate(section.columns)}
    heights = [PAIR + LANE * len(found) for _, found in pairs]
    with style(svg_salt=f"{section.scope.anchor} strips"):
        figure, axes = _figure(sum(heights) + TOP + BOTTOM, left=LEFT // 4, right=LEFT // 4, bottom=BOTTOM)
        for i, (label, found) in enumerate(pairs):
            top = sum(heights[:i]) + PAIR
            name = {"size": 13, "weight": "bold", "va": "center"}
            axes.text(0, top - PAIR / 2, label, transform=axes.get_yaxis_transform(), **name)
            for lane, (column, cell) in enumerate(found):
                _draw_lane(axes, cell, top + LANE * (lane + 0.5), looks[column])
        axes.margins(x=0.08)
        axes.set_ylim(sum(heights) + LANE / 2, 0)
        ticks = _ticks(*axes.get_xlim())
        axes.set_xticks(ticks, map(number, ticks))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        told = (
            f"{label}: " + ", ".join(f"{column_title(name)} {number(_default_mean(cell).mean)}" for name, cell in found)
            for label, found in pairs
        )
        svg = _inline(figure, "; ".join(told))
    used = {column for column, _ in lanes}
    legend = [Label(column_title(name), SIGNS[MARKERS[look]], look) for name, look in looks.items() if name in used]
    if any(cell.published for _, cell in lanes):
        legend.append(Label("published", PUBLISHED_SIGN))
    return Chart("Top-1 accuracy after the last epoch (%)", "strips", svg, legend)


def _default_mean(cell: Cell) -> Statistic:
    return next(group for group in cell.groups if group.is_default).statistic("top1")


def _draw_lane(axes: "Axes", cell: Cell, y: float, look: int) -> None:
    mean, std, _ = _default_mean(cell)
    if cell.published:
        axes.plot(cell.published.top1, y, marker="|", markersize=12, markeredgewidth=2, color=PALETTE[look])
    axes.errorbar(mean, y, xerr=std, elinewidth=2.5, ecolor=PALETTE[look])
    axes.plot(mean, y, marker=MARKERS[look], markersize=MARKER_SIZE, color=PALETTE[look])


# --- figures as part of a page ---------------------------------------------------------------------------------------


def _figure(height: int, *, left: int, right: int, bottom: int) -> "tuple[Figure, Axes]":
    """A figure of WIDTH x height pixels, and axes in it with this room around them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72))  # the SVG of matplotlib has 72 pixels an inch
    axes = figure.add_axes((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (TOP + bottom) / height))
    axes.tick_params(left=False, bottom=False, labelsize=12)
    for patch in (figure.patch, axes.patch):
        patch.set_visible(False)  # the page shows through
    return figure, axes


def _inline(figure: "Figure", about: str) -> Markup:
    """The figure as an element of HTML: colours from the style sheet, no id that another figure may have."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue().decode()
    used = set(re.findall(r'(?:href="|url\()#(\w+)', svg))
    root = ElementTree.fromstring(svg)
    root.remove(root.find("{*}defs"))  # a style sheet for all of the page
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": about, "tabindex": "0"}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if (name := element.attrib.pop("id", "")) in used:
            element.set("id", name)
        elif found := re.fullmatch(r"(line|band|empty)-(\d+)|(ytick)_\d+", name):
            element.set("class", found[1] or found[3])
            if found[2]:
                element.set("data-series", found[2])
        if colours := element.get("style"):
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda found: COLOURS.get(found[0], found[0]), colours))
        if path := element.get("d"):  # to a tenth of a pixel
            element.set("d", re.sub(r"(\.\d)\d+|\s+", lambda found: found[1] or " ", path))
    return Markup(ElementTree.tostring(root, encoding="unicode"))
