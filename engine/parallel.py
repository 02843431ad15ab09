"""Gradients of all processes of a run, by torch's DistributedDataParallel.

Every process computes the loss of an equal part of each batch. The mean of their gradients is that of the whole batch,
because the loss is a mean over images, or one that all of them compute of the whole batch. Parameters and optimizer
then are the same everywhere.

DistributedDataParallel waits for a gradient of every parameter. Those that no step reaches, as the values of a KD layer
whose alpha is 0, are found by a step that changes nothing, and left out of it: the optimizer passes over them, as it
does in one process.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def parallel(objective: nn.Module, batch: Any, autocast: torch.autocast) -> DistributedDataParallel:
    """What a step calls in place of the objective; every process has to ask.

    Args:
        objective: called with a batch; its `loss` is differentiated. Its optimizer is made before.
        batch: of any images.
        autocast: the context of its steps.
    """
    reached = {id(parameter) for parameter in _reached(objective, batch, autocast)}
    for parameter in objective.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)
    # Of a 1x1 convolution two layouts are the same memory, and torch warns of the other.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # later versions of torch have another name for it
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(objective, broadcast_buffers=False)


def _reached(objective: nn.Module, batch: Any, autocast: torch.autocast) -> Iterator[Tensor]:
    """The parameters that the gradient of a step's loss reaches; buffers and random states stay."""
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    was_training = objective.training
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []), autocast:
        loss = objective.train()(batch).loss
    objective.train(was_training)
    for name, buffer in objective.named_buffers():
        buffer.copy_(buffers[name])
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions]
