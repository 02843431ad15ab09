"""An exponential moving average of a network's weights over the steps of a run: a network of its own.

    m <- d m + (1 - d) w,    d = min(decay, (1 + t) / (10 + t))    after step t = 1, 2, ...

w is what the optimizer has made of a parameter, or a buffer behind the step; m, the same of the average, begins as the
network does. While t is small d is too, so that an average over few steps is not mostly what it began with. t follows
from epoch and step: the state of the average is m alone. m has the type of w, float32 also where autocast computes in
bfloat16.

BatchNorm. Running means and variances are averaged as the weights are, so the average has statistics of its own: the
student's are those of other weights. It never runs in training mode. Statistics of its own passes would cost a forward
pass a step where it teaches nothing, and a teacher is in eval mode always. What this neglects: the mean of variances is
above the variance behind averaged weights, the more the further weights move within the averaged steps. ResNet-8 alone
on the digits, 8 epochs, one seed: where the learning rate never falls the average has a cross-entropy of 0.131, and of
0.097 with statistics that a pass over the training images makes anew (torch.optim.swa_utils.update_bn); where it falls
as usual 0.140 and 0.146. Integers, the number of batches that a BatchNorm has seen, are copied.
"""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

RAMP = 10  # of the decay in the first steps, as in TensorFlow's ExponentialMovingAverage


class Average:
    """Keeps the average of a network; nothing is read back.

    A step that is recorded as a CUDA graph leaves it out: d is another number in each of the first steps, and all
    weights together are a few launches. What such a graph reads of the average it finds in place.

    Args:
        module: built as the network and with its present weights, on its device.
        network: whose weights are averaged.
        decay: d after many steps.
    """

    def __init__(self, module: nn.Module, network: nn.Module, decay: float):
        self.module = module.eval().requires_grad_(False)
        self.decay = decay
        pairs = list(zip(_tensors(module), _tensors(network), strict=True))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights behind a step of the run, counted from 1."""
        decay = min(self.decay, (1 + step) / (RAMP + step))
        torch._foreach_lerp_(*_sides(self.averaged), 1 - decay)
        if self.copied:
            torch._foreach_copy_(*_sides(self.copied))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """All that makes a network, each once."""
    return chain(module.parameters(), module.buffers())


def _sides(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [own for own, _ in pairs], [other for _, other in pairs]
