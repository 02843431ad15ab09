"""k-means over every penultimate patch of a teacher: the codebook of visual words (`kmeans=K`)."""

import sys
import time

import torch

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from architectures import Tap
from distillation.prepared import codebook_path, save_codebook, supervision_record
from engine.records import duration, log, progress_bar, save_results
from letkd import KMeans
from letkd.kmeans import NUM_ITERATIONS


class KMeansCodebook(OfflineAlgorithm):
    """Fits and saves a codebook of `kmeans` words."""

    mode = "kmeans"
    fewer_patches = "ksubset=n"

    def check_patches(self) -> Tap:
        tap = self.network.penultimate
        num_patches = self._num_used(tap)
        if self.config["kmeans"] > num_patches:
            raise ValueError(f"{self.option('kmeans')} is more than the {num_patches} patches of the training images")
        return tap

    def _num_used(self, tap: Tap) -> int:
        return min(self.num_patches(tap), self.config["ksubset"] or sys.maxsize)

    def _run(self) -> Results:
        start = time.perf_counter()
        config = self.config
        num_words = config["kmeans"]
        self.open()
        tap = self.check_patches()
        num_patches = self._num_used(tap)
        num_chosen = num_patches if num_patches < self.num_patches(tap) else None
        with (
            self.held_patches(tap, num_chosen=num_chosen) as (features_PC, _),
            progress_bar(NUM_ITERATIONS, "iteration", "k-means") as bar,
        ):

            def show(iteration: int, objective: float) -> None:
                bar.update()
                bar.set_postfix(objective=f"{objective:.6g}")

            kmeans = KMeans(num_words, seed=config["seed"], on_iteration=show).fit(features_PC)
            usage_K = torch.bincount(kmeans.labels_, minlength=num_words) / len(features_PC)
        path = codebook_path(self.directory, num_words) if config["fname"] is None else self.directory / config["fname"]
        record = supervision_record(config, self.weights, tap=tap.path, patches=num_patches)
        save_codebook(path, kmeans.centroids_, record)
        seconds = time.perf_counter() - start
        perplexity = torch.special.entr(usage_K).sum().exp().item()
        log.info(
            "%d words of %d patches, objective %.6g, perplexity %.1f, in %s: %s",
            num_words, num_patches, kmeans.objectives_[-1], perplexity, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts()
            | {"seconds": seconds, "file": str(path), "words": num_words, "patches": num_patches}
            | {"objectives": kmeans.objectives_, "perplexity": perplexity},
        )
