"""What the benchmark measures against computes the same: losses, and weights after a few steps; what it counts."""

import multiprocessing

import pytest
import torch
from objective_tools import batch_of

from benchmarks import step as benchmark
from letkd import Codebook, KDLayer, kl_to_scores

SMALL = {"NUM_WORDS": 32, "NUM_CLASSES": 5, "NUM_SUBCLASSES": 2, "NUM_COMPONENTS": 4, "BATCH": 8}


@pytest.mark.parametrize("method", benchmark.METHODS)
def test_both_formulations_train_alike(monkeypatch, method):
    for name, value in SMALL.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setitem(benchmark.PAIRS, "tiny", ("resnet14", "resnet8"))
    case = benchmark.Case("tiny", method, "fp32", "cpu")
    plain, ours = benchmark.make_plain_step(case), benchmark.make_our_step(case)
    for _ in range(3):
        batch = batch_of(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), torch.randint(5, (8,)))
        expected, found = plain(batch)(), ours(batch)()
        assert set(expected) >= set(found) > {"ce", "words"}
        for name in found:
            scale = 100 if name == "top1" else 1  # ours is in percent
            assert found[name] == pytest.approx(scale * expected[name], rel=1e-4), name


@pytest.mark.parametrize("precision", benchmark.PRECISIONS)
def test_the_products_of_a_layer_are_counted_whatever_the_precision(precision):
    """Scores and values, two gradients of each, the words' logits; (C, C) products beside them."""
    images, side, channels, words = 4, 4, 8, 512
    layer, codebook = KDLayer(channels, words), Codebook(torch.randn(words, channels))
    maps = torch.randn(2, images, channels, side, side)

    def step() -> None:
        with torch.autocast("cpu", dtype=benchmark.DTYPES[precision], enabled=precision == "bf16"):
            output, scores = layer(maps[0].requires_grad_())
        (output.float().sum() + kl_to_scores(scores, codebook.targets(maps[1]))).backward()

    product = 2 * images * side * side * words * channels
    counted = benchmark.count_operations(step)
    small = 2 * (2 * images * side**2 + 4 * words) * channels**2
    assert 7 * product < counted <= 7 * product + small


def test_losses_that_differ_are_an_error():
    case = benchmark.Case("RN56_RN20", "letKD-1", "fp32", "cpu")
    figures = {"plain": {"ce": 2.0, "words": 1.0}, "ours": {"ce": 2.0, "words": 1.001}}
    with pytest.raises(RuntimeError, match=r"losses differ by 1\.0e-03"):
        benchmark._compare(case, figures)


def test_a_process_that_dies_is_an_error_and_not_waited_for(monkeypatch):
    """Forks here, which have torch loaded already; the benchmark itself starts processes that share nothing."""
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forks)
    with pytest.raises(RuntimeError, match="a process has ended; its error is above"):
        benchmark.measure(benchmark.Case("no such pair", "letKD-1", "fp32", "cpu"), threads=1, repeats=1, warm_up=0)
