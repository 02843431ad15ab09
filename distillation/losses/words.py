"""The teacher's words: the soft assignment of its patches to a k-means codebook (letKD-1, letKD-2, QuEST).

    L = mean over P patches of KL(softmax_k(-tau |t - mu_k|^2) || softmax(s))

s (P, K) are the scores of the KD layer at the place or, where the student has none there (QuEST),
those of a predictor that is thrown away afterwards. Shapes: t (B, C, H, W) the teacher's map, averaged to the student's
grid; mu (K, C) the words; P = B * H * W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.options import published_field
from dataloaders import Batch
from distillation.losses.base import PENULTIMATE, Connector, Data, Loss, Needs, register_loss
from distillation.signals import Network, Signals, Wanted
from letkd import Codebook, TemplateScores, kl_to_scores, pool_map


@register_loss("words", is_method=False)
class Words(Loss):
    """Divergence of a student's scores from the teacher's words.

    Args:
        codebook: the words.
        place: of the student's map.
        teacher_place: of the teacher's, where it is another one.
        pooling: side of the windows that bring the teacher's map to the student's grid.
        predictor: scores the student's map, where no KD layer does.
    """

    kind = "words"
    terms = {"words": 1.0}
    labels = "none"
    prepared = ("codebook",)

    @dataclass(frozen=True)
    class Options:
        place: str = published_field("words_place")
        teacher_place: str = published_field("words_teacher_place")

    def __init__(
        self,
        codebook: Codebook,
        *,
        place: str,
        pooling: int,
        predictor: TemplateScores | None,
        teacher_place: str | None = None,
    ):
        super().__init__()
        self.codebook = codebook
        self.place, self.teacher_place, self.pooling = place, teacher_place or place, pooling
        self.predictor = None if predictor is None else Connector(predictor)
        student = Wanted(inner=(place,)) if predictor is None else Wanted(maps=(place,))
        self.needs = Needs(student=student, teacher=Wanted(maps=(self.teacher_place,)))

    @classmethod
    def build(
        cls,
        student: Network,
        teacher: Network,
        data: Data,
        *,
        codebook: Codebook,
        place: str = PENULTIMATE,
        teacher_place: str = PENULTIMATE,
    ) -> "Words":
        pooling = student.pooling_of(teacher, place, teacher_place)
        predictor = None
        if PENULTIMATE in student.layers:
            place = PENULTIMATE  # the layer's name
        else:
            predictor = TemplateScores(student.outline.place(place).channels, codebook.num_words)
        return cls(codebook, place=place, teacher_place=teacher_place, pooling=pooling, predictor=predictor)

    @classmethod
    def check_networks(cls, student: Network, teacher: Network, *, place: str, teacher_place: str) -> None:
        student.pooling_of(teacher, place, teacher_place)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"words": kl_to_scores(self.scores(student), self.codebook.targets(self.teacher_map(teacher)))}

    def scores(self, student: Signals) -> Tensor:
        """The student's scores (P, K) of the words."""
        return student.inner[self.place] if self.predictor is None else self.predictor(student.maps[self.place])

    def teacher_map(self, teacher: Signals) -> Tensor:
        """The teacher's map at the student's grid."""
        return pool_map(teacher.maps[self.teacher_place], self.pooling)

    @torch.no_grad()
    def statistics(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        found = self.codebook.statistics(self.teacher_map(teacher), self.scores(student))
        return {f"{name}/{'mean' if value.ndim == 0 else 'count'}": value for name, value in found.items()}
