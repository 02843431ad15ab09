"""FitNet (Romero et al., ICLR 2015) as the paper compares with it: the teacher's map is a hint for the student's.

    loss = loss of the student + hint_loss_coef * mean (BatchNorm(R * f) - t)^2

f is the student's map, t the teacher's at the student's resolution, R a 1x1 convolution; regressor and BatchNorm are
thrown away afterwards. Everything trains together, as in RepDistiller, whose published weight of the hint is 100 (the
original trains up to the hint first). That weight needs the BatchNorm: without it digits.RN14_RN8 diverges within an
epoch at the protocol's learning rate. No ReLU follows, because not every network's maps end in one.

The student is a network alone, or has KD layers, and f is read behind the layer at its place. With `supervised=False`
the layers learn from the other losses alone: the paper's control of whether they help by their size (RN110_RN32). The
paper does not say which map is the hint; here it is the intermediate one unless `hint` says otherwise.
"""

import difflib

import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.letkd import INTERMEDIATE, PENULTIMATE, LetKD
from algorithms.methods import Config, Step, register_method
from algorithms.supervision import Teacher, open_codebook, open_subclasses, open_teacher
from architectures import create_model
from letkd import Codebook, Student, SubclassTargets
from letkd.taps import submodule

PLACES = (PENULTIMATE, INTERMEDIATE)


@register_method("FitNet")
class FitNet(LetKD):
    """A student, its KD layers and supervision where it has them, and the regressor of a hint.

    Args:
        model: a network alone, or one with KD layers.
        teacher: returns the map called `hint`, and those that supervise.
        codebook, subclasses: as for `LetKD`; None leaves the layer at their place unsupervised.
        coefficients: of the loss, "hint_loss_coef" among them.
        hint: "penultimate" or "intermediate".
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        codebook: Codebook | None,
        subclasses: SubclassTargets | None,
        coefficients: dict[str, float],
        *,
        hint: str,
    ):
        super().__init__(model, teacher, codebook, subclasses, coefficients)
        self.hint = hint
        channels, teacher_channels = (getattr(net, hint).channels for net in (backbone(model), teacher.taps.network))
        self.heads["regressor"] = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, kernel_size=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )

    @staticmethod
    def build_model(config: Config, num_classes: int) -> nn.Module:
        if any(config[place] for place in PLACES):
            return LetKD.build_model(config, num_classes)
        return create_model(config["student"], num_classes=num_classes)

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> "FitNet":
        hint = config["hint"]
        if hint not in PLACES:
            near = difflib.get_close_matches(str(hint), PLACES, n=1)
            suggestion = f" did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown hint {hint!r};{suggestion} known: {', '.join(PLACES)}")
        supervised = [place for place in PLACES if config["supervised"] and config[place]]
        if config["supervised"] and not supervised:
            raise ValueError("supervised=True needs a KD layer: penultimate=True, intermediate=True or both")
        model = cls.build_model(config, num_classes)
        teacher = open_teacher(config, num_classes, backbone(model), maps=[hint, *supervised])
        return cls(
            model,
            teacher,
            codebook=open_codebook(config, teacher) if PENULTIMATE in supervised else None,
            subclasses=open_subclasses(config, teacher, num_classes) if INTERMEDIATE in supervised else None,
            coefficients={key: config[key] for key in config if key.endswith("_loss_coef")},
            hint=hint,
        )

    def forward(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        maps = self.teacher(images)
        logits, scores, features = self._run_student(images)
        step = self.compare(maps, logits, scores, labels, with_statistics=with_statistics)
        hint_loss = F.mse_loss(self.heads["regressor"](features), maps[self.hint])
        loss = step.loss + self.coefficients["hint_loss_coef"] * hint_loss
        return Step(loss, logits, step.terms | {"hint_loss": hint_loss.detach()}, step.statistics)

    def _run_student(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Logits, scores of the KD layers by name, and the map at the hint."""
        maps = []

        def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            maps.append(output)

        network = backbone(self.model)
        # Hooks run in the order of their registration: this one sees what a KD layer has put in the map's place.
        with submodule(network, getattr(network, self.hint).path).register_forward_hook(record):
            if isinstance(self.model, Student):
                logits, scores = self.model.forward_with_scores(images)
            else:
                logits, scores = self.model(images), {}
        return logits, scores, maps[0]


def backbone(model: nn.Module) -> nn.Module:
    """The network without its KD layers."""
    return model.backbone if isinstance(model, Student) else model
