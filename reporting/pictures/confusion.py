"""Confusion matrix: which classes are taken for which."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reporting.pictures.base import Drawing, Picture
from reporting.style import INK, PALETTE, SHORT, WIDTH, new_figure, shortened
from storage.documents import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WRITTEN_OUT = 12  # classes: up to so many, every cell has its numbers
LISTED = 15  # pairs beside a matrix without numbers
NAMED = 3  # pairs in the caption
DARKEST = 0.75  # share of the full orange
DARK = 80  # percent on the diagonal, from which ink would be hard to read


class Confusion(Picture):
    """Counts and percent of every class taken for every other; `confusion.csv` beside it has the counts."""

    name = "confusion"

    def draw(self) -> Drawing:
        counts_NN = self.count().numpy()
        classes = self.dataset.classes
        self.refuse_gone()
        save_counts(self.place.with_suffix(".csv"), counts_NN, classes)
        pairs = worst_pairs(counts_NN, LISTED)
        named = [f"{classes[i]} taken for {classes[j]} ({count}, {share:.1f} %)" for i, j, count, share in pairs]
        right = 100 * counts_NN.trace() / counts_NN.sum()
        title = f"{right:.2f} % of {counts_NN.sum()} {self.images_shown} are classified correctly"
        if len(classes) <= WRITTEN_OUT:
            figure = new_figure(height=0.8 + 0.36 * len(classes))
            draw_matrix(figure.subplots(), counts_NN, classes)
            reading = "Every cell has the number of images and, below it, the percentage of its row."
        else:
            # All names stay readable in the PDF; at report width the list beside them says what matters.
            figure = new_figure(height=1.2 * WIDTH, width=1.5 * WIDTH)
            left, right_side = figure.subplots(1, 2, width_ratios=(3, 1))
            draw_matrix(left, counts_NN, classes)
            list_pairs(right_side, pairs, classes)
            reading = "Cells are shaded by the percentage of their row; the list has the most frequent confusions."
        caption = (
            f"Confusion matrix of {self.options.job.run_name}: a row for each true class, a column for each predicted "
            f"one, {counts_NN.sum()} {self.images_shown} of {self.dataset.name}. {reading} The diagonal (blue) is "
            f"right, everything else (orange) wrong, shaded on a scale of its own. "
            + (f"Most frequent: {'; '.join(named[:NAMED])}." if named else "No image is classified wrongly.")
            + (" Nothing has trained this classifier, so it says nothing of the network." if self.is_untrained else "")
        )
        return Drawing(figure, title, caption)

    @torch.inference_mode()
    def count(self) -> Tensor:
        """Number of images (N, N) of every true class (row) that are given each class (column)."""
        num_classes = self.dataset.num_classes
        counts = torch.zeros(num_classes**2, dtype=torch.int64, device=self.device)
        for batch in self.loader(self.dataset, self.split):
            predicted = self.model(self.input(batch.images)).argmax(dim=1)
            counts += torch.bincount(batch.labels * num_classes + predicted, minlength=num_classes**2)
        return counts.view(num_classes, num_classes).cpu()


def save_counts(path: Path, counts_NN: np.ndarray, classes: tuple[str, ...]) -> None:
    """Write counts as a table: a row for each true class, a column for each predicted one."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [["true class", *classes], *([name, *row] for name, row in zip(classes, counts_NN.tolist(), strict=True))]
    )
    write_atomically(path, lambda file: file.write(table.getvalue().encode()))


def worst_pairs(counts_NN: np.ndarray, number: int) -> list[tuple[int, int, int, float]]:
    """The most frequent confusions: true class, predicted class, count, percent of the true class."""
    wrong_NN = counts_NN * (1 - np.eye(len(counts_NN), dtype=counts_NN.dtype))
    flat = np.argsort(-wrong_NN, axis=None, kind="stable")[:number]
    pairs = [tuple(map(int, np.unravel_index(index, wrong_NN.shape))) for index in flat]
    return [(i, j, int(wrong_NN[i, j]), 100 * wrong_NN[i, j] / counts_NN[i].sum()) for i, j in pairs if wrong_NN[i, j]]


def draw_matrix(axes: "Axes", counts_NN: np.ndarray, classes: tuple[str, ...]) -> None:
    """The matrix, with numbers in its cells where there is room for them."""
    from matplotlib.colors import LinearSegmentedColormap

    num_classes = len(classes)
    percent_NN = 100 * counts_NN / counts_NN.sum(axis=1, keepdims=True).clip(min=1)
    diagonal = np.eye(num_classes, dtype=bool)
    limit = max(percent_NN[~diagonal].max(initial=0), 1e-9)
    # The darkest orange is no darker than what ink can be read on.
    for shown, colour, most in ((diagonal, PALETTE[0], 100), (~diagonal, PALETTE[3], limit / DARKEST)):
        shades = LinearSegmentedColormap.from_list("", ["#ffffff", colour])
        axes.imshow(
            np.ma.masked_where(~shown, percent_NN),
            cmap=shades,
            vmin=0,
            vmax=most,
            interpolation="nearest",
            aspect="auto",
        )
    if num_classes <= WRITTEN_OUT:
        for (row, column), count in np.ndenumerate(counts_NN):
            if count:
                share = percent_NN[row, column]
                colour = "white" if row == column and share > DARK else INK
                axes.text(column, row, f"{count}\n{share:.1f} %", ha="center", va="center", size=7, color=colour)
    names = [shortened(name) for name in classes]
    if num_classes > WRITTEN_OUT:
        turned = {"rotation": 90, "size": min(8.0, 500 / num_classes)}
    elif max(map(len, names)) > SHORT:
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    else:
        turned = {}
    axes.set_xticks(range(num_classes), names, **turned)
    axes.set_yticks(range(num_classes), names, size=turned.get("size"))
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(True)
    # Lines between the cells, also where they are white.
    axes.set_xticks(np.arange(0.5, num_classes - 1), minor=True)
    axes.set_yticks(np.arange(0.5, num_classes - 1), minor=True)
    axes.grid(which="minor", linewidth=0.5 if num_classes <= WRITTEN_OUT else 0.15)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)
    axes.set(xlabel="predicted class", ylabel="true class")


def list_pairs(axes: "Axes", pairs: list[tuple[int, int, int, float]], classes: tuple[str, ...]) -> None:
    """The most frequent confusions as bars with their names."""
    places = range(len(pairs))
    axes.barh(places, [share for *_, share in pairs], height=0.35, color=PALETTE[3])
    for place, (true, predicted, count, share) in zip(places, pairs, strict=True):
        text = f"{shortened(classes[true], 20)} → {shortened(classes[predicted], 20)}"
        axes.text(0, place - 0.3, text, size=11, va="bottom")
        axes.text(share, place, f"  {count} ({share:.1f} %)", size=10, va="center")
    axes.set(ylim=(len(pairs) - 0.4, -0.9), xlim=(0, 1.7 * max((share for *_, share in pairs), default=1)), yticks=[])
    axes.set_title("most frequent confusions", size=11)
    axes.set_xlabel("% of the true class", size=10)
    axes.tick_params(labelsize=9)
    axes.spines["left"].set_visible(False)
