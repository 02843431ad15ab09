"""What the tests of exported networks share: a network as training might leave it, in no time."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.options import Options
from dataloaders import Dataset
from dataloaders.facts import data_facts
from distillation.build import build_student
from engine.checkpoints import BEST, LAST, kept_epoch, save_checkpoint

SMALL = {"num_words": 16, "subclasses_per_class": 2}


def smooth_images(batch: int, image_size: int) -> Tensor:
    """Images (B, 3, S, S), RGB in 0..1, that a network can tell apart."""
    return F.interpolate(torch.rand(batch, 3, 2, 2), size=image_size, mode="bilinear")


@torch.no_grad()
def pretend_training_(network: nn.Module, images: Tensor) -> nn.Module:
    """Give every BatchNorm a gain, a shift and statistics of normalised images, and these images logits of mean 0 and
    variance 1; returns the network in eval mode."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = 1.0
    network.train()(images)
    logits = network.eval()(images)
    (head,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    head.weight /= logits.std(dim=0)[:, None]
    head.bias.copy_((head.bias - logits.mean(dim=0)) / logits.std(dim=0))
    return network


def leave_training(config: dict[str, Any], dataset: Dataset, folder: str = "") -> nn.Module:
    """The checkpoints of a training of three epochs: the last, the best (2) and a kept one (1). Returns the last's.

    Args:
        folder: that of a trial, in the experiment's directory.
    """
    torch.manual_seed(0)
    model = build_student(Options.of(config), dataset.num_classes, dataset.image_size)
    directory = Path(config["localpath"], *config["config"].split("."), folder)
    images = normalized(dataset.eval.images[:64].permute(0, 3, 1, 2) / 255, dataset)
    epochs = {1: kept_epoch(directory, 1), 2: directory / BEST, 3: directory / LAST}
    for epoch, path in epochs.items():
        state = pretend_training_(model, images).state_dict()
        save_checkpoint(path, {"model": state, "epoch": epoch, "epochs": 3, "data": data_facts(dataset)})
    return model


def normalized(images: Tensor, dataset: Dataset) -> Tensor:
    """Images in 0..1 as the network was trained with them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (dataset.mean, dataset.std))
    return (images - mean) / std
