"""Means of a teacher's pooled vectors over the training images of every class (`class_means=True`), for KDPP.

    c_NC = mean over the images of class N of the vector that enters the classifier

All training images count once, without augmentation, the network is in eval mode, and sums are in float64.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.base import Results
from algorithms.features import OfflineAlgorithm
from architectures import outline
from distillation.signals import Network, Wanted
from distillation.supervision_files import means_path, save_means
from engine.progress import phase
from engine.records import duration, log, save_results
from letkd.processes import all_sum, by_first


class ClassMeans(OfflineAlgorithm):
    """Computes and saves the class means."""

    mode = "class_means"

    def check_network(self) -> None:
        self._pooled()

    def _pooled(self) -> Network:
        """The network, which returns its pooled vectors."""
        found = outline(self.network, self.seen.image_size, self.network_name)
        return Network(self.network, found, Wanted(pooled=True))

    def _run(self) -> Results:
        start = time.perf_counter()
        self.open()
        self.begin()
        means_NC, num_images_N = self._means()
        path, record = means_path(self.directory), self.record() | {"teacher": self.weights.fingerprint}
        by_first(save_means, path, means_NC.float().cpu(), record)
        seconds, cosine = time.perf_counter() - start, _mean_cosine(means_NC)
        if empty := [name for name, number in zip(self.dataset.classes, num_images_N, strict=True) if not number]:
            log.info("note: there are no training images of %s, whose mean is 0", ", ".join(map(repr, empty)))
        log.info(
            "means of %d classes of %d images, mean cosine of two %.3f, in %s: %s",
            len(means_NC), sum(num_images_N), cosine, duration(seconds), path,
        )  # fmt: skip
        return save_results(
            self.directory,
            self.facts() | {"seconds": seconds, "file": str(path), "images": sum(num_images_N), "cosine": cosine},
        )

    @torch.no_grad()
    def _means(self) -> tuple[Tensor, list[int]]:
        """(N, C) in float64, and the number of images of every class."""
        network, num_classes = self._pooled(), self.dataset.num_classes
        self.network.eval().requires_grad_(False)
        sums_NC = torch.zeros(num_classes, network.outline.num_features, dtype=torch.float64, device=self.device)
        number_N = torch.zeros(num_classes, dtype=torch.float64, device=self.device)
        images_and_labels = self.images()
        with phase("pooled vectors of the training images", images_and_labels.num_images, starts_up=True) as line:
            for images, labels_B in images_and_labels:
                belongs_BN = F.one_hot(labels_B, num_classes).double()
                sums_NC += belongs_BN.mT @ network(images).pooled.double()
                number_N += belongs_BN.sum(dim=0)
                line.update(len(labels_B))
        all_sum(sums_NC, number_N)
        return sums_NC / number_N.clamp_min(1).unsqueeze(1), [int(number) for number in number_N.tolist()]


def _mean_cosine(means_NC: Tensor) -> float:
    """Of two different classes."""
    directions_NC, number = F.normalize(means_NC, dim=1), len(means_NC)
    of_all = directions_NC.sum(dim=0).square().sum() - directions_NC.square().sum()
    return of_all.item() / max(number * (number - 1), 1)
