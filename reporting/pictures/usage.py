"""How the codebook is used: over training, and by the trained student compared with its teacher.

The perplexity of the use of K visual words is the exponential of its entropy: 1 when all patches are assigned to one
word, K when all words are equally frequent. A dead word is one to which no patch is assigned.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from config.options import Options
from distillation.expressions import PENULTIMATE, supervises
from engine.records import LOG
from reporting.pictures.base import Drawing, Picture
from reporting.style import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEACHER, STUDENT = PALETTE[0], PALETTE[3]
LEGEND_ROOM = 0.4  # of the data's height, above them


class Usage(Picture):
    """Perplexity and dead words over training, and the use of every word by student and teacher."""

    name = "usage"
    needs_supervision = True

    @staticmethod
    def lacks(options: Options) -> str | None:
        return None if supervises(options, PENULTIMATE) else "supervision by a teacher's words"

    def draw(self) -> Drawing:
        history = self.history()
        epochs = [done["epoch"] for done in history]
        teacher_K, student_K, agreement = (values.numpy() for values in self.count())
        figure = new_figure(height=3.3)
        grid = figure.add_gridspec(2, 2, width_ratios=(2, 3), wspace=0.06)
        above, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        draw_curve(above, epochs, [done["statistics"]["perplexity"] for done in history], "perplexity")
        draw_curve(below, epochs, [done["statistics"]["dead_words"] for done in history], "dead words")
        above.tick_params(labelbottom=False)
        above.set_title("codebook usage, training images")
        below.set_xlabel("epoch")
        ranks = figure.add_subplot(grid[:, 1])
        draw_ranks(ranks, teacher_K, student_K)
        ranks.set_title(f"codebook usage, {self.images_shown}")
        num_words = len(teacher_K)
        caption = (
            f"Usage of the codebook of {num_words} visual words of {self.options.pair.teacher} in "
            f"{self.options.job.run_name}. Left: perplexity of the teacher's assignments in a training batch, and dead "
            f"words, to which no patch of the epoch's sampled batches is assigned. Right: share of the patches of all "
            f"{len(self.labels)} {self.images_shown} of {self.dataset.name} that are assigned to each word, most "
            f"frequent first: for the teacher the nearest word, for the student the template with the highest score; "
            f"dots are the student's shares in the teacher's order. Student and teacher agree on "
            f"{100 * float(agreement):.1f} % of the patches."
        )
        title = (
            f"The student uses {np.count_nonzero(student_K)} of {num_words} visual words (perplexity "
            f"{perplexity(student_K):.0f}), its teacher {np.count_nonzero(teacher_K)} ({perplexity(teacher_K):.0f})"
        )
        return Drawing(figure, title, caption)

    def history(self) -> list[dict[str, Any]]:
        """The figures of every epoch up to the one that is shown.

        Raises:
            ValueError: the training has kept none.
        """
        history = self.checkpoint.get("history", [])
        if not all("dead_words" in done["statistics"] for done in history) or not history:
            raise ValueError(
                f"{self.directory} has no record of codebook usage over training, which earlier versions did not keep; "
                f"train it again by the command in {self.directory / LOG}"
            )
        return history

    @torch.inference_mode()
    def count(self) -> tuple[Tensor, Tensor, Tensor]:
        """Patches with each word (K,), by the teacher's nearest and by the student's best, and the share that agree."""
        words, teacher = self.objective.losses["words"], self.objective.teacher
        num_words = words.codebook.num_words
        teacher_K = torch.zeros(num_words, dtype=torch.int64, device=self.device)
        student_K, agreeing = torch.zeros_like(teacher_K), torch.zeros_like(teacher_K[0])
        for batch in self.loader(self.dataset, self.split):
            taught = teacher(teacher.input(batch.images))
            nearest_P = words.codebook.hard_assignment(words.teacher_map(taught))
            best_P = words.scores(self.objective.network(self.input(batch.images))).argmax(dim=1)
            teacher_K += torch.bincount(nearest_P, minlength=num_words)
            student_K += torch.bincount(best_P, minlength=num_words)
            agreeing += (nearest_P == best_P).sum()
        return teacher_K.cpu(), student_K.cpu(), (agreeing / teacher_K.sum()).cpu()


def perplexity(counts_K: np.ndarray) -> float:
    """Of a use of K words, 1 to K."""
    used = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-(used * np.log(used)).sum()))


def draw_curve(axes: "Axes", epochs: list[int], values: list[float], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(epochs, values, color=TEACHER, marker="o" if len(epochs) <= 20 else None, markersize=3.5, clip_on=False)
    axes.set_ylabel(name)
    axes.set_ylim(bottom=0, top=1.08 * max(*values, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(axis="y")


def draw_ranks(axes: "Axes", teacher_K: np.ndarray, student_K: np.ndarray) -> None:
    """Shares of the words by rank, on a logarithmic scale; words that are not used have no point."""
    ranks = np.arange(1, len(teacher_K) + 1)
    order = np.argsort(-teacher_K, kind="stable")
    lines = (
        ("teacher", teacher_K, {"color": TEACHER}),
        ("student", student_K, {"color": STUDENT, "linestyle": (0, (4, 1.5))}),
    )
    for name, counts_K, line in lines:
        unused = len(counts_K) - np.count_nonzero(counts_K)
        label = f"{name}: perplexity {perplexity(counts_K):.0f}, {unused} unused"
        axes.plot(ranks, -np.sort(-shares(counts_K)), label=label, **line)
    axes.plot(
        ranks,
        shares(student_K)[order],
        linestyle="none",
        marker=".",
        markersize=5,
        markeredgewidth=0,
        color=STUDENT,
        alpha=0.5,
        label="student, in the teacher's order",
    )
    axes.set_yscale("log")
    used = np.concatenate([shares(counts_K)[counts_K > 0] for counts_K in (teacher_K, student_K)])
    span = max(used.max() / used.min(), 10)
    axes.set_ylim(used.min() / span**0.05, used.max() * span**LEGEND_ROOM)
    axes.set(xlabel="rank of the visual word", ylabel="share of the patches (%)", xlim=(0, len(ranks) + 1))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", which="major")
    axes.legend(loc="upper right")


def shares(counts_K: np.ndarray) -> np.ndarray:
    """Percent, with nan for none: a logarithmic scale has no 0."""
    return np.where(counts_K > 0, 100 * counts_K / counts_K.sum(), np.nan)
