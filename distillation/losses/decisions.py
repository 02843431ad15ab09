"""The teacher's sub-class decisions at the intermediate map (letKD-2); `letkd.subclasses` has the targets.

    L = mean over P patches of KL(D[i] || softmax(s)),   i the nearest sub-class of the image's own class

Shapes: scores s (P, N*S) of the KD layer at the place, D (N*S, N*S), P = B * H * W patches at the student's grid.
"""

from dataclasses import dataclass

from torch import Tensor

from config.options import published_field
from dataloaders import Batch
from distillation.losses.base import INTERMEDIATE, Data, Loss, Needs, known_labels, register_loss
from distillation.signals import Network, Signals, Wanted
from letkd import SubclassTargets, kl_to_scores, pool_map


@register_loss("decisions", is_method=False)
class Decisions(Loss):
    """Divergence of a KD layer's scores from the teacher's decisions.

    Args:
        subclasses: the targets.
        place: of the KD layer in the student, its name.
        teacher_place: of the teacher's map, where it is another one.
        pooling: side of the windows that bring the teacher's map to the student's grid.
    """

    kind = "words"
    terms = {"decisions": 1.0}
    prepared = ("decisions",)
    takes_mixed = False  # sub-classes are those of the image's own class
    labels = "any"

    @dataclass(frozen=True)
    class Options:
        place: str = published_field("decisions_place")
        teacher_place: str = published_field("decisions_teacher_place")

    def __init__(self, subclasses: SubclassTargets, *, place: str, pooling: int, teacher_place: str | None = None):
        super().__init__()
        self.subclasses = subclasses
        self.place, self.teacher_place, self.pooling = place, teacher_place or place, pooling
        self.needs = Needs(student=Wanted(inner=(place,)), teacher=Wanted(maps=(self.teacher_place,)))

    @classmethod
    def build(
        cls,
        student: Network,
        teacher: Network,
        data: Data,
        *,
        decisions: SubclassTargets,
        place: str = INTERMEDIATE,
        teacher_place: str = INTERMEDIATE,
    ) -> "Decisions":
        pooling = student.pooling_of(teacher, place, teacher_place)
        return cls(decisions, place=INTERMEDIATE, teacher_place=teacher_place, pooling=pooling)

    @classmethod
    def check_networks(cls, student: Network, teacher: Network, *, place: str, teacher_place: str) -> None:
        student.pooling_of(teacher, place, teacher_place)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        targets = self.subclasses.targets(self.teacher_map(teacher), known_labels(batch))
        scores_PK = student.inner[self.place]
        return {"decisions": kl_to_scores(scores_PK, targets, weights_of_patches(batch, len(scores_PK)))}

    def teacher_map(self, teacher: Signals) -> Tensor:
        """The teacher's map at the student's grid."""
        return pool_map(teacher.maps[self.teacher_place], self.pooling)


def weights_of_patches(batch: Batch, num_patches: int) -> Tensor | None:
    """Weights (P,) of the patches of a batch, image by image, in their mean over images with a label.

    None where all have one.
    """
    if batch.labelled is None:
        return None
    weights_B = batch.labelled / batch.labelled.sum().clamp_min(1)
    size = num_patches // len(weights_B)
    return (weights_B / size).repeat_interleave(size)
