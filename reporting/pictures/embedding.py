"""t-SNE of the input and the output of a KD layer, and of its semantic vectors (van der Maaten & Hinton, 2008).

An image is the mean of its map over the grid. A semantic vector is a column of V as the layer applies it: rows
normalised over the templates, times scale_v.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config.options import Options
from distillation.expressions import INTERMEDIATE, supervises
from distillation.signals import plain_kd_layer
from letkd import KDLayer
from reporting.pictures.base import Drawing, Picture
from reporting.pictures.layers import active_layers, look_inside, measure_use
from reporting.style import INK, MARKERS, PALE, PALETTE, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_CLASSES_SHOWN = 10  # more cannot be told apart
NUM_IMAGES = 600
NUM_VECTORS = 600  # of a layer: those of the most used templates
PERPLEXITY = 30
NUM_NEIGHBOURS = 10


class Embedding(Picture):
    """t-SNE of the features before and behind every KD layer, and of its semantic vectors."""

    name = "tsne"

    @staticmethod
    def lacks(options: Options) -> str | None:
        return None if active_layers(options) else "KD layer whose values are used"

    def draw(self) -> Drawing:
        places, classes = active_layers(self.options), self.dataset.classes
        use = measure_use(self.model, self.input, self.loader(self.dataset, self.split), places, len(classes))
        indices = self.draw_lots(NUM_IMAGES, NUM_CLASSES_SHOWN)
        labels = self.labels[indices].numpy()
        shown = np.unique(labels)
        figure = new_figure(height=0.5 + 2.65 * len(places))
        panels = figure.subplots(len(places), 3, squeeze=False)
        purities = []
        for row, (place, features) in zip(panels, self.features(indices, places).items(), strict=True):
            for axes, side, values_MC in zip(row, ("before", "behind"), features, strict=False):
                purities.append(neighbours_of_own_class(values_MC, labels))
                scatter(axes, self.embed(values_MC), labels, shown)
                axes.set_title(f"{side} the {place} layer")
                axes.set_xlabel(f"{purities[-1]:.1f} % of neighbours of the same class", labelpad=4)
            layer = plain_kd_layer(self.model.layers[place])
            templates = use[place].most_used(NUM_VECTORS)
            owners = self.owners(place, use[place].means_NK)[templates].numpy()
            scatter(row[2], self.embed(semantic_vectors(layer)[templates].cpu().numpy()), owners, shown)
            row[2].set_title("its semantic vectors")
            row[2].set_xlabel(f"{len(templates)} of {layer.semantic_vectors.shape[1]} templates", labelpad=4)
        handles, _ = panels[0, 0].get_legend_handles_labels()
        names = [shortened(classes[label]) for label in shown]
        figure.legend(handles, names, loc="outside lower center", ncols=5, handletextpad=0.1, columnspacing=1.2)
        return Drawing(figure, *self.words(places, purities, len(indices), len(shown)))

    def words(self, places: list[str], purities: list[float], num_images: int, num_shown: int) -> tuple[str, str]:
        """Title and caption."""
        changes = ", ".join(
            f"{place} {before:.1f} to {after:.1f} %"
            for place, before, after in zip(places, purities[::2], purities[1::2], strict=True)
        )
        num_classes = self.dataset.num_classes
        some = "" if num_shown == num_classes else f" of {num_shown} of the {num_classes} classes (grey: the others)"
        caption = (
            f"t-SNE (perplexity up to {PERPLEXITY}, seed {self.options.run.seed}) for {self.options.job.run_name}. "
            f"Left and middle: {num_images} {self.images_shown} of {self.dataset.name}{some}, each the mean over the "
            f"grid of the KD layer's input and output. The percentage below a panel is the share of the "
            f"{NUM_NEIGHBOURS} nearest neighbours in feature space, not in the plane, that are of the same "
            f"class: {changes}. Right: the semantic vectors of the most used templates, marked by class: that of the "
            f"sub-class which supervises the template, or else the class in whose images its mean weight is highest. "
            f"Axes of t-SNE have no unit and differ between panels."
        )
        return "Features before and behind the KD layers, and their semantic vectors", caption

    def features(self, indices: Tensor, places: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Means over the grid (M, C) of the maps before and behind every layer, for the images at indices (M,)."""
        collected = {place: ([], []) for place in places}
        for part in indices.split(self.options.protocol.test_batch_size):
            pixels, _ = self.images_at(part)
            for place, view in look_inside(self.model, self.input(pixels), places).items():
                for rows, map_BCHW in zip(collected[place], (view.before_BCHW, view.after_BCHW), strict=True):
                    rows.append(map_BCHW.mean(dim=(2, 3)).cpu())
        return {place: tuple(torch.cat(rows).numpy() for rows in sides) for place, sides in collected.items()}

    def owners(self, place: str, means_NK: Tensor) -> Tensor:
        """The class of every template, (K,)."""
        if place == INTERMEDIATE and supervises(self.options, place):
            return torch.arange(means_NK.shape[1]) // self.options.subclasses.subclasses_per_class
        return means_NK.argmax(dim=0)

    def embed(self, values_MC: np.ndarray) -> np.ndarray:
        """Places (M, 2) in the plane."""
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(values_MC) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=self.options.run.seed).fit_transform(values_MC)


@torch.no_grad()
def semantic_vectors(layer: KDLayer) -> Tensor:
    """What every template adds to a feature at full weight: scale_v * V, rows normalised over K, as rows (K, C)."""
    return layer.scale * F.normalize(layer.semantic_vectors, dim=1).T


def neighbours_of_own_class(features_MC: np.ndarray, labels_M: np.ndarray) -> float:
    """Percent of the nearest neighbours of an image (Euclidean) that are of its class, mean over the images."""
    from sklearn.neighbors import NearestNeighbors

    number = min(NUM_NEIGHBOURS, len(features_MC) - 1)
    nearest = NearestNeighbors(n_neighbors=number).fit(features_MC).kneighbors(return_distance=False)
    return 100 * float((labels_M[nearest] == labels_M[:, None]).mean())


def scatter(axes: "Axes", places_M2: np.ndarray, labels_M: np.ndarray, shown: np.ndarray) -> None:
    """Points by class; those of classes that are not shown are small and grey."""
    others = ~np.isin(labels_M, shown)
    axes.scatter(*places_M2[others].T, s=4, color=PALE, linewidths=0)
    for number, label in enumerate(shown):
        axes.scatter(
            *places_M2[labels_M == label].T,
            s=12,
            marker=MARKERS[number % len(MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            edgecolors=INK,
            linewidths=0.25,
            label=str(label),
        )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
