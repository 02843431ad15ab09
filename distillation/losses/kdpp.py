"""KD++. It is called KDPP: in the name of an experiment + adds methods.

    nd = mean_B (1 - f_B . e_y / max(|f_B|, |g_B|))     e_y = c_y / |c_y|, y the label
    kd = c T^2 mean_B KL(softmax(u_BN / T) || softmax(z_BN / T))    c = min((epoch - 1) / 20, 1), epochs from 1

c_NC are the means of the teacher's pooled vectors over the training images of every class, a file that
`class_means=True` makes. f are the student's pooled vectors, behind a connector where it has another number of channels
than the teacher (BatchNorm, dropout of a half, linear), g the teacher's, z and u the logits. So a student whose vectors
are shorter than the teacher's grows towards the mean of its class, and a longer one turns to it alone.

Published, in the authors' code, whose epochs count from 0: CE + w kd + v nd with w and v by pair and T = 4; 1 and 2 for
all others here. In a sum with a loss on logits, behind transforms or not, that one stands in the place of kd, whose
weight is 0 there unless `kdpp.kd=` says otherwise: `DKD+KDPP` is their DKD++, published with alpha (dkd.tckd), beta
(dkd.nckd) and v (kdpp.nd)

    resnet56 resnet20 2.5 4 3.5 · resnet32x4 resnet8x4 2 8 0.5 · wrn_40_2 wrn_40_1 1 6 1
    resnet50 mobilenetv2 0.5 8 1 · resnet32x4 shufflenetv1 0.5 8 4 · resnet32x4 shufflenetv2 0.5 6 0.5

and in the same order, with the weight of the method and v,

    ReviewKD++, `ReviewKD+KDPP kdpp.kd=0`   1.2 1 · 8 1 · 5 4 · 6 2 · 7 1 · 8 1.5
    DIST++, `DIST+KDPP`                     2 1 · 1.5 4 · 2.5 3 · 7 1 · 2.5 3 · 3 4

None of these is the default of a sum. Which terms the one weight of DIST++ multiplies is not known here.

The authors store c rounded to four digits; here it is not. The gradient passes through |f| where that is the larger
one, as there. A class without training images has no mean: e_y = 0. Of images without a label kd alone is taken.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import option
from dataloaders import Batch
from distillation.losses.base import (
    Connector,
    Data,
    Loss,
    Needs,
    Paper,
    WarmUp,
    known_labels,
    mean_of_labelled,
    register_loss,
    warmup_option,
)
from distillation.losses.logits import check_classes, divergence
from distillation.losses.maps import EPSILON, pooled_widths, unit
from distillation.signals import Network, Signals, Wanted

DROPOUT = 0.5
WEIGHTS = {  # of kd and nd
    ("resnet56", "resnet20"): (1.0, 2.0),
    ("resnet32x4", "resnet8x4"): (3.5, 2.0),
    ("wrn_40_2", "wrn_40_1"): (1.0, 1.5),
    ("resnet50", "mobilenetv2"): (3.0, 0.5),
    ("resnet32x4", "shufflenetv1"): (2.5, 1.5),
    ("resnet32x4", "shufflenetv2"): (4.0, 0.5),
}


@register_loss("KDPP")
class KDPP(WarmUp, Loss):
    """Norm and direction of pooled vectors towards the teacher's class means, and a divergence of logits.

    Args:
        means_NC: the class means.
        channels: of the student's pooled vectors.
        temperature, warmup: as in `Options`.
    """

    paper = Paper(
        "Wang, Cheng, Duan, Wang, Feng, Kong",
        "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
        "arXiv 2305.17007",
        2023,
    )
    kind = "features"
    terms = {"kd": 1.0, "nd": 2.0}
    yields = ("kd",)
    published = {pair: {"kd": kd, "nd": nd} for pair, (kd, nd) in WEIGHTS.items()}
    prepared = ("means",)
    labels = "any"
    label_terms = ("nd",)
    first_epoch = 0
    needs = Needs(student=Wanted(logits=True, pooled=True), teacher=Wanted(logits=True, pooled=True))

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(4.0, "what both networks' logits are divided by", above=0.0)
        warmup: float | None = warmup_option("the term kd is raised from 0")

    def __init__(self, means_NC: Tensor, channels: int, *, temperature: float, warmup: float | None):
        super().__init__(warmup=warmup)
        self.temperature = temperature
        teacher_channels = means_NC.shape[1]
        self.connector = nn.Identity()
        if channels != teacher_channels:
            self.connector = Connector(
                nn.BatchNorm1d(channels), nn.Dropout(DROPOUT), nn.Linear(channels, teacher_channels)
            )
        self.register_buffer("directions", unit(means_NC), persistent=False)

    @classmethod
    def build(
        cls,
        student: Network,
        teacher: Network,
        data: Data,
        *,
        means: Tensor,
        temperature: float,
        warmup: float | None,
    ) -> "KDPP":
        cls.check_networks(student, teacher)
        return cls(means, student.outline.num_features, temperature=temperature, warmup=warmup)

    @classmethod
    def check_networks(cls, student: Network, teacher: Network, **options: Any) -> None:
        check_classes(cls.method, student, teacher)
        pooled_widths(cls.method, student, teacher)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        divergence_B = divergence(student.logits / self.temperature, teacher.logits / self.temperature)
        features_BC = self.connector(student.pooled).float()
        cosine_B = self.cosine(features_BC, teacher.pooled, known_labels(batch))
        if batch.other_labels is not None:
            cosine_B = torch.lerp(self.cosine(features_BC, teacher.pooled, batch.other_labels), cosine_B, batch.share)
        return {
            "kd": self.factor * self.temperature**2 * divergence_B.mean(),
            "nd": mean_of_labelled(1 - cosine_B, batch),
        }

    def cosine(self, features_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Of every sample (B,): with the mean of its class, less where the sample is shorter than the teacher's."""
        lengths = (torch.linalg.vector_norm(each, dim=1) for each in (features_BC, teacher_BC))
        length_B = torch.maximum(*lengths)
        length_B = F.threshold(length_B, EPSILON, 1.0)  # both are 0, and so is the product
        return (features_BC * self.directions[labels_B]).sum(dim=1) / length_B
