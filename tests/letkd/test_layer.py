"""The KD layer against the authors' numbers, gradients included, and against its formula."""

import numpy as np
import pytest
import torch

from letkd import KDLayer, TemplateScores, to_map, to_patches

K, C = 24, 16


@pytest.fixture
def golden_layer(fill) -> KDLayer:
    layer = KDLayer(C, K, alpha=0.2).double()
    values = {
        "scores.templates": fill.array("kd_layer/templates", (K, C, 1, 1)).reshape(K, C),
        "semantic_vectors": fill.array("kd_layer/semantic_vectors", (C, K, 1, 1)).reshape(C, K),
        "bn.weight": 1 + 0.1 * fill.array("kd_layer/bn.weight", (K,)),
        "bn.bias": 0.1 * fill.array("kd_layer/bn.bias", (K,)),
    }
    layer.load_state_dict(layer.state_dict() | {name: torch.from_numpy(value) for name, value in values.items()})
    return layer


def patches(array: np.ndarray) -> torch.Tensor:
    return to_patches(torch.from_numpy(array)).double()


def test_layer_agrees_with_the_authors(golden_layer, fill, method_golden):
    features = torch.from_numpy(fill.array("kd_layer/input", (2, C, 4, 4))).double().requires_grad_()
    output, scores = golden_layer(features)
    upstream_output = torch.from_numpy(fill.array("kd_layer/grad_output", (2, C, 4, 4))).double()
    upstream_scores = patches(fill.array("kd_layer/grad_scores", (2, K, 4, 4)))
    torch.autograd.backward([output, scores], [upstream_output, upstream_scores])
    layer = golden_layer
    found = {
        "scores": to_map(scores, like_BxHW=features),
        "output_train": output,
        "grad_input": features.grad,
        "grad_templates": layer.scores.templates.grad.view(K, C, 1, 1),
        "grad_template_scale": layer.scores.scale.grad,
        "grad_semantic_vectors": layer.semantic_vectors.grad.view(C, K, 1, 1),
        "grad_semantic_scale": layer.scale.grad,
        "grad_bn_weight": layer.bn.weight.grad,
        "grad_bn_bias": layer.bn.bias.grad,
        "running_mean": layer.bn.running_mean,
        "running_var": layer.bn.running_var,
        "output_eval": layer.eval()(features)[0],
    }
    for name, value in found.items():
        np.testing.assert_allclose(
            value.detach(), method_golden[f"kd_layer/{name}"], rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_alpha_zero_leaves_the_features_and_keeps_the_scores(golden_layer):
    features = torch.randn(2, C, 3, 3, dtype=torch.float64)
    _, scores = golden_layer(features)
    golden_layer.alpha = 0
    output, scores_without_values = golden_layer(features)
    assert output is features
    torch.testing.assert_close(scores_without_values, scores)


def test_memory_format_does_not_matter(golden_layer):
    features = torch.randn(2, C, 5, 3, dtype=torch.float64)
    output, _ = golden_layer(features)
    output_channels_last, _ = golden_layer(features.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(output_channels_last, output)


def test_zero_features_give_finite_gradients():
    layer = KDLayer(C, K)
    features = torch.zeros(2, C, 2, 2, requires_grad=True)
    output, scores = layer(features)
    (output.sum() + scores.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in [features, *layer.parameters()])


def test_initial_weights_have_the_published_spread():
    torch.manual_seed(0)
    layer = KDLayer(channels=64, num_templates=4096)
    assert layer.scores.templates.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert layer.semantic_vectors.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.02)
    assert (layer.scores.scale.item(), layer.scale.item()) == (3.0, 1.0)


def test_scores_are_scaled_cosines():
    scores = TemplateScores(channels=3, num_templates=2)
    with torch.no_grad():
        scores.templates.copy_(torch.tensor([[2.0, 0, 0], [0, -5.0, 0]]))
    features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 7.0, 0.0]]).view(2, 3, 1, 1)
    torch.testing.assert_close(scores(features), torch.tensor([[3 / 2**0.5, -3 / 2**0.5], [0.0, -3.0]]))
