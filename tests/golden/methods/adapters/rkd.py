"""RKD: `RKDLoss` of RepDistiller."""

from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run, weighted


def compare(golden: Golden) -> None:
    student, teacher = golden.variable("input/student_pooled"), golden["input/teacher_pooled"]
    loss = build("rkd", *(network(num_features=pooled.shape[1]) for pooled in (student, teacher)))
    terms = run(loss, Signals(pooled=student), Signals(pooled=teacher), no_labels(len(student)))
    total = weighted(terms, **{name: golden.number(f"const/weight_{name}") for name in terms})
    losses = terms | {"weighted": golden.number("const/weight") * total}
    for name, value in losses.items():
        golden.compare_loss(name, value, {"student_pooled": student})
