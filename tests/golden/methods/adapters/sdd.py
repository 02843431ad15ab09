"""SDD in front of KD, DKD and NKD: `SPP`, `sdd_kd_loss`, `multi_dkd` and `multi_nkd_loss` of the authors' repository.

KD stands there beside 0.1 CE with 0.9; DKD and NKD beside CE, and their terms are raised over 20 epochs. A name without
an epoch is a value beyond the warm-up, one without T has the temperature 4, and one without beta or gamma that of the
other losses of its family.
"""

import re

from torch import Tensor

from distillation.losses import LogitLoss, find_loss
from distillation.losses.sdd import are_right, region_logits
from distillation.signals import Head, Signals
from tests.distillation.losses.loss_tools import network_of
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import EPOCHS, build, run, tell_epoch, weighted

TEMPERATURE = 4.0
WARM = EPOCHS  # an epoch behind every warm-up


def compare(golden: Golden) -> None:
    maps = {side: golden[f"input/{side}_map"] for side in ("student", "teacher")}
    heads = {side: [golden[f"input/{side}_fc_{part}"] for part in ("weight", "bias")] for side in maps}
    student, weight, bias = (tensor.requires_grad_() for tensor in (maps["student"], *heads["student"]))
    variables = {"student_map": student, "student_fc_weight": weight, "student_fc_bias": bias}
    labels, num_classes = golden["input/labels"], len(weight)
    outlines = [network_of([found], num_classes=num_classes, num_features=found.shape[1]) for found in maps.values()]

    def signals(side: str) -> Signals:
        head = Head(*heads[side])
        pooled = maps[side].mean(dim=(2, 3))
        return Signals(logits=head(pooled), maps={"penultimate": maps[side]}, head=head)

    def built(key: str, grids: list[int], epoch: int, **options: float | bool | None) -> LogitLoss:
        loss = build(f"sdd:{key}", *outlines, num_classes=num_classes, sdd={"grids": grids}, **options)
        tell_epoch(loss, epoch)
        return loss

    def total(loss: LogitLoss, weights: dict[str, float]) -> Tensor:
        return weighted(run(loss, signals("student"), signals("teacher"), labels), **weights)

    ce = run(find_loss("ce").build(None, None, None), signals("student"), None, labels)["ce"]
    for (case,) in golden.find(r"out/teacher_region_correct_M(\d+)"):
        grids = [int(side) for side in case if side != "1"]
        loss = built("kd", grids, WARM)
        transform = loss.transforms["sdd"]
        regions = {
            "student": region_logits(student, Head(weight, bias), transform.windows),
            "teacher": region_logits(maps["teacher"], Head(*heads["teacher"]), transform.teacher_windows),
        }
        for side, found_BRN in regions.items():
            golden.compare(f"out/{side}_region_logits_M{case}", found_BRN.transpose(1, 2))
        golden.compare(f"out/teacher_region_correct_M{case}", are_right(regions["teacher"], labels))

    for (name,) in golden.find(r"loss/(sd_.+)"):
        case = [int(side) for side in re.search(r"_M(\d+)$", name)[1] if side != "1"]
        epoch = re.search(r"_epoch(\d+)", name)
        at = re.search(r"_T([\d.]+)", name)
        temperature = float(at[1]) if at else TEMPERATURE
        when = int(epoch[1]) if epoch else WARM
        if name.startswith("sd_kd"):
            kd = find_loss("kd")
            loss = total(built("kd", case, when, temperature=temperature), {"kd": 1.0})
            loss = kd.ce * ce + kd.terms["kd"] * loss if epoch else loss
        elif name.startswith("sd_dkd"):
            dkd = built("dkd", case, when, temperature=temperature)
            loss = total(dkd, {"tckd": 1.0, "nckd": factor(golden, name, "beta")})
        else:
            nkd = built("nkd", case, when, temperature=temperature, warmup=None, all_classes=True)
            loss = total(nkd, {"target": 1.0, "non_target": factor(golden, name, "gamma")})
        if epoch and not name.startswith("sd_kd"):
            loss = ce + loss
        golden.compare_loss(name, loss, variables)


def factor(golden: Golden, name: str, called: str) -> float:
    """beta or gamma of a loss: that of its name, or the smallest of its family; 8 where no name has one."""
    pattern = called + r"([\d.]+)"
    if found := re.search(pattern, name):
        return float(found[1])
    return min((float(number) for (number,) in golden.find(rf"loss/sd_.*{pattern}_M\d+")), default=8.0)
