"""One optimisation step, run operation by operation or replayed as a CUDA graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only

from engine.meter import Step

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
        accumulate: in so many parts a batch goes through the objective. The gradient is the mean of theirs: that of the
            whole batch, as far as the loss is a mean over images, which BatchNorm and losses that compare images with
            each other are not; BatchNorm moves its statistics with every part. Of several processes only the last part
            sums the gradients, those of all parts.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        autocast: Callable[[], torch.autocast],
        accumulate: int = 1,
    ):
        self.objective = objective
        self.optimizer = optimizer
        self.autocast = autocast
        self.accumulate = accumulate

    def __call__(self, batch: Any, *, with_statistics: bool = False) -> Any:
        """What the step computed, on the device and without its autograd graph.

        Args:
            batch: a named tuple of tensors, dictionaries of tensors, or None where it has none.
        """
        if self.accumulate == 1:
            result = self._forward(batch, with_statistics)
            descend(self.optimizer, result.loss)
            return _detached(result)
        self.optimizer.zero_grad(set_to_none=True)
        results = []
        for number, part in enumerate(split_batch(batch, self.accumulate), 1):
            with self._gradients_kept() if number < self.accumulate else nullcontext():
                result = self._forward(part, with_statistics)
                (result.loss / self.accumulate).backward()
            results.append(_detached(result))
        self.optimizer.step()
        return join_steps(results)

    def _gradients_kept(self) -> AbstractContextManager[None]:
        """The context of a part whose gradients stay in the process."""
        is_parallel = isinstance(self.objective, DistributedDataParallel)
        return self.objective.no_sync() if is_parallel else nullcontext()

    def _forward(self, batch: Any, with_statistics: bool) -> Any:
        with self.autocast():
            return self.objective(batch, with_statistics=with_statistics)


def split_batch(batch: Any, number: int) -> list[Any]:
    """Parts of a batch, each of as many images, in order."""

    def part(place: int) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.chunk(number)[place], batch)

    return [part(place) for place in range(number)]


def join_steps(results: list[Step]) -> Step:
    """What the parts of a step computed, as one: means of losses, terms and statistics, and sums of counts."""

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).float().mean(dim=0)

    def joined(name: str, values: list[Tensor]) -> Tensor:
        return torch.stack(values).sum(dim=0) if name.endswith("/count") else mean(values)

    first = results[0]
    return first._replace(
        loss=mean([result.loss for result in results]),
        logits=torch.cat([result.logits for result in results]),
        terms={name: mean([result.terms[name] for result in results]) for name in first.terms},
        statistics={name: joined(name, [result.statistics[name] for result in results]) for name in first.statistics},
    )


def _detached(result: Any) -> Any:
    return result._replace(loss=result.loss.detach(), logits=result.logits.detach())


class GraphedStep(TrainStep):
    """The same step as one CUDA graph: hundreds of small kernels are launched at once.

    The first steps run as they are, and so does every step whose statistics are wanted (with `disp_step=1` that is all
    of them). A graph holds numbers as they were, and tensors as addresses: another learning rate or batch shape records
    a new one, for which the host waits once for the device; a learning rate that is a tensor may change.

    The tensors of the returned step are overwritten by the next call.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        autocast: Callable[[], torch.autocast],
        accumulate: int = 1,
    ):
        super().__init__(objective, optimizer, autocast, accumulate)
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
        inputs = [(value.shape, value.dtype) if isinstance(value, Tensor) else value for value in tree_leaves(batch)]
        rates = (group["lr"] for group in self.optimizer.param_groups)
        situation = (*inputs, *(rate for rate in rates if not isinstance(rate, Tensor)))
        if situation != self.recorded_for:
            self.batch = tree_map_only(Tensor, Tensor.clone, batch)
            self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients live in its own memory
            self.replay = self._record(lambda: super(GraphedStep, self).__call__(self.batch))
            self.recorded_for = situation
        for own, value in zip(tree_leaves(self.batch), tree_leaves(batch), strict=True):
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
