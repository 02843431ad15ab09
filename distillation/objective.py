"""What a training step computes: student, teacher and losses in one module.

    loss = sum over terms of weight * term

The terms are those of the losses, in the order of the losses, which is also the order of summation.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from architectures import Input, InputConfig
from dataloaders import Batch
from distillation.losses.base import Loss, Part, loss_precision, weighs_mixed
from distillation.signals import Head, Network, Signals, Wanted
from letkd import KDLayer, TemplateScores
from letkd.processes import gathered, member


class Step(NamedTuple):
    """What one training step computes; all tensors stay on the device.

    Attributes:
        loss: is differentiated.
        logits: of the student (B, N), float32.
        terms: by name, not weighted, without a graph.
        statistics: what is looked at now and then, by name; empty unless asked for.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Teacher:
    """A frozen network that returns its signals: always in eval mode, without gradients.

    No module, so that it is in no state dict and nothing is broadcast; an objective takes it along to a device.

    Args:
        network: its outline, and the signals that are read.
        input: what its images go through.
        identity: fingerprint of its weights, which supervision must have been made from.
        knows_classes: whether it was trained to tell the classes of the images apart; else only its maps say something.
        seen: what `input` was made from, which supervision must have been made with.
    """

    def __init__(
        self,
        network: Network,
        input: Input,
        identity: str,
        *,
        knows_classes: bool = True,
        seen: InputConfig | None = None,
    ):
        network.module.eval().requires_grad_(False)
        self.network = network
        self.input = input
        self.identity = identity
        self.knows_classes = knows_classes
        self.seen = seen

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Signals:
        return self.network(images)

    def to(self, device: torch.device) -> None:
        """Move it, where no objective does."""
        self.network.module.to(device)
        self.input.to(device)


class Objective(nn.Module):
    """A student and the losses that teach it; called with a batch, it returns a `Step`.

    Args:
        student: with the signals that it returns.
        input: what the student's images go through.
        losses: by key, in canonical order.
        weights: of the terms by name; every term that the losses return has one.
        teacher: None where no loss reads it.

    Raises:
        ValueError: a loss needs a teacher, and there is none.
    """

    def __init__(
        self,
        student: Network,
        input: Input,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        teacher: Teacher | None = None,
    ):
        super().__init__()
        if teacher is None and (lacking := [key for key, loss in losses.items() if loss.needs_teacher]):
            raise ValueError(f"{lacking[0]} needs a teacher")
        needs = [loss.needs for loss in losses.values()]
        self.student = student.module
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.input = input
        self.network = student.reading(union(need.student for need in needs) | Wanted(logits=True))
        self.__dict__["teacher"] = teacher
        self.taught_head: Head | None = None
        self.shares_input = teacher is not None and teacher.input.key == input.key
        self.places = self._places_of_losses()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Objective":
        """Device, layout and type of the teacher follow."""
        if self.teacher is not None:
            self.teacher.network.module._apply(fn)
            self.teacher.input._apply(fn)
        if self.taught_head is not None:
            self.taught_head = self.taught_head.map(fn)
        return super()._apply(fn, recurse)

    def without_teacher(self) -> Teacher:
        """Take the teacher out, and return it: batches bring its signals, `Batch.taught`; its classifier stays."""
        teacher, self.__dict__["teacher"] = self.teacher, None
        if teacher.network.wanted.head:
            self.taught_head = teacher.network.head().map(torch.clone)
        return teacher

    def describe(self) -> dict[str, Any]:
        """What is summed, as plain values: the weight of every term, and where every loss reads which maps."""
        return {"weights": self.weights, "places": self.places}

    def scales(self) -> dict[str, float]:
        """The learnt scales by the name of their layer: `<name>_templates`, `<name>_semantic` of a KD layer."""
        scales = {}
        for path, module in self.named_modules():
            # Without the position in a Sequential, and `layer`, which is the KD layer inside one of tokens.
            name = next((part for part in reversed(path.split(".")) if not part.isdigit() and part != "layer"), "")
            if isinstance(module, KDLayer):
                scales |= {f"{name}_templates": module.scores.scale, f"{name}_semantic": module.scale}
            elif isinstance(module, TemplateScores) and name != "scores":  # those of a KD layer are called so
                scales[f"{name}_templates"] = module.scale
        values = torch.cat([scale.detach() for scale in scales.values()]).tolist() if scales else []
        return dict(zip(scales, values, strict=True))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Tell all losses, and what stands in front of them, which epoch begins or goes on, from 1."""
        for part in self.losses.modules():
            if isinstance(part, Part):
                part.on_epoch(epoch, epochs)

    def forward(self, batch: Batch, *, with_statistics: bool = False) -> Step:
        if batch.other_labels is not None and (
            those := [key for key, loss in self.losses.items() if not weighs_mixed(loss)]
        ):
            raise ValueError(f"{', '.join(those)} cannot weigh the labels of mixed images; do not mix any")
        if batch.labelled is not None:
            self._check_unlabelled(batch)
        images = self.input(batch.images)
        taught = None if batch.taught is None else Signals.of_tensors(batch.taught, self.taught_head).in_float32()
        if self.teacher is not None:
            taught = self.teacher(images if self.shares_input else self.teacher.input(batch.images)).in_float32()
        student = self.network(images).in_float32()
        terms, statistics = {}, {}
        with loss_precision(batch.labels.device):
            part = student, taught, batch
            whole = part if member().size == 1 else self._whole(*part)
            seen = {key: whole if loss.needs.whole_batch else part for key, loss in self.losses.items()}
            for key, loss in self.losses.items():
                terms |= {loss.term_name(name): term for name, term in loss(*seen[key]).items()}
            if with_statistics:
                for key, loss in self.losses.items():
                    statistics |= loss.statistics(*seen[key])
            total = sum(self.weights[name] * term for name, term in terms.items())
        return Step(total, student.logits, {name: term.detach() for name, term in terms.items()}, statistics)

    def _check_unlabelled(self, batch: Batch) -> None:
        """Refuse what images without labels are not for."""
        if batch.other_labels is not None:
            raise ValueError("images without labels are not mixed with others; do not mix any, or leave them out")
        if those := [key for key, loss in self.losses.items() if loss.labels == "all"]:
            raise ValueError(f"{', '.join(those)} needs a label of every image; leave out those without")

    @property
    def trains_classifier(self) -> bool:
        """Whether anything that weighs reads the student's logits or its classifier."""
        weighed = (
            loss for loss in self.losses.values() if any(self.weights[loss.term_name(term)] for term in loss.terms)
        )
        return any(loss.needs.student.logits or loss.needs.student.head for loss in weighed)

    def _places_of_losses(self) -> dict[str, Any]:
        places = {}
        for key, loss in self.losses.items():
            sides = {"student": (self.network, loss.needs.student)}
            if self.teacher is not None:
                sides["teacher"] = (self.teacher.network, loss.needs.teacher)
            places[key] = {side: found for side, pair in sides.items() if (found := _places(*pair))}
        return {key: found for key, found in places.items() if found}

    def _whole(self, student: Signals, taught: Signals | None, batch: Batch) -> tuple[Signals, Signals | None, Batch]:
        """What losses of the whole batch read, of the parts of all processes; images stay as they are."""
        needs = [loss.needs for loss in self.losses.values() if loss.needs.whole_batch]
        if not needs:
            return student, taught, batch
        local = ("images", "taught")
        known = {name: value for name, value in batch._asdict().items() if name not in local and value is not None}
        return (
            student.gathered(union(need.student for need in needs)),
            taught and taught.gathered(union(need.teacher for need in needs)),
            batch._replace(**{name: gathered(value) for name, value in known.items()}),
        )


def union(wanted: Any) -> Wanted:
    """What any of several reads."""
    total = Wanted()
    for each in wanted:
        total |= each
    return total


def _places(network: Network, wanted: Wanted) -> dict[str, dict[str, Any]]:
    """Of the maps that are wanted, and of the scores of layers, by name: module path, channels, grid; likewise of the
    pooled vector, whose path is that of the classifier which it enters.
    """
    found = {name: network.outline.place(name) for name in wanted.maps}
    found |= {name: network.place_of_layer(name) for name in wanted.inner}
    found |= {f"before {name}": network.outline.before(name) for name in wanted.preact}
    pooled = {"pooled": {"path": network.outline.head, "channels": network.outline.num_features}}
    return (pooled if wanted.pooled else {}) | {
        name: {"path": place.path, "channels": place.channels, "grid": list(place.grid)}
        for name, place in found.items()
    }
