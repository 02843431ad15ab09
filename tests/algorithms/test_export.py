"""Exported networks: they compute what the trained ones do, say what they are, and are not written otherwise."""

import functools
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from export_tools import SMALL, leave_training, normalized, pretend_training_, smooth_images
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

import main_classification
from algorithms import export, run_config
from algorithms.export import (
    CHECKED_BATCHES,
    TOLERANCE,
    Export,
    costs_of_export,
    costs_of_network,
    largest_difference,
    shorter_side,
)
from architectures import create_model, mobilenetv2, shufflenetv1, shufflenetv2
from config.options import Options
from config.recipes import letkd2
from dataloaders import Dataset, load_dataset
from dataloaders.decoding import fit_square
from distillation.build import build_student
from distillation.deployment import OPERATORS, DeployedKDLayer, deploy, fold_batch_norms, trace
from letkd import KDLayer, Student

NUM_CLASSES = 3
SIZE = 32
MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
# Of logits with variance 1. Random weights amplify rounding more than trained ones; a mistake is off by 0.1 and more.
UNTRAINED_TOLERANCE = 1e-3
NAME = "digits.RN14_RN8.letKD-2"

# --- folding ---------------------------------------------------------------------------------------------------------


def shake_(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, -1, 2)):
        nn.init.uniform_(values, low, high)
    nn.init.normal_(norm.bias)


@pytest.mark.parametrize(("channels", "num_templates"), [(4, 9), (9, 4)])
def test_a_folded_kd_layer_is_the_layer(channels, num_templates):
    torch.manual_seed(0)
    layer = KDLayer(channels, num_templates, alpha=0.6)
    shake_(layer.bn)
    layer.eval()
    features = torch.randn(2, channels, 3, 5)
    features[0, :, 1, 1] = 0  # a patch without a direction
    with torch.no_grad():
        folded, (expected, _) = DeployedKDLayer(layer)(features), layer(features)
    torch.testing.assert_close(folded, expected, atol=1e-6, rtol=0)
    assert (expected - features).abs().max() > 0.1


class Branches(nn.Module):
    """A convolution that BatchNorm alone reads, one that something else reads too, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.alone, self.shared, self.twice = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        shared = self.shared(F.relu(self.norm1(self.alone(images))))
        return self.norm2(shared) + shared + self.norm3(self.twice(images)) + self.norm4(self.twice(2 * images))


def test_a_batch_norm_is_folded_only_where_it_alone_reads_a_convolution():
    torch.manual_seed(0)
    network = Branches().eval()
    for norm in (network.norm1, network.norm2, network.norm3, network.norm4):
        shake_(norm)
    images = torch.rand(2, 3, 4, 4)
    graph = torch.export.export(network, (images,)).module()
    assert fold_batch_norms(graph) == 1
    torch.testing.assert_close(graph(images), network(images), atol=1e-5, rtol=0)
    assert not hasattr(graph, "norm1") and hasattr(graph, "norm2")


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["weight_norm", "statistics of the batch"],
)
def test_what_cannot_be_folded_is_traced_as_it_is(network):
    images = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(trace(network.eval(), 4).module()(images), network(images))


# --- what is computed ------------------------------------------------------------------------------------------------

# One of each kind, with KD layers or without; of the slow ones there is a quick one: resnet8, shufflenetv1.
STUDENTS = [
    ("resnet8", True), ("wrn_10_1", True), ("shufflenetv1", False), ("shufflenetv2", True), ("mobilenetv2", True),
    pytest.param("vgg8", True, marks=pytest.mark.slow),
    pytest.param("torchvision/resnet18", False, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """Two blocks in two stages and the fewest in the others are enough: tracing takes its time for each block."""
    with pytest.MonkeyPatch.context() as patch:
        for family, fewest in ((mobilenetv2, 1), (shufflenetv1, 1), (shufflenetv2, 2)):
            two, others = family.STAGES[:2], family.STAGES[2:]
            stages = [(width, min(depth, 2), *rest) for width, depth, *rest in two]
            stages += [(width, fewest, *rest) for width, _, *rest in others]
            patch.setattr(family, "STAGES", tuple(stages))
        yield


def normalize(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def make_student(network: str, *, with_layers: bool, alpha: float = 0.7) -> nn.Module:
    torch.manual_seed(0)
    images = normalize(smooth_images(16, SIZE))
    if not with_layers:
        return pretend_training_(create_model(network, num_classes=NUM_CLASSES), images)
    alphas = {"alpha_penultimate": alpha, "alpha_intermediate": 1.5 * alpha}
    config = letkd2(dataset="CIFAR100", teacher="resnet56", student=network, **SMALL, **alphas)
    return pretend_training_(build_student(Options.of(config), NUM_CLASSES, 32), images)


def trace_student(student: nn.Module, network: str) -> ExportedProgram:
    backbone = create_model(network, num_classes=NUM_CLASSES) if isinstance(student, Student) else None
    return trace(deploy(student, MEAN, STD, backbone=backbone), SIZE)


@functools.cache
def traced(network: str, with_layers: bool) -> tuple[nn.Module, ExportedProgram]:
    """A student and what is exported of it."""
    student = make_student(network, with_layers=with_layers)
    return student, trace_student(student, network)


@pytest.mark.parametrize(("network", "with_layers"), STUDENTS)
@torch.no_grad()
def test_the_graph_computes_the_same_in_batches_of_any_size(network, with_layers):
    student, program = traced(network, with_layers)
    exported = program.module()
    for batch in CHECKED_BATCHES:
        images = smooth_images(batch, SIZE)
        expected = student(normalize(images))
        torch.testing.assert_close(exported(images), expected, atol=UNTRAINED_TOLERANCE, rtol=0)
    assert expected.std(dim=0).min() > 0.1, "the logits must depend on the images"


@pytest.mark.parametrize(("network", "with_layers"), STUDENTS)
def test_nothing_of_batch_norm_is_left_but_what_precedes_its_convolution(network, with_layers):
    _, program = traced(network, with_layers)
    left = program.graph.find_nodes(op="call_function", target=OPERATORS.batch_norm.default)
    assert len(left) == (4 if network == "wrn_10_1" else 0)  # the first of three blocks, and the last before the head
    assert not any(name.endswith("num_batches_tracked") for name in program.state_dict) or left


@pytest.mark.parametrize(("network", "with_layers"), STUDENTS)
def test_the_graph_does_the_work_of_the_student(network, with_layers):
    student, program = traced(network, with_layers)
    assert costs_of_export(b"", program, SIZE)["multiply_adds"] == costs_of_network(student, SIZE)["multiply_adds"]


@torch.no_grad()
def test_a_layer_that_adds_nothing_is_left_out():
    student = make_student("resnet8", with_layers=True, alpha=0.0)
    program = trace_student(student, "resnet8")
    alone = create_model("resnet8", num_classes=NUM_CLASSES)
    assert costs_of_export(b"", program, SIZE)["multiply_adds"] == costs_of_network(alone, SIZE)["multiply_adds"]
    images = smooth_images(2, SIZE)
    torch.testing.assert_close(program.module()(images), student(normalize(images)), atol=UNTRAINED_TOLERANCE, rtol=0)


@pytest.mark.parametrize("image_size", [8, 32, 96, 112, 224])
def test_the_metadata_has_the_geometry_of_evaluation(image_size):
    grey = np.linspace(0, 255, 300 * 260).reshape(300, 260).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    side = shorter_side(image_size)
    scaled = image.resize((side, int(side * 300 / 260)), Image.Resampling.BILINEAR)
    left, top = (round((length - image_size) / 2) for length in scaled.size)
    by_hand = scaled.crop((left, top, left + image_size, top + image_size))
    assert np.array_equal(by_hand, fit_square(image, image_size))


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory, dataset) -> dict[str, Path]:
    """The last epoch of a letKD-2 run as ONNX and the best of a network alone as pt2, under "onnx" and "pt2"."""
    root = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "TIMED_SECONDS", 0)
        paths = {}
        for name, updates in {NAME: {"export": "onnx"}, "digits.RN8": {"export": "pt2", "best": True}}.items():
            config = configure(name, root, **updates)
            leave_training(config, dataset)
            run_config(config)
            (paths[config["export"]],) = directory(config).glob("export/*[!n]")  # not the .json
    return paths


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(export, "TIMED_SECONDS", 0)


def configure(name: str, localpath: Path, **updates: Any) -> dict[str, Any]:
    config = main_classification.default_config(name) | {"localpath": str(localpath), "cuda": False} | updates
    return config | {key: value for key, value in SMALL.items() if key in config}


def directory(config: dict[str, Any]) -> Path:
    return Path(config["localpath"], *config["config"].split("."))


def trained_model(name: str, localpath: Path, dataset: Dataset) -> nn.Module:
    """The network of the last epoch again."""
    return leave_training(configure(name, localpath), dataset)


def test_an_onnx_file_needs_nothing_but_itself(files, dataset, tmp_path):
    """What somebody writes who has the file and onnxruntime."""
    path = files["onnx"]
    assert path.name == f"{NAME}-last.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["input"] == {"name": "images", "shape": ["batch", 3, 8, 8], "colours": "RGB", "range": [0, 1]}
    assert about["inside"] == {"mean": list(dataset.mean), "std": list(dataset.std)}
    assert about["provenance"]["config"] == NAME and about["provenance"]["epoch"] == 3
    assert [entry.shape for entry in session.get_inputs()] == [["batch", 3, 8, 8]]
    assert [entry.shape for entry in session.get_outputs()] == [["batch", 10]]

    images = dataset.eval.images[:5].permute(0, 3, 1, 2)
    (logits,) = session.run(["logits"], {"images": images.numpy().astype(np.float32) / 255})
    with torch.no_grad():
        expected = trained_model(NAME, tmp_path, dataset)(normalized(images / 255, dataset))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    assert len(set(expected.argmax(dim=1).tolist())) > 1


def test_a_pt2_file_needs_nothing_but_torch(files, dataset):
    path = files["pt2"]
    assert path.name == "digits.RN8-best.pt2"
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra["metadata.json"])
    assert about["provenance"]["weights"] == "best.pth" and about["provenance"]["epoch"] == 2
    model = create_model("resnet8", num_classes=10).eval()
    model.load_state_dict(torch.load(path.parents[1] / "best.pth", weights_only=True)["model"])
    images = smooth_images(3, 8)
    with torch.no_grad():
        expected = model(normalized(images, dataset))
        torch.testing.assert_close(program.module()(images), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_what_is_inside_stands_beside_the_file_too(kind, files):
    path = files[kind]
    _, inside = export.READERS[kind](path.read_bytes())
    beside = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert {key: beside[key] for key in inside} == inside
    assert beside["bytes"] == path.stat().st_size and beside["largest_difference"] <= TOLERANCE


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_file_tells_nothing_of_the_folders_it_was_made_in(kind, files):
    path = files[kind]
    contents = [path.read_bytes()]
    if kind == "pt2":
        archive = zipfile.ZipFile(path)
        contents = [archive.read(name) for name in archive.namelist()]
    for secret in (Path(main_classification.__file__).parent, *path.parents[:3], torch.__path__[0], "resnet.py"):
        assert not any(str(secret).encode() in content for content in contents), secret


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced_best(files, monkeypatch) -> None:
    """Tracing digits.RN8 gives the network of its best epoch, in no time."""
    program = torch.export.load(files["pt2"])
    monkeypatch.setattr(export, "trace", lambda network, image_size: program)


@pytest.mark.usefixtures("traced_best")
def test_results_keep_what_was_there(tmp_path, dataset):
    config = configure("digits.RN8", tmp_path, export="pt2", checkpoint=2)
    leave_training(config, dataset)
    path = directory(config) / "results.json"
    path.write_text(json.dumps({"mode": "train", "top1": 12.5, "exports": {"last.onnx": {"epoch": 3}}}))
    Export(Options.of(config)).run()
    results = json.loads(path.read_text())
    assert (results["mode"], results["top1"]) == ("train", 12.5)
    assert {name: measured["epoch"] for name, measured in results["exports"].items()} == {"last.onnx": 3, "best.pt2": 2}
    measured = results["exports"]["best.pt2"]
    assert measured["milliseconds_batch_64"] > 0 and Path(measured["file"]).stat().st_size == measured["bytes"]


@pytest.mark.usefixtures("traced_best")
def test_every_trial_is_exported(tmp_path, dataset):
    config = configure("digits.RN8", tmp_path, export="pt2", best=True)
    for seed in (0, 1):
        leave_training(config, dataset, folder=f"seed{seed}")
        facts = {key: config[key] for key in ("config", "method", "dataset", "epochs", "precision")}
        figures = dict.fromkeys(("top1", "best_top1", "top5", "seconds"), 50.0)
        results = facts | figures | {"mode": "train", "options": config}
        (directory(config) / f"seed{seed}" / "results.json").write_text(json.dumps(results))
    trials = run_config(config | {"trials": 2})
    assert trials["summaries"]["export best.pt2"]["mean"]["largest_difference"] <= TOLERANCE
    for seed in (0, 1):
        assert (directory(config) / f"seed{seed}" / "export" / f"digits.RN8-seed{seed}-best.pt2").is_file()


@pytest.mark.parametrize("wrong", [2e-4, float("nan"), float("inf")])
def test_a_difference_is_found_wherever_it_is(wrong):
    batches = [torch.zeros(batch, 3, 4, 4) for batch in CHECKED_BATCHES]

    def differs(images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 5)
        logits[-1, -1] = wrong if len(images) == 7 else 0
        return logits

    assert not largest_difference(differs, lambda images: torch.zeros(len(images), 5), batches) <= TOLERANCE


@pytest.mark.usefixtures("traced_best")
def test_a_file_that_computes_something_else_is_not_written(tmp_path, dataset):
    config = configure("digits.RN8", tmp_path, export="pt2")  # the last epoch
    leave_training(config, dataset)
    with pytest.raises(ValueError, match="is not written: a logit is off by"):
        Export(Options.of(config)).run()
    assert not (directory(config) / "export").exists()


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path, dataset, monkeypatch):
    def refuse(network: nn.Module, image_size: int) -> None:
        raise RuntimeError("data-dependent\nbranch")

    config = configure("digits.RN8", tmp_path, export="pt2")
    leave_training(config, dataset)
    monkeypatch.setattr(export, "trace", refuse)
    with pytest.raises(ValueError, match=r"cannot make \S+\.pt2: RuntimeError: data-dependent$"):
        Export(Options.of(config)).run()


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript.*: pip install onnx onnxscript onnxruntime$"):
        Export(Options.of(configure("digits.RN8", tmp_path, export="onnx"))).run()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime.*: pip install onnxruntime$"):
        export.open_onnx(b"")


@pytest.mark.parametrize("value", ["onx", "True", "ONNX"])
def test_another_kind_of_file_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match=f"export='{value}' must be onnx or pt2"):
        run_config(configure("digits.RN8", tmp_path, export=value))


def test_what_was_not_trained_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"digits\.RN14_RN8\.letKD-2 has not been trained"):
        Export(Options.of(configure(NAME, tmp_path, export="pt2"))).run()
