"""Three SGD steps and an evaluation of whole experiments, against the authors' implementation."""

import numpy as np
import pytest
import torch
from objective_tools import batch_of, letkd_of

from architectures import TappedNetwork, create_model
from config.options import Protocol
from distillation.objective import Objective, Step
from engine.optimization import make_optimizer
from engine.step import descend
from letkd import Codebook, KDLayer, Student, SubclassTargets

NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES, NUM_COMPONENTS, BATCH = 10, 64, 8, 9, 8
NETWORKS = {
    "RN14": "resnet14",
    "RN8": "resnet8",
    "WRN16w2": "wrn_16_2",
    "WRN10w1": "wrn_10_1",
    "WRN40w2": "wrn_40_2",
    "SNv1": "shufflenetv1",
}
PAIRS = ["RN14_RN8", "WRN16w2_WRN10w1"]
CROSS_PAIR = "WRN40w2_SNv1"
# What can be compared closely after a step of CROSS_PAIR. Its classification loss cannot: measured, the number of
# threads alone moves it by 0.6 %, the memory format by 1.2 %, and the supervision by less than 0.05 %. In float64 the
# classification loss of letKD-1 is 6.937 there, ours in float32 6.935, the reference's 6.878.
STABLE = ("loss_quest", "loss_sub", "perp_trg_0", "mean_assign_dist_0")
SINGLE_PASS, AFTER_STEPS = 1e-4, 2e-3  # relative tolerances of the reference
NOISE = 2e-2  # of that classification loss


def filled(fill, role: str, name: str) -> TappedNetwork:
    network = create_model(NETWORKS[name], num_classes=NUM_CLASSES)
    state = {key: fill.value_for(f"{role}.{key}", tuple(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.as_tensor(np.asarray(value)) for key, value in state.items()})
    return network


def build(fill, pair: str, method: str) -> Objective:
    tag = f"{pair}/{method}"
    teacher, backbone = (
        filled(fill, role, name) for role, name in zip(("teacher", "student"), pair.split("_"), strict=True)
    )

    def array(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(fill.array(f"{tag}/{name}", shape))

    num_targets = NUM_CLASSES * NUM_SUBCLASSES
    templates = {"penultimate": NUM_WORDS} | ({"intermediate": num_targets} if method == "letKD-2" else {})
    layers = {}
    for place, num_templates in templates.items():
        channels = getattr(backbone, place).channels
        layer = layers[place] = KDLayer(channels, num_templates)
        with torch.no_grad():
            # letKD-1 has one layer, whose arrays carry the same prefix
            layer.scores.templates.copy_(array(f"{place}/templates", num_templates, channels, 1, 1)[:, :, 0, 0])
            layer.semantic_vectors.copy_(array(f"{place}/semantic_vectors", channels, num_templates, 1, 1)[:, :, 0, 0])
    paths = {place: getattr(backbone, place).path for place in layers}
    channels = teacher.penultimate.channels
    subclasses = None
    if method == "letKD-2":
        wide = teacher.intermediate.channels
        subclasses = SubclassTargets(
            scalings_CL=array("scalings", wide, NUM_COMPONENTS + 2) / wide**0.5,
            xbar_C=0.1 * array("xbar", wide),
            centers_ML=array("centers", num_targets, NUM_COMPONENTS),
            decisions_MM=(2 * array("score_logits", num_targets, num_targets)).softmax(dim=1),
            num_subclasses=NUM_SUBCLASSES,
        )
    student, codebook = Student(backbone, layers, paths), Codebook(array("centroids", NUM_WORDS, channels))
    return letkd_of(student, teacher, codebook, subclasses, image_size=32)


def batch(fill, tag: str, name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(fill.array(f"{tag}/{name}", (BATCH, 3, 32, 32)))
    return images, torch.from_numpy(np.random.RandomState(seed).randint(0, NUM_CLASSES, BATCH))


GOLDEN_NAMES = {
    "loss_cls": "ce",
    "loss_quest": "words",
    "loss_sub": "decisions",
    "perp_trg_0": "perplexity/mean",
    "mean_assign_dist_0": "mean_max_assignment/mean",
    "Accur_vword": "word_accuracy/mean",
}


def compare(
    golden: dict, tag: str, step: Step, labels: torch.Tensor, tolerance: float, only: tuple[str, ...] = ()
) -> None:
    found = {**step.terms, **step.statistics}
    found = {name: found[ours].item() for name, ours in GOLDEN_NAMES.items() if ours in found}
    found["loss_total"] = step.loss.item()
    found["AccuracyTop1"] = 100 * (step.logits.argmax(1) == labels).float().mean().item()
    expected = {name.removeprefix(f"{tag}/"): value for name, value in golden.items() if name.startswith(f"{tag}/")}
    expected.pop("Error")
    if only:
        found, expected = ({name: side[name] for name in only if name in side} for side in (found, expected))
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.fixture(scope="module")
def golden(golden_dir) -> dict[str, float]:
    with np.load(golden_dir / "training_steps.npz") as archive:
        return {name: value.item() for name, value in archive.items()}


@pytest.mark.parametrize("method", ["letKD-1", "letKD-2"])
@pytest.mark.parametrize("pair", PAIRS)
def test_three_steps_agree_with_the_authors(pair, method, fill, golden):
    tag = f"{pair}/{method}"
    training = build(fill, pair, method).train()
    optimizer = make_optimizer(training, Protocol(learning_rate=0.05))
    for number in range(3):
        images, labels = batch(fill, tag, f"images{number}", 100 + number)
        step = training(batch_of(images, labels), with_statistics=True)
        compare(golden, f"{tag}/step{number}", step, labels, SINGLE_PASS if number == 0 else AFTER_STEPS)
        descend(optimizer, step.loss)
    images, labels = batch(fill, tag, "images_eval", 999)
    with torch.no_grad():
        step = training.eval()(batch_of(images, labels), with_statistics=True)
    compare(golden, f"{tag}/eval", step, labels, AFTER_STEPS)
    expected = {name.removeprefix(f"{tag}/norms/"): v for name, v in golden.items() if name.startswith(f"{tag}/norms/")}
    expected = {name: value for name, value in expected.items() if ".LDA." not in name}  # frozen here, a buffer
    assert norms_by_golden_name(training.student) == pytest.approx(expected, rel=AFTER_STEPS)


@pytest.mark.parametrize("method", ["letKD-1", "letKD-2"])
def test_a_pooled_teacher_agrees_with_the_authors(method, fill, golden):
    tag = f"{CROSS_PAIR}/{method}"
    training = build(fill, CROSS_PAIR, method).train()
    optimizer = make_optimizer(training, Protocol(learning_rate=0.01))
    for number, only in enumerate(((), STABLE)):
        images, labels = batch(fill, tag, f"images{number}", 100 + number)
        step = training(batch_of(images, labels), with_statistics=True)
        compare(golden, f"{tag}/step{number}", step, labels, AFTER_STEPS if only else SINGLE_PASS, only)
        compare(golden, f"{tag}/step{number}", step, labels, NOISE, ("loss_cls", "loss_total"))
        descend(optimizer, step.loss)


def norms_by_golden_name(student: Student) -> dict[str, float]:
    """l2 norms of the student's parameters under the reference's names."""
    numbers = {"intermediate": "_0", "penultimate": "_1"} if len(student.layers) == 2 else {"penultimate": ""}
    names = {}
    for index, child in enumerate(student.backbone.feature_children):
        for name, parameter in student.backbone.get_submodule(child).named_parameters():
            names[f"feature_extractor.{index}.{name}"] = parameter
    for name, parameter in student.backbone.get_submodule(student.backbone.head_path).named_parameters():
        names[f"classifier.2.{name}"] = parameter
    for place, number in numbers.items():
        layer = student.layers[place]
        names[f"BoW_predictor{number}.layers.weight"] = layer.scores.templates
        names[f"BoW_predictor{number}.layers.scale"] = layer.scores.scale
        names[f"valueLayer{number}.conv_value.layers.weight"] = layer.semantic_vectors
        names[f"valueLayer{number}.conv_value.layers.scale"] = layer.scale
        names[f"valueLayer{number}.bn.weight"] = layer.bn.weight
        names[f"valueLayer{number}.bn.bias"] = layer.bn.bias
    return {name: parameter.norm().item() for name, parameter in names.items()}
