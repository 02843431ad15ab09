"""The learning rate of every step of a run: it rises while the run warms up, and falls as `schedule=` says.

    t < W        r (t + 1) / W                           W steps of warm-up
    step         r * lr_factor ** (milestones passed)    by epochs, as in the paper
    cosine       f + (r - f) (1 + cos(pi d)) / 2         d = (t - W) / (T - W)
    linear       f + (r - f) (1 - d)
    constant     r

t counts the steps of the run from 0, T are all of them, r is `learning_rate` and f `final_learning_rate`. The rate is a
function of options and t alone: a run has no state of it, and one that goes on within an epoch has the same rates. It
follows that T is `epochs`: a cosine that goes on with more epochs is another from there on.
"""

import math

import torch
from torch import Tensor

from config.options import Protocol

TO_FINAL_RATE = ("cosine", "linear")  # the schedules that fall to `final_learning_rate`


def learning_rate(protocol: Protocol, epoch: int, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        epoch, step: from 1, the step of the epoch.
        steps: of an epoch.
    """
    rate, final = protocol.learning_rate, protocol.final_learning_rate
    before, warm_up = (epoch - 1) * steps + step - 1, num_warm_up_steps(protocol, steps)
    if before < warm_up:
        return rate * (before + 1) / warm_up
    if protocol.schedule == "constant":
        return rate
    if protocol.schedule == "step":
        passed = sum(epoch > milestone for milestone in protocol.milestones)
        return rate * protocol.lr_factor**passed
    done = (before - warm_up) / (protocol.epochs * steps - warm_up)
    left = (1 + math.cos(math.pi * done)) / 2 if protocol.schedule == "cosine" else 1 - done
    return final + (rate - final) * left


def num_warm_up_steps(protocol: Protocol, steps: int) -> int:
    """Over how many steps the learning rate rises, of epochs of so many steps."""
    return protocol.warmup_steps or round(protocol.warmup * steps)


def check_warm_up(protocol: Protocol, steps: int) -> None:
    """Refuse a warm-up that is as long as the run.

    Args:
        steps: of an epoch.

    Raises:
        ValueError: says how long both are.
    """
    warm_up, total = num_warm_up_steps(protocol, steps), protocol.epochs * steps
    if warm_up >= total:
        said = f"warmup_steps={warm_up}" if protocol.warmup_steps else f"warmup={protocol.warmup:g}"
        raise ValueError(f"{said} leaves nothing of a training of {total} steps, {protocol.epochs} epochs of {steps}")


def changes_every_step(protocol: Protocol) -> bool:
    """Whether the rate is another in most steps, and not in most epochs the same."""
    return protocol.schedule in TO_FINAL_RATE or bool(protocol.warmup or protocol.warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters its share of a rate; a tensor is filled, so that a recorded step sees it."""
    for group in optimizer.param_groups:
        own = rate * group["rate_factor"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
