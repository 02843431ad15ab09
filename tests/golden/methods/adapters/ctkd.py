"""CTKD in front of KD, DKD and LSKD: `Global_T`, `GradientReversal` and `CosineDecay` of the authors' repository.

KD stands there beside 0.1 CE with 0.9, as it does alone, and DKD with alpha 1. A loss does not depend on the epoch, but
the gradient of the temperature does.
"""

import torch
from torch import Tensor

from distillation.losses import LogitLoss, find_loss
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import EPOCHS, Logits, tell_epoch, weighted


def compare(golden: Golden) -> None:
    for name in ("t_start", "t_end", "decay_max", "decay_min"):
        golden.leave_out(f"const/{name}", "it is built into the transform")
    golden.leave_out("out/lambda_linear", "the linear schedule is the authors' other one, and is not built")
    golden.leave_out("param/global_T_published_init", "it is what the transform starts with")
    given, kd = Logits(golden), find_loss("kd")
    decay = {"decay": float(golden.number("const/decay_loops"))}
    ce = given.ce
    golden.compare_loss("ce", ce, given.variables)

    def at_epoch(key: str, epoch: str, **options: float) -> tuple[LogitLoss, dict[str, Tensor]]:
        """A loss with the temperature of the file, and what has gradients."""
        loss = given.build(key, ctkd=decay, **options)
        raw = loss.transforms["ctkd"].raw
        with torch.no_grad():
            raw.copy_(golden["param/global_T"].view(()))
        tell_epoch(loss, int(epoch))
        return loss, given.variables | {"global_T": raw}

    for (epoch,) in golden.find(r"loss/kd_epoch(\d+)"):
        loss, variables = at_epoch("ctkd:kd", epoch)
        value = given.run(loss)["kd"]
        golden.compare(f"out/temperature_epoch{epoch}", loss.transforms["ctkd"].temperature)
        golden.compare_loss(f"kd_epoch{epoch}", value, variables)
        golden.compare_loss(f"total_epoch{epoch}", kd.ce * ce + kd.terms["kd"] * value, variables)
    for beta, epoch in golden.find(r"loss/dkd_beta([\d.]+)_epoch(\d+)"):
        loss, variables = at_epoch("ctkd:dkd", epoch, warmup=0.0)
        value = weighted(given.run(loss), tckd=1.0, nckd=float(beta))
        golden.compare_loss(f"dkd_beta{beta}_epoch{epoch}", value, variables)
    for (epoch,) in golden.find(r"loss/lskd_kd_epoch(\d+)"):
        loss, variables = at_epoch("ctkd:lskd:kd", epoch)
        golden.compare_loss(f"lskd_kd_epoch{epoch}", given.run(loss)["kd"], variables)

    transform, factors = given.build("ctkd:kd", ctkd=decay).transforms["ctkd"], []
    for epoch in golden["const/epochs"].tolist():
        transform.on_epoch(int(epoch), EPOCHS)
        factors.append(transform.reversal.clone())
    golden.compare("out/lambda_cosine", torch.stack(factors))
