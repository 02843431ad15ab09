"""letKD: KD layers inside the student, supervised by the teacher's words and sub-class decisions.

    loss = cls_loss_coef * CE + quest_loss_coef * L_penult + sub_loss_coef * L_inter

letKD-1 has the penultimate layer, letKD-2 both; `penultimate=False` leaves the intermediate one alone (ablation).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.methods import Config, Step, register_method
from algorithms.supervision import Teacher, open_codebook, open_subclasses, open_teacher
from architectures import create_model
from letkd import Codebook, KDLayer, Student, SubclassTargets, kl_to_scores

PENULTIMATE, INTERMEDIATE = "penultimate", "intermediate"


@register_method("letKD-1", "letKD-2")
class LetKD(nn.Module):
    """A student with KD layers and the frozen supervision of its scores.

    Args:
        student: KD layers named "penultimate" and "intermediate", either or both.
        teacher: returns the maps of the same names, already at the student's resolution.
        codebook: supervises the penultimate layer, where there is one.
        subclasses: supervises the intermediate layer, where there is one.
        coefficients: of the loss, by the names the configuration has.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        codebook: Codebook | None,
        subclasses: SubclassTargets | None,
        coefficients: dict[str, float],
    ):
        super().__init__()
        self.model = student
        self.heads = nn.ModuleDict()
        self.teacher = teacher
        self.codebook = codebook
        self.subclasses = subclasses
        self.coefficients = coefficients

    @staticmethod
    def build_model(config: Config, num_classes: int) -> Student:
        backbone = create_model(config["student"], num_classes=num_classes)
        layers, paths = {}, {}
        if config["penultimate"]:
            tap = backbone.penultimate
            layers[PENULTIMATE] = KDLayer(tap.channels, config["num_words"], config["alpha_penultimate"])
            paths[PENULTIMATE] = tap.path
        if config["intermediate"]:
            tap = backbone.intermediate
            num_targets = num_classes * config["subclasses_per_class"]
            layers[INTERMEDIATE] = KDLayer(tap.channels, num_targets, config["alpha_intermediate"])
            paths[INTERMEDIATE] = tap.path
        if not layers:
            raise ValueError("penultimate=False and intermediate=False leave no KD layer; use a network alone instead")
        return Student(backbone, layers, paths)

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> "LetKD":
        student = cls.build_model(config, num_classes)
        teacher = open_teacher(config, num_classes, student.backbone, maps=list(student.layers))
        return cls(
            student,
            teacher,
            codebook=open_codebook(config, teacher) if config["penultimate"] else None,
            subclasses=open_subclasses(config, teacher, num_classes) if config["intermediate"] else None,
            coefficients={key: config[key] for key in config if key.endswith("_loss_coef")},
        )

    def forward(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        maps = self.teacher(images)
        logits, scores = self.model.forward_with_scores(images)
        return self.compare(maps, logits, scores, labels, with_statistics=with_statistics)

    def compare(
        self,
        maps: dict[str, Tensor],
        logits: Tensor,
        scores: dict[str, Tensor],
        labels: Tensor,
        *,
        with_statistics: bool,
    ) -> Step:
        """The losses of what teacher and student computed; maps and scores by the names of the layers."""
        terms = {"cls_loss": F.cross_entropy(logits, labels)}
        statistics = {}
        if self.codebook is not None:
            terms["quest_loss"] = kl_to_scores(scores[PENULTIMATE], self.codebook.targets(maps[PENULTIMATE]))
            if with_statistics:
                statistics = self.codebook.statistics(maps[PENULTIMATE], scores[PENULTIMATE])
        if self.subclasses is not None:
            targets = self.subclasses.targets(maps[INTERMEDIATE], labels)
            terms["sub_loss"] = kl_to_scores(scores[INTERMEDIATE], targets)
        loss = sum(self.coefficients[f"{name}_coef"] * term for name, term in terms.items())
        return Step(loss, logits, {name: term.detach() for name, term in terms.items()}, statistics)
