"""QuEST (Jain et al., 2020) as the paper compares with it: letKD-1 with the value path removed.

A predictor beside the student scores its penultimate patches against templates, supervised by the teacher's words; the
features pass unchanged, and the deployed network is the student alone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.methods import Config, Step, register_method
from algorithms.supervision import Teacher, open_codebook, open_teacher
from architectures import create_model
from letkd import Codebook, TemplateScores, kl_to_scores

PENULTIMATE = "penultimate"


@register_method("QuEST")
class QuEST(nn.Module):
    """A student and a word predictor at its penultimate map."""

    def __init__(
        self, student: nn.Module, teacher: Teacher, codebook: Codebook, *, cls_loss_coef: float, quest_loss_coef: float
    ):
        super().__init__()
        self.model = student
        self.heads = nn.ModuleDict({"predictor": TemplateScores(student.num_features, codebook.num_words)})
        self.teacher = teacher
        self.codebook = codebook
        self.cls_loss_coef = cls_loss_coef
        self.quest_loss_coef = quest_loss_coef

    @staticmethod
    def build_model(config: Config, num_classes: int) -> nn.Module:
        return create_model(config["student"], num_classes=num_classes)

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> "QuEST":
        student = cls.build_model(config, num_classes)
        teacher = open_teacher(config, num_classes, student, maps=[PENULTIMATE])
        codebook = open_codebook(config, teacher)
        return cls(
            student,
            teacher,
            codebook,
            cls_loss_coef=config["cls_loss_coef"],
            quest_loss_coef=config["quest_loss_coef"],
        )

    def forward(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        teacher_map = self.teacher(images)[PENULTIMATE]
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features)
        scores = self.heads["predictor"](features)
        cls_loss = F.cross_entropy(logits, labels)
        quest_loss = kl_to_scores(scores, self.codebook.targets(teacher_map))
        loss = self.cls_loss_coef * cls_loss + self.quest_loss_coef * quest_loss
        terms = {"cls_loss": cls_loss.detach(), "quest_loss": quest_loss.detach()}
        return Step(loss, logits, terms, self.codebook.statistics(teacher_map, scores) if with_statistics else {})
