"""ITRD: `ITLoss` of the authors' code; everything again, with `equal_` in front, for networks of equal widths."""

from distillation.losses import find_loss
from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run, weighted


def compare(golden: Golden) -> None:
    golden.leave_out("const/alphas", "the names of the losses have them")
    weights = {name: golden.number(f"const/weight_{name}") for name in find_loss("itrd").terms}
    for prefix in ("", "equal_"):
        if f"input/{prefix}student_pooled" in golden:
            compare_pair(golden, prefix, weights)


def compare_pair(golden: Golden, prefix: str, weights: dict[str, float]) -> None:
    """All that is there of a pair of networks."""
    student, teacher = golden.variable(f"input/{prefix}student_pooled"), golden[f"input/{prefix}teacher_pooled"]
    nets = [network(num_features=pooled.shape[1]) for pooled in (student, teacher)]
    alphas = [alpha for (alpha,) in golden.find(rf"loss/{prefix}correlation_alpha([\d.]+)")]
    for alpha in alphas:
        loss = build("itrd", *nets, alpha=float(alpha))
        variables = {f"{prefix}student_pooled": student}
        variables |= golden.load(loss, f"{prefix}embed.", lambda name: name.replace("linear.", "embed.0."))
        terms = run(loss, Signals(pooled=student), Signals(pooled=teacher), no_labels(len(student)))
        golden.compare_loss(
            f"{prefix}correlation_alpha{alpha}", terms["correlation"], variables, rounding=["*.linear.bias"]
        )
        if alpha == alphas[0]:
            golden.compare_loss(f"{prefix}mutual", terms["mutual"], variables)
        golden.compare_loss(
            f"{prefix}weighted_alpha{alpha}", weighted(terms, **weights), variables, rounding=["equal_*.linear.bias"]
        )
