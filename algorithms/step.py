"""One optimisation step, run operation by operation or replayed as a CUDA graph."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from algorithms.methods import Step

WARM_UP_STEPS = 3  # cuDNN chooses its algorithms and the optimiser makes its buffers before anything is recorded


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimisation step along the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class TrainStep:
    """Loss, gradients and update for one batch.

    Args:
        method: called with images and labels; its losses are differentiated.
        optimizer: of everything in the method that trains.
        autocast: makes the context that the forward pass runs in.
    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, autocast: Callable[[], torch.autocast]):
        self.method = method
        self.optimizer = optimizer
        self.autocast = autocast

    def __call__(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        """What the step computed, on the device and without its autograd graph."""
        with self.autocast():
            result = self.method(images, labels, with_statistics=with_statistics)
        descend(self.optimizer, result.loss)
        return replace(result, loss=result.loss.detach(), logits=result.logits.detach())


class GraphedStep(TrainStep):
    """The same step as one CUDA graph: hundreds of small kernels are launched at once.

    The first steps run as they are, and so does every step whose statistics are wanted (with `disp_step=1` that is all
    of them). A graph holds the learning rates as numbers and its inputs as addresses: another learning rate or batch
    shape records a new one, for which the host waits once for the device.

    The tensors of the returned `Step` are overwritten by the next call.
    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, autocast: Callable[[], torch.autocast]):
        super().__init__(method, optimizer, autocast)
        self.num_warm_up = 0
        self.recorded_for: tuple | None = None
        self.replay: Callable[[], Step]
        self.images: Tensor
        self.labels: Tensor

    def __call__(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        if self.num_warm_up < WARM_UP_STEPS:
            self.num_warm_up += 1
            return self._beside(
                lambda: super(GraphedStep, self).__call__(images, labels, with_statistics=with_statistics)
            )
        if with_statistics:
            return super().__call__(images, labels, with_statistics=True)
        situation = (images.shape, images.dtype, *(group["lr"] for group in self.optimizer.param_groups))
        if situation != self.recorded_for:
            self.images, self.labels = images.clone(), labels.clone()
            self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients live in its own memory
            self.replay = self._record(lambda: super(GraphedStep, self).__call__(self.images, self.labels))
            self.recorded_for = situation
        self.images.copy_(images)
        self.labels.copy_(labels)
        return self.replay()

    def _beside(self, function: Callable[[], Step]) -> Step:
        """Run on a stream of its own, as recording will."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = function()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _record(self, function: Callable[[], Step]) -> Callable[[], Step]:
        """What runs `function` again on the present contents of its tensors; recording computes nothing."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, like the one that pins the memory of streamed batches, may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Step:
            graph.replay()
            return result

        return replay
