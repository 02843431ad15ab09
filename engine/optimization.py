"""The optimizer of a run and its schedule."""

from typing import Any

import torch
from torch import nn

from config.options import Protocol
from storage.tensor_files import is_dense


def make_optimizer(objective: nn.Module, protocol: Protocol) -> torch.optim.Optimizer:
    """SGD over everything in the objective that trains, biases, scales and BatchNorm included, as the paper's."""
    return torch.optim.SGD(
        [parameter for parameter in objective.parameters() if parameter.requires_grad],
        lr=protocol.learning_rate,
        **optimizer_settings(protocol),
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict whose tensors must have the shapes of what they belong to, which torch does not compare.

    Raises:
        ValueError: they have not.
    """
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value is not None and (not is_dense(value.cpu()) or value.shape != parameter.shape):
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a tensor of {tuple(parameter.shape)}")


def optimizer_settings(protocol: Protocol) -> dict[str, Any]:
    """What an optimizer takes of the protocol and keeps through all epochs."""
    return {
        "momentum": protocol.momentum,
        "nesterov": protocol.nesterov,
        "weight_decay": protocol.weight_decay,
    }


def learning_rate(protocol: Protocol, epoch: int) -> float:
    """The step schedule: `learning_rate * lr_factor ** (milestones passed)` in epoch 1, 2, ..."""
    passed = sum(epoch > milestone for milestone in protocol.milestones)
    return protocol.learning_rate * protocol.lr_factor**passed
