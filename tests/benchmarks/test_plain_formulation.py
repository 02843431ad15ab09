"""What the benchmark measures against computes the same: losses, and weights after a few steps."""

import pytest
import torch

from benchmarks import step as benchmark

SMALL = {"NUM_WORDS": 32, "NUM_CLASSES": 5, "NUM_SUBCLASSES": 2, "NUM_COMPONENTS": 4, "BATCH": 8}


@pytest.mark.parametrize("method", benchmark.METHODS)
def test_both_formulations_train_alike(monkeypatch, method):
    for name, value in SMALL.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setitem(benchmark.PAIRS, "tiny", ("resnet14", "resnet8"))
    case = benchmark.Case("tiny", method, "fp32", "cpu")
    plain, ours = benchmark.make_plain_step(case), benchmark.make_our_step(case)
    for _ in range(3):
        images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
        expected, found = plain(images, labels)(), ours(images, labels)()
        for name in found:
            scale = 100 if name == "top1" else 1  # ours is in percent
            assert found[name] == pytest.approx(scale * expected[name], rel=1e-4), name
