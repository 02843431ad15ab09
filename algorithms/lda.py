"""LDA, sub-classes and decision matrix of a teacher's stage (`LDA=<index of the stage>`)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from architectures import Tap
from distillation.prepared import decisions_path, save_decisions, supervision_record
from engine.records import duration, log, save_results
from letkd import LDA, decision_matrix, fit_subclasses
from letkd.checks import at

ROWS = 2**18  # patches that are projected at once


class LDAScores(OfflineAlgorithm):
    """Fits and saves the decision scores at the first block of a stage.

    `incremental=True` runs the network twice and never holds the C-dimensional patches, only their projections.
    """

    mode = "LDA"
    fewer_patches = "incremental=True"

    def _run(self) -> Results:
        start = time.perf_counter()
        config = self.config
        self.open()
        tap = self.check_patches()
        num_subclasses = config["subclasses_per_class"]
        with at(tap.path), self._projections(tap) as (lda, projected_PL, labels_P):
            centers_ML, members_P = fit_subclasses(
                projected_PL,
                labels_P,
                num_classes=self.dataset.num_classes,
                num_subclasses=num_subclasses,
                seed=config["seed"],
            )
            prototypes_ML, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=len(centers_ML))
            num_patches, num_components = projected_PL.shape
        tensors = {
            "scalings": lda.scalings_,
            "xbar": lda.xbar_,
            "centers": centers_ML,
            "prototypes": prototypes_ML,
            "decisions": decisions_MM,
        }
        path = self._path(tap)
        save_decisions(path, tensors, supervision_record(config, self.weights, tap=tap.path, patches=num_patches))
        seconds = time.perf_counter() - start
        kept = 100 * _own_class_share(decisions_MM, num_subclasses)
        log.info(
            "%d sub-classes in %d of %d LDA components, %.1f%% decided for their own class, in %s: %s",
            len(centers_ML), num_components, lda.scalings_.shape[1], kept, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts()
            | {"seconds": seconds, "file": str(path), "tap": tap.path, "patches": num_patches}
            | {"components": num_components, "rank": lda.rank_, "decided_for_own_class": kept},
        )

    def _path(self, tap: Tap) -> Path:
        config = self.config
        if config["fname"] is not None:
            return self.directory / config["fname"]
        return decisions_path(
            self.directory,
            tap.path,
            num_subclasses=config["subclasses_per_class"],
            num_components=config["lda_components"],
        )

    def check_patches(self) -> Tap:
        tap = self._stage_tap()
        num_images = self.dataset.split("train").labels.bincount(minlength=self.dataset.num_classes)
        num_patches, label = (num_images * (self.num_patches(tap) // num_images.sum())).min(dim=0)
        if num_patches < self.config["subclasses_per_class"]:
            raise ValueError(
                f"class {self.dataset.classes[label]!r} has {num_patches} patches, too few for "
                f"{self.option('subclasses_per_class')}"
            )
        return tap

    def _stage_tap(self) -> Tap:
        stages = self.network.stages
        index = self.config["LDA"]
        if index not in stages:
            known = ", ".join(f"{number} ({self.network.feature_children[number]})" for number in stages)
            raise ValueError(f"LDA={index} names no stage of {self.config['network']}; stages: {known}")
        return stages[index]

    @contextmanager
    def _projections(self, tap: Tap) -> Iterator[tuple[LDA, Tensor, Tensor]]:
        """The fitted LDA, all patches in its first components (P, L), and their classes (P,)."""
        lda = LDA()
        if self.config["incremental"]:
            for features_RC, labels_R in self.patches(tap):
                lda.partial_fit(features_RC, labels_R, num_classes=self.dataset.num_classes)
            self._keep_components(lda.solve())
            with self.held_patches(tap, projection=lda) as (projected_PL, labels_P):
                yield lda, projected_PL, labels_P
            return
        with self.held_patches(tap) as (features_PC, labels_P):
            self._keep_components(lda.fit(features_PC, labels_P))
            with self.storage(len(features_PC), lda.num_components) as projected_PL:
                for features_RC, rows_RL in zip(features_PC.split(ROWS), projected_PL.split(ROWS), strict=True):
                    rows_RL.copy_(lda.transform(features_RC))
                yield lda, projected_PL, labels_P

    def _keep_components(self, lda: LDA) -> None:
        lda.num_components = min(self.config["lda_components"], lda.scalings_.shape[1])


def _own_class_share(decisions_MM: Tensor, num_subclasses: int) -> float:
    """How often the nearest prototype is one of the patch's own class, a mean over sub-classes in 0..1."""
    class_M = torch.arange(len(decisions_MM), device=decisions_MM.device) // num_subclasses
    return decisions_MM[class_M[:, None] == class_M].sum().item() / len(decisions_MM)
