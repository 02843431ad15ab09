"""ReviewKD: `ABF`, `ReviewKD` and `hcl` of the authors' CIFAR-100 code, whose epochs count from 0.

A file may have the deepest levels alone, as the copy here: they do not depend on the others, so that neither do what
they add to the sum and the gradients of their last BatchNorms, which are in the copy as those of the sum.
"""

from torch import Tensor

from distillation.losses.reviewkd import ReviewKD, hierarchical_error
from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import EPOCHS, build, no_labels, run

# What the reference calls the parts of a connector; its first connector is the deepest one's, as here.
NAMES = {"conv1": "reduce", "conv2": "expand", "att_conv": "gate"}


def compare(golden: Golden) -> None:
    golden.leave_out("const/mid_channels", "it follows from the channels of the deepest level")
    for prefix in ("", "upsampled_"):
        if f"input/{prefix}student_pooled" in golden:
            compare_pair(golden, prefix)


def compare_pair(golden: Golden, prefix: str) -> None:
    """All that is there of a pair of networks."""
    stages = [int(stage) for (stage,) in golden.find(rf"input/{prefix}student_map_(\d+)")]
    parts = [*(f"map_{stage}" for stage in stages), "pooled"]
    variables = {f"{prefix}student_{part}": golden.variable(f"input/{prefix}student_{part}") for part in parts}
    students = [*list(variables.values())[:-1], variables[f"{prefix}student_pooled"].flatten(1)]
    teachers = [golden[f"input/{prefix}teacher_{part}"] for part in parts]
    teachers[-1] = teachers[-1].flatten(1)
    nets = [network_of(maps, num_features=pooled.shape[1]) for *maps, pooled in (students, teachers)]
    loss = build("reviewkd", *nets, warmup=float(golden.number("const/warmup_epochs")))
    variables |= golden.load(loss, f"{prefix}abfs.", renamed)

    total = forward(loss, students, teachers)
    golden.compare_loss(f"{prefix}hcl", total, variables)
    golden.compare_state(loss, f"{prefix}abfs.", renamed)
    maps = [*students[:-1], students[-1][:, :, None, None]]
    targets = [*teachers[:-1], teachers[-1][:, :, None, None]]
    fused = loss.fuse(maps, [target.shape[2:] for target in targets])
    for stage, (found, target) in enumerate(zip(fused, targets, strict=True), start=min(stages)):
        golden.compare(f"out/{prefix}fused_{stage}", found)
        golden.compare_loss(f"{prefix}hcl_stage{stage}", hierarchical_error(found, target), variables)
    for weight, epoch in golden.find(rf"loss/{prefix}weighted([\d.]+)_epoch(\d+)"):
        loss.on_epoch(int(epoch) + 1, EPOCHS)
        weighted = float(weight) * forward(loss, students, teachers)
        golden.compare_loss(f"{prefix}weighted{weight}_epoch{epoch}", weighted, variables)


def renamed(name: str) -> str:
    """Our name of a parameter or buffer of the reference."""
    number, part, rest = name.split(".", 2)
    return f"fusions.{number}.{NAMES[part]}.{rest}"


def forward(loss: ReviewKD, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """The term, for maps from shallow to deep and the pooled vectors (B, C) last."""
    seen = Signals(maps=dict(zip(loss.stages, students[:-1], strict=True)), pooled=students[-1])
    taught = Signals(preact=dict(zip(loss.teacher_stages, teachers[:-1], strict=True)), pooled=teachers[-1])
    return run(loss, seen, taught, no_labels(len(students[0])))["reviewkd"]
