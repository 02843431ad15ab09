"""Tiny-ImageNet: 200 classes of ImageNet at 64 x 64 (Stanford CS231n; Le & Yang, 2015), from its archive as it unpacks.

    data_dir/tiny-imagenet-200/train/<wnid>/images/*.JPEG       100,000 training images
    data_dir/tiny-imagenet-200/val/images/*.JPEG                10,000 evaluation images, their classes in
    data_dir/tiny-imagenet-200/val/val_annotations.txt          lines of file, wnid and box, separated by tabs
    data_dir/tiny-imagenet-200/test/images/*.JPEG               not used: without labels

`data_dir` may also be the folder tiny-imagenet-200 itself, and val/ may have been sorted into val/<wnid>/ or
val/images/<wnid>/. Classes are WordNet ids in alphabetical order. The images are decoded once per start and stay
resident (1.35 GB).
"""

from pathlib import Path

from dataloaders.dataset import Dataset
from dataloaders.folders import (
    FilesByClass,
    class_folders,
    find_in_class_folders,
    find_listed,
    find_root,
    holds_images,
    label_files,
    load_split,
    order_classes,
    read_list,
)
from dataloaders.registry import DEFAULT_DATA_DIR, LoadRequest, always, refuse_test_split, register_dataset

ARCHIVE, ARCHIVE_FOLDER = "tiny-imagenet-200.zip", "tiny-imagenet-200"
ADDRESS = f"http://cs231n.stanford.edu/{ARCHIVE}"

IMAGE_SIZE = 64
# The paper does not state its augmentation: as for CIFAR, reflect padding of an eighth of the side, and flips.
PADDING_SHARE = 8
# Per-channel statistics of the training images, as commonly given for this data set.
TINY_IMAGENET_MEAN, TINY_IMAGENET_STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


@register_dataset("TinyImageNet", always(IMAGE_SIZE, TINY_IMAGENET_MEAN, TINY_IMAGENET_STD))
def tiny_imagenet(request: LoadRequest) -> Dataset:
    refuse_test_split("TinyImageNet", request, "its test images have no labels")
    data_dir = request.data_dir or DEFAULT_DATA_DIR
    root = find_root("TinyImageNet", data_dir, ARCHIVE_FOLDER, f"unpack {ARCHIVE} there ({ADDRESS})")
    find = {"train": lambda: find_in_class_folders(root / "train"), "eval": lambda: _find_val(root / "val")}
    found = {split: find[split]() for split in request.splits}
    classes = order_classes(root, request, found)
    files = {split: label_files(split, found[split], classes) for split in request.splits}
    image_size = request.image_size or IMAGE_SIZE
    return Dataset(
        name="TinyImageNet",
        classes=classes,
        image_size=image_size,
        mean=request.mean or TINY_IMAGENET_MEAN,
        std=request.std or TINY_IMAGENET_STD,
        padding=image_size // PADDING_SHARE,
        flip=True,
        **{split: load_split(split, files[split], image_size, request) for split in request.splits},
    )


def _find_val(folder: Path) -> FilesByClass:
    images, annotations = folder / "images", folder / "val_annotations.txt"
    if not holds_images(images):
        return find_in_class_folders(images if images.is_dir() and class_folders(images) else folder)
    if not annotations.is_file():
        raise FileNotFoundError(f"there is no {annotations}, the classes of {images}; unpack {ARCHIVE} again")
    return find_listed(images, read_list(annotations), annotations)
