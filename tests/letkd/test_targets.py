"""Words, sub-class decisions and the divergence to them, against the authors' numbers and the plain formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from letkd import LDA, Codebook, KMeans, SubclassTargets, chunks, kl_to_scores, pool_map, to_map, to_patches
from letkd.losses import full_precision

N, S, L, C, K = 5, 4, 6, 16, 24


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).double()


@pytest.fixture
def codebook(fill) -> Codebook:
    return Codebook(tensor(fill.array("codebook/centroids", (K, C))))


@pytest.fixture
def subclasses(fill) -> SubclassTargets:
    return SubclassTargets(
        scalings_CL=tensor(fill.array("subclass/scalings", (C, C))),
        xbar_C=tensor(fill.array("subclass/xbar", (C,))),
        centers_ML=tensor(fill.array("subclass/centers", (N * S, L))),
        decisions_MM=tensor(2 * fill.array("subclass/score_logits", (N * S, N * S))).softmax(dim=1),
        num_subclasses=S,
    )


def test_codebook_agrees_with_the_authors(codebook, fill, method_golden):
    features = tensor(fill.array("codebook/features", (2, C, 4, 4)))
    scores_map = tensor(fill.array("codebook/scores", (2, K, 4, 4))).requires_grad_()
    scores = to_patches(scores_map)
    loss = kl_to_scores(scores, codebook.targets(features))
    loss.backward()
    statistics = codebook.statistics(features, scores)
    found = {
        "soft_assignment_bhwk": codebook.soft_assignment(features).view(2, 4, 4, K),
        "hard_assignment_b1hw": codebook.hard_assignment(features).view(2, 1, 4, 4),
        "perplexity": statistics["perplexity"],
        "mean_max_assignment": statistics["mean_max_assignment"],
        "word_accuracy": statistics["word_accuracy"],
        "kl_loss": loss.detach(),
        "grad_scores": scores_map.grad,
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, method_golden[f"codebook/{name}"], rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("group", "size"), [("subclass", 4), ("subclass_downscaled", 8)])
def test_subclass_targets_agree_with_the_authors(group, size, subclasses, fill, method_golden):
    teacher = tensor(fill.array("subclass/teacher_features", (2, C, size, size)))
    labels = torch.from_numpy(method_golden[f"{group}/labels"])
    scores_map = tensor(fill.array("subclass/student_scores", (2, N * S, 4, 4))).requires_grad_()
    loss = kl_to_scores(to_patches(scores_map), subclasses.targets(pool_map(teacher, size // 4), labels))
    loss.backward()
    np.testing.assert_allclose(loss.item(), method_golden[f"{group}/kl_loss"], rtol=1e-4)
    np.testing.assert_allclose(scores_map.grad, method_golden[f"{group}/grad_scores"], rtol=1e-4, atol=1e-8)


def test_subclass_layer_output_agrees_with_the_authors(fill, method_golden):
    scores_map = tensor(fill.array("subclass/student_scores", (2, N * S, 4, 4)))
    features = tensor(fill.array("subclass/student_features", (2, C, 4, 4)))
    semantic_vectors = tensor(fill.array("subclass/semantic_vectors", (C, N * S, 1, 1))).view(C, N * S)
    weights = F.relu(F.batch_norm(to_patches(scores_map), None, None, training=True))
    values = F.normalize(weights, dim=1) @ F.normalize(semantic_vectors, dim=1).T
    output = features + to_map(values, like_BxHW=features)
    np.testing.assert_allclose(output, method_golden["subclass/output"], rtol=1e-4, atol=1e-6)


def test_assignment_compares_only_the_images_own_class(subclasses):
    features = torch.randn(4, C, 3, 3, dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 4])
    index = subclasses.assign(features, labels)
    assert torch.equal(index.view(4, 9) // S, labels[:, None].expand(4, 9))
    projected = to_patches(features).float() @ subclasses.weight.T + subclasses.offset
    own = torch.cdist(projected, subclasses.centers.view(-1, L)).view(4, 9, N, S)[torch.arange(4), :, labels]
    assert torch.equal(index.view(4, 9) % S, own.argmin(dim=2))


@pytest.mark.parametrize("chunk_elements", [1, 3 * K, 2**20])
def test_kl_equals_the_plain_formula_whatever_the_chunk(monkeypatch, codebook, chunk_elements):
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", chunk_elements)
    features, scores = torch.randn(2, C, 4, 4, dtype=torch.float64), torch.randn(32, K, dtype=torch.float64)
    plain = F.kl_div(scores.log_softmax(1), codebook.soft_assignment(features), reduction="none").sum(1).mean()
    torch.testing.assert_close(kl_to_scores(scores, codebook.targets(features)), plain)


def test_kl_gradient(codebook):
    features = torch.randn(1, C, 2, 3, dtype=torch.float64)
    scores = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: 3 * kl_to_scores(s, codebook.targets(features)), scores)


def test_kl_of_scores_equal_to_the_logits_is_zero(codebook):
    features = torch.randn(2, C, 2, 2, dtype=torch.float64)
    assert kl_to_scores(codebook.logits(to_patches(features)), codebook.targets(features)).item() == pytest.approx(0)


def test_no_gradient_reaches_the_teacher(codebook, subclasses):
    teacher = torch.randn(2, C, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 2])
    for targets, width in ((codebook.targets(teacher), K), (subclasses.targets(teacher, labels), N * S)):
        kl_to_scores(torch.randn(8, width, dtype=torch.float64, requires_grad=True), targets).backward()
    assert teacher.grad is None
    assert not list(codebook.parameters()) + list(subclasses.parameters())


def test_autocast_does_not_touch_the_supervision(codebook, subclasses):
    codebook, subclasses = codebook.float(), subclasses.float()
    teacher, labels = torch.randn(2, C, 8, 8), torch.tensor([0, 3])
    words, decisions = torch.randn(128, K), torch.randn(128, N * S)

    def losses_and_choices():
        return (
            kl_to_scores(words, codebook.targets(teacher)),
            kl_to_scores(decisions, subclasses.targets(teacher, labels)),
            codebook.hard_assignment(teacher),
            subclasses.assign(teacher, labels),
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses_and_choices()
    assert all(torch.equal(*pair) for pair in zip(inside, losses_and_choices(), strict=True))


def test_perplexity_counts_the_words_in_use():
    codebook = Codebook(torch.eye(4))
    features = torch.eye(4)[:2].repeat(3, 1).view(6, 4, 1, 1)
    assert codebook.statistics(features, torch.zeros(6, 4))["perplexity"].item() == pytest.approx(2)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"scalings \(7, 6\) do not fit xbar \(16,\)"):
        SubclassTargets(torch.zeros(7, 6), torch.zeros(16), torch.zeros(20, 6), torch.zeros(20, 20), num_subclasses=4)
    with pytest.raises(ValueError, match=r"decision matrix \(20, 19\)"):
        SubclassTargets(torch.zeros(16, 6), torch.zeros(16), torch.zeros(20, 6), torch.zeros(20, 19), num_subclasses=4)
    with pytest.raises(ValueError, match="codebook has shape"):
        Codebook(torch.zeros(3, 4, 1, 1))


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["fp32_precision", "allow_tf32", "set_float32_matmul_precision"])
def tensor_float_32(request):
    """The ways to ask a GPU for products in TensorFloat-32, which may not be mixed."""
    products = torch.backends.cuda.matmul
    usual, wanted, ask = {
        "fp32_precision": (products.fp32_precision, "tf32", lambda value: setattr(products, "fp32_precision", value)),
        "allow_tf32": (False, True, lambda value: setattr(products, "allow_tf32", value)),
        "set_float32_matmul_precision": ("highest", "high", torch.set_float32_matmul_precision),
    }[request.param]
    ask(wanted)
    yield
    ask(usual)


@pytest.mark.usefixtures("tensor_float_32")
def test_supervision_is_float32_whatever_the_network_runs_in(monkeypatch, subclasses):
    """Neither autocast nor TensorFloat-32, and afterwards as it was."""
    seen = []
    addmm = torch.addmm

    def watching(*given, **named):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
        return addmm(*given, **named)

    monkeypatch.setattr(torch, "addmm", watching)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.randn(2, 3, 2, 2)
        codebook = Codebook(torch.randn(5, 3))
        kl_to_scores(torch.randn(8, 5), codebook.targets(features))
        codebook.hard_assignment(features)
        subclasses.assign(torch.randn(2, C, 2, 2), torch.tensor([0, 1]))
        LDA(1).fit(torch.randn(8, 3), torch.arange(8) % 2).transform(torch.randn(4, 3))
        KMeans(2, max_iter=1).fit(torch.randn(9, 3))
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert len(seen) >= 6 and set(seen) == {("ieee", False)}


@pytest.mark.usefixtures("tensor_float_32")
def test_threads_leave_the_setting_of_the_process_as_it_was():
    """The one that came first leaves first, while the other still computes."""
    products, device = torch.backends.cuda.matmul, torch.device("cpu")
    first, second = full_precision(device), full_precision(device)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert products.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert products.fp32_precision == "tf32"


class Given:
    """Targets (P, K) that are there."""

    def __init__(self, targets_PK: torch.Tensor):
        self.targets_PK = targets_PK

    def rows(self, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
        rows_RK = self.targets_PK[chunk]
        return rows_RK, torch.special.xlogy(rows_RK, rows_RK).sum(dim=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.0**15, 2.0**16])
def test_float16_loses_no_gradient_before_the_factor_of_a_grad_scaler(monkeypatch, weighted, factor):
    """1/P (q - t) is below the least number of float16 for most words; 2^16 is above the largest."""
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 2**16)
    torch.manual_seed(0)
    num_patches, num_words = 512, 2048
    scores_PK = torch.randn(num_patches, num_words).half()
    targets_PK = (6 * torch.randn(num_patches, num_words)).softmax(dim=1)
    weights_P = torch.rand(num_patches) / num_patches if weighted else None

    def loss_and_gradient(scores_PK):
        leaf_PK = scores_PK.clone().requires_grad_()
        loss = kl_to_scores(leaf_PK, Given(targets_PK), weights_P)
        (factor * loss).backward(retain_graph=True)
        first_PK, leaf_PK.grad = leaf_PK.grad, None
        (factor * loss).backward()
        assert torch.equal(leaf_PK.grad, first_PK)
        return loss, first_PK

    loss, found_PK = loss_and_gradient(scores_PK)
    expected_loss, expected_PK = loss_and_gradient(scores_PK.float())
    assert loss.dtype == torch.float32 and torch.equal(loss, expected_loss)
    assert found_PK.dtype == torch.float16
    tiny = 2.0**-24  # the least number of float16, half of which is rounded
    torch.testing.assert_close(found_PK.float(), expected_PK, rtol=2e-3, atol=0.6 * tiny)
