"""The look of all charts and pictures: one style, a palette that colour-blind readers can tell apart, and images.

A figure is 7 inches wide and is meant to be read at 700 pixels, where 9 pt are 12.5 pixels high. Colour never stands
alone: classes have markers too, sub-classes letters, heat maps a contour.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.documents import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

WIDTH = 7.0  # inches
DPI = 200  # of the PNG: twice the pixels that the report shows
# Okabe and Ito (2008), "Color universal design", with a grey for their black, and two dark ones of Paul Tol's "muted".
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C", "#332288", "#882255",
)  # fmt: skip
MARKERS = "os^DvPX*<>"
INK, FAINT, PALE, GRID = "#222222", "#8a8a8a", "#b5b5b5", "#e6e6e6"  # text; axes; what only accompanies; grid lines
SHORT = 4  # letters of a name that fits unturned below a narrow group
SMALL_IMAGE = 96  # pixels: up to this size one wants to see them
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: text stays text
    "svg.fonttype": "none",  # and so it does here
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # class names may hold dollar signs
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.7,
}


@contextmanager
def style(svg_salt: str | None = None) -> Iterator[None]:
    """Everything drawn and saved inside has this look.

    Args:
        svg_salt: decides the ids in an SVG, which is the same each time.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("plots need matplotlib, which is not installed: pip install matplotlib") from None
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": svg_salt}):
        yield


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """An empty figure of a size in inches, whose axes make room for their labels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", place: Path) -> None:
    """Write `place`.png and `place`.pdf; equal figures make equal files."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes have their places now, for both files
    for suffix, options in ((".png", {"dpi": DPI}), (".pdf", {"metadata": {"CreationDate": None}})):
        save = functools.partial(figure.savefig, format=suffix[1:], **options)
        write_atomically(place.with_suffix(suffix), save)


def as_shown(pixels: "Tensor") -> np.ndarray:
    """Pixels (B, 3, H, W) uint8 as `show_image` and `show_faded` take them: (B, H, W, 3) in 0..1."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy() / 255


def show_image(axes: "Axes", pixels: np.ndarray, **options: Any) -> None:
    """An image (H, W, 3) or (H, W) with values in 0..1, sharp where it is small, on axes from 0 to 1 both ways."""
    interpolation = "nearest" if len(pixels) <= SMALL_IMAGE else "antialiased"
    axes.imshow(pixels, extent=(0, 1, 1, 0), interpolation=interpolation, **{"vmin": 0, "vmax": 1} | options)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def show_faded(axes: "Axes", pixels: np.ndarray) -> None:
    """An image (H, W, 3) in light grey, to draw upon."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
    show_image(axes, 0.6 + 0.4 * grey, cmap="gray")


def draw_grid(axes: "Axes", height: int, width: int, **line: Any) -> None:
    """The borders between height x width patches of an image."""
    for edge in range(1, width):
        axes.axvline(edge / width, **line)
    for edge in range(1, height):
        axes.axhline(edge / height, **line)


def letter(subclass: int) -> str:
    """The name of a sub-class within its class: a, b, ..., z, then 27, 28, ..."""
    return chr(ord("a") + subclass) if subclass < 26 else str(subclass + 1)


def shortened(name: str, length: int = 14) -> str:
    """A name that fits beside a tick."""
    return name if len(name) <= length else name[: length - 1] + "…"
