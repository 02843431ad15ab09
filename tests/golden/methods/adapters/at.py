"""AT: `Attention` of RepDistiller. A file may have some of the stages, as the copy of the last one here."""

from torch import Tensor

from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run


def compare(golden: Golden) -> None:
    p = float(golden.number("const/p"))
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    students = {f"student_map_{stage}": golden.variable(f"input/student_map_{stage}") for stage in stages}
    teachers = [golden[f"input/teacher_map_{stage}"] for stage in stages]
    for stage, (name, student), teacher in zip(stages, students.items(), teachers, strict=True):
        golden.compare_loss(f"stage{stage}", attention([student], [teacher], p), {name: student})
    total = attention(list(students.values()), teachers, p)
    golden.compare_loss("sum", total, students)
    if "const/weight" in golden:
        golden.compare_loss("weighted", golden.number("const/weight") * total, students)
    for case, size, other in (("student_larger", "larger", "smaller"), ("teacher_larger", "smaller", "larger")):
        if f"input/student_map_{size}" in golden:
            student = golden.variable(f"input/student_map_{size}")
            loss = attention([student], [golden[f"input/teacher_map_{other}"]], p)
            golden.compare_loss(case, loss, {f"student_map_{size}": student})


def attention(students: list[Tensor], teachers: list[Tensor], p: float) -> Tensor:
    """The term for maps from shallow to deep."""
    loss = build("at", network_of(students), network_of(teachers), p=p)
    seen = Signals(maps=dict(zip(loss.needs.student.maps, students, strict=True)))
    taught = Signals(maps=dict(zip(loss.needs.teacher.maps, teachers, strict=True)))
    return run(loss, seen, taught, no_labels(len(students[0])))["at"]
