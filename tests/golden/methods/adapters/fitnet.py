"""FitNet: `ConvReg` and `HintLoss` of RepDistiller, for pairs of grids; `triple` is the case that SimKD's code adds."""

from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps

NAMES = {"conv": "regressor.0", "bn": "regressor.1"}  # what the reference calls the parts of a regressor


def compare(golden: Golden) -> None:
    student = golden.variable("input/student_map")
    for (case,) in golden.find(r"input/teacher_map_(\w+)"):
        teacher = golden[f"input/teacher_map_{case}"]
        loss = build("fitnet", network_of([student]), network_of([teacher]), hint="stage1")
        variables = {"student_map": student} | golden.load(loss, f"{case}.", renamed)
        hint = run_maps(loss, [student], [teacher])["fitnet"]
        golden.compare_state(loss, f"{case}.", renamed)
        golden.compare_loss(case, hint, variables, rounding=["*.conv.bias"])
        golden.compare_loss(
            f"weighted_{case}", golden.number("const/weight") * hint, variables, rounding=["*.conv.bias"]
        )


def renamed(name: str) -> str:
    """Our name of a parameter or buffer of the reference."""
    part, rest = name.split(".")
    return f"{NAMES[part]}.{rest}"
