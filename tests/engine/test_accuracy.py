"""Figures of an evaluation by class, against scikit-learn's."""

from contextlib import nullcontext

import pytest
import torch
from objective_tools import batch_of
from rank_tools import on_ranks
from sklearn.metrics import confusion_matrix, f1_score
from torch import nn

from engine.accuracy import by_class, evaluate

CLASSES = ("cat", "dog", "eel", "fox", "gnu")


class Given(nn.Module):
    """Predicts what its images say: the class that is the first pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), len(CLASSES)).float()


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """True and predicted classes: no image is of class 4, class 3 is never predicted, and 2 is always right."""
    true = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    return true, torch.tensor([0, 0, 1, 1, 4, 2, 2, 0, 1, 4])


def counts_of(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    images = predicted[:, None, None, None].expand(-1, 3, 1, 1)
    batches = [batch_of(images[part], true[part]) for part in (slice(0, 4), slice(4, 10))]
    measured = evaluate(Given(), batches, autocast=nullcontext())
    assert measured["top1"] == pytest.approx(100 * (true == predicted).float().mean().item())
    return measured["class_counts"]


def test_images_are_counted_by_their_class_and_by_the_one_that_they_were_given(labels):
    matrix = confusion_matrix(*labels, labels=range(len(CLASSES)))
    assert counts_of(*labels).tolist() == [
        matrix.sum(axis=1).tolist(),
        matrix.sum(axis=0).tolist(),
        matrix.diagonal().tolist(),
    ]


def test_the_f1_of_the_classes_that_occur_is_scikit_learns(labels):
    found = by_class(counts_of(*labels), CLASSES)["macro_f1"]
    assert found == pytest.approx(100 * f1_score(*labels, average="macro"))
    without = labels[0][:7], torch.tensor([0, 0, 1, 1, 1, 2, 2])  # 3 and 4 do not occur
    found = by_class(counts_of(*without), CLASSES)["macro_f1"]
    assert found == pytest.approx(100 * f1_score(*without, average="macro"))


def test_the_accuracy_of_a_class_is_the_share_of_its_images(labels):
    found = by_class(counts_of(*labels), CLASSES)["class_accuracies"]
    assert found == {"cat": pytest.approx(200 / 3), "dog": 50.0, "eel": 100.0, "fox": 0.0, "gnu": None}


# --- several processes -----------------------------------------------------------------------------------------------

PARTS = (slice(0, 3), slice(3, 10), slice(10, 10))  # of ten images in three processes, the last of which has none


def measured_of(parts: tuple[slice, ...], labels: tuple[torch.Tensor, torch.Tensor]) -> dict:
    true, predicted = labels
    images = predicted[:, None, None, None].expand(-1, 3, 1, 1)
    return evaluate(Given(), [batch_of(images[part], true[part]) for part in parts], autocast=nullcontext())


def measured_on_rank(rank: int, labels: tuple[torch.Tensor, torch.Tensor]) -> dict:
    with pytest.MonkeyPatch.context() as patch:  # labels are tensors, and no values to pickle
        patch.setattr(torch.distributed, "all_gather_object", None)
        return measured_of((PARTS[rank],), labels)


def test_processes_with_different_numbers_of_images_have_the_figures_of_one(labels, tmp_path):
    alone = measured_of(PARTS, labels)
    for found in on_ranks(3, measured_on_rank, tmp_path, labels):
        assert torch.equal(found["class_counts"], alone["class_counts"])
        assert {key: found[key] for key in ("top1", "top5")} == {key: alone[key] for key in ("top1", "top5")}
        assert found["loss"] == pytest.approx(alone["loss"])
