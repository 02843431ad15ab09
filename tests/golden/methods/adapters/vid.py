"""VID: `VIDLoss` of RepDistiller. A file may have some of the stages, as the copy of the last one here."""

from torch import Tensor

from distillation.losses.vid import FIRST_VARIANCE, SMALLEST_VARIANCE
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    published = (golden.number("const/init_pred_var"), golden.number("const/eps"))
    if published != (FIRST_VARIANCE, SMALLEST_VARIANCE):
        raise ValueError(f"const/init_pred_var and const/eps are {published}, and VID has others: they are no options")
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    students = {stage: golden.variable(f"input/student_map_{stage}") for stage in stages}
    teachers = {stage: golden[f"input/teacher_map_{stage}"] for stage in stages}
    for stage in stages:
        golden.compare_loss(f"stage{stage}", *likelihood(golden, {f"stage{stage}": (students[stage], teachers[stage])}))
    total, variables = likelihood(golden, {f"stage{stage}": (students[stage], teachers[stage]) for stage in stages})
    variables |= {f"student_map_{stage}": student for stage, student in students.items()}
    golden.compare_loss("sum", total, variables)
    golden.compare_loss("weighted", golden.number("const/weight") * total, variables)
    for case, size, other in (("student_larger", "larger", "smaller"), ("teacher_larger", "smaller", "larger")):
        if f"input/student_map_{size}" in golden:
            student = golden.variable(f"input/student_map_{size}")
            loss, variables = likelihood(golden, {"resized": (student, golden[f"input/teacher_map_{other}"])})
            golden.compare_loss(case, loss, variables | {f"student_map_{size}": student})


def likelihood(golden: Golden, pairs: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The term, and its parameters by their names in the file.

    Args:
        pairs: maps of student and teacher from shallow to deep, by what the file calls the parameters of theirs.
    """
    students, teachers = (list(maps) for maps in zip(*pairs.values(), strict=True))
    loss = build("vid", network_of(students), network_of(teachers))
    variables = {}
    for gaussian, name in zip(loss.gaussians, pairs, strict=True):
        variables |= golden.load(gaussian, f"{name}.")
    return run_maps(loss, students, teachers)["vid"], variables
