"""KD++ and DKD++: `DirectNormLoss`, `KDLoss` and `DKDLoss` of the authors' code."""

from distillation.losses import find_loss
from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import EPOCHS, Logits, build, run, weighted

PAIR = ("resnet56", "resnet20")
DKDPP = {"tckd": 2.5, "nckd": 4.0, "nd": 3.5}  # published for this pair


def compare(golden: Golden) -> None:
    given = Logits(golden)
    student, teacher = golden.variable("input/student_embedding"), golden["input/teacher_embedding"]
    means = golden["input/class_means"]
    sides = (
        network(name, num_classes=given.num_classes, num_features=means.shape[1]) for name in ("student", "teacher")
    )
    loss = build("kdpp", *sides, num_classes=given.num_classes, means=means)
    loss.on_epoch(EPOCHS, EPOCHS)
    seen, taught = Signals(logits=given.student, pooled=student), Signals(logits=given.teacher, pooled=teacher)
    terms = run(loss, seen, taught, given.labels)
    kdpp = find_loss("kdpp").published[PAIR]
    decoupled = given.terms("dkd", epoch=EPOCHS)
    losses = {
        "ce": given.ce,
        "kd": terms["kd"],
        "nd": terms["nd"],
        "weighted2": 2 * terms["nd"],
        "total_kdpp_res56_res20": given.ce + weighted(terms, **kdpp),
        "total_dkdpp_res56_res20": given.ce + weighted(decoupled | {"nd": terms["nd"]}, **DKDPP),
    }
    for name, value in losses.items():
        golden.compare_loss(name, value, given.variables | {"student_embedding": student})
