"""KD: `DistillKL` of RepDistiller, and mdistiller's, which is equal."""

from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits


def compare(golden: Golden) -> None:
    given = Logits(golden)
    ce = given.ce
    kd = given.terms("kd", temperature=golden.number("const/temperature"))["kd"]
    weighted = golden.number("const/weight_kd") * kd
    losses = {
        "ce": ce,
        "kd": kd,
        "kd_mdistiller": kd,
        "weighted_kd": weighted,
        "total": golden.number("const/weight_ce") * ce + weighted,
    }
    for (temperature,) in golden.find(r"loss/kd_T([\d.]+)"):
        losses[f"kd_T{temperature}"] = given.terms("kd", temperature=float(temperature))["kd"]
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
