"""LSKD in front of KD and DKD: `normalize`, `kd_loss`, `dkd_loss`, `KD` and `DKD` of the authors' repository.

DKD's weights, 9 and 9 * 8, are the defaults of the registered transform: the file does not hold them.
"""

from distillation.losses import find_transform
from distillation.losses.lskd import standardised
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits, weighted


def compare(golden: Golden) -> None:
    given = Logits(golden)
    golden.compare("out/standardized_student", standardised(given.student))
    golden.compare("out/standardized_teacher", standardised(given.teacher))
    base, kd_weight, weight_ce = (
        float(golden.number(f"const/{name}")) for name in ("base_temperature", "kd_weight", "weight_ce")
    )
    losses = {"ce": given.ce}
    for (temperature,) in golden.find(r"loss/kd_T([\d.]+)"):
        losses[f"kd_T{temperature}"] = given.terms("lskd:kd", temperature=float(temperature))["kd"]
    losses["kd_weighted"] = kd_weight * given.terms("lskd:kd", temperature=base)["kd"]
    losses["kd_total"] = weight_ce * losses["ce"] + losses["kd_weighted"]
    for name, temperature in golden.find(r"loss/dkd_([tn]ckd)_T([\d.]+)"):
        losses[f"dkd_{name}_T{temperature}"] = given.terms("lskd:dkd", temperature=float(temperature))[name]
    weights = find_transform("lskd").published["DKD"][None]
    for epoch in sorted({int(epoch) for (epoch,) in golden.find(r"loss/dkd_(?:weighted|total)_epoch(\d+)")}):
        terms = given.terms("lskd:dkd", epoch=epoch, temperature=base)
        losses[f"dkd_weighted_epoch{epoch}"] = loss = weighted(terms, tckd=weights["tckd"], nckd=weights["nckd"])
        losses[f"dkd_total_epoch{epoch}"] = losses["ce"] + loss
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
