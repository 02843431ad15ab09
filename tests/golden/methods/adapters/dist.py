"""DIST: `DIST` of image_classification_sota."""

from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits, weighted


def compare(golden: Golden) -> None:
    given = Logits(golden)
    ce, (tau, beta, gamma, weight, weight_ce) = (
        given.ce,
        (float(golden.number(f"const/{name}")) for name in ("tau", "beta", "gamma", "kd_loss_weight", "weight_ce")),
    )
    losses = {"ce": ce}
    for (temperature,) in golden.find(r"loss/dist_tau([\d.]+)"):
        terms = given.terms("dist", temperature=float(temperature))
        losses |= {f"{name}_tau{temperature}": term for name, term in terms.items()}
        losses[f"dist_tau{temperature}"] = weighted(terms, inter=beta, intra=gamma)
    terms = given.terms("dist", temperature=tau)
    losses["weighted"] = weighted(terms, inter=weight * beta, intra=weight * gamma)
    losses["total"] = weight_ce * ce + losses["weighted"]
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
