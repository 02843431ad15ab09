"""A student where a network is expected: its signature, and what torch's own tools make of it.

ONNX Runtime and torch.compile are asked in tests/letkd/test_student_elsewhere.py."""

import copy
import inspect
import io
import pickle
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from student_tools import FEWER, IMAGES, Named, network, student_of
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules, get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.export import Dim
from torch.fx import Tracer, symbolic_trace
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from letkd import KDLayer, Student, attach, chunks

PLACES = {
    "a block": ["stage.1"],
    "an activation": ["stage.1.2"],
    "a BatchNorm": ["stage.0.1"],
    "a convolution": ["stage.0.0"],
    "several": ["stage.1", "stage.0.2", "stage.0"],
}


# --- the network with its layers -------------------------------------------------------------------------------------


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Flatten(), nn.Linear(6 * 16, 4)
    )


@pytest.fixture
def small() -> Student:
    return Student(plain(), {"early": KDLayer(6, 5), "late": KDLayer(6, 7)}, {"early": "0.0", "late": "0"})


def test_student_is_its_backbone_plus_the_layers(small):
    images = torch.randn(8, 3, 6, 6)
    logits, scores = small.forward_with_scores(images)
    alone, early, late = plain(), small.layers["early"], small.layers["late"]
    early_map, early_scores = early(alone[0][0](images))
    late_map, late_scores = late(alone[0][2](alone[0][1](early_map)))
    torch.testing.assert_close(logits, alone[2](alone[1](late_map)))
    torch.testing.assert_close(scores, {"early": early_scores, "late": late_scores})


def test_gradients_reach_every_parameter(small):
    logits, scores = small.forward_with_scores(torch.randn(8, 3, 6, 6))
    (logits.square().sum() + scores["early"].square().sum() + scores["late"].square().sum()).backward()
    assert [name for name, p in small.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_deep_copy_has_layers_of_its_own(small):
    twin = copy.deepcopy(small).eval()
    images = torch.randn(2, 3, 6, 6)
    before = twin(images)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(images), before)


def test_the_backbone_keeps_its_state_dict_names(small):
    assert list(small.backbone.state_dict()) == list(plain().state_dict())


def test_an_unknown_path_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="Sequential has no module '3'; known: 0, 1, 2"):
        Student(plain(), {"late": KDLayer(6, 5)}, {"late": "3"})


@pytest.mark.parametrize("path", ["stage.1", "stage.1.1"])
def test_a_layer_stays_where_a_module_is_replaced(path):
    """As `convert_sync_batchnorm` replaces them; its hooks are lost."""
    student = student_of(network(), [path])
    expected = student(IMAGES)
    alike = copy.deepcopy(student).backbone.get_submodule(path)
    alike._forward_hooks.clear()
    student.backbone.set_submodule(path, alike)
    assert torch.equal(student(IMAGES), expected)
    assert torch.equal(copy.deepcopy(student)(IMAGES), expected)


def test_a_layer_may_be_replaced():
    student, other = student_of(network(), ["stage.1"]), KDLayer(4, 9).eval()
    student.layers["stage/1"] = other
    assert student.taps == {"stage.1": 9}
    alone = copy.deepcopy(student.backbone)
    alone.stage[1]._forward_hooks.clear()
    torch.testing.assert_close(student(IMAGES), alone.head(other(alone.stage(IMAGES))[0]))


def test_fusing_modules_takes_the_layer_along():
    student = student_of(network(), ["stage.1.2"])
    fused = fuse_modules(student, [["backbone.stage.1.0", "backbone.stage.1.1", "backbone.stage.1.2"]])
    assert isinstance(fused.backbone.stage[1][2], nn.Identity)
    torch.testing.assert_close(fused(IMAGES), student(IMAGES))


def test_threads_may_share_a_student():
    student = student_of(network(), PLACES["several"])
    batches = [IMAGES + k for k in range(20)]
    expected = [student(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(student, batches), expected))


class Waits(nn.Module):
    """Lets another thread run in the middle of a call."""

    def __init__(self, meeting: threading.Barrier):
        super().__init__()
        self.meeting = meeting

    def forward(self, maps: Tensor) -> Tensor:
        self.meeting.wait(timeout=30)
        return maps


def test_calls_in_threads_have_scores_of_their_own():
    """While one thread is inside a call, another one begins a call with scores, and one without."""
    student = student_of(network(), ["stage.0", "stage.1"])
    batches = [IMAGES[:3], IMAGES[3:8], IMAGES[8:]]
    expected = [student.forward_with_scores(batch) for batch in batches]
    student.backbone.stage[0].append(Waits(threading.Barrier(3)))
    calls = [student.forward_with_scores, student.forward_with_scores, lambda batch: (student(batch), {})]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda call, batch: call(batch), calls, batches))
    for (logits, scores), (expected_logits, expected_scores) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits)
        for path in scores:
            torch.testing.assert_close(scores[path], expected_scores[path])
    assert [list(scores) for _, scores in found] == [["stage.0", "stage.1"]] * 2 + [[]]


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool):
        super().__init__()
        self.net, self.use_reentrant = network(), use_reentrant

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.net.stage[0](pixels)
        return self.net.head(checkpoint(self.net.stage[1], maps, use_reentrant=self.use_reentrant))


def test_checkpointing_keeps_the_gradients_of_values_and_scores():
    gradients = []
    for kind in (lambda: nn.Sequential(OrderedDict(net=network())), lambda: Checkpointed(use_reentrant=False)):
        torch.manual_seed(1)
        student = student_of(kind(), ["net.stage.1", "net.stage.0"]).train()
        logits, scores = student.forward_with_scores(IMAGES)
        (logits.square().sum() + sum(score.square().sum() for score in scores.values())).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_scores_without_a_gradient_are_refused():
    """Reentrant checkpointing runs its part without gradients first; what leaves it by another way has none."""
    student = student_of(Checkpointed(use_reentrant=True), ["net.stage.1"]).train()
    with pytest.raises(ValueError, match=r"KD layer 'net.stage.1' runs without gradients.*use_reentrant=False"):
        student.forward_with_scores(IMAGES)
    with torch.no_grad():
        assert student.forward_with_scores(IMAGES)[1]["net.stage.1"].shape == (768, 6)
    student(IMAGES).square().sum().backward()
    assert all(p.grad.any() for name, p in student.layers.named_parameters())


def test_a_module_that_runs_again_is_refused_where_scores_are_wanted():
    class Twice(Checkpointed):
        def forward(self, pixels: Tensor) -> Tensor:
            return self.net.head(self.net.stage[1](self.net.stage(pixels)))

    student = Student(Twice(False), {"late": KDLayer(4, 5)}, {"late": "net.stage.1"})
    with pytest.raises(ValueError, match="module before the KD layer 'late' runs several times"):
        student.forward_with_scores(IMAGES)


def test_a_layer_that_only_scores_lets_the_network_overwrite_its_map():
    for images in (IMAGES, IMAGES.contiguous(memory_format=torch.channels_last)):
        backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        student = attach(backbone, {"0": 5}, images=images, alpha=0)
        logits, scores = student.forward_with_scores(images)
        (logits.sum() + scores["0"].square().sum()).backward()
        assert all(p.grad.any() for p in (student.layers["0"].scores.templates, backbone[0].weight))


# --- the signature ---------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, pixels):
        return self.conv(pixels)


class Optional(Plain):
    def forward(self, pixels: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> dict[str, Tensor]:
        map_BCHW = super().forward(pixels)
        return {"map": scale * (map_BCHW if mask is None else map_BCHW * mask)}


class Several(Plain):
    def forward(self, pixels, more, /, *others, flip=False, **further):
        return super().forward(pixels) + super().forward(more).flip(3 if flip else 2), others, further


@pytest.mark.parametrize("kind", [Plain, Optional, Several])
def test_the_signature_is_the_networks(kind):
    backbone = kind()
    student = Student(backbone, {"conv": KDLayer(4, 5)})
    assert inspect.signature(student.forward) == inspect.signature(backbone.forward)
    assert isinstance(student, Student) and type(student).__name__ == "Student"


def test_all_inputs_reach_the_network():
    torch.manual_seed(0)
    layer = KDLayer(4, 5).eval()
    student, backbone = Student(Optional(), {"conv": layer}), Plain()
    backbone.load_state_dict(student.backbone.state_dict())
    mask = torch.rand(12, 1, 8, 8)
    expected = layer(backbone(IMAGES))[0]
    for output, factor in (
        (student(IMAGES), 2),
        (student(pixels=IMAGES, mask=mask), 2 * mask),
        (student(IMAGES, mask, scale=3.0), 3 * mask),
        (student.forward_with_scores(IMAGES, mask, scale=3.0)[0], 3 * mask),
    ):
        torch.testing.assert_close(output["map"], factor * expected)

    several = Student(Several(), {"conv": KDLayer(4, 5)})
    _, others, further = several(IMAGES, IMAGES, 7, flip=True, name="x")
    assert (others, further) == ((7,), {"name": "x"})


def test_copies_and_pickles_are_students_of_their_own():
    student = student_of(Named(), ["net.stage.0"])
    expected = student(IMAGES)
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(student),
        copy.deepcopy(copy.deepcopy(student)),
        pickle.loads(pickle.dumps(student)),
        torch.load(file, weights_only=False),
    ):
        assert isinstance(twin, Student) and inspect.signature(twin.forward) == inspect.signature(student.forward)
        assert torch.equal(twin(pixels=IMAGES), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not twin(IMAGES).any() and torch.equal(student(IMAGES), expected)


# --- torch.fx --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("train", [False, True])
def test_fx_traces_the_student_with_its_layers(paths, train):
    """Also behind modules whose hooks it does not run; in either mode, and with the weights of the student."""
    student = student_of(network(), paths).train(train)
    alone = copy.deepcopy(student)
    graph = symbolic_trace(student)
    assert sorted(graph.state_dict()) == sorted(student.state_dict())
    for mode in (train, not train):
        assert torch.equal(graph.train(mode)(FEWER), alone.train(mode)(FEWER))
    for name, tensor in graph.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name])
    graph.eval(), alone.eval()
    for module in (graph, alone):
        module(FEWER).square().sum().backward()
    gradients = dict(alone.named_parameters())
    assert all(torch.equal(p.grad, gradients[name].grad) for name, p in graph.named_parameters())
    assert torch.equal(copy.deepcopy(graph)(FEWER), alone(FEWER))
    assert torch.equal(student.eval()(FEWER), alone(FEWER)), "tracing leaves the student as it was"


def test_fx_keeps_the_names_of_the_inputs():
    graph = symbolic_trace(student_of(Named(), ["net.stage.0"]))
    assert list(inspect.signature(graph.forward).parameters) == ["pixels"]
    student = Student(Optional(), {"conv": KDLayer(4, 5)}).eval()
    graph = symbolic_trace(student, concrete_args={"mask": None})
    torch.testing.assert_close(graph(IMAGES, None, scale=3.0)["map"], student(IMAGES, scale=3.0)["map"])


def test_fx_traces_a_student_inside_another_module():
    student = student_of(network(), ["stage.1.2"])
    graph = symbolic_trace(nn.Sequential(nn.Identity(), student))
    assert torch.equal(graph(FEWER), student(FEWER))


class Opaque(Tracer):
    """Looks into no block."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return path.endswith("stage.1") or super().is_leaf_module(module, path)


def test_a_trace_without_the_layers_is_refused():
    student = student_of(network(), ["stage.1.2"])
    with pytest.raises(ValueError, match=r"layer 'stage.1.2' is not traced: 'stage.1.2' is inside a module"):
        Opaque().trace(student)
    block = student_of(network(), ["stage.1"])
    assert torch.equal(torch.fx.GraphModule(block, Opaque().trace(block))(FEWER), block(FEWER))
    with pytest.raises(ValueError, match=r"KD layer 'stage.1', and is no part of what is traced: trace the student"):
        symbolic_trace(block.backbone)


@pytest.mark.parametrize("paths", PLACES.values(), ids=PLACES)
def test_fx_quantisation_keeps_the_layers(paths):
    student = student_of(network(), paths)
    with torch.no_grad():
        for layer in student.layers.values():
            layer.scale.mul_(3.0)
    prepared = prepare_fx(copy.deepcopy(student), get_default_qconfig_mapping(), (IMAGES,))
    torch.testing.assert_close(prepared(IMAGES), student(IMAGES))
    quantised = convert_fx(prepared)
    assert any(type(module).__module__.startswith("torch.ao.nn") for module in quantised.modules())
    without = copy.deepcopy(student)
    for layer in without.layers.values():
        layer.alpha = 0
    error = (quantised(IMAGES) - student(IMAGES)).abs().max()
    assert error < 0.1 * (without(IMAGES) - student(IMAGES)).abs().max()


def test_fx_quantisation_aware_training_trains_the_layers():
    student = student_of(network(), ["stage.1.2"]).train()
    prepared = prepare_qat_fx(copy.deepcopy(student), get_default_qat_qconfig_mapping(), (IMAGES,))
    before = prepared.get_submodule("layers.stage/1/2").bn.running_mean.clone()
    prepared(IMAGES).square().sum().backward()
    layer = prepared.get_submodule("layers.stage/1/2")
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    assert not torch.equal(layer.bn.running_mean, before)


# --- torch.export and torch.jit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_export_takes_named_dynamic_shapes(train):
    student = student_of(Named(), ["net.stage.0", "net.stage.0.1"]).train(train)
    program = torch.export.export(student, (FEWER,), dynamic_shapes={"pixels": {0: Dim("batch")}})
    twin = copy.deepcopy(student)
    module = program.module()
    for images in (FEWER, IMAGES):
        torch.testing.assert_close(module(images), twin(images))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_jit_traces_in_evaluation_for_any_batch(gradients, monkeypatch):
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 2**8)  # several chunks, and more for more images
    student = student_of(network(), ["stage.1", "stage.0.2"])
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(student, FEWER)
        for images in (FEWER, IMAGES):
            torch.testing.assert_close(traced(images), student(images))


# --- batches and statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_an_empty_batch_gives_no_logits(train, gradients):
    """As torch's BatchNorm: a batch is counted, and the statistics stay."""
    student = student_of(network(), ["stage.1"]).train(train)
    before = copy.deepcopy(student.layers["stage/1"].bn.state_dict())
    with torch.set_grad_enabled(gradients):
        assert student(IMAGES[:0]).shape == (0, 3)
        logits, scores = student.forward_with_scores(IMAGES[:0])
    assert (logits.shape, scores["stage.1"].shape) == ((0, 3), (0, 6))
    after = student.layers["stage/1"].bn.state_dict()
    assert after.pop("num_batches_tracked") == before.pop("num_batches_tracked") + 2 * train
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    if gradients:
        logits.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("average", [False, True])
def test_update_bn_gives_the_statistics_of_the_data(average):
    """`update_bn` of stochastic weight averaging: the mean over all batches, whatever was there."""
    student = student_of(network(), ["stage.1.2"])
    if average:
        averaged = AveragedModel(student)
        averaged.update_parameters(student)
        student = averaged.module
    layer, batches = student.layers["stage/1/2"], IMAGES.split(4)
    layer.bn.running_mean.fill_(7)
    update_bn([(batch, None) for batch in batches], student)
    assert (layer.bn.momentum, student.training) == (0.1, False)
    twin = copy.deepcopy(student).train()
    scores = [twin.forward_with_scores(batch)[1]["stage.1.2"].detach() for batch in batches]
    reference = nn.BatchNorm1d(6, momentum=None)
    for score in scores:
        reference(score)
    torch.testing.assert_close(layer.bn.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.bn.running_var, reference.running_var)
    assert layer.bn.num_batches_tracked == len(batches)
