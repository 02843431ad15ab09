"""LDA, sub-classes and decision matrix of a teacher's stage (`LDA=<index of the stage>`)."""

import time

import torch

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from algorithms.records import duration, log, save_results
from algorithms.supervision import decisions_path, save_decisions, supervision_record
from architectures import Tap
from letkd import LDA, decision_matrix, fit_subclasses


class LDAScores(OfflineAlgorithm):
    """Fits and saves the decision scores at the first block of a stage.

    `incremental=True` runs the network twice and never holds the C-dimensional patches, only their projections.
    """

    mode = "LDA"

    def _run(self) -> Results:
        start = time.perf_counter()
        config = self.config
        self.open()
        tap = self._stage_tap()
        num_subclasses = config["subclasses_per_class"]
        lda, projected_PL, labels_P = self._project(tap)
        centers_ML, members_P = fit_subclasses(
            projected_PL,
            labels_P,
            num_classes=self.dataset.num_classes,
            num_subclasses=num_subclasses,
            seed=config["seed"],
        )
        prototypes_ML, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=len(centers_ML))
        path = decisions_path(
            self.directory, tap.path, num_subclasses=num_subclasses, num_components=config["lda_components"]
        )
        if config["fname"] is not None:
            path = self.directory / config["fname"]
        tensors = {
            "scalings": lda.scalings_,
            "xbar": lda.xbar_,
            "centers": centers_ML,
            "prototypes": prototypes_ML,
            "decisions": decisions_MM,
        }
        save_decisions(path, tensors, supervision_record(config, self.weights, tap=tap.path, patches=len(labels_P)))
        seconds = time.perf_counter() - start
        own_class = torch.arange(len(centers_ML), device=decisions_MM.device) // num_subclasses
        kept = decisions_MM[own_class[:, None] == own_class].sum().item() / len(centers_ML)
        log.info(
            "%d sub-classes in %d of %d LDA components, %.1f%% decided for their own class, in %s: %s",
            len(centers_ML), projected_PL.shape[1], lda.scalings_.shape[1], 100 * kept, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts()
            | {"seconds": seconds, "file": str(path), "tap": tap.path, "patches": len(labels_P)}
            | {"components": projected_PL.shape[1], "rank": lda.rank_, "decided_for_own_class": 100 * kept},
        )

    def _stage_tap(self) -> Tap:
        stages = self.network.stages
        index = self.config["LDA"]
        if index not in stages:
            known = ", ".join(f"{number} ({self.network.feature_children[number]})" for number in stages)
            raise ValueError(f"LDA={index} names no stage of {self.config['network']}; stages: {known}")
        return stages[index]

    def _project(self, tap: Tap) -> tuple[LDA, torch.Tensor, torch.Tensor]:
        """The fitted LDA, all patches in its first components (P, L), and their classes (P,)."""
        lda = LDA()
        num_classes = self.dataset.num_classes
        if self.config["incremental"]:
            for features_RC, labels_R in self.patches(tap):
                lda.partial_fit(features_RC, labels_R, num_classes=num_classes)
            self._keep_components(lda.solve())
            projected = [(lda.transform(features_RC), labels_R) for features_RC, labels_R in self.patches(tap)]
            return lda, torch.cat([rows for rows, _ in projected]), torch.cat([labels for _, labels in projected])
        with self.held_patches(tap) as (features_PC, labels_P):
            self._keep_components(lda.fit(features_PC, labels_P))
            projected_PL = torch.cat([lda.transform(features_RC) for features_RC in features_PC.split(2**18)])
            return lda, projected_PL, labels_P

    def _keep_components(self, lda: LDA) -> None:
        lda.num_components = min(self.config["lda_components"], lda.scalings_.shape[1])
