"""SP: `Similarity` of RepDistiller, which compares the last stage alone. A file may have others, and their sum."""

from torch import Tensor

from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    weight = golden.number("const/weight")
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    students = {f"student_map_{stage}": golden.variable(f"input/student_map_{stage}") for stage in stages}
    teachers = [golden[f"input/teacher_map_{stage}"] for stage in stages]
    parts = [similarity(student, teacher) for student, teacher in zip(students.values(), teachers, strict=True)]
    losses = {f"stage{stage}": part for stage, part in zip(stages, parts, strict=True)}
    losses |= {"sum": sum(parts), "weighted": weight * sum(parts)}
    losses |= {"last": parts[-1], "weighted_last": weight * parts[-1]}
    for name, loss in losses.items():
        golden.compare_loss(name, loss, students)
    if "input/student_map_unequal" in golden:
        student = golden.variable("input/student_map_unequal")
        loss = similarity(student, golden["input/teacher_map_unequal"])
        golden.compare_loss("unequal_resolution", loss, {"student_map_unequal": student})


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    loss = build("sp", network_of([student]), network_of([teacher]))
    return run_maps(loss, [student], [teacher])["sp"]
