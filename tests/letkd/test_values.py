"""The fused KD layer against its formula written out, with gradients, chunk sizes, precisions and both modes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from letkd import KDLayer, chunks
from letkd.values import Statistics, score_statistics, values_alone, values_and_scores

P, C, K = 11, 5, 7
EPS = 1e-5


@pytest.fixture
def operands() -> list[Tensor]:
    """Unit features, scaled templates, scaled semantic vectors, gamma and beta, all differentiable."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    unit, templates, semantic = F.normalize(normal(P, C)), 3 * F.normalize(normal(K, C)), F.normalize(normal(C, K))
    return [x.requires_grad_() for x in (unit, templates, semantic, 1 + 0.1 * normal(K), 0.1 * normal(K))]


@pytest.fixture
def running() -> Statistics:
    return Statistics(torch.linspace(-1, 1, K, dtype=torch.float64), torch.linspace(0.5, 2, K, dtype=torch.float64))


def plain(unit, templates, semantic, gamma, beta, running=None):
    """The paper's formula, one pass over (P, K) for every operation."""
    scores = unit @ templates.T
    mean, var = (None, None) if running is None else (running.mean_K.clone(), running.var_K.clone())
    weights = F.relu(F.batch_norm(scores, mean, var, gamma, beta, training=running is None, eps=EPS))
    return F.normalize(weights, dim=1) @ semantic.T, scores


def fused(*operands, running=None):
    return values_and_scores(*operands, eps=EPS, running=running)[:2]


@pytest.fixture(params=["one chunk", "unequal chunks", "single rows"])
def _chunks(request, monkeypatch):
    elements = {"one chunk": 2**20, "unequal chunks": 4 * K, "single rows": 1}[request.param]
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", elements)


@pytest.mark.usefixtures("_chunks", "_passes")
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_outputs_and_gradients_equal_the_formula(operands, running, mode):
    statistics = running if mode == "running" else None
    upstream = torch.randn(P, C, dtype=torch.float64), torch.randn(P, K, dtype=torch.float64)
    found, expected = fused(*operands, running=statistics), plain(*operands, running=statistics)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, operands, upstream), torch.autograd.grad(expected, operands, upstream)
    )


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_gradient(operands, running, mode):
    statistics = running if mode == "running" else None
    assert torch.autograd.gradcheck(lambda *x: fused(*x, running=statistics), operands)


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_either_output_alone(operands, output):
    found, expected = fused(*operands)[output], plain(*operands)[output]
    upstream = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, operands, upstream, allow_unused=True),
        torch.autograd.grad(expected, operands, upstream, allow_unused=True),
        strict=True,
    )
    for gradient, wanted in pairs:
        torch.testing.assert_close(gradient, wanted)


def test_statistics_are_those_of_the_scores(operands):
    unit, templates = operands[:2]
    statistics, _, _ = score_statistics(unit, templates)
    scores = unit @ templates.T
    torch.testing.assert_close(statistics.mean_K, scores.mean(dim=0))
    torch.testing.assert_close(statistics.var_K, scores.var(dim=0, correction=0))


@pytest.mark.usefixtures("_chunks")
@torch.no_grad()
def test_values_alone_are_those_of_the_layer(operands, running):
    values = values_alone(*operands, eps=EPS, running=running)
    torch.testing.assert_close(values, plain(*operands, running=running)[0])


@torch.no_grad()
def keep_weights_off_zero(layer: KDLayer, features: Tensor) -> None:
    """Shift every template's BatchNorm so that zero lies in the widest of the gaps between its middle outputs.

    A weight that rounding moves to the other side of zero would change gradients by far more than rounding does.
    """
    scores_PK = layer.scores(features)
    sorted_PK = F.batch_norm(scores_PK, None, None, training=True, eps=layer.bn.eps).sort(dim=0).values
    middle_GK = sorted_PK[len(sorted_PK) // 4 : -len(sorted_PK) // 4]
    widest_1K = middle_GK.diff(dim=0).argmax(dim=0, keepdim=True)
    layer.bn.bias.copy_(-(middle_GK.gather(0, widest_1K) + middle_GK.gather(0, widest_1K + 1))[0] / 2)


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("seed", range(2))
def test_float32_of_training_size_stays_close_to_float64(seed):
    torch.manual_seed(seed)
    exact = KDLayer(64, 1024).double()
    features = F.relu(torch.randn(8, 64, 8, 8, dtype=torch.float64) + 0.5)  # as networks make them: far from centred
    keep_weights_off_zero(exact, features)
    layer = KDLayer(64, 1024)
    layer.load_state_dict(exact.state_dict())
    upstream = torch.randn_like(features), torch.randn(512, 1024, dtype=torch.float64)
    gradients = []
    for module, dtype in ((layer, torch.float32), (exact, torch.float64)):
        torch.autograd.backward(module(features.to(dtype)), [x.to(dtype) for x in upstream])
        gradients.append([parameter.grad.double() for parameter in module.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert torch.linalg.vector_norm(found - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    torch.testing.assert_close(layer.bn.running_var.double(), exact.bn.running_var, rtol=1e-5, atol=1e-7)


def relative(found: Tensor, expected: Tensor) -> float:
    return (torch.linalg.vector_norm(found.double() - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize(("offset", "factor"), [(0.0, 1.5), (1.5, 4.0)])
def test_bfloat16_is_about_as_close_to_the_formula_as_autocast_of_the_formula(offset, factor):
    """An offset moves all scores away from zero; there autocast, whose BatchNorm is float32, is closer."""
    torch.manual_seed(0)
    layer = KDLayer(32, 256)
    features = F.relu(torch.randn(8, 32, 8, 8) + offset)
    keep_weights_off_zero(layer, features)
    operands = [x.detach() for x in layer._operands(features)]
    upstream = torch.randn(512, 32), torch.randn(512, 256) / 256

    def outputs_and_gradients(function, operands, *, autocast):
        leaves = [x.clone().requires_grad_() for x in operands]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = function(*leaves)
        assert (outputs[1].dtype == torch.bfloat16) == autocast
        gradients = [grad.to(output.dtype) for grad, output in zip(upstream, outputs, strict=True)]
        return [*outputs, *torch.autograd.grad(outputs, leaves, gradients)]

    expected = outputs_and_gradients(plain, [x.double() for x in operands], autocast=False)
    ours, formulas = (outputs_and_gradients(function, operands, autocast=True) for function in (fused, plain))
    for found, formula, exact in zip(ours, formulas, expected, strict=True):
        assert relative(found, exact) < factor * relative(formula, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_patches_that_match_no_template_have_no_gradient_of_values(dtype):
    layer = KDLayer(C, K)
    torch.nn.init.constant_(layer.bn.bias, -100.0)
    features = torch.randn(2, C, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        output, _ = layer(features)
        assert torch.equal(output, features)
    output.sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))
    assert not layer.semantic_vectors.grad.any() and not layer.scores.templates.grad.any()


@pytest.mark.parametrize("compiled", [False, True])
def test_patches_of_zeros_are_numbers_in_float16(compiled, monkeypatch):
    """Their length 0, divided by the least length of float32, would be 0 / 0."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    layer, features = KDLayer(C, K).eval(), torch.randn(2, C, 3, 3)
    features[0] = 0
    with torch.inference_mode():
        expected, scores_PK = layer(features)
        found, found_PK = layer.half()(features.half())
    assert not found_PK[:9].any()
    torch.testing.assert_close(found_PK.float(), scores_PK, rtol=0, atol=0.02)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def test_patches_that_match_nothing_are_numbers_in_float16(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    layer, features = KDLayer(C, K).eval(), torch.randn(2, C, 3, 3).half()
    torch.nn.init.constant_(layer.bn.bias, -100.0)
    with torch.inference_mode():
        assert torch.equal(layer.half()(features)[0], features)


def test_the_output_has_the_type_of_the_features():
    layer, features = KDLayer(C, K), torch.randn(2, C, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(features.bfloat16())[0].dtype == torch.bfloat16
        assert layer(features)[0].dtype == torch.float32


def test_running_statistics_may_move_before_the_gradient_is_taken():
    layer = KDLayer(C, K)
    layer(torch.randn(2, C, 3, 3))
    features = torch.randn(2, C, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(layer.eval()(features)[0].square().sum(), features)
    output, _ = layer(features)
    layer.train()(torch.randn(2, C, 3, 3))
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), features)[0], expected)


def test_running_statistics_follow_batch_norm():
    layer, reference = KDLayer(C, K), torch.nn.BatchNorm1d(K)
    for _ in range(3):
        _, scores = layer(torch.randn(2, C, 3, 3))
        reference(scores.detach())
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(layer.bn.state_dict()[name], value)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_output_does_not_depend_on_whether_scores_are_wanted(gradients):
    layer = KDLayer(C, K, alpha=0.5)
    features = torch.randn(2, C, 3, 3)
    layer(features)
    layer.eval()
    with torch.set_grad_enabled(gradients):
        output, scores = layer(features, with_scores=False)
        torch.testing.assert_close(output, layer(features)[0])
    assert scores is None and output.requires_grad == gradients


class Alone(torch.nn.Module):
    """A deployed layer as a module."""

    def __init__(self, layer: KDLayer):
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features, with_scores=False)[0]


@pytest.mark.parametrize("gradients", [False, True])
def test_a_deployed_layer_can_be_exported(gradients):
    layer = KDLayer(C, K)
    features = torch.randn(2, C, 3, 3)
    layer(features)
    deployed = Alone(layer).eval()
    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(deployed, (features,)).module()
    torch.testing.assert_close(exported(features), deployed(features))


def test_a_single_patch_has_no_batch_statistics():
    with pytest.raises(ValueError, match="more than one patch"):
        KDLayer(C, K)(torch.randn(1, C, 1, 1))
