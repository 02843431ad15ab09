"""LDA, sub-classes and decision matrix of a teacher's map (`LDA=<index of a stage, place or module path>`)."""

import time
from pathlib import Path

import torch
from torch import Tensor

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from architectures import Place, TappedNetwork
from distillation.prepared import pooled_apart
from distillation.supervision_files import decisions_path
from engine.records import duration, log, save_results
from letkd.fit import fit_maps
from letkd.processes import member


class LDAScores(OfflineAlgorithm):
    """Fits and saves the decision scores at the first block of a stage, or at any place.

    `incremental=True` runs the network twice and never holds the C-dimensional patches, only their projections; so it
    is where there are more patches than `max_patches`.
    """

    mode = "LDA"
    fewer_patches = "incremental=True"

    def _run(self) -> Results:
        start = time.perf_counter()
        options = self.options
        self.open()
        tap = self.check_patches()
        of, num_subclasses = self.teacher_map(tap), options.subclasses.subclasses_per_class
        self.begin()
        with self.followed(tap) as follow:
            decisions = fit_maps(
                self.source(of),
                decisions={of.path: num_subclasses},
                num_classes=self.dataset.num_classes,
                num_components=options.subclasses.lda_components,
                max_patches=self.max_patches,
                seed=options.run.seed,
                incremental=options.offline.incremental,
                hold=self.hold,
                follow=follow,
                member=member(),
            )[of.path]
        path = self._path(tap)
        self.save(path, of, decisions)
        seconds = time.perf_counter() - start
        lda, kept = decisions.lda, 100 * _own_class_share(decisions.decisions_MM, num_subclasses)
        log.info(
            "%d sub-classes in %d of %d LDA components, %.1f%% decided for their own class, in %s: %s",
            len(decisions.centers_ML), lda.n_components, lda.scalings_.shape[1], kept, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts()
            | {"seconds": seconds, "file": str(path), "tap": tap.path, "patches": decisions.num_patches}
            | {"components": lda.n_components, "rank": lda.rank_, "decided_for_own_class": kept},
        )

    def _path(self, tap: Place) -> Path:
        fname, subclasses = self.options.offline.fname, self.options.subclasses
        if fname is not None:
            return self.directory / fname
        return decisions_path(
            self.directory,
            tap.path,
            num_subclasses=subclasses.subclasses_per_class,
            num_components=subclasses.lda_components,
            pooled=pooled_apart(self.options.job.run_name, self.downscale),
        )

    def check_patches(self) -> Place:
        tap = self._stage_tap()
        num_images = self.dataset.split("train").labels.bincount(minlength=self.dataset.num_classes)
        num_patches, label = (num_images * (self.num_patches(tap) // num_images.sum())).min(dim=0)
        if num_patches < self.options.subclasses.subclasses_per_class:
            raise ValueError(
                f"class {self.dataset.classes[label]!r} has {num_patches} patches, too few for "
                f"{self.option('subclasses_per_class')}"
            )
        return tap

    def _stage_tap(self) -> Place:
        wanted = self.options.job.LDA
        if isinstance(wanted, str):
            return self.place(wanted)
        if not isinstance(self.network, TappedNetwork):
            raise ValueError(
                f"LDA={wanted}: {self.network_name} has no numbers of stages; LDA=intermediate, another place or "
                "a module path say which map"
            )
        stages = self.network.stages
        if wanted not in stages:
            known = ", ".join(f"{number} ({self.network.feature_children[number]})" for number in stages)
            raise ValueError(f"LDA={wanted} names no stage of {self.network_name}; stages: {known}")
        return self.place(stages[wanted].path)


def _own_class_share(decisions_MM: Tensor, num_subclasses: int) -> float:
    """How often the nearest prototype is one of the patch's own class, a mean over sub-classes in 0..1."""
    class_M = torch.arange(len(decisions_MM), device=decisions_MM.device) // num_subclasses
    return decisions_MM[class_M[:, None] == class_M].sum().item() / len(decisions_MM)
