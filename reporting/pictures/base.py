"""What every picture shares: the trained experiment that it shows, and the files that it leaves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from algorithms.base import Results
from algorithms.evaluate import AVERAGE, Evaluation, said_of_untrained
from algorithms.teaching import missing_supervision
from architectures import Input
from config.options import Options
from dataloaders import Dataset
from distillation.objective import Objective
from engine.records import log
from reporting.style import save_figure, style
from results.places import Requirement
from results.settings import name_of_changes
from storage.tensor_files import save_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "pictures"  # in the experiment's directory


@dataclass(frozen=True)
class Drawing:
    """A finished figure and what is said of it; the caption explains everything that the figure shows."""

    figure: "Figure"
    title: str
    caption: str


class Picture(Evaluation):
    """Draws one picture of a trained experiment and leaves `pictures/<name>.png`, `.pdf` and `.json` in its directory.

    Of the average of the weights, and with options that make another network or other images than the training's, the
    name says so.
    The network is that of the last epoch, the best one or epoch n, and the images are those of the evaluation split or
    the third, as in an evaluation.

    Args:
        command: the command line that draws it, which the JSON file repeats.
    """

    name: ClassVar[str]
    needs_supervision: ClassVar[bool] = False  # the teacher with its codebook and decision scores
    is_untrained: bool  # whether nothing has trained their classifier
    changes: Results  # as `_changes`
    place: Path  # of its files, without their endings
    dataset: Dataset
    input: Input  # stands in front of the student
    model: nn.Module
    objective: Objective  # with supervision alone

    def __init__(self, options: Options, command: str):
        super().__init__(options)
        self.command = command
        self.split = "test" if options.job.testset else "eval"

    @staticmethod
    def lacks(options: Options) -> str | None:
        """What an experiment would have to have for this picture and does not have; None where it has all."""
        return None

    def missing_requirements(self) -> Iterator[Requirement]:
        if self.needs_supervision:
            yield from missing_supervision(self.options)

    def draw(self) -> Drawing:
        """The picture of what `_run` has opened."""
        raise NotImplementedError

    def _run(self) -> Results:
        with style():
            self.open()
            is_average = self.options.job.average
            name = self.name + (AVERAGE if is_average else "") + name_of_changes(self.changes.get("changed", {}))
            self.place = self.directory / FOLDER / name
            with self.autocast():  # networks see images as in training and evaluation
                drawing = self.draw()
            self.refuse_gone()
            save_figure(drawing.figure, self.place)
        title = drawing.title + (", average of the weights" if is_average else "")
        about = {"title": title, "caption": drawing.caption, "command": self.command} | self.changes
        save_json(self.place.with_suffix(".json"), about)
        log.info("%s: %s", title, self.place.with_suffix(".png"))
        return about | {"file": str(self.place.with_suffix(".png"))}

    def open(self) -> None:
        """Load weights, images and, where the picture needs them, teacher and supervision."""
        weights, _ = self._open_weights()
        self.is_untrained = said_of_untrained(weights) is not None
        self.dataset = self.open_dataset(self.split, data=weights.data)
        seen = self._seen(weights, self.dataset)
        self.input = seen.module().to(self.device)
        self.changes = self._changes(weights, self.dataset)
        if self.needs_supervision:
            self.objective = self._open_objective(weights, self.dataset)
            self.model = self.objective.student
        else:
            self.model = self._open_model(weights, self.dataset.num_classes, seen.image_size).eval()
        log.info("picture of %s", weights.source)

    @property
    def labels(self) -> Tensor:
        """Classes (M,) of all images, on the CPU."""
        return self.dataset.split(self.split).labels

    def draw_lots(self, num_images: int, num_classes: int) -> Tensor:
        """Indices of random images, class after class: about `num_images` of at most `num_classes` classes (seed)."""
        generator = torch.Generator().manual_seed(self.options.run.seed)
        present = self.labels.unique()
        chosen = present[torch.randperm(len(present), generator=generator)[:num_classes]].sort().values
        share = max(1, num_images // len(chosen))
        lots = []
        for label in chosen.tolist():
            members = torch.nonzero(self.labels == label).flatten()
            lots.append(members[torch.randperm(len(members), generator=generator)[:share]])
        return torch.cat(lots)

    def images_at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) uint8 of the images at indices (B,), and their classes, on the device."""
        part = replace(self.dataset, **{self.split: self.dataset.split(self.split).take(indices)})
        batches = list(self.loader(part, self.split))
        return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])

    @property
    def images_shown(self) -> str:
        """What a caption calls the images."""
        return {"eval": "evaluation images", "test": "test images"}[self.split]
