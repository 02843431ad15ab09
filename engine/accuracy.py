"""Accuracy, loss and throughput of a network over the images of a loader, and its accuracy by class."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from letkd.processes import all_least, all_sum
from results.settings import TOP_K


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Iterable[Batch], *, autocast: torch.autocast) -> dict[str, Any]:
    """Accuracies in percent, mean cross-entropy, and throughput of `model` in eval mode over all of `loader`.

    The model takes pixels: a network behind its `Input`. Counts stay on the device until the end. `top5` is among
    min(5, N) classes. `class_counts` is a tensor (3, N) on the CPU, the others are numbers: of each class its images,
    those that were given it, and those of them that are its own. Of several processes each has a loader of its part,
    and all get the figures of the whole.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    sums, num_classes = None, 0
    labels, given = [], []
    for batch in loader:
        of_batch, given_B, width = _of_batch(model, batch, autocast)
        sums = of_batch if sums is None else sums + of_batch
        labels.append(batch.labels)
        given.append(given_B)
        num_classes = max(num_classes, width)
    all_sum(sums)
    top1, top5, loss = sums.tolist()
    least = torch.tensor(-num_classes)  # a process without images knows of no class
    all_least(least)
    class_counts = _class_counts(torch.stack([torch.cat(labels), torch.cat(given)]).cpu(), -int(least))
    all_sum(class_counts)
    num_images = int(class_counts[0].sum())
    seconds = time.perf_counter() - start
    model.train(was_training)
    return {
        "top1": 100 * top1 / num_images,
        "top5": 100 * top5 / num_images,
        "loss": loss / num_images,
        "images_per_second": num_images / seconds,
        "seconds": seconds,
        "class_counts": class_counts,
    }


def _of_batch(model: nn.Module, batch: Batch, autocast: torch.autocast) -> tuple[Tensor, Tensor, int]:
    """Of a batch how many images are right, how many are among the first, and the sum of their cross-entropies (3);
    the classes (B) that were given; and of how many.
    """
    if not len(batch.labels):  # where another process has one batch more
        return torch.zeros(3, dtype=torch.float64, device=batch.labels.device), batch.labels, 0
    with autocast:
        logits = model(batch.images)
    logits = logits.float()
    ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    is_right = ranked == batch.labels[:, None]
    loss = F.cross_entropy(logits, batch.labels, reduction="sum").double()
    return torch.stack([is_right[:, 0].sum().double(), is_right.sum().double(), loss]), ranked[:, 0], logits.shape[1]


def _class_counts(labels_given_2M: Tensor, num_classes: int) -> Tensor:
    labels, given = labels_given_2M
    right = torch.bincount(labels, (labels == given).double(), num_classes).long()
    return torch.stack([*(torch.bincount(each, minlength=num_classes) for each in (labels, given)), right])


def by_class(counts_3N: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What `class_counts` say, in percent: `macro_f1`, and `class_accuracies` by the names of the classes.

    The F1 of a class is 2 TP / (2 TP + FP + FN), and their mean is over the classes that have images or were given to
    some, as scikit-learn's. The accuracy of a class is the share of its images that were given it; None without any.
    """
    images_N, given_N, right_N = counts_3N
    occurs_N = images_N + given_N > 0
    f1_N = 2 * right_N.double() / (images_N + given_N)
    accuracies_N = zip(right_N.tolist(), images_N.tolist(), strict=True)
    shares = [100 * right / images if images else None for right, images in accuracies_N]
    return {
        "macro_f1": 100 * f1_N[occurs_N].mean().item(),
        "class_accuracies": dict(zip(classes, shares, strict=True)),
    }


def accuracies(measured: dict[str, float], num_classes: int) -> str:
    """What is printed of accuracies: among as few classes as `top5` takes, it is 100 % of anything and says nothing."""
    top5 = f", {measured['top5']:.2f}% top-{TOP_K}" if num_classes > TOP_K else ""
    return f"{measured['top1']:.2f}% top-1{top5}"
