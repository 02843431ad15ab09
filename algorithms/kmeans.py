"""k-means over every patch of a teacher's penultimate map, or of another one: the codebook of words (`kmeans=K`)."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from algorithms.unlabelled import check_pictures_of_words, open_unlabelled
from architectures import Place
from dataloaders import Dataset
from dataloaders.unlabelled import digest_of_pictures
from distillation.expressions import PENULTIMATE
from distillation.prepared import pooled_apart
from distillation.supervision_files import codebook_path
from engine.records import duration, log, save_results
from letkd.fit import fit_maps
from letkd.parts import summed
from letkd.processes import member
from results.places import Requirement


class KMeansCodebook(OfflineAlgorithm):
    """Fits and saves a codebook of `kmeans` words."""

    mode = "kmeans"
    fewer_patches = "max_patches=n"

    @property
    def _place_name(self) -> str:
        """What the words are of; an experiment of one's own need not say it."""
        return self.options.of_loss("words.teacher_place", PENULTIMATE)

    def missing_requirements(self) -> Iterator[Requirement]:
        check_pictures_of_words(self.options)
        yield from super().missing_requirements()

    def check_patches(self) -> Place:
        tap = self.place(self._place_name)
        num_patches = min(self.num_patches(tap), self.max_patches or math.inf)
        if self.options.job.kmeans > num_patches:
            raise ValueError(f"{self.option('kmeans')} is more than the {num_patches} patches of the training images")
        return tap

    def _run(self) -> Results:
        start = time.perf_counter()
        num_words, fname = self.options.job.kmeans, self.options.offline.fname
        self.open()
        tap = self.check_patches()
        of = self.teacher_map(tap)
        self.begin()
        with self.followed(tap) as follow:
            words = fit_maps(
                self.source(of),
                words={of.path: num_words},
                max_patches=self.max_patches,
                seed=self.options.run.seed,
                hold=self.hold,
                follow=follow,
                member=member(),
            )[of.path]
        path = self._path(of.path) if fname is None else self.directory / fname
        self.save(path, of, words)
        seconds = time.perf_counter() - start
        kmeans = words.kmeans
        usage_K = summed(torch.bincount(kmeans.labels_, minlength=num_words), member()) / words.num_patches
        perplexity = torch.special.entr(usage_K).sum().exp().item()
        log.info(
            "%d words of %d patches, objective %.6g, perplexity %.1f, in %s: %s",
            num_words, words.num_patches, kmeans.inertias_[-1], perplexity, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts()
            | {"seconds": seconds, "file": str(path), "words": num_words, "patches": words.num_patches}
            | {"objectives": kmeans.inertias_, "perplexity": perplexity},
        )

    def _path(self, tap: str) -> Path:
        job, is_usual = self.options.job, self._place_name == PENULTIMATE
        pooled, label_free = pooled_apart(job.run_name, self.downscale), self.options.data.is_label_free
        shown = None if is_usual else tap
        return codebook_path(self.directory, job.kmeans, tap=shown, pooled=pooled, label_free=label_free)

    def _open_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> Dataset:
        """In place of the training images the pictures, of a run that has these alone."""
        dataset, options = super()._open_images(open_images), self.options
        if not options.data.is_label_free:
            return dataset
        return dataclasses.replace(dataset, train=open_unlabelled(options, dataset).pictures)

    def record(self) -> dict[str, Any]:
        data = self.options.data
        pictures = {"unlabelled": digest_of_pictures(data.unlabelled)} if data.is_label_free else {}
        return super().record() | pictures
