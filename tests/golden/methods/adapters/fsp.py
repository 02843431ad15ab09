"""FSP: its loss in RepDistiller, whose first map is the stem's. A file may have consecutive maps alone, as the copy."""

from distillation.losses.fsp import FSP, distances
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import run_maps


def compare(golden: Golden) -> None:
    golden.leave_out("const/init_epochs", "the published phases are not built")
    numbers = [int(number) for (number,) in golden.find(r"input/student_map_(\d+)")]
    variables = {f"student_map_{number}": golden.variable(f"input/student_map_{number}") for number in numbers}
    students, teachers = list(variables.values()), [golden[f"input/teacher_map_{number}"] for number in numbers]
    names = tuple(map(str, numbers))
    golden.compare_loss("sum", run_maps(FSP(names, names), students, teachers)["fsp"], variables)
    for number, value in zip(numbers[:-1], distances(students, teachers), strict=True):
        golden.compare_loss(f"pair{number}", value)
