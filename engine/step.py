"""One optimisation step, run operation by operation or replayed as a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

WARM_UP_STEPS = 3  # cuDNN chooses its algorithms and the optimiser makes its buffers before anything is recorded


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimisation step along the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class TrainStep:
    """Loss, gradients and update for one batch.

    Args:
        objective: called with a batch; its `loss` is differentiated.
        optimizer: of everything in the objective that trains.
        autocast: makes the context that the forward pass runs in.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, autocast: Callable[[], torch.autocast]):
        self.objective = objective
        self.optimizer = optimizer
        self.autocast = autocast

    def __call__(self, batch: Any, *, with_statistics: bool = False) -> Any:
        """What the step computed, on the device and without its autograd graph.

        Args:
            batch: a named tuple of tensors, or None where it has none.
        """
        with self.autocast():
            result = self.objective(batch, with_statistics=with_statistics)
        descend(self.optimizer, result.loss)
        return result._replace(loss=result.loss.detach(), logits=result.logits.detach())


class GraphedStep(TrainStep):
    """The same step as one CUDA graph: hundreds of small kernels are launched at once.

    The first steps run as they are, and so does every step whose statistics are wanted (with `disp_step=1` that is all
    of them). A graph holds the learning rates as numbers and its inputs as addresses: another learning rate or batch
    shape records a new one, for which the host waits once for the device.

    The tensors of the returned step are overwritten by the next call.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, autocast: Callable[[], torch.autocast]):
        super().__init__(objective, optimizer, autocast)
        self.num_warm_up = 0
        self.recorded_for: tuple | None = None
        self.replay: Callable[[], Any]
        self.batch: Any  # the tensors that the graph reads

    def __call__(self, batch: Any, *, with_statistics: bool = False) -> Any:
        if self.num_warm_up < WARM_UP_STEPS:
            self.num_warm_up += 1
            return self._beside(lambda: super(GraphedStep, self).__call__(batch, with_statistics=with_statistics))
        if with_statistics:
            return super().__call__(batch, with_statistics=True)
        inputs = [(value.shape, value.dtype) if isinstance(value, Tensor) else value for value in batch]
        situation = (*inputs, *(group["lr"] for group in self.optimizer.param_groups))
        if situation != self.recorded_for:
            self.batch = tree_map_only(Tensor, Tensor.clone, batch)
            self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients live in its own memory
            self.replay = self._record(lambda: super(GraphedStep, self).__call__(self.batch))
            self.recorded_for = situation
        for own, value in zip(self.batch, batch, strict=True):
            if isinstance(value, Tensor):
                own.copy_(value)
        return self.replay()

    def _beside(self, function: Callable[[], Any]) -> Any:
        """Run on a stream of its own, as recording will."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = function()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """What runs `function` again on the present contents of its tensors; recording computes nothing."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, like the one that pins the memory of streamed batches, may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay
