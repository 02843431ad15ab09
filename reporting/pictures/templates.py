"""Which templates are active where: the weights of the most used templates over images.

A weight is a = ReLU(BatchNorm(s)) of a KD layer: what one template contributes at one patch.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from config.options import Options
from distillation.expressions import PENULTIMATE, supervises
from reporting.pictures.base import Drawing, Picture
from reporting.pictures.layers import LayerView, active_layers, look_inside, measure_use
from reporting.style import INK, as_shown, draw_grid, letter, new_figure, shortened, show_faded, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_IMAGES = 8
NUM_TEMPLATES = {1: 6, 2: 4}  # of a layer, by the number of layers
FINENESS = 16  # points of a smooth heat map across a patch
CONTOUR = 0.5  # of a template's highest weight


class Templates(Picture):
    """Heat maps of the weights of the most used templates of every KD layer, over evaluation images."""

    name = "templates"

    @staticmethod
    def lacks(options: Options) -> str | None:
        return None if active_layers(options) else "KD layer whose values are used"

    def draw(self) -> Drawing:
        places, classes = active_layers(self.options), self.dataset.classes
        use = measure_use(self.model, self.input, self.loader(self.dataset, self.split), places, len(classes))
        images, labels = self.images_at(self.draw_lots(NUM_IMAGES, NUM_IMAGES))
        views = look_inside(self.model, self.input(images), places)
        shown = [(place, k) for place in places for k in use[place].most_used(NUM_TEMPLATES[len(places)])]
        pixels = as_shown(images)
        figure = new_figure(height=0.3 + 0.82 * (1 + len(shown)))
        rows = figure.subplots(1 + len(shown), 1 + len(pixels), width_ratios=(1.35, *[1] * len(pixels)), squeeze=False)
        for axes, image, label in zip(rows[0, 1:], pixels, labels.tolist(), strict=True):
            show_image(axes, image)
            axes.set_title(shortened(classes[label], 10), size=8, loc="center")
        rows[0, 0].set_axis_off()
        named = None
        for row, (place, template) in zip(rows[1:], shown, strict=True):
            if place != named:
                row[0].set_title(f"{place} layer", style="italic")
                named = place
            share = 100 * use[place].largest_K[template]
            describe(row[0], self.name_of(place, template), f"largest in {share:.1f} %\nof the patches")
            heat_BHW = views[place].weights_BKHW[:, template].cpu() / use[place].highest_K[template].clamp_min(1e-12)
            for axes, image, heat_HW in zip(row[1:], pixels, heat_BHW, strict=True):
                draw_heat(axes, image, heat_HW)
        return Drawing(figure, "Where the most used templates of the student are active", self.caption(views))

    def name_of(self, place: str, template: int) -> str:
        """What supervises a template's scores: a sub-class of the teacher's, or a word."""
        if not supervises(self.options, place):
            return f"template {template}"
        if place == PENULTIMATE:
            return f"word {template}"
        label, subclass = divmod(template, self.options.subclasses.subclasses_per_class)
        return f"{shortened(self.dataset.classes[label], 10)} {letter(subclass)}"

    def caption(self, views: dict[str, LayerView]) -> str:
        layers = " and ".join(
            f"the {place} KD layer ({' x '.join(map(str, view.weights_BKHW.shape[2:]))} patches, "
            f"{view.weights_BKHW.shape[1]} templates)"
            for place, view in views.items()
        )
        return (
            f"Weights ReLU(BatchNorm(s)) of {layers} of {self.options.job.run_name} over {self.images_shown} of "
            f"{self.dataset.name}, for the templates that have the largest weight in most patches of all "
            f"{len(self.labels)} images. A sub-class of a class has a letter; visual words have numbers. "
            f"Darker is a higher weight, relative to the template's highest anywhere, smoothed between the centres of "
            f"the patches, whose borders are drawn; contours are at half of the highest."
        )


def describe(axes: "Axes", name: str, note: str) -> None:
    """The name of a row and a note below it."""
    axes.set_axis_off()
    axes.text(0, 0.6, name, va="bottom", size=8.5, weight="bold")
    axes.text(0, 0.55, note, va="top", size=7, linespacing=1.3)


def draw_heat(axes: "Axes", pixels: np.ndarray, heat_HW: Tensor) -> None:
    """Weights between 0 and 1 as a smooth heat map over the image in grey, with the grid of the patches."""
    from matplotlib import colormaps

    height, width = heat_HW.shape
    fine = F.interpolate(heat_HW[None, None], scale_factor=FINENESS, mode="bilinear", align_corners=False)
    fine_HW = fine[0, 0].clamp(0, 1).numpy()
    show_faded(axes, pixels)
    coloured = colormaps["inferno_r"](fine_HW)
    coloured[..., 3] = 0.9 * np.sqrt(fine_HW)  # the image shows where no template is active
    axes.imshow(coloured, extent=(0, 1, 1, 0), interpolation="bilinear")
    draw_grid(axes, height, width, color=INK, linewidth=0.3, alpha=0.25)
    if fine_HW.max() > CONTOUR:
        centres = [(np.arange(size * FINENESS) + 0.5) / (size * FINENESS) for size in (width, height)]
        axes.contour(*centres, fine_HW, levels=[CONTOUR], colors=[INK], linewidths=0.8)
