"""Accuracy, loss and throughput of a network over the images of a loader, and its accuracy by class."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from results.settings import TOP_K


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Iterable[Batch], *, autocast: torch.autocast) -> dict[str, Any]:
    """Accuracies in percent, mean cross-entropy, and throughput of `model` in eval mode over all of `loader`.

    The model takes pixels: a network behind its `Input`. Counts stay on the device until the end. `top5` is among
    min(5, N) classes. `class_counts` is a tensor (3, N) on the CPU, the others are numbers: of each class its images,
    those that were given it, and those of them that are its own.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    counts = None
    labels, given = [], []
    num_images = 0
    for batch in loader:
        with autocast:
            logits = model(batch.images)
        logits = logits.float()
        classes = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
        ranked = classes == batch.labels[:, None]
        labels.append(batch.labels)
        given.append(classes[:, 0])
        loss = F.cross_entropy(logits, batch.labels, reduction="sum").double()
        of_batch = torch.stack([ranked[:, 0].sum().double(), ranked.sum().double(), loss])
        counts = of_batch if counts is None else counts + of_batch
        num_images += len(batch.labels)
    top1, top5, loss = counts.tolist()
    labels, given = torch.stack([torch.cat(labels), torch.cat(given)]).cpu()
    num_classes = logits.shape[1]
    right = torch.bincount(labels, (labels == given).double(), num_classes).long()
    class_counts = torch.stack([*(torch.bincount(each, minlength=num_classes) for each in (labels, given)), right])
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
