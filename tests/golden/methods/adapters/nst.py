"""NST: `NSTLoss` of RepDistiller. A file may have some of the stages, as the copy of the last one here."""

from torch import Tensor

from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    students = {f"student_map_{stage}": golden.variable(f"input/student_map_{stage}") for stage in stages}
    teachers = [golden[f"input/teacher_map_{stage}"] for stage in stages]
    for stage, (name, student), teacher in zip(stages, students.items(), teachers, strict=True):
        golden.compare_loss(f"stage{stage}", discrepancy([student], [teacher]), {name: student})
    total = discrepancy(list(students.values()), teachers)
    golden.compare_loss("sum", total, students)
    golden.compare_loss("weighted", golden.number("const/weight") * total, students)
    for case, size, other in (("student_larger", "larger", "smaller"), ("teacher_larger", "smaller", "larger")):
        if f"input/student_map_{size}" in golden:
            student = golden.variable(f"input/student_map_{size}")
            loss = discrepancy([student], [golden[f"input/teacher_map_{other}"]])
            golden.compare_loss(case, loss, {f"student_map_{size}": student})


def discrepancy(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """The term for maps from shallow to deep."""
    return run_maps(build("nst", network_of(students), network_of(teachers)), students, teachers)["nst"]
