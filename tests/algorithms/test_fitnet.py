"""FitNet: a hint beside a student alone, or one with KD layers, supervised or not."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from algorithms.fitnet import FitNet
from algorithms.letkd import LetKD
from algorithms.methods import find_method
from algorithms.step import descend
from algorithms.supervision import missing_supervision, save_codebook, save_decisions
from algorithms.training import make_optimizer
from algorithms.weights import fingerprint
from architectures import create_model
from config.recipes import fitnet
from letkd import Student

NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES, NUM_COMPONENTS = 4, 6, 2, 3
NUM_TARGETS = NUM_CLASSES * NUM_SUBCLASSES
LAYERS = {"penultimate": True, "intermediate": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """The files of a teacher, resnet8x4, and of its supervision."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    teacher = create_model("resnet8x4", num_classes=NUM_CLASSES)
    paths = {name: folder / f"{name}.pth" for name in ("teacher_weights", "codebook", "decisions")}
    torch.save({"model": teacher.state_dict()}, paths["teacher_weights"])
    record = {"teacher": fingerprint(teacher.state_dict()), "dataset": "digits", "downscale": 1, "val_split": 0}
    save_codebook(paths["codebook"], torch.randn(NUM_WORDS, 256), record | {"tap": "layer3"})
    decisions = {
        "scalings": torch.randn(256, NUM_COMPONENTS),
        "xbar": torch.randn(256),
        "centers": torch.randn(NUM_TARGETS, NUM_COMPONENTS),
        "prototypes": torch.randn(NUM_TARGETS, NUM_COMPONENTS),
        "decisions": torch.randn(NUM_TARGETS, NUM_TARGETS).softmax(dim=1),
    }
    save_decisions(paths["decisions"], decisions, record | {"tap": "layer3.0"})
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def configure(files, tmp_path):
    """The recipe's configuration; the supervision's files are known only where `supervised` asks for them."""

    def configure(student: str = "resnet8", **options: Any) -> dict[str, Any]:
        config = fitnet(
            dataset="digits",
            teacher="resnet8x4",
            student=student,
            teacher_experiment="digits.RN8x4",
            num_words=NUM_WORDS,
            subclasses_per_class=NUM_SUBCLASSES,
            lda_components=NUM_COMPONENTS,
            **options,
        )
        known = files if config["supervised"] else {"teacher_weights": files["teacher_weights"]}
        return config | known | {"localpath": str(tmp_path), "data_dir": None}

    return configure


def build(config: dict[str, Any]) -> FitNet:
    torch.manual_seed(1)
    return find_method("FitNet").from_config(config, NUM_CLASSES)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4)


def alone(network: torch.nn.Module) -> torch.nn.Module:
    """An equal network without the hooks of KD layers."""
    twin = create_model("resnet8", num_classes=NUM_CLASSES).train()
    twin.load_state_dict(network.state_dict())
    return twin


def test_the_hint_is_the_mean_squared_error_of_the_regressed_map(configure, batch, files):
    images, labels = batch
    method = build(configure(hint="penultimate")).train()
    features = alone(method.model).forward_features(images)
    teacher = create_model("resnet8x4", num_classes=NUM_CLASSES).eval()
    teacher.load_state_dict(torch.load(files["teacher_weights"])["model"])
    regressed = torch.einsum("bchw,dc->bdhw", features, method.heads["regressor"][0].weight[:, :, 0, 0])
    variance, mean = torch.var_mean(regressed, dim=(0, 2, 3), keepdim=True, correction=0)
    normalized = (regressed - mean) / (variance + 1e-5).sqrt()  # a new BatchNorm's scale is 1 and its shift 0
    hint_loss = (normalized - teacher.forward_features(images)).square().mean()
    step = method(images, labels)
    torch.testing.assert_close(step.terms["hint_loss"], hint_loss.detach())
    cls_loss = F.cross_entropy(step.logits, labels)
    assert set(step.terms) == {"cls_loss", "hint_loss"}
    torch.testing.assert_close(step.loss, cls_loss + 100 * hint_loss)


def test_the_hint_is_read_behind_the_kd_layer(configure, batch):
    images, labels = batch
    method = build(configure(**LAYERS, hint="intermediate")).train()
    features = alone(method.model.backbone).forward_features(images)  # of resnet8, the intermediate map too
    layer = copy.deepcopy(method.model.layers["intermediate"])
    seen = method.heads["regressor"](layer(features)[0])
    expected = F.mse_loss(seen, method.teacher(images)["intermediate"])
    torch.testing.assert_close(method(images, labels).terms["hint_loss"], expected.detach())
    assert not torch.allclose(layer(features)[0], features)


def test_the_intermediate_map_is_the_default_and_the_teacher_is_pooled_to_the_students_grid(configure, batch):
    images, labels = batch
    method = build(configure(student="shufflenetv1"))
    teacher = method.teacher.taps.network
    ratio = method.model.intermediate.reduction // teacher.intermediate.reduction
    assert ratio == 2
    pooled = method.teacher(images)
    assert list(pooled) == ["intermediate"]
    grid = 16 // method.model.intermediate.reduction
    assert pooled["intermediate"].shape == (4, teacher.intermediate.channels, grid, grid)
    assert method(images, labels).terms["hint_loss"] > 0


def test_a_student_alone_is_deployed_as_it_is_published(configure):
    method = build(configure())
    expected = create_model("resnet8", num_classes=NUM_CLASSES).state_dict()
    assert list(method.model.state_dict()) == list(expected)
    assert {name.partition(".")[0] for name in method.heads.state_dict()} == {"regressor"}


def test_layers_without_supervision_need_no_files_and_learn_from_the_other_losses(configure, batch):
    config = configure(**LAYERS)
    method = build(config).train()
    assert isinstance(method.model, Student) and list(method.model.layers) == ["penultimate", "intermediate"]
    assert method.codebook is None and method.subclasses is None
    step = method(*batch, with_statistics=True)
    assert set(step.terms) == {"cls_loss", "hint_loss"}
    step.loss.backward()
    assert all(layer.scores.templates.grad.any() for layer in method.model.layers.values())


def test_supervision_adds_the_losses_of_letkd(configure, batch):
    config = configure(**LAYERS, supervised=True)
    step = build(config).train()(*batch, with_statistics=True)
    torch.manual_seed(1)
    letkd = LetKD.from_config(config, NUM_CLASSES).train()(*batch, with_statistics=True)
    assert set(step.terms) == {"cls_loss", "quest_loss", "sub_loss", "hint_loss"}
    torch.testing.assert_close({name: step.terms[name] for name in letkd.terms}, letkd.terms)
    torch.testing.assert_close(step.loss, letkd.loss + 100 * step.terms["hint_loss"])
    assert set(step.statistics) == set(letkd.statistics) != set()


@pytest.mark.parametrize("options", [{}, LAYERS, LAYERS | {"supervised": True}, {"intermediate": True}])
def test_a_step_changes_what_trains_and_nothing_frozen(options, configure, batch):
    config = configure(**options)
    method = build(config).train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    descend(make_optimizer(method, config), method(*batch).loss)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    trainable = {name for name, value in method.named_parameters() if value.requires_grad}
    assert trainable <= changed
    assert {name.partition(".")[0] for name in changed} == {"model", "heads"}


def test_evaluation_needs_the_configuration_alone(configure, batch):
    config = configure(**LAYERS, supervised=True)
    method = build(config).eval()
    deployed = find_method("FitNet").build_model(config, NUM_CLASSES).eval()
    deployed.load_state_dict(method.model.state_dict())
    method(*batch)
    torch.testing.assert_close(deployed(batch[0]), method.model(batch[0]))


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, []),
        (LAYERS, []),
        ({"penultimate": True, "supervised": True}, [{"kmeans": NUM_WORDS}]),
        (LAYERS | {"supervised": True}, [{"kmeans": NUM_WORDS}, {"LDA": 5}]),
    ],
)
def test_only_supervision_has_to_be_made_beforehand(options, needed, configure):
    config = configure(**options) | {"codebook": None, "decisions": None}
    required = [requirement.options for requirement in missing_supervision(config)]
    assert [{key: found[key] for key in wanted} for found, wanted in zip(required, needed, strict=True)] == needed


def test_a_missing_teacher_is_required(configure):
    config = configure() | {"teacher_weights": None}
    assert [requirement.experiment for requirement in missing_supervision(config)] == ["digits.RN8x4"]


def test_mistakes_get_one_line(configure):
    with pytest.raises(ValueError, match=r"^unknown hint 'intermediat'; did you mean 'intermediate'\? known: .*$"):
        build(configure(hint="intermediat"))
    with pytest.raises(ValueError, match=r"^supervised=True needs a KD layer: penultimate=True.*$"):
        build(configure(supervised=True))
