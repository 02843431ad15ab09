"""OFD: `Distiller` of the authors' CIFAR-100 code, whose losses are sums over the batch, and mdistiller's, a mean.

A file may have the last stages alone, as the copy here: they do not depend on the others.
"""

import torch
from torch import Tensor

from distillation.losses.ofd import OFD
from distillation.signals import Network
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, run_maps


def compare(golden: Golden) -> None:
    stages = [stage for (stage,) in golden.find(r"input/student_map_(\d+)")]
    students = {f"student_map_{stage}": golden.variable(f"input/student_map_{stage}") for stage in stages}
    loss, variables = connected(golden, stages)
    maps = list(students.values()), [golden[f"input/teacher_map_{stage}"] for stage in stages]
    mean = run_maps(loss, *maps)["ofd"]
    for connector, stage in zip(loss.connectors, stages, strict=True):
        golden.compare_state(connector, f"connectors.{stage}.")
    summed = len(maps[0][0]) * mean
    losses = {"mdistiller": mean, "summed": summed, "weighted": golden.number("const/weight_per_sample") * mean}
    for name, value in losses.items():
        golden.compare_loss(name, value, students | variables)
    for number, stage in enumerate(stages):
        golden.compare(f"out/margin_{stage}", getattr(loss, f"margin{number}"))
        alone, variables = connected(golden, [stage])
        student = students[f"student_map_{stage}"]
        part = len(student) * run_maps(alone, [student], [golden[f"input/teacher_map_{stage}"]])["ofd"]
        golden.compare_loss(f"stage{stage}_summed", part, {f"student_map_{stage}": student} | variables)


def connected(golden: Golden, stages: list[str]) -> tuple[OFD, dict[str, Tensor]]:
    """The loss for some stages, and its parameters by their names in the file."""
    student, teacher = (
        network_of([golden[f"input/{side}_map_{n}"] for n in stages]) for side in ("student", "teacher")
    )
    set_norms(golden, teacher, stages)
    loss = build("ofd", student, teacher)
    variables = {}
    for connector, stage in zip(loss.connectors, stages, strict=True):
        variables |= golden.load(connector, f"connectors.{stage}.")
    return loss, variables


@torch.no_grad()
def set_norms(golden: Golden, teacher: Network, stages: list[str]) -> None:
    """Weights and biases of the teacher's BatchNorms."""
    for number, stage in enumerate(stages, start=1):
        norm = teacher.module[f"stage{number}"]
        norm.weight.copy_(golden[f"input/teacher_bn_weight_{stage}"])
        norm.bias.copy_(golden[f"input/teacher_bn_bias_{stage}"])
