"""Logit standardization.

    lskd:L is L of s(z_BN) and s(u_BN),    s(x) = (x - mean_N x) / (std_N x + 1e-7)

of each sample's logits, the student's z and the teacher's u; std over N classes with N - 1 below. Gradients pass
through the student's mean and std. The cross-entropy is that of the logits as they are.

Published, in the authors' code and the names of their logs: KD with T = 2 and 0.1 CE + 9 L; DKD with T = 2 and its
terms weighted by 9 and 9 beta; other values by pair below. T^2 stays in the losses, though T alone sets the scale now.
In the authors' copy of CTKD it is 0.1 CE + 9 L as well.

Where all logits of a sample are equal, as those of a classifier that starts from zero, s is 0, and here its gradient is
that of the logits; the authors' is 1e7 times as large, because only the 1e-7 keeps it finite.
"""

import math

import torch
from torch import Tensor

from distillation.losses.base import Paper
from distillation.losses.logits import Rows, Transform, is_rounding, register_transform
from distillation.signals import Signals

EPS = 1e-7

# By pair, None for all others: T and weight.
KD = {
    ("vgg13", "vgg8"): (3.0, 9.0),
    ("resnet110", "resnet20"): (4.0, 12.0),
    ("resnet32x4", "wrn_16_2"): (3.0, 9.0),
    ("resnet32x4", "wrn_40_2"): (3.0, 9.0),
    ("wrn_40_2", "mobilenetv2"): (3.0, 9.0),
    ("vgg13", "mobilenetv2"): (3.0, 9.0),
    ("resnet50", "mobilenetv2"): (3.0, 1.0),
    None: (2.0, 9.0),
}
# Likewise: T, weight, and beta before it is multiplied by the weight.
DKD = {
    ("vgg13", "vgg8"): (2.0, 15.0, 2.0),
    ("wrn_40_2", "wrn_40_1"): (2.0, 12.0, 2.0),
    ("wrn_40_2", "wrn_16_2"): (2.0, 12.0, 2.0),
    ("resnet56", "resnet20"): (3.0, 18.0, 2.0),
    ("resnet110", "resnet32"): (2.0, 15.0, 2.0),
    ("resnet110", "resnet20"): (2.0, 15.0, 2.0),
    ("resnet32x4", "wrn_16_2"): (2.0, 9.0, 2.0),
    ("resnet32x4", "wrn_40_2"): (2.0, 9.0, 8.0),
    ("wrn_40_2", "resnet8x4"): (2.0, 18.0, 2.0),
    ("wrn_40_2", "mobilenetv2"): (2.0, 15.0, 2.0),
    ("vgg13", "mobilenetv2"): (3.0, 9.0, 2.0),
    ("resnet50", "mobilenetv2"): (2.0, 15.0, 2.0),
    None: (2.0, 9.0, 8.0),
}


@register_transform("lskd")
class LSKD(Transform):
    """Logits of zero mean and unit deviation."""

    paper = Paper("Sun, Ren, Li, Wang, Cao", "Logit Standardization in Knowledge Distillation", "CVPR", 2024)
    reads_labels = False
    published = {
        "KD": {pair: {"temperature": t, "kd": weight, "ce": 0.1} for pair, (t, weight) in KD.items()},
        "DKD": {pair: {"temperature": t, "tckd": w, "nckd": w * beta} for pair, (t, w, beta) in DKD.items()},
    }

    def forward(self, rows: Rows, student: Signals, teacher: Signals) -> Rows:
        return rows._replace(student=standardised(rows.student), teacher=standardised(rows.teacher))


def standardised(logits_RN: Tensor) -> Tensor:
    """(R, N) with mean 0 and deviation 1 in every row; 0 where all logits of a row are equal."""
    classes = logits_RN.shape[1]
    # Divided by sqrt(variance + EPS^2), one operation; that differs from deviation + EPS by less than EPS.
    standard_RN, mean_R1, inverse_R1 = torch.native_layer_norm(logits_RN, (classes,), None, None, EPS**2)
    is_constant_R1 = is_rounding(inverse_R1.reciprocal() - EPS, 1 + mean_R1.abs())  # EPS is what equal logits have
    return torch.where(is_constant_R1, logits_RN - mean_R1, math.sqrt(1 - 1 / classes) * standard_RN)
