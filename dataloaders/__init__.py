"""Image classification data: registered datasets, augmentation on the training device, and the loaders over them.

dataset = load_dataset("CIFAR100", data_dir="data")
loader = make_train_loader(dataset, batch_size=64, device="cuda", seed=0)
loader.set_epoch(3)
for batch in loader: ...    # Batch: pixels (B, 3, H, W) uint8 channels_last, labels and index (B,) int64
"""

from dataloaders import cifar, digits, image_folder, imagenet, numbers, tiny_imagenet  # noqa: F401  importing registers
from dataloaders.batch import Batch, TrainLoader
from dataloaders.dataset import Dataset, ImageFiles, ImageTensors
from dataloaders.holdout import hold_out
from dataloaders.loaders import check_shares, check_train_batch, make_eval_loader, make_train_loader
from dataloaders.registry import (
    LoadRequest,
    list_datasets,
    load_dataset,
    outline_dataset,
    refuse_other_classes,
    register_dataset,
)

__all__ = [
    "Batch",
    "Dataset",
    "ImageFiles",
    "ImageTensors",
    "LoadRequest",
    "TrainLoader",
    "check_shares",
    "check_train_batch",
    "hold_out",
    "list_datasets",
    "load_dataset",
    "make_eval_loader",
    "make_train_loader",
    "outline_dataset",
    "refuse_other_classes",
    "register_dataset",
]
