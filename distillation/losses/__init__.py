"""Losses, one file a method; every file of this folder is imported, so that a new one needs no other line."""

import importlib
import pkgutil

from config.schema import option
from distillation.losses.base import (
    Connector,
    Data,
    Loss,
    Needs,
    Paper,
    WarmUp,
    find_loss,
    known_labels,
    list_losses,
    mean_of_labelled,
    register_loss,
    warm_up,
    warmup_option,
    weighs_mixed,
)
from distillation.losses.logits import (
    LogitLoss,
    Rows,
    Transform,
    divergence,
    find_transform,
    list_transforms,
    register_transform,
)
from distillation.signals import Wanted

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Connector",
    "Data",
    "LogitLoss",
    "Loss",
    "Needs",
    "Paper",
    "Rows",
    "Transform",
    "Wanted",
    "WarmUp",
    "divergence",
    "find_loss",
    "find_transform",
    "known_labels",
    "list_losses",
    "list_transforms",
    "mean_of_labelled",
    "option",
    "register_loss",
    "register_transform",
    "warm_up",
    "warmup_option",
    "weighs_mixed",
]
