"""AB: the connectors of RepDistiller and their loss. What it calls a stage's loss is weighted as in the sum.

A file may have the deepest stages alone, as the copy here: what they add to the sum does not depend on the others.
"""

from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    golden.leave_out("const/init_epochs", "the published phases are not built")
    golden.leave_out("const/margin", "it is a constant of the loss, which a test compares")
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    variables = {f"student_map_{stage}": golden.variable(f"input/student_map_{stage}") for stage in stages}
    students, teachers = list(variables.values()), [golden[f"input/teacher_map_{stage}"] for stage in stages]

    def renamed(name: str) -> str:
        """Our name of a parameter or buffer of the reference."""
        stage, part, rest = name.split(".")
        return f"{stages.index(stage)}.{'01'[part == 'bn']}.{rest}"

    loss = build("ab", network_of(students), network_of(teachers))
    variables |= golden.load(loss.connectors, "connectors.", renamed)
    golden.compare_loss("sum", run_maps(loss, students, teachers)["ab"], variables, rounding=["*.conv.bias"])
    golden.compare_state(loss.connectors, "connectors.", renamed)
    for stage, distance in zip(stages, loss.distances(students, teachers), strict=True):
        golden.compare_loss(f"stage{stage}", distance)
