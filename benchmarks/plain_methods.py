"""The loss of every method written down plainly, to be measured against: nothing in letKD uses this.

The formulas are those of the files in `distillation/losses/`, and the symbols too: z and u are logits, F and G maps, f
and g pooled vectors of student and teacher. An operation of torch stands for each symbol, and it is what one writes
first, for inputs without NaN: `F.normalize`, `F.adaptive_avg_pool2d`, masks that are added or multiplied, `kl_div` with
probabilities. Products are `einsum`, never a tensor of all pairs. Convolutions and linear layers are the modules that
the measured loss trains itself.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain import decision_targets, squared_distances
from distillation.losses import Loss
from distillation.signals import Signals

Terms = dict[str, Tensor]
Plain = Callable[[Loss, Signals, Signals | None, Tensor], Terms]  # of a loss: what it is called with, and labels


# --- words -----------------------------------------------------------------------------------------------------------


def words(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    patches_PC = loss.teacher_map(teacher).permute(0, 2, 3, 1).flatten(0, 2)
    soft_PK = F.softmax(-squared_distances(patches_PC, loss.codebook.centroids), dim=1)
    scores_PK = student.inner.get(loss.place)
    if loss.predictor is not None:
        templates, scale = loss.predictor[0].templates, loss.predictor[0].scale
        unit_BCHW = F.normalize(student.maps[loss.place], dim=1)
        scores_BKHW = scale * F.conv2d(unit_BCHW, F.normalize(templates, dim=1)[:, :, None, None])
        scores_PK = scores_BKHW.permute(0, 2, 3, 1).flatten(0, 2)
    return {"words": F.kl_div(F.log_softmax(scores_PK, dim=1), soft_PK, reduction="batchmean")}


def decisions(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    targets_PM = decision_targets(
        loss.teacher_map(teacher), labels, weight_LC=loss.subclasses.weight, offset_L=loss.subclasses.offset,
        centers_NSL=loss.subclasses.centers, decisions_MM=loss.subclasses.decisions,
    )  # fmt: skip
    scores_PM = student.inner[loss.place]
    return {"decisions": F.kl_div(F.log_softmax(scores_PM, dim=1), targets_PM, reduction="batchmean")}


# --- logits ----------------------------------------------------------------------------------------------------------


def divergence(z_BN: Tensor, u_BN: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """T^2 mean_B KL(softmax(u / T) || softmax(z / T))."""
    p_BN, q_BN = F.log_softmax(z_BN / temperature, dim=1), F.softmax(u_BN / temperature, dim=1)
    return temperature**2 * F.kl_div(p_BN, q_BN, reduction="batchmean")


def kd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    return {"kd": divergence(student.logits, teacher.logits, loss.temperature)}


def dkd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    is_label = F.one_hot(labels, student.logits.shape[1])

    def of_label(logits: Tensor) -> Tensor:
        p = F.softmax(logits / loss.temperature, dim=1)
        return torch.stack([(p * is_label).sum(dim=1), (p * (1 - is_label)).sum(dim=1)], dim=1)

    tckd = F.kl_div(of_label(student.logits).log(), of_label(teacher.logits), reduction="batchmean")
    others = (each.logits - 1000 * loss.temperature * is_label for each in (student, teacher))
    nckd = divergence(*others, loss.temperature)
    return {"tckd": loss.factor * loss.temperature**2 * tckd, "nckd": loss.factor * nckd}


def nkd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    is_label = F.one_hot(labels, student.logits.shape[1]).bool()
    sure_B, log_p_B = F.softmax(teacher.logits, dim=1)[is_label], F.log_softmax(student.logits, dim=1)[is_label]
    z_BM, u_BM = (each.logits[~is_label].view(len(labels), -1) for each in (student, teacher))
    p_BM, q_BM = F.log_softmax(z_BM / loss.temperature, dim=1), F.softmax(u_BM / loss.temperature, dim=1)
    return {
        "target": -loss.factor * (sure_B * log_p_B).mean(),
        "non_target": -loss.factor * loss.temperature**2 * (q_BM * p_BM).sum(dim=1).mean(),
    }


def dist(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    p_BN, q_BN = (F.softmax(each.logits / loss.temperature, dim=1) for each in (student, teacher))

    def correlation(one: Tensor, other: Tensor) -> Tensor:
        one, other = (each - each.mean(dim=1, keepdim=True) for each in (one, other))
        return ((one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1) + 1e-8)).mean()

    scale = loss.temperature**2
    return {"inter": scale * (1 - correlation(p_BN, q_BN)), "intra": scale * (1 - correlation(p_BN.T, q_BN.T))}


def ttm(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    powers_BN = F.softmax(teacher.logits, dim=1) ** loss.gamma
    q_BN = powers_BN / powers_BN.sum(dim=1, keepdim=True)
    return {"ttm": F.kl_div(F.log_softmax(student.logits, dim=1), q_BN, reduction="batchmean")}


def wttm(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    powers_BN = F.softmax(teacher.logits, dim=1) ** loss.gamma
    sums_B1 = powers_BN.sum(dim=1, keepdim=True)
    kl_BN = F.kl_div(F.log_softmax(student.logits, dim=1), powers_BN / sums_B1, reduction="none")
    return {"wttm": (sums_B1 * kl_BN).sum(dim=1).mean()}


def ls(loss: Loss, student: Signals, teacher: None, labels: Tensor) -> Terms:
    return {"ls": -F.log_softmax(student.logits, dim=1).mean()}


def tfkd(loss: Loss, student: Signals, teacher: None, labels: Tensor) -> Terms:
    num_classes = student.logits.shape[1]
    is_label = F.one_hot(labels, num_classes)
    d_BN = is_label * loss.confidence + (1 - is_label) * (1 - loss.confidence) / (num_classes - 1)
    return {"tfkd": divergence(student.logits, d_BN.log(), loss.temperature)}


def lskd_kd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    z_BN, u_BN = (
        (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-7)
        for x in (student.logits, teacher.logits)
    )
    return {"kd": divergence(z_BN, u_BN, loss.temperature)}


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def ctkd_kd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    transform = loss.transforms["ctkd"]
    temperature = 1 + 20 * torch.sigmoid(Reversed.apply(transform.raw, transform.reversal))
    return {"kd": divergence(student.logits, teacher.logits, temperature)}


def sdd_kd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def regions(found: Signals) -> Tensor:
        finest = F.adaptive_avg_pool2d(found.maps["penultimate"], 4)
        cells = [F.adaptive_avg_pool2d(finest, side).flatten(2) for side in (1, 2, 4)]
        return found.head(torch.cat(cells, dim=2).transpose(1, 2))

    z_BRN, u_BRN = regions(student), regions(teacher)
    is_right = u_BRN.argmax(dim=2) == labels[:, None]
    weights_BR = torch.where(is_right == is_right[:, :1], 1.0, 2.0)
    log_p, q = F.log_softmax(z_BRN / loss.temperature, dim=2), F.softmax(u_BRN / loss.temperature, dim=2)
    kl_BR = F.kl_div(log_p, q, reduction="none").sum(dim=2)
    return {"kd": loss.temperature**2 * (weights_BR * kl_BR).mean()}


# --- features --------------------------------------------------------------------------------------------------------


def smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, the larger one averaged to the grid of the other."""
    side = min(one.shape[2], other.shape[2])
    return tuple(each if each.shape[2] == side else F.adaptive_avg_pool2d(each, side) for each in (one, other))


def map_pairs(loss: Loss, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
    """The maps of a loss that has pairs of places."""
    return (smaller(student.maps[one], teacher.maps[other]) for one, other in loss.pairs)


def fitnet(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    return {"fitnet": F.mse_loss(loss.regressor(student.maps[loss.hint]), teacher.maps[loss.hint])}


def at(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.pow(loss.p).mean(dim=1).flatten(1))

    pairs = map_pairs(loss, student, teacher)
    return {"at": sum((attention(one) - attention(other)).pow(2).mean() for one, other in pairs)}


def vid(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def likelihood(gaussian: torch.nn.Module, features: Tensor, target: Tensor) -> Tensor:
        variance = torch.log(1 + torch.exp(gaussian.log_scale)) + 1e-5
        variance = variance.view(1, -1, 1, 1)
        return 0.5 * ((gaussian.regressor(features) - target) ** 2 / variance + torch.log(variance)).mean()

    pairs = map_pairs(loss, student, teacher)
    return {"vid": sum(likelihood(gaussian, *pair) for gaussian, pair in zip(loss.gaussians, pairs, strict=True))}


def nst(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return torch.einsum("bcn,bdn->bcd", one, other).pow(2).mean()

    def discrepancy(*pair: Tensor) -> Tensor:
        f, g = (F.normalize(each.flatten(2), dim=2) for each in pair)
        return kernel(f, f) + kernel(g, g) - 2 * kernel(f, g)

    return {"nst": sum(discrepancy(*pair) for pair in map_pairs(loss, student, teacher))}


def ofd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    total, count = 0.0, len(loss.pairs)
    for number, (one, other) in enumerate(loss.pairs):
        features = loss.connectors[number](student.preact[one])
        target = torch.max(teacher.preact[other], getattr(loss, f"margin{number}").view(1, -1, 1, 1))
        counts = ((features > target) | (target > 0)).float()
        total = total + ((features - target) ** 2 * counts).sum() / 2 ** (count - 1 - number)
    return {"ofd": total / len(labels)}


def reviewkd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    maps = [*(student.maps[stage] for stage in loss.stages), student.pooled[:, :, None, None]]
    targets = [*(teacher.preact[stage] for stage in loss.teacher_stages), teacher.pooled[:, :, None, None]]
    total, residual = 0.0, None
    for fusion, features, target in zip(loss.fusions, reversed(maps), reversed(targets), strict=True):
        x = fusion.reduce(features)
        if residual is not None:
            y = F.interpolate(residual, x.shape[2:], mode="nearest")
            gates = fusion.gate(torch.cat([x, y], dim=1))
            x = x * gates[:, :1] + y * gates[:, 1:]
        residual = x if x.shape[2:] == target.shape[2:] else F.interpolate(x, target.shape[2:], mode="nearest")
        fused = fusion.expand(residual)
        error, weight, weights = F.mse_loss(fused, target), 1.0, 1.0
        for side in (4, 2, 1):
            if side < target.shape[2]:
                weight /= 2
                pooled = (F.adaptive_avg_pool2d(each, side) for each in (fused, target))
                error, weights = error + weight * F.mse_loss(*pooled), weights + weight
        total = total + error / weights
    return {"reviewkd": loss.factor * total}


def catkd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def class_maps(found: Signals) -> Tensor:
        maps = F.conv2d(found.maps["penultimate"], found.head.weight[:, :, None, None])
        pooled = F.adaptive_avg_pool2d(maps, loss.grid).flatten(2)
        return F.normalize(pooled, dim=2) if loss.normalize else pooled

    return {"cat-kd": F.mse_loss(class_maps(student), class_maps(teacher))}


def srrl(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    f_BD = loss.connector(student.pooled)
    return {"feature": F.mse_loss(f_BD, teacher.pooled), "logits": F.mse_loss(teacher.head(f_BD), teacher.logits)}


def kdpp(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    f_BC = loss.connector(student.pooled)
    length_B = torch.max(f_BC.norm(dim=1), teacher.pooled.norm(dim=1))
    cosine_B = (f_BC * loss.directions[labels]).sum(dim=1) / length_B
    kl = divergence(student.logits, teacher.logits, loss.temperature)
    return {"kd": loss.factor * kl, "nd": (1 - cosine_B).mean()}


def ab(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    total, count = 0.0, len(loss.stages)
    for number, (one, other) in enumerate(zip(loss.stages, loss.teacher_stages, strict=True)):
        x, target = loss.connectors[number](student.preact[one]), teacher.preact[other]
        rises = ((x > -1) & (target <= 0)).float()
        falls = ((x <= 1) & (target > 0)).float()
        hinge = ((x + 1) ** 2 * rises + (x - 1) ** 2 * falls).sum()
        total = total + hinge / 2 ** (count - 1 - number)
    return {"ab": 3 / 1000 / len(labels) * total}


def ft(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    target = teacher.maps[loss.teacher_stage]
    factor = loss.encoder(target)
    factors = smaller(loss.translator(student.maps[loss.stage]), factor.detach())
    one, other = (F.normalize(each.pow(2).mean(dim=1).flatten(1)) for each in factors)
    return {"ft": (one - other).abs().mean(), "reconstruction": F.mse_loss(loss.decoder(factor), target)}


def fsp(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        first, second = (each.flatten(2) for each in smaller(first, second))
        return torch.einsum("bcn,bdn->bcd", first, second) / first.shape[2]

    maps = [student.maps[stage] for stage in loss.stages]
    targets = [teacher.maps[stage] for stage in loss.teacher_stages]
    flows = ((flow(*maps[number : number + 2]), flow(*targets[number : number + 2])) for number in range(len(maps) - 1))
    return {"fsp": sum((one - other).pow(2).mean() for one, other in flows)}


# --- relations -------------------------------------------------------------------------------------------------------


def sp(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def similarities(features: Tensor) -> Tensor:
        flat_BD = features.flatten(1)
        return F.normalize(flat_BD @ flat_BD.T)

    one, other = similarities(student.maps[loss.stage]), similarities(teacher.maps[loss.teacher_stage])
    return {"sp": (one - other).pow(2).sum() / len(one) ** 2}


def cc(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    difference_BE = torch.abs(loss.embedding(student.pooled) - loss.teacher_embedding(teacher.pooled))
    return {"cc": torch.sum(difference_BE[:-1] * difference_BE[1:], dim=1).mean()}


def rkd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def distances(f_BC: Tensor) -> Tensor:
        found = squared_distances(f_BC, f_BC).clamp(min=1e-12).sqrt()
        found = found * (1 - torch.eye(len(f_BC), device=f_BC.device))
        return found / found[found > 0].mean()

    def angles(f_BC: Tensor) -> Tensor:
        directions_BBC = F.normalize(f_BC.unsqueeze(0) - f_BC.unsqueeze(1), dim=2)
        return torch.einsum("bcd,bed->bce", directions_BBC, directions_BBC)

    pair = student.pooled, teacher.pooled
    return {
        "distance": F.smooth_l1_loss(*map(distances, pair)),
        "angle": F.smooth_l1_loss(*map(angles, pair)),
    }


def pkt(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    def probabilities(f_BC: Tensor) -> Tensor:
        unit_BC = f_BC / (f_BC.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-7)
        similarity_BB = (unit_BC @ unit_BC.T + 1) / 2
        return similarity_BB / similarity_BB.sum(dim=1, keepdim=True)

    p_BB, q_BB = probabilities(student.pooled), probabilities(teacher.pooled)
    return {"pkt": (q_BB * torch.log((q_BB + 1e-7) / (p_BB + 1e-7))).mean()}


def itrd(loss: Loss, student: Signals, teacher: Signals, labels: Tensor) -> Terms:
    embedded_BD, target_BD = loss.embed(student.pooled), teacher.pooled
    one, other = ((each - each.mean(dim=0)) / each.std(dim=0) for each in (embedded_BD, target_BD))
    correlation = torch.log2(((one * other).mean(dim=0) - 1).abs().pow(2 * loss.alpha).sum())
    features_BD = student.pooled if loss.is_equal else embedded_BD
    similarity_BB, other_BB = (rows @ rows.T for rows in map(F.normalize, (features_BD, target_BD)))
    shared_BB = similarity_BB * other_BB
    own, both = ((each / torch.trace(each)).pow(2).sum() for each in (similarity_BB, shared_BB))
    return {"correlation": correlation, "mutual": own - both}


PLAIN: dict[str, Plain] = {  # by the key of the loss, with the transforms in front of it
    "words": words, "decisions": decisions, "kd": kd, "dkd": dkd, "nkd": nkd, "dist": dist, "ttm": ttm, "wttm": wttm,
    "ls": ls, "tfkd": tfkd, "fitnet": fitnet, "at": at, "sp": sp, "cc": cc, "vid": vid, "rkd": rkd, "pkt": pkt,
    "nst": nst, "ofd": ofd, "reviewkd": reviewkd, "itrd": itrd, "cat-kd": catkd, "srrl": srrl, "kdpp": kdpp, "ab": ab,
    "ft": ft, "fsp": fsp, "lskd:kd": lskd_kd, "ctkd:kd": ctkd_kd, "sdd:kd": sdd_kd,
}  # fmt: skip
