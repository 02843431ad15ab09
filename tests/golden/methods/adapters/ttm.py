"""TTM: `TTM` of the authors. Its cross-entropy has the weight 1."""

from tests.golden.methods.core import Golden
from tests.golden.methods.tools import Logits


def compare(golden: Golden, method: str = "ttm") -> None:
    given = Logits(golden)
    losses = {"ce": given.ce}
    for (gamma,) in golden.find(r"loss/gamma([\d.]+)"):
        losses[f"gamma{gamma}"] = given.terms(method, gamma=float(gamma))[method]
    example = given.terms(method, gamma=float(golden.number("const/example_gamma")))[method]
    losses["weighted"] = golden.number("const/example_beta") * example
    losses["total"] = losses["ce"] + losses["weighted"]
    for name, loss in losses.items():
        golden.compare_loss(name, loss, given.variables)
