"""NKD: `NKDLoss` of cls_KD. Its cross-entropy has the weight 1."""

from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits, weighted


def compare(golden: Golden) -> None:
    given = Logits(golden)
    losses = {"ce": given.ce}
    for temperature, gamma in golden.find(r"loss/nkd_T([\d.]+)_gamma([\d.]+)"):
        terms = given.terms("nkd", temperature=float(temperature))
        case = f"T{temperature}_gamma{gamma}"
        losses[f"target_{case}"] = terms["target"]
        losses[f"non_target_weighted_{case}"] = float(gamma) * terms["non_target"]
        losses[f"nkd_{case}"] = weighted(terms, target=1.0, non_target=float(gamma))
    terms = given.terms("nkd", temperature=float(golden.number("const/temperature_cifar100")))
    losses["total_cifar"] = losses["ce"] + weighted(terms, target=1.0, non_target=golden.number("const/gamma_cifar100"))
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
