"""What an epoch has measured so far, on the device and off it; a part of the state of a run that stops within it."""

from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor

from letkd.processes import all_least, all_sum, member

REDUCTIONS = ("mean", "count")  # how a statistic is summed up over steps: what its name ends in


class Step(Protocol):
    """What an objective returns."""

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Meter:
    """Sums of the steps' figures in one device tensor; reading them is a step's only synchronisation.

    Of a run of many processes each adds the figures of its part of a batch, and what is read are those of the batches:
    all of them have to ask.

    Attributes:
        num_steps: of the epoch that are done.
        num_images: in them, those with a label.
        looks: (step, statistics) of the steps that were looked at.
        seconds: spent on the epoch before the run was stopped within it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.names: list[str] = []
        self.sums = torch.zeros((), device=device)
        self.finite_steps = torch.zeros((), device=device)  # of each sum, before it was no longer finite
        self.num_steps = 0
        self.num_images = 0
        self.looks: list[tuple[int, dict[str, float]]] = []
        self.counts: dict[str, Tensor] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def add(
        self,
        step: Step,
        labels: Tensor,
        other_labels: Tensor | None = None,
        share: Tensor | None = None,
        *,
        num_unlabelled: int = 0,
    ) -> None:
        """Add the figures of a step.

        Args:
            labels, other_labels, share: of its batch. Of mixed images the right class counts by the share of its label,
                as in the code of mixup's authors.
            num_unlabelled: of its images, those with a label of -1, of which none is right or wrong.
        """
        size, given = member().size, step.logits.argmax(dim=1)
        hits = given == labels
        if share is not None:
            hits = torch.lerp((given == other_labels).float(), hits.float(), share)
        correct = hits.sum()
        self.names = ["correct", "loss", *step.terms]
        figures = torch.stack([correct.float(), step.loss.float(), *map(Tensor.float, step.terms.values())])
        if size > 1:
            figures[1:] /= size  # the mean of equal parts
        self.sums = self.sums + figures
        self.finite_steps = self.finite_steps + self.sums.isfinite()
        self.num_steps += 1
        self.num_images += size * (len(labels) - num_unlabelled)

    def _totals(self) -> Tensor:
        totals = self.sums.clone()
        all_sum(totals)
        return totals

    def _finite_everywhere(self) -> Tensor:
        steps = self.finite_steps.clone()
        all_least(steps)
        return steps

    def means(self) -> dict[str, float]:
        """Mean of every loss, and where there were images with labels `top1` in percent, since the epoch began."""
        correct, *losses = self._totals().tolist()
        means = {name: value / self.num_steps for name, value in zip(self.names[1:], losses, strict=True)}
        return means | ({"top1": 100 * correct / self.num_images} if self.num_images else {})

    def first_non_finite(self) -> tuple[str, int]:
        """The loss that was not finite before all others, and in which step, from 1; a part before the sum of them."""
        _, loss, *terms = (self._finite_everywhere() + 1).int().tolist()
        steps = dict(zip((*self.names[2:], "loss"), (*terms, loss), strict=True))
        return min(steps.items(), key=lambda found: found[1])

    def look(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """Read the statistics of the step that was added last: scalars `<name>/mean`, which are returned by name, and
        vectors `<name>/count`, which are added up.
        """
        by_reduction: dict[str, dict[str, Tensor]] = {reduction: {} for reduction in REDUCTIONS}
        for name, value in statistics.items():
            plain, _, reduction = name.rpartition("/")
            if reduction not in REDUCTIONS:
                raise ValueError(f"the statistic {name!r} must end in how it is summed up: /{' or /'.join(REDUCTIONS)}")
            by_reduction[reduction][plain] = value
        scalars = by_reduction["mean"]
        values = []
        if scalars:
            sums = torch.stack([value.float() for value in scalars.values()])
            all_sum(sums)
            values = [value / member().size for value in sums.tolist()]
        found = dict(zip(scalars, values, strict=True))
        self.looks.append((self.num_steps, found))
        for name, value in by_reduction["count"].items():
            counts = value.cpu()
            all_sum(counts)
            self.counts[name] = self.counts[name] + counts if name in self.counts else counts
        return found

    def summary(self) -> dict[str, float]:
        """Means of the statistics over the steps that were looked at, and how many of each `counts` stayed 0."""
        values = defaultdict(list)
        for _, statistics in self.looks:
            for name, value in statistics.items():
                values[name].append(value)
        means = {name: sum(found) / len(found) for name, found in values.items()}
        return means | {f"dead_{name}": int((counts == 0).sum()) for name, counts in self.counts.items()}

    def state(self) -> dict[str, Any]:
        """Everything as plain values and tensors on the CPU, for `restore`."""
        state = {key: value for key, value in vars(self).items() if key != "device"}
        return state | {"sums": self._totals().cpu(), "finite_steps": self._finite_everywhere().cpu()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned. Raises TypeError where an entry of it is missing or of another kind."""
        for name, own in self.state().items():
            if not isinstance(state.get(name), type(own)):
                raise TypeError(f"{name} is a {type(state.get(name)).__name__}, not a {type(own).__name__}")
        vars(self).update({name: state[name] for name in self.state()})
        if not member().is_first:  # the sums of all processes are with the first
            self.sums = torch.zeros_like(self.sums)
        self.sums, self.finite_steps = self.sums.to(self.device), self.finite_steps.to(self.device)
