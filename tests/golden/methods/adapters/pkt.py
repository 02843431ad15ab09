"""PKT: `PKT` of RepDistiller."""

from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run


def compare(golden: Golden) -> None:
    student, teacher = golden.variable("input/student_pooled"), golden["input/teacher_pooled"]
    loss = build("pkt", *(network(num_features=pooled.shape[1]) for pooled in (student, teacher)))
    term = run(loss, Signals(pooled=student), Signals(pooled=teacher), no_labels(len(student)))["pkt"]
    for name, value in {"pkt": term, "weighted": golden.number("const/weight") * term}.items():
        golden.compare_loss(name, value, {"student_pooled": student})
