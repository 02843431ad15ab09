"""Images as the teacher sees their patches: coloured by sub-class, with the decision row of one of them.

Figure 2 of the paper's supplement. A patch belongs to the nearest sub-class of its image's own class, and row i of the
decision matrix D says how the training patches of sub-class i fall on all N*S sub-classes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from config.options import Options
from distillation.expressions import INTERMEDIATE, supervises
from reporting.pictures.base import Drawing, Picture
from reporting.style import (
    PALE,
    PALETTE,
    SHORT,
    as_shown,
    draw_grid,
    letter,
    new_figure,
    shortened,
    show_faded,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_EXAMPLES = 4
NUM_CLASSES_SHOWN = 10  # in a histogram: those with the largest shares
LABELLED = 0.03  # of the highest bar: from there on a bar has its letter


@dataclass(frozen=True)
class Example:
    """An image and what the teacher's decisions say of it; h x w is the grid of the map, S sub-classes a class."""

    pixels: np.ndarray  # (H, W, 3)
    label: int
    subclasses_HW: np.ndarray  # 0 to S - 1, within the image's class
    cell: tuple[int, int]  # the patch whose decision row is shown
    decision_NS: np.ndarray  # shares, which sum to 1


class Subclasses(Picture):
    """Patches of evaluation images coloured by the teacher's sub-class, and decision rows as histograms."""

    name = "subclasses"
    needs_supervision = True

    @staticmethod
    def lacks(options: Options) -> str | None:
        return None if supervises(options, INTERMEDIATE) else "sub-class decisions of a teacher"

    def draw(self) -> Drawing:
        examples = self.examples(self.draw_lots(NUM_EXAMPLES, NUM_EXAMPLES))
        classes, options = self.dataset.classes, self.options
        num_subclasses = options.subclasses.subclasses_per_class
        few = len(classes) <= NUM_CLASSES_SHOWN  # all histograms have the same groups, named below the last one
        figure = new_figure(height=0.5 + (1.45 if few else 1.75) * len(examples))
        rows = figure.subplots(len(examples), 3, width_ratios=(1, 1, 3), squeeze=False)
        for number, ((image, patches, histogram), example) in enumerate(zip(rows, examples, strict=True), start=1):
            show_image(image, example.pixels)
            image.set_title(shortened(classes[example.label], 18))
            draw_patches(patches, example)
            draw_decision(histogram, example, classes, named=number == len(examples) or not few)
        rows[0, 1].set_title("its sub-classes")
        rows[0, 2].set_title("decision scores of the outlined patch")
        height, width = examples[0].subclasses_HW.shape
        own = [f"{100 * example.decision_NS[example.label].sum():.0f} %" for example in examples]
        place = self.objective.teacher.network.maps[self.objective.losses["decisions"].teacher_place].path
        caption = (
            f"{self.images_shown.capitalize()} of {self.dataset.name} as {options.pair.teacher}, the teacher of "
            f"{options.job.run_name}, sees them at {place} ({height} x {width} patches, the student's grid). "
            f"Middle: every patch has the colour and letter of the nearest of the {num_subclasses} "
            f"sub-classes of the image's class. Right: the decision scores of the outlined patch, which supervise the "
            f"student there: how the training patches of its sub-class (hatched) fall on the sub-classes of all "
            f"classes. Bars of the image's own class have the colours and letters of its patches; it gets "
            f"{', '.join(own)} from top to bottom."
        )
        return Drawing(figure, "The teacher's sub-classes in images, and its decision for one patch of each", caption)

    @torch.inference_mode()
    def examples(self, indices: Tensor) -> list[Example]:
        """The images at these indices."""
        images, labels = self.images_at(indices)
        loss, teacher = self.objective.losses["decisions"], self.objective.teacher
        taught = teacher(teacher.input(images))
        maps_BCHW, decisions = loss.teacher_map(taught), loss.subclasses
        grid = maps_BCHW.shape[2:]
        rows_BHW = decisions.assign(maps_BCHW, labels).view(-1, *grid).cpu()
        decisions_MM = decisions.decisions.cpu()
        num_subclasses = self.options.subclasses.subclasses_per_class
        examples = []
        for pixels, label, rows_HW in zip(as_shown(images), labels.tolist(), rows_BHW, strict=True):
            subclasses_HW = (rows_HW - label * num_subclasses).numpy()
            cell = typical_cell(subclasses_HW)
            decision_NS = decisions_MM[rows_HW[cell]].view(-1, num_subclasses).numpy()
            examples.append(Example(pixels, label, subclasses_HW, cell, decision_NS))
        return examples


def typical_cell(subclasses_HW: np.ndarray) -> tuple[int, int]:
    """Of the patches in the image's most frequent sub-class the one nearest to the centre: (row, column)."""
    frequent = np.bincount(subclasses_HW.flatten()).argmax()
    cells = np.argwhere(subclasses_HW == frequent)
    from_centre = np.square(cells - (np.array(subclasses_HW.shape) - 1) / 2).sum(axis=1)
    return tuple(cells[from_centre.argmin()].tolist())


def colour(subclass: int) -> str:
    return PALETTE[subclass % len(PALETTE)]


def draw_patches(axes: "Axes", example: Example) -> None:
    """The image in grey under its patches in colour; a letter in every connected region, an outline round one patch."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    height, width = example.subclasses_HW.shape
    show_faded(axes, example.pixels)
    colours_HW3 = np.array([[to_rgb(colour(subclass)) for subclass in row] for row in example.subclasses_HW])
    show_image(axes, colours_HW3, alpha=0.55)
    draw_grid(axes, height, width, color="white", linewidth=0.4)
    for row, column, subclass in regions(example.subclasses_HW, example.cell):
        axes.text(
            (column + 0.5) / width, (row + 0.5) / height, letter(subclass), ha="center", va="center_baseline", size=7
        )
    row, column = example.cell
    outline = Rectangle(
        (column / width, row / height), 1 / width, 1 / height, fill=False, edgecolor="black", clip_on=False
    )
    outline.set_linewidth(1.8)
    axes.add_patch(outline)


def regions(subclasses_HW: np.ndarray, cell: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(row, column, sub-class) of a patch in the middle of every connected region, or of `cell` in its own region."""
    from scipy.ndimage import label  # comes with scikit-learn

    found = []
    for subclass in np.unique(subclasses_HW):
        numbered_HW, count = label(subclasses_HW == subclass)
        for number in range(1, count + 1):
            cells = np.argwhere(numbered_HW == number)
            middle = cell if numbered_HW[cell] == number else cells.mean(axis=0)
            nearest = np.square(cells - middle).sum(axis=1).argmin()
            found.append((*cells[nearest].tolist(), int(subclass)))
    return found


def draw_decision(axes: "Axes", example: Example, classes: tuple[str, ...], *, named: bool) -> None:
    """A decision row as bars in percent, a group for each class, with or without the classes' names."""
    decision_NS = 100 * example.decision_NS
    num_subclasses = decision_NS.shape[1]
    of_classes = decision_NS.sum(axis=1)
    shown = np.sort(np.argsort(-of_classes, kind="stable")[:NUM_CLASSES_SHOWN])
    own = example.subclasses_HW[example.cell]
    step = num_subclasses + 2  # two bars' width between classes
    for group, index in enumerate(shown):
        places = group * step + np.arange(num_subclasses)
        if index != example.label:
            axes.bar(places, decision_NS[index], width=0.9, color=PALE)
            continue
        axes.axvspan(places[0] - 1.2, places[-1] + 1.2, color=PALE, alpha=0.25, linewidth=0)
        for subclass, (place, share) in enumerate(zip(places, decision_NS[index], strict=True)):
            bar = {"hatch": "//////", "edgecolor": "black"} if subclass == own else {"edgecolor": colour(subclass)}
            axes.bar(place, share, width=0.9, color=colour(subclass), linewidth=0.7, **bar)
            if share > LABELLED * decision_NS.max():
                axes.annotate(
                    letter(subclass), (place, share), (0, 2.5), textcoords="offset points", ha="center", size=6.5
                )
    middles = np.arange(len(shown)) * step + (num_subclasses - 1) / 2
    names = [shortened(classes[index], 11) for index in shown] if named else [""] * len(shown)
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > SHORT else {}
    axes.set_xticks(middles, names, **slanted)
    axes.tick_params(axis="x", length=0, pad=1)
    axes.set(xlim=(-2, len(shown) * step - 1), ylim=(0, decision_NS.max() * 1.15), ylabel="share (%)")
    left_out = len(classes) - len(shown)
    if left_out:
        rest = 100 - of_classes[shown].sum()
        text = f"{left_out} other classes: {rest:.0f} %"
        axes.text(1, 1, text, transform=axes.transAxes, ha="right", va="top", size=7)
