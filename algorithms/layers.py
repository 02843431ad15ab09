"""What the KD layers of a trained student do: figures of each, over the evaluation images in eval mode.

    f -> s = scale_t * cos(f, T_k) -> a = ReLU(BatchNorm(s)) -> f + alpha * v,  v = scale_v * cos(a, V_c)

What a layer adds to its map, what its scores know of the teacher's words or decisions, how hard these pull at the map,
and whether BatchNorm's running statistics fit these images. On the first batch the output and the divergence are
compared with the formulas of the paper, written out here in float64. A layer that no teacher supervises has the figures
of its output alone.

Shapes: f (B, C, H, W), P = B*H*W patches, T templates (K, C), V semantic vectors (C, K), N classes, S sub-classes of
a class; q (P, K) is softmax(s), t (P, K) the target.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.base import Results
from algorithms.evaluate import Evaluation, result_name, said_of_untrained
from algorithms.teaching import missing_supervision
from config.options import Options
from dataloaders import Batch, Dataset
from distillation.build import build_network, load_trained, network_name
from distillation.expressions import INTERMEDIATE, PENULTIMATE, alphas_of, supervises, weights_of
from distillation.objective import Objective
from distillation.signals import Network, Signals, Wanted, map_at, plain_kd_layer
from engine.accuracy import evaluate
from engine.progress import phase
from engine.records import log
from results.places import Requirement
from results.settings import MEASUREMENTS, UNTRAINED, changed_settings
from storage.state_dicts import Weights

LOSSES = {INTERMEDIATE: "decisions", PENULTIMATE: "words"}  # by place, in the order in which an image meets them
OF_FIGURES = ("temperature", "cls_loss_coef", "quest_loss_coef", "sub_loss_coef")  # of a training, read here again
EPS = 1e-12
# Of the table: a figure, what it is called there, and how it is written.
ROWS = (
    ("templates", "templates", "d"),
    ("alpha", "alpha", "g"),
    ("template_scale", "scale of the scores", ".2f"),
    ("semantic_scale", "scale of the values", ".2f"),
    ("output_share", "output against its map, RMS", ".3f"),
    ("top1_without", "top-1 % without this output", ".2f"),
    ("active", "templates active in a patch, %", ".1f"),
    ("never_active", "templates active nowhere", "d"),
    ("mean_shift", "BatchNorm: means off, in deviations", ".2f"),
    ("variance_ratio", "BatchNorm: variances, kept / these", ".2f"),
    ("usage", "perplexity: templates that win", ".1f"),
    ("perplexity", "perplexity: scores of a patch", ".1f"),
    ("teacher_usage", "perplexity: targets that win", ".1f"),
    ("teacher_perplexity", "perplexity: target of a patch", ".1f"),
    ("agreement", "teacher's choice is the student's, %", ".1f"),
    ("most_frequent", "teacher's most frequent choice, %", ".1f"),
    ("teacher_right", "patches decided right, teacher, %", ".1f"),
    ("student_right", "patches decided right, student, %", ".1f"),
    ("divergence", "divergence from the targets", ".3f"),
    ("divergence_of_mean", "that of the mean target", ".3f"),
    ("gradient_share", "its gradient against cross-entropy's", ".2f"),
    ("gradient_cosine", "cosine of the two gradients", ".3f"),
    ("output_error", "output, off the formula", ".0e"),
    ("divergence_error", "divergence, off the formula", ".0e"),
)


class LayerFigures(Evaluation):
    """Measures the KD layers of the last epoch, the best, or epoch n; with the teacher, where one supervises them."""

    mode = "layers"
    takes_many = False

    def __init__(self, options: Options):
        super().__init__(options)
        if not alphas_of(options):
            raise ValueError(
                f"layers=True: the student of {options.job.config} has no KD layers; those of letKD-1 and letKD-2 have"
            )
        self.supervised = [place for place in LOSSES if place in alphas_of(options) and supervises(options, place)]

    def missing_requirements(self) -> Iterator[Requirement]:
        if self.supervised:
            yield from missing_supervision(self.options)

    def _run(self) -> Results:
        weights, epoch = self._open_weights()
        split = "test" if self.options.job.testset else "eval"
        dataset = self._open_images(weights, split)
        network, objective = self._open_layers(weights, dataset)
        seen = self._seen(weights, dataset).module().to(self.device)
        number, passes = len(dataset.split(split)), 2 + len(network.layers)
        with phase("figures of the KD layers", passes * number, starts_up=True) as line:

            def batches() -> Iterator[Batch]:
                return line.over(self.loader(dataset, split))

            def top1() -> float:
                return evaluate(nn.Sequential(seen, network.module), batches(), autocast=self.autocast())["top1"]

            look = _Look(network, objective, weights_of(self.options), self.autocast)
            found = look.over(batches(), seen)
            measured = {"top1": 100 * float(look.right) / number}
            for place, layer in network.layers.items():
                with _without_output(plain_kd_layer(layer)):
                    found[place]["top1_without"] = top1()
            look.put_statistics()
            measured["top1_own_statistics"] = top1()
        measured |= {"layers": {place: found[place] for place in LOSSES if place in found}}
        log.info("%s, %d %s images of %s\n%s", weights.source, number, split, dataset.name, table(measured))
        if said := said_of_untrained(weights):
            log.info("note: %s", said)
            measured["classifier"] = UNTRAINED
        measured |= self.about(weights, epoch) | {"split": split, "num_images": {split: number}}
        measured |= self._changes(weights, dataset)
        return self._merge(measured)

    def _open_layers(self, weights: Weights, dataset: Dataset) -> tuple[Network, Objective | None]:
        """The student, of which logits and scores are read, and what supervises it; in eval mode on the device."""
        if self.supervised:
            objective = self._open_objective(weights, dataset)
            network = objective.network
        else:
            objective, size = None, self._seen(weights, dataset).image_size
            network = build_network(self.options, weights.num_classes or dataset.num_classes, size)
            what = f"the network of {self.options.job.run_name}"
            load_trained(network.module, network_name(self.options), weights, what=what)
            network.module.to(self.device, memory_format=torch.channels_last).eval()
        return network.reading(Wanted(logits=True, inner=tuple(network.layers))), objective

    def _changed(self, weights: Weights) -> dict[str, tuple[Any, Any]]:
        told = changed_settings(weights.config or {}, self.options.flat)
        return super()._changed(weights) | {key: told[key] for key in OF_FIGURES if key in told}

    def _merge(self, measured: Results) -> Results:
        """Beside what `results.json` holds already, by the name of the weights."""
        part = MEASUREMENTS[self.mode]

        def add(results: Results) -> Results:
            results = results or self.facts()
            standing = results.get(part, {})
            return results | {part: standing | {result_name(measured, standing): measured}}

        return self.update_results(add)


class _Look:
    """Sums over batches, and the figures that they give.

    Args:
        network: of which logits and scores are read.
        objective: the losses of the layers that are supervised, and their teacher.
        weights: of the terms.
        autocast: the context of the network's forward pass.
    """

    def __init__(
        self, network: Network, objective: Objective | None, weights: Mapping[str, float],
        autocast: Callable[[], torch.autocast],
    ):  # fmt: skip
        self.network, self.objective, self.weights, self.autocast = network, objective, weights, autocast
        self.losses = {place: objective.losses[key] for place, key in LOSSES.items() if key in _losses_of(objective)}
        self.sums: dict[str, dict[str, Tensor | float]] = {place: defaultdict(float) for place in network.layers}
        self.errors: dict[str, dict[str, float]] = {place: {} for place in network.layers}
        self.right: Tensor | float = 0.0  # images whose class the network says

    def over(self, batches: Iterator[Batch], student_input: nn.Module) -> dict[str, dict[str, Any]]:
        """The figures by place."""
        for batch in batches:
            self._add(batch, student_input(batch.images))
        return {place: self._figures(place) for place in self.sums}

    def _add(self, batch: Batch, images: Tensor) -> None:
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), _recorded(self.network.layers, maps), self.autocast():
            student = self.network(images)
        student = student.in_float32()
        self.right += (student.logits.argmax(dim=1) == batch.labels).sum()
        cross_entropy = F.cross_entropy(student.logits, batch.labels) if self.losses else None
        taught = self._taught(batch) if self.losses else None
        for place, layer in self.network.layers.items():
            map_BCHW, output_BCHW = (map_at(layer, each).detach().float() for each in maps[place])
            scores_PK = student.inner[place].float()
            self._add_output(place, map_BCHW, output_BCHW, scores_PK.detach())
            if place not in self.losses:
                continue
            (term,) = self.losses[place](student, taught, batch).values()
            targets_PK = _targets(self.losses[place], taught, batch)
            self._add_scores(place, scores_PK.detach(), targets_PK, batch.labels)
            self._add_gradients(place, maps[place][0], term, cross_entropy)
            if "divergence" not in self.errors[place]:
                exact = exact_divergence(self.losses[place], taught, batch, scores_PK.detach())
                self.errors[place]["divergence"] = abs(float(term.detach()) / float(exact) - 1)

    def _taught(self, batch: Batch) -> Signals:
        """What the teacher says, in the precision of training."""
        teacher = self.objective.teacher
        with self.autocast():
            return teacher(teacher.input(batch.images)).in_float32()

    def _add_output(self, place: str, map_BCHW: Tensor, output_BCHW: Tensor, scores_PK: Tensor) -> None:
        layer, sums = plain_kd_layer(self.network.layers[place]), self.sums[place]
        weights_PK = F.relu(layer.bn(scores_PK))
        sums["map"] += map_BCHW.double().square().sum()
        sums["output"] += (output_BCHW - map_BCHW).double().square().sum()
        sums["patches"] += len(scores_PK)
        sums["active_K"] += (weights_PK > 0).sum(dim=0)
        sums["scores_K"] += scores_PK.double().sum(dim=0)
        sums["squares_K"] += scores_PK.double().square().sum(dim=0)
        sums["chosen_K"] += _counts(scores_PK)
        sums["entropy"] += torch.special.entr(scores_PK.softmax(dim=1)).sum()
        if "output" not in self.errors[place]:
            exact_PC = exact_output(layer, map_BCHW)
            error = (_rows(output_BCHW).double() - exact_PC).abs().max() / exact_PC.square().mean().sqrt()
            self.errors[place]["output"] = float(error)

    def _add_scores(self, place: str, scores_PK: Tensor, targets_PK: Tensor, labels_B: Tensor) -> None:
        sums = self.sums[place]
        sums["targets_K"] += targets_PK.double().sum(dim=0)
        sums["taught_K"] += _counts(targets_PK)
        sums["target_entropy"] += torch.special.entr(targets_PK).sum()
        sums["cross"] -= (targets_PK * scores_PK.log_softmax(dim=1)).sum()
        sums["agreeing"] += (targets_PK.argmax(dim=1) == scores_PK.argmax(dim=1)).sum()
        if LOSSES[place] == "decisions":
            own_P = labels_B.repeat_interleave(len(scores_PK) // len(labels_B))
            num_classes = len(self.losses[place].subclasses.centers)
            for name, shares_PK in (("teacher", targets_PK), ("student", scores_PK.softmax(dim=1))):
                of_classes_PN = shares_PK.view(len(own_P), num_classes, -1).sum(dim=2)
                sums[f"{name}_right"] += (of_classes_PN.argmax(dim=1) == own_P).sum()

    def _add_gradients(self, place: str, features: Tensor, term: Tensor, cross_entropy: Tensor) -> None:
        layer, sums = self.network.layers[place], self.sums[place]
        weighted = self.weights[LOSSES[place]] * term, self.weights.get("ce", 0) * cross_entropy
        own, other = (
            map_at(layer, torch.autograd.grad(each, features, retain_graph=True)[0]).double() for each in weighted
        )
        for name, product in (("own", own * own), ("other", other * other), ("both", own * other)):
            sums[f"gradient_{name}"] += product.sum()

    def statistics(self, place: str) -> tuple[Tensor, Tensor]:
        """Mean and variance of the scores over all patches, (K,) each."""
        sums = self.sums[place]
        mean_K = sums["scores_K"] / sums["patches"]
        return mean_K, (sums["squares_K"] / sums["patches"] - mean_K.square()).clamp_min(EPS)

    def put_statistics(self) -> None:
        """Those in the place of what the layers have kept in training."""
        for place, layer in self.network.layers.items():
            bn = plain_kd_layer(layer).bn
            for kept_K, own_K in zip((bn.running_mean, bn.running_var), self.statistics(place), strict=True):
                kept_K.copy_(own_K)

    def _figures(self, place: str) -> dict[str, Any]:
        layer, sums = plain_kd_layer(self.network.layers[place]), self.sums[place]
        patches = sums["patches"]
        mean_K, var_K = self.statistics(place)
        figures = {
            "templates": layer.num_templates,
            "alpha": layer.alpha,
            "template_scale": layer.scores.scale.item(),
            "semantic_scale": layer.scale.item(),
            "output_share": float((sums["output"] / sums["map"].clamp_min(EPS)).sqrt()),
            "active": 100 * float(sums["active_K"].sum()) / patches / layer.num_templates,
            "never_active": int((sums["active_K"] == 0).sum()),
            "mean_shift": float(((layer.bn.running_mean - mean_K) / var_K.sqrt()).square().mean().sqrt()),
            "variance_ratio": float((layer.bn.running_var / var_K).log().mean().exp()),
            "usage": _perplexity(sums["chosen_K"]),
            "perplexity": float((sums["entropy"] / patches).exp()),
            "output_error": self.errors[place]["output"],
        }
        if place not in self.losses:
            return figures
        return figures | self._figures_of_supervision(sums) | {"divergence_error": self.errors[place]["divergence"]}

    def _figures_of_supervision(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        patches = sums["patches"]
        own, other, both = (float(sums[f"gradient_{name}"]) for name in ("own", "other", "both"))
        mean_K = sums["targets_K"] / patches
        target_entropy = float(sums["target_entropy"]) / patches
        found = {
            "teacher_usage": _perplexity(sums["taught_K"]),
            "teacher_perplexity": float(torch.tensor(target_entropy).exp()),
            "agreement": 100 * float(sums["agreeing"]) / patches,
            "most_frequent": 100 * float(sums["taught_K"].max()) / patches,
            "divergence": float(sums["cross"]) / patches - target_entropy,
            "divergence_of_mean": float(torch.special.entr(mean_K).sum()) - target_entropy,
            "gradient_share": (own / other) ** 0.5 if other else None,
            "gradient_cosine": both / (own * other) ** 0.5 if own * other else None,
        }
        return found | {
            key: 100 * float(sums[key]) / patches for key in ("teacher_right", "student_right") if key in sums
        }


def _losses_of(objective: Objective | None) -> nn.ModuleDict | tuple[()]:
    return () if objective is None else objective.losses


@contextmanager
def _recorded(layers: Mapping[str, nn.Module], maps: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Fill `maps` with what each layer takes, to be differentiated by, and what it returns."""
    taken: dict[str, Tensor] = {}

    def take(place: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        taken[place] = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
        return (taken[place].clone(), *inputs[1:])  # the network may overwrite what it hands on

    def keep(place: str, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        maps[place] = taken[place], output[0].detach().clone()

    with ExitStack() as stack:
        for place, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(take, place)))
            stack.enter_context(layer.register_forward_hook(partial(keep, place)))
        yield


@contextmanager
def _without_output(layer: nn.Module) -> Iterator[None]:
    before, layer.alpha = layer.alpha, 0.0
    try:
        yield
    finally:
        layer.alpha = before


def _targets(loss: nn.Module, taught: Any, batch: Batch) -> Tensor:
    """t (P, K), as training compares them."""
    map_BCHW = loss.teacher_map(taught)
    if loss.key == "words":
        return loss.codebook.soft_assignment(map_BCHW)
    return loss.subclasses.decisions[loss.subclasses.assign(map_BCHW, batch.labels)]


# --- the formulas, in float64 ----------------------------------------------------------------------------------------


def _rows(map_BCHW: Tensor) -> Tensor:
    return map_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(EPS)


@torch.no_grad()
def exact_output(layer: nn.Module, map_BCHW: Tensor) -> Tensor:
    """f + alpha * v as rows (P, C), by BatchNorm's running statistics."""
    templates_KC, semantic_CK = layer.scores.templates.double(), layer.semantic_vectors.double()
    features_PC = _rows(map_BCHW.double())
    scores_PK = layer.scores.scale.double() * _unit(features_PC) @ _unit(templates_KC).T
    bn = layer.bn
    centred_PK = (scores_PK - bn.running_mean.double()) / (bn.running_var.double() + bn.eps).sqrt()
    weights_PK = (centred_PK * bn.weight.double() + bn.bias.double()).clamp_min(0)
    return features_PC + layer.alpha * layer.scale.double() * _unit(weights_PK) @ _unit(semantic_CK).T


@torch.no_grad()
def exact_divergence(loss: nn.Module, taught: Any, batch: Batch, scores_PK: Tensor) -> Tensor:
    """Mean over patches of KL(t || softmax(s)), a scalar."""
    taught_PC = _rows(loss.teacher_map(taught).double())
    if loss.key == "words":
        codebook = loss.codebook
        squares_PK = (
            torch.cdist(taught_PC, codebook.centroids.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        )
        targets_PK = (-codebook.temperature * squares_PK).softmax(dim=1)
    else:
        parts = loss.subclasses
        projected_PL = taught_PC @ parts.weight.double().T + parts.offset.double()
        labels_P = batch.labels.repeat_interleave(len(taught_PC) // len(batch.labels))
        own_PSL = parts.centers.double()[labels_P]
        nearest_P = (projected_PL[:, None] - own_PSL).square().sum(dim=2).argmin(dim=1)
        targets_PK = parts.decisions.double()[labels_P * own_PSL.shape[1] + nearest_P]
    logs_PK = scores_PK.double() - scores_PK.double().logsumexp(dim=1, keepdim=True)
    return (torch.xlogy(targets_PK, targets_PK) - targets_PK * logs_PK).sum(dim=1).mean()


# --- the table -------------------------------------------------------------------------------------------------------


def _counts(rows_PK: Tensor) -> Tensor:
    """In how many patches each of K is the largest, (K,)."""
    return torch.bincount(rows_PK.argmax(dim=1), minlength=rows_PK.shape[1])


def _perplexity(counts_K: Tensor) -> float:
    """Of a use of K templates, 1 to K."""
    return float(torch.special.entr(counts_K.double() / counts_K.sum()).sum().exp())


def table(measured: Results) -> str:
    """Lines of text: a row for each figure that a layer has, a column for each layer."""
    layers = measured["layers"]
    rows = [("", *layers)]
    for key, name, form in ROWS:
        cells = [found.get(key) for found in layers.values()]
        if any(cell is not None for cell in cells):
            rows.append((name, *("-" if cell is None else format(cell, form) for cell in cells)))
    width = max(len(name) for name, *_ in rows)
    lines = ["  ".join([row[0].ljust(width), *(cell.rjust(12) for cell in row[1:])]) for row in rows]
    own = measured["top1_own_statistics"]
    return "\n".join([f"top-1 {measured['top1']:.2f}%, with BatchNorm of these images {own:.2f}%", *lines])
