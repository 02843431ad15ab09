"""The optimizer of a run, and what of it a checkpoint has."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from config.options import Protocol
from dataloaders.registry import unknown_name
from engine.parameters import parameter_groups, rate_factors
from engine.schedule import changes_every_step
from storage.documents import first_line
from storage.tensor_files import is_dense

OWN = ("sgd", "adamw")
TIMM = "timm/"  # what the names of its optimizers begin with


def make_optimizer(objective: nn.Module, protocol: Protocol, *, recorded: bool = False) -> torch.optim.Optimizer:
    """The optimizer of everything in the objective that trains; by default SGD, biases, scales and BatchNorm decayed
    too, as in the paper.

    Args:
        recorded: whether its steps will be replayed as a CUDA graph. That holds numbers as they were, so a learning
            rate that changes in every step is a tensor then, which SGD reads in its fused form and AdamW where it is
            capturable.

    Raises:
        ValueError: as `check_optimizer` and `parameter_groups`.
    """
    settings: dict[str, Any] = {}
    if recorded and protocol.optimizer == "adamw":
        settings["capturable"] = True
    elif recorded and changes_every_step(protocol):
        settings["fused"] = True
    optimizer = _make(parameter_groups(objective, protocol), protocol, **settings)
    if recorded and changes_every_step(protocol):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
    if protocol.clip_gradients is not None:
        optimizer.register_step_pre_hook(partial(_clip, protocol.clip_gradients))
    return optimizer


def check_optimizer(protocol: Protocol) -> None:
    """Refuse an optimizer that cannot be made, and factors of the learning rate that are none, before anything is
    loaded.

    Raises:
        ValueError: it does not exist, names the nearest; or says what it needs.
    """
    rate_factors(protocol.learning_rates)
    _make([{"params": [nn.Parameter(torch.zeros(2, 2))]}], protocol)


def _make(groups: list[dict[str, Any]], protocol: Protocol, **settings: Any) -> torch.optim.Optimizer:
    name, common = protocol.optimizer, {"lr": protocol.learning_rate, "weight_decay": protocol.weight_decay}
    if name == "sgd":
        settings |= _moments(protocol, num_betas=0, has_eps=False)
        if "fused" not in settings:  # all tensors in one call, also on a CPU: the same bits in two thirds of the time
            settings["foreach"] = True
        return torch.optim.SGD(groups, momentum=protocol.momentum, nesterov=protocol.nesterov, **common, **settings)
    if name == "adamw":
        settings |= _moments(protocol, num_betas=2, has_eps=True)
        return torch.optim.AdamW(groups, **common, **settings)
    if name.startswith(TIMM):
        return _make_of_timm(name, groups, protocol, momentum=protocol.momentum, **common)
    raise unknown_name("optimizer", name, [*OWN, f"{TIMM}NAME"])


def _moments(protocol: Protocol, *, num_betas: int, has_eps: bool) -> dict[str, Any]:
    """`betas` and `eps` where they are given.

    Raises:
        ValueError: the optimizer has none, or another number of betas.
    """
    for key, exists in (("betas", num_betas), ("eps", has_eps)):
        if getattr(protocol, key) is not None and not exists:
            raise ValueError(f"optimizer={protocol.optimizer} has no {key}; leave {key}={getattr(protocol, key)} out")
    if protocol.betas is not None and len(protocol.betas) != num_betas:
        raise ValueError(f"betas={protocol.betas} must be {num_betas} numbers for optimizer={protocol.optimizer}")
    given = {"betas": protocol.betas and tuple(protocol.betas), "eps": protocol.eps}
    return {key: value for key, value in given.items() if value is not None}


def _make_of_timm(
    name: str, groups: list[dict[str, Any]], protocol: Protocol, **settings: Any
) -> torch.optim.Optimizer:
    try:
        from timm import optim
    except ModuleNotFoundError as error:
        raise ValueError(
            f"optimizer={name} needs timm; install it: python -m pip install -r requirements-networks.txt"
        ) from error
    known, own = optim.list_optimizers(), name.removeprefix(TIMM)
    if own not in known:
        raise unknown_name("optimizer", name, [f"{TIMM}{each}" for each in known])
    info = optim.get_optimizer_info(own)
    settings |= _moments(protocol, num_betas=info.num_betas if info.has_betas else 0, has_eps=info.has_eps)
    if info.second_order:
        raise ValueError(f"optimizer={name} needs gradients of gradients, which a step does not make; choose another")
    try:
        return optim.create_optimizer_v2(groups, opt=own, **settings)
    except Exception as error:  # it may need packages that are not here, or a GPU
        raise ValueError(f"optimizer={name} cannot be made here ({first_line(error)}); choose another") from error


def _clip(largest: float, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Scale all gradients down, together, to the largest norm that they may have; nothing is read back."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, largest)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict: what was remembered of every tensor. Settings stay those that the optimizer was made with.

    Of torch's own optimizers the shapes are compared, which torch does not.

    Raises:
        ValueError: it is of other groups of parameters, says how many tensors each has; or a tensor has another shape
            than what it belongs to.
    """
    sizes, now = ([len(group["params"]) for group in each["param_groups"]] for each in (state, optimizer.state_dict()))
    if sizes != now:
        raise ValueError(f"it has groups of {sizes} parameters, and this run has groups of {now}")
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    saved = [group | settings for group, settings in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": saved})  # which looks at settings, like where a count is kept
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)  # of tensors it has made copies
    is_own = isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW))
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            shape = torch.Size() if name == "step" else parameter.shape
            if is_own and value is not None and (not is_dense(value.cpu()) or value.shape != shape):
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a tensor of {tuple(parameter.shape)}")
            if isinstance(value, Tensor) and not is_dense(value.cpu()):
                raise ValueError(f"{name} of a tensor of {tuple(parameter.shape)} is not dense numbers")
