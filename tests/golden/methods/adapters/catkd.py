"""CAT-KD: `CAT_loss` of the authors' code, whose networks return class activation maps themselves.

A map of as many channels as classes and a classifier that is the identity stand for them.
"""

import torch
from torch import Tensor

from distillation.losses import find_loss
from distillation.signals import Head, Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits, build, no_labels, run

PAIRS = {"res32x4_res8x4": ("resnet32x4", "resnet8x4"), "res32x4_shuv1": ("resnet32x4", "shufflenetv1")}


def compare(golden: Golden) -> None:
    for variant in ("binarized", "top5"):
        golden.leave_out(f"*/{variant}_weight400*", "a variant of the paper's studies, which is not built")
    student, teacher = golden.variable("input/student_cam"), golden["input/teacher_cam"]
    variables = {"student_cam": student}
    for grid, form in golden.find(r"loss/res(\d+)_(normalized|raw)"):
        loss = distance(student, teacher, grid=int(grid), normalize=form == "normalized")
        golden.compare_loss(f"res{grid}_{form}", loss, variables)
    given = Logits(golden)
    for name, pair in PAIRS.items():
        options = dict(find_loss("cat-kd").published[pair])
        weight = options.pop("cat-kd")
        total = given.ce + weight * distance(student, teacher, **options)
        golden.compare_loss(f"total_{name}", total, variables | given.variables)


def distance(student: Tensor, teacher: Tensor, *, grid: int, normalize: bool) -> Tensor:
    """The term, for class activation maps (B, N, h, w)."""
    num_classes = student.shape[1]
    nets = [
        network(
            channels=[num_classes], grids=[tuple(maps.shape[2:])], num_classes=num_classes, num_features=num_classes
        )
        for maps in (student, teacher)
    ]
    loss = build("cat-kd", *nets, num_classes=num_classes, grid=grid, normalize=normalize)
    head = Head(torch.eye(num_classes), None)
    seen, taught = (Signals(maps={"penultimate": maps}, head=head) for maps in (student, teacher))
    return run(loss, seen, taught, no_labels(len(student)))["cat-kd"]
