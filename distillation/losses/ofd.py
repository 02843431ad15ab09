"""Overhaul.

    f_BDhw = BN(conv1x1(F_BChw)) to the teacher's D channels
    g_BDhw = max(G_BDhw, m_D)                   m: the mean of a channel of G where it is negative
    l_i    = sum of (f - g)^2 where f > g or g > 0
    L      = sum over stages i = 1..n of l_i / 2^(n - i) / B

F are the student's maps, G the teacher's, both before the last activation of a stage, at the ends of the stages behind
the stem. Where one network has more of them, the last ones meet, and G is averaged to the grid of F, as in mdistiller.
Published, by the authors and in mdistiller, for every pair: CE + 0.001 L.

m follows from the teacher's last BatchNorm before the activation, a Gaussian with the mean b (its bias) and the
deviation s (the absolute value of its weight): m = b - s phi(b/s) / Phi(-b/s), and -3 s where hardly anything is
negative, Phi(-b/s) <= 0.001; that branch has no b, in both codes and here. A network whose stages do not end in a
BatchNorm and an activation can be a student, and no teacher. In the reference the teacher is in training mode; here it
is in eval mode as every teacher.
"""

import math

import torch
from torch import Tensor, nn

from dataloaders import Batch
from distillation.losses.base import Connector, Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import average_to, stages_of
from distillation.signals import Network, Signals, Wanted
from letkd.taps import submodule

RARE = 0.001  # the share of negative values up to which a margin is -3 s


@register_loss("OFD")
class OFD(Loss):
    """Squared errors of maps before the activation, where they are not both off.

    Args:
        stages, teacher_stages: places of the maps, as many of each, shallow to deep.
        channels: of the student's maps.
        margins: m of the teacher's.
    """

    paper = Paper("Heo, Kim, Yun, Park, Kwak, Choi", "A Comprehensive Overhaul of Feature Distillation", "ICCV", 2019)
    kind = "features"
    terms = {"ofd": 0.001}
    labels = "none"
    reads_weights = True

    def __init__(
        self,
        stages: tuple[str, ...],
        teacher_stages: tuple[str, ...],
        channels: list[int],
        margins: list[Tensor],
    ):
        super().__init__()
        self.pairs = tuple(zip(stages, teacher_stages, strict=True))
        self.connectors = nn.ModuleList(
            connector(inward, len(margin_D)) for inward, margin_D in zip(channels, margins, strict=True)
        )
        for number, margin_D in enumerate(margins):
            self.register_buffer(f"margin{number}", margin_D, persistent=False)  # is in the teacher's weights
        self.needs = Needs(student=Wanted(preact=stages), teacher=Wanted(preact=teacher_stages))

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "OFD":
        one, other = stages_of(cls.method, student), stages_of(cls.method, teacher)
        count = min(len(one), len(other))
        stages, teacher_stages = one[-count:], other[-count:]
        return cls(
            stages,
            teacher_stages,
            [student.outline.before(stage).channels for stage in stages],
            [margin(*last_norm(cls.method, teacher, stage)) for stage in teacher_stages],
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        total = 0.0
        for number, (stage, other) in enumerate(self.pairs):
            features = self.connectors[number](student.preact[stage]).float()
            margin_D11 = getattr(self, f"margin{number}")[:, None, None]
            target = torch.maximum(average_to(teacher.preact[other].float(), features.shape[-2:]), margin_D11)
            # A sample's, halved for every stage that is shallower.
            total = total + partial_error(features, target) / (len(features) * 2 ** (len(self.pairs) - 1 - number))
        return {"ofd": total}


def connector(channels: int, teacher_channels: int) -> Connector:
    """Starts from a normal distribution, as published."""
    convolution = nn.Conv2d(channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return Connector(convolution, nn.BatchNorm2d(teacher_channels))


def partial_error(features: Tensor, target: Tensor) -> Tensor:
    """The sum of squared errors, without those of a student's value that is below a target which is off."""
    counts = (features > target) | (target > 0)
    return torch.where(counts, features - target, 0.0).square().sum()


def last_norm(method: str, teacher: Network, stage: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the BatchNorm before the last activation of a stage.

    Raises:
        ValueError: there is none; names the method, the network, and methods that need none.
    """
    path = teacher.outline.before(stage).norm
    norm = submodule(teacher.backbone, path) if path else None
    if norm is None or norm.weight is None:
        raise ValueError(
            f"{method} takes its margins from the BatchNorm before the last activation of each stage, and {stage} of "
            f"{teacher.outline.network} has none; choose another teacher, or a method without margins, like AT, VID or "
            "ReviewKD"
        )
    return norm.weight.detach(), norm.bias.detach()


def margin(weight_D: Tensor, bias_D: Tensor) -> Tensor:
    """The mean of what is negative in a normal distribution with this deviation, up to its sign, and mean."""
    deviation_D, mean_D = weight_D.double().abs(), bias_D.double()
    ratio_D = mean_D / deviation_D.clamp(min=1e-12)  # of a channel that is constant, very large
    share_D = torch.special.ndtr(-ratio_D)
    density_D = (-ratio_D.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(share_D > RARE, mean_D - deviation_D * density_D / share_D, -3 * deviation_D).to(weight_D.dtype)
