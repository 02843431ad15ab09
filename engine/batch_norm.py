"""BatchNorm where each process of a run has a part of every batch.

With `sync_bn` its statistics are those of the whole batch. torch's SyncBatchNorm computes them on GPUs alone; on a CPU

    mean_C = sum x / n        var_C = sum (x - mean_C)^2 / n        sums over the images and places of all ranks

and the gradient of a sum over ranks is the sum of their gradients. The KD layers have the same in their own arithmetic
(`letkd.values`). Without it a rank normalises by its part, and follows this with its running statistics; what is
evaluated and saved are the means over ranks,

    x_0 + sum (x - x_0) / N        x_0 of the first rank

which leave as it is what is the same everywhere, as in a BatchNorm that is frozen. Running statistics are linear in
those of the batches, so that it makes no difference when the means are taken.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from letkd.processes import all_sum, member, of_first

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNormOfAll(_BatchNorm):
    """By the statistics of the whole batch in training, on a CPU; else as torch's.

    Attributes:
        process_group: None for all processes, as SyncBatchNorm has it.
    """

    process_group: None = None

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() > 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [dim for dim in range(input.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(input.dim())]
        number = member().size * input.numel() // input.shape[1]
        mean_C = _AllSum.apply(wide.sum(dims)) / number
        centered = wide - mean_C.view(shape)
        var_C = _AllSum.apply(centered.square().sum(dims)) / number
        if self.track_running_stats:
            self._track(mean_C.detach(), var_C.detach() * (number / max(number - 1, 1)))
        output = centered * torch.rsqrt(var_C + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, var_C: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # the mean over all batches
            momentum = self.num_batches_tracked.to(mean_C).reciprocal()
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C, momentum)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    all_sum(total)
    return total


def synchronise_(module: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm inside a module take its statistics of the whole batch; parameters and buffers stay.

    Args:
        device: of the module.

    Raises:
        ValueError: one is of a kind of its own, which also does something else.
    """
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            synchronise_(child, device)
        elif type(child) in KINDS:
            setattr(module, name, _synchronised(child, BatchNormOfAll if device.type == "cpu" else nn.SyncBatchNorm))
        else:
            raise ValueError(f"sync_bn=True does not know {type(child).__name__}; leave it out")


def _synchronised(norm: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    found = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(found, name, getattr(norm, name))
    return found.train(norm.training)


@torch.no_grad()
def average_statistics(*modules: nn.Module) -> None:
    """Put the means over all ranks in place of the running statistics that each rank has of its parts."""
    size = member().size
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]
    own = [norm for norm in norms if norm.running_mean is not None and not hasattr(norm, "process_group")]
    statistics = [tensor for norm in own for tensor in (norm.running_mean, norm.running_var)]
    if size == 1 or not statistics:
        return
    means = torch.cat([tensor.flatten() for tensor in statistics])
    first = of_first(means)
    means -= first
    all_sum(means)
    means = first + means / size
    for tensor, mean in zip(statistics, means.split([tensor.numel() for tensor in statistics]), strict=True):
        tensor.copy_(mean)
