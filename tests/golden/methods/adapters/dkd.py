"""DKD: `dkd_loss` and `DKD` of mdistiller. Its cross-entropy has the weight 1."""

from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits, weighted


def compare(golden: Golden) -> None:
    given = Logits(golden)
    ce = given.ce
    alpha, beta, temperature, warmup = (
        float(golden.number(f"const/{name}")) for name in ("alpha", "beta", "temperature", "warmup_epochs")
    )
    whole = given.terms("dkd", temperature=temperature)
    losses = {"ce": ce, **whole}
    for (other,) in golden.find(r"loss/dkd_beta([\d.]+)"):
        losses[f"dkd_beta{other}"] = weighted(whole, tckd=alpha, nckd=float(other))
    for name, other in golden.find(r"loss/([tn]ckd)_T([\d.]+)"):
        losses[f"{name}_T{other}"] = given.terms("dkd", temperature=float(other))[name]
    for epoch in {int(epoch) for (epoch,) in golden.find(r"loss/(?:weighted_dkd|total)_epoch(\d+)")}:
        terms = given.terms("dkd", epoch=epoch, temperature=temperature, warmup=warmup)
        losses[f"weighted_dkd_epoch{epoch}"] = loss = weighted(terms, tckd=alpha, nckd=beta)
        losses[f"total_epoch{epoch}"] = ce + loss
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
