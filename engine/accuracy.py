"""Accuracy, loss and throughput of a network over the images of a loader."""

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders import Batch
from letkd.processes import all_sum, of_all
from results.settings import TOP_K


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Iterable[Batch], *, autocast: torch.autocast) -> dict[str, float]:
    """Accuracies in percent, mean cross-entropy, and throughput of `model` in eval mode over all of `loader`.

    The model takes pixels: a network behind its `Input`. Counts stay on the device until the end. `top5` is among
    min(5, N) classes. Of several processes each has a loader of its part, and all get the figures of the whole.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    counts = None
    num_images = 0
    for batch in loader:
        of_batch = torch.stack(_counts(model, batch, autocast))
        counts = of_batch if counts is None else counts + of_batch
        num_images += len(batch.labels)
    all_sum(counts)
    top1, top5, loss = counts.tolist()
    num_images = sum(of_all(num_images))
    seconds = time.perf_counter() - start
    model.train(was_training)
    return {
        "top1": 100 * top1 / num_images,
        "top5": 100 * top5 / num_images,
        "loss": loss / num_images,
        "images_per_second": num_images / seconds,
        "seconds": seconds,
    }


def _counts(model: nn.Module, batch: Batch, autocast: torch.autocast) -> tuple[Tensor, ...]:
    """How many images are right, how many are among the first, and the sum of their cross-entropies."""
    if not len(batch.labels):  # where another process has one batch more
        return (torch.zeros((), dtype=torch.float64, device=batch.labels.device),) * 3
    with autocast:
        logits = model(batch.images)
    logits = logits.float()
    ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == batch.labels[:, None]
    loss = F.cross_entropy(logits, batch.labels, reduction="sum").double()
    return ranked[:, 0].sum().double(), ranked.sum().double(), loss


def accuracies(measured: dict[str, float], num_classes: int) -> str:
    """What is printed of accuracies: among as few classes as `top5` takes, it is 100 % of anything and says nothing."""
    top5 = f", {measured['top5']:.2f}% top-{TOP_K}" if num_classes > TOP_K else ""
    return f"{measured['top1']:.2f}% top-1{top5}"
