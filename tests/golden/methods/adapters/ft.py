"""FT: the paraphraser, translator and loss of RepDistiller."""

from distillation.losses.ft import distance
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    golden.leave_out("const/init_epochs", "the published phases are not built")
    student, teacher = golden.variable("input/student_map"), golden["input/teacher_map"]
    loss = build("ft", network_of([student]), network_of([teacher]))
    variables = {"student_map": student} | golden.load(loss, "", renamed)
    terms = run_maps(loss, [student], [teacher])
    golden.compare_state(loss, "", renamed)
    golden.compare_loss("paraphraser_reconstruction", terms["reconstruction"], variables)
    golden.compare_loss("factor", terms["ft"], variables, rounding=["translator.encoder.[036].bias"])
    golden.compare_loss("weighted", golden.number("const/weight") * terms["ft"], variables)
    factor = loss.encoder(teacher)
    golden.compare("out/teacher_factor", factor)
    golden.compare("out/teacher_reconstruction", loss.decoder(factor))
    if "input/student_factor_larger" in golden:
        larger = golden.variable("input/student_factor_larger")
        term = distance(larger, golden["input/teacher_factor_smaller"])
        golden.compare_loss("student_larger", term, {"student_factor_larger": larger})


def renamed(name: str) -> str:
    """Our name of a parameter or buffer of the reference, which leaves room for BatchNorms where there are none."""
    module, part, number, rest = name.split(".")
    if module == "translator":
        return f"translator.{number}.{rest}"
    return f"{part}.{int(number) // 3 * 2}.{rest}"
