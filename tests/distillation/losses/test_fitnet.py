"""FitNet as published, and as the paper's control: beside a student alone, or one with KD layers, supervised or not.

Reference values of the published form are in tests/golden.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_tools import DATA, constants, network_of
from loss_tools import batch as batch_of_labels
from objective_tools import Prepared, batch_of
from supervision_tools import made_up

from algorithms.teaching import missing_supervision, open_objective
from architectures import create_model
from config.options import Options
from config.recipes import fitnet, letkd2
from dataloaders import Batch, Dataset, ImageTensors
from distillation.build import build_student
from distillation.losses.fitnet import FitNet
from distillation.objective import Objective
from distillation.signals import Signals
from distillation.supervision_files import save_supervision
from engine.optimization import make_optimizer
from engine.step import descend
from letkd import Student, pool_map
from storage.state_dicts import fingerprint

SIZE = 16
NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES, NUM_COMPONENTS = 4, 6, 2, 3
NUM_TARGETS = NUM_CLASSES * NUM_SUBCLASSES
LAYERS = {"penultimate": True, "intermediate": True}
DATASET = Dataset(
    "digits", tuple("abcd"), SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, padding=2, flip=False,
    train=ImageTensors(torch.zeros(4, SIZE, SIZE, 3, dtype=torch.uint8), torch.arange(4)),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """The files of a teacher, resnet8x4, and of its supervision."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    teacher = create_model("resnet8x4", num_classes=NUM_CLASSES)
    paths = {name: folder / f"{name}.pth" for name in ("teacher_weights", "codebook", "decisions")}
    torch.save({"model": teacher.state_dict()}, paths["teacher_weights"])
    facts = {"teacher": fingerprint(teacher.state_dict()), "grid": (SIZE // 4, SIZE // 4), "image_size": SIZE}
    facts |= {"dataset": "digits", "val_split": 0}
    save_supervision(paths["codebook"], made_up("layer3", {"centroids": torch.randn(NUM_WORDS, 256)}, **facts))
    decisions = {
        "scalings": torch.randn(256, NUM_COMPONENTS),
        "xbar": torch.randn(256),
        "centers": torch.randn(NUM_TARGETS, NUM_COMPONENTS),
        "prototypes": torch.randn(NUM_TARGETS, NUM_COMPONENTS),
        "decisions": torch.randn(NUM_TARGETS, NUM_TARGETS).softmax(dim=1),
    }
    save_supervision(paths["decisions"], made_up("layer3.0", decisions, num_subclasses=NUM_SUBCLASSES, **facts))
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def configure(files, tmp_path):
    """The recipe's configuration; the supervision's files are known only where `supervised` asks for them."""

    def configure(
        student: str = "resnet8", recipe: Callable[..., dict[str, Any]] = fitnet, **options: Any
    ) -> dict[str, Any]:
        config = recipe(
            dataset="digits",
            teacher="resnet8x4",
            student=student,
            teacher_experiment="digits.RN8x4",
            num_words=NUM_WORDS,
            subclasses_per_class=NUM_SUBCLASSES,
            lda_components=NUM_COMPONENTS,
            **options,
        )
        known = files if config.get("supervised", True) else {"teacher_weights": files["teacher_weights"]}
        return config | known | {"localpath": str(tmp_path), "data_dir": None, "seed": 0}

    return configure


def build(config: dict[str, Any]) -> Objective:
    """Of images that are normalised already, which student and teacher share."""
    torch.manual_seed(1)
    objective = open_objective(Options.of(config), DATASET)
    assert objective.shares_input
    objective.input = Prepared()
    return objective


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    return batch_of(torch.randn(4, 3, SIZE, SIZE, generator=generator), torch.arange(4))


def part_names(names: Iterable[str]) -> set[str]:
    """The parts of the losses that these tensors belong to."""
    return {".".join(name.split(".")[:2]) for name in names}


def alone(network: torch.nn.Module) -> torch.nn.Module:
    """An equal network without the hooks of KD layers."""
    twin = create_model("resnet8", num_classes=NUM_CLASSES).train()
    twin.load_state_dict(network.state_dict())
    return twin


def test_the_hint_is_the_mean_squared_error_of_the_regressed_map(configure, batch, files):
    images, labels = batch.images, batch.labels
    objective = build(configure(hint="penultimate")).train()
    features = alone(objective.student).forward_features(images)
    teacher = create_model("resnet8x4", num_classes=NUM_CLASSES).eval()
    teacher.load_state_dict(torch.load(files["teacher_weights"])["model"])
    regressed = torch.einsum("bchw,dc->bdhw", features, objective.losses["fitnet"].regressor[0].weight[:, :, 0, 0])
    variance, mean = torch.var_mean(regressed, dim=(0, 2, 3), keepdim=True, correction=0)
    normalized = (regressed - mean) / (variance + 1e-5).sqrt()  # a new BatchNorm's scale is 1 and its shift 0
    hint = (normalized - teacher.forward_features(images)).square().mean()
    step = objective(batch)
    torch.testing.assert_close(step.terms["fitnet"], hint.detach())
    ce = F.cross_entropy(step.logits, labels)
    assert set(step.terms) == {"ce", "fitnet"}
    torch.testing.assert_close(step.loss, ce + 100 * hint)


def test_the_hint_is_read_behind_the_kd_layer(configure, batch):
    objective = build(configure(**LAYERS, hint="intermediate")).train()
    features = alone(objective.student.backbone).forward_features(batch.images)  # of resnet8, the intermediate map too
    layer = copy.deepcopy(objective.student.layers["intermediate"])
    seen = objective.losses["fitnet"].regressor(layer(features)[0])
    expected = F.mse_loss(seen, objective.teacher(batch.images).maps["intermediate"])
    torch.testing.assert_close(objective(batch).terms["fitnet"], expected.detach())
    assert not torch.allclose(layer(features)[0], features)


def test_the_intermediate_map_is_the_hint_and_the_teacher_is_pooled_to_the_students_grid(configure, batch):
    objective = build(configure(student="shufflenetv1"))
    loss, teacher = objective.losses["fitnet"], objective.teacher.network.module
    pooling = objective.student.intermediate.reduction // teacher.intermediate.reduction
    assert pooling == 2 and loss.grid == (SIZE // objective.student.intermediate.reduction,) * 2
    maps = objective.teacher(batch.images).maps
    assert list(maps) == ["intermediate"]
    grid = SIZE // objective.student.intermediate.reduction
    assert pool_map(maps["intermediate"], pooling).shape == (4, teacher.intermediate.channels, grid, grid)
    regressed = loss.regressor(objective.network(batch.images).maps["intermediate"])
    assert regressed.shape == (4, teacher.intermediate.channels, grid, grid)
    assert objective(batch).terms["fitnet"] > 0


def test_a_student_alone_is_deployed_as_it_is_published(configure):
    objective = build(configure())
    expected = create_model("resnet8", num_classes=NUM_CLASSES).state_dict()
    assert list(objective.student.state_dict()) == list(expected)
    assert part_names(objective.losses.state_dict()) == {"fitnet.regressor"}


def test_layers_without_supervision_need_no_files_and_learn_from_the_other_losses(configure, batch):
    config = configure(**LAYERS)
    objective = build(config).train()
    student = objective.student
    assert isinstance(student, Student) and list(student.layers) == ["penultimate", "intermediate"]
    assert list(objective.losses) == ["ce", "fitnet"]
    step = objective(batch, with_statistics=True)
    assert set(step.terms) == {"ce", "fitnet"}
    step.loss.backward()
    assert all(layer.scores.templates.grad.any() for layer in student.layers.values())


def test_supervision_adds_the_losses_of_letkd(configure, batch):
    config = configure(**LAYERS, supervised=True)
    step = build(config).train()(batch, with_statistics=True)
    letkd = build(configure(recipe=letkd2)).train()(batch, with_statistics=True)
    assert set(step.terms) == {"ce", "words", "decisions", "fitnet"}
    assert set(letkd.terms) == {"ce", "words", "decisions"}
    torch.testing.assert_close({name: step.terms[name] for name in letkd.terms}, letkd.terms)
    torch.testing.assert_close(step.loss, letkd.loss + 100 * step.terms["fitnet"])
    assert set(step.statistics) == set(letkd.statistics) != set()


@pytest.mark.parametrize("options", [{}, LAYERS, LAYERS | {"supervised": True}, {"intermediate": True}])
def test_a_step_changes_what_trains_and_nothing_frozen(options, configure, batch):
    config = configure(**options)
    objective = build(config).train()

    def state() -> dict[str, torch.Tensor]:
        teacher = objective.teacher.network.module.state_dict()
        own = objective.state_dict() | dict(objective.named_buffers())  # supervision is not saved
        return own | {f"teacher.{name}": value for name, value in teacher.items()}

    before = {name: value.clone() for name, value in state().items()}
    descend(make_optimizer(objective, Options.of(config).protocol), objective(batch).loss)
    changed = {name for name, value in state().items() if not torch.equal(value, before[name])}
    trainable = {name for name, value in objective.named_parameters() if value.requires_grad}
    assert trainable <= changed
    of_losses = {name.removeprefix("losses.") for name in changed if not name.startswith("student.")}
    assert part_names(of_losses) == {"fitnet.regressor"}


def test_evaluation_needs_the_configuration_alone(configure, batch):
    config = configure(**LAYERS, supervised=True)
    objective = build(config).eval()
    deployed = build_student(Options.of(config), NUM_CLASSES, 32).eval()
    deployed.load_state_dict(objective.student.state_dict())
    objective(batch)
    torch.testing.assert_close(deployed(batch.images), objective.student(batch.images))


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
    required = [requirement.options for requirement in missing_supervision(Options.of(config))]
    assert [{key: found[key] for key in wanted} for found, wanted in zip(required, needed, strict=True)] == needed


def test_a_missing_teacher_is_required(configure):
    config = configure() | {"teacher": "resnet14", "teacher_experiment": "digits.RN14", "teacher_weights": None}
    assert [requirement.experiment for requirement in missing_supervision(Options.of(config))] == ["digits.RN14"]


def test_mistakes_get_one_line(configure):
    with pytest.raises(ValueError, match=r"^resnet8 has no place 'intermediat'; did you mean 'intermediate'"):
        build(configure(hint="intermediat"))
    with pytest.raises(ValueError, match=r"^fitnet\.regressor='pointwis' must be resizing or pointwise$"):
        build(configure() | {"fitnet.regressor": "pointwis"})
    with pytest.raises(ValueError, match=r"^supervised=True needs a KD layer: penultimate=True.*$"):
        build(configure(supervised=True))


# --- as published ----------------------------------------------------------------------------------------------------


def test_constants_are_the_published_ones():
    assert {"weight": FitNet.terms["fitnet"]} == constants("fitnet")
    assert FitNet.Options() == FitNet.Options(hint="stage2", regressor="resizing")


@pytest.mark.parametrize(
    ("grid", "teacher_grid", "kernel", "stride"),
    [
        ((8, 8), (8, 8), (1, 1), 1),
        ((8, 6), (4, 3), (3, 3), 2),
        ((8, 8), (7, 7), (2, 2), 1),
        ((8, 6), (7, 3), (2, 4), 1),
        ((4, 4), (8, 8), (4, 4), -2),  # transposed
        ((4, 4), (6, 6), (3, 3), 0),  # with the padding that keeps the student's grid
        ((4, 4), (12, 12), (3, 3), 0),
    ],
)
def test_the_convolution_meets_the_teachers_grid(grid, teacher_grid, kernel, stride):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, *grid), torch.randn(4, 5, *teacher_grid)
    options = {"hint": "stage1", "regressor": "resizing"}
    loss = FitNet.build(network_of([student]), network_of([teacher]), DATA, **options)
    convolution, norm, _ = loss.regressor
    assert convolution.kernel_size == kernel
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    given = (student, convolution.weight, convolution.bias)
    if stride < 0:
        found = F.conv_transpose2d(*given, stride=-stride, padding=1)
    else:
        found = F.conv2d(*given, stride=stride or 1, padding=1 if kernel == (3, 3) else 0)
    hint = F.batch_norm(found, None, None, norm.weight, norm.bias, training=True).relu()
    expected = F.mse_loss(hint, F.adaptive_avg_pool2d(teacher, hint.shape[2:]))
    assert hint.shape[2:] == (student if stride == 0 else teacher).shape[2:]
    term = loss(Signals(maps={"stage1": student}), Signals(maps={"stage1": teacher}), batch_of_labels(torch.arange(4)))
    torch.testing.assert_close(term["fitnet"], expected)


def test_half_precision_maps_are_averaged_in_float32():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 4, 4), torch.randn(4, 5, 16, 16).bfloat16()
    options = {"hint": "stage1", "regressor": "pointwise"}
    loss = FitNet.build(network_of([student]), network_of([teacher]), DATA, **options)
    term, exact = (
        loss(Signals(maps={"stage1": student}), Signals(maps={"stage1": each}), batch_of_labels(torch.arange(4)))
        for each in (teacher, teacher.float())
    )
    assert torch.equal(term["fitnet"], exact["fitnet"])
