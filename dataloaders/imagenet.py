"""ImageNet, ILSVRC 2012 (Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015).

    data_dir/train/<wnid>/*.JPEG                  1,281,167 training images
    data_dir/val/<wnid>/*.JPEG                    50,000 evaluation images

or as Kaggle's archive unpacks, its train/ and val/ below data_dir/ILSVRC/Data/CLS-LOC and all images of val/ side by
side: then data_dir/LOC_val_solution.csv has their classes. Classes are WordNet ids in alphabetical order, as in
torchvision's published networks. All images are streamed: random resized crops and flips for training, for evaluation
the central 224 x 224 of an image whose shorter side is scaled to 256.
"""

from pathlib import Path

from dataloaders.dataset import Dataset
from dataloaders.folders import (
    FilesByClass,
    find_in_class_folders,
    find_listed,
    find_root,
    holds_images,
    label_files,
    order_classes,
    read_list,
)
from dataloaders.registry import LoadRequest, always, refuse_test_split, register_dataset

IMAGE_SIZE = 224
# The statistics that torchvision's published networks were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KAGGLE_FOLDER, KAGGLE_SOLUTION = "ILSVRC/Data/CLS-LOC", "LOC_val_solution.csv"
LAYOUT = f"data_dir must hold train/<wnid>/ and val/<wnid>/, or Kaggle's {KAGGLE_FOLDER}/ and {KAGGLE_SOLUTION}"


@register_dataset("ImageNet", always(IMAGE_SIZE, IMAGENET_MEAN, IMAGENET_STD))
def imagenet(request: LoadRequest) -> Dataset:
    refuse_test_split("ImageNet", request, "the labels of its test images are not published")
    if request.data_dir is None:
        raise ValueError(f"ImageNet needs data_dir: {LAYOUT}")
    root = find_root("ImageNet", request.data_dir, KAGGLE_FOLDER, LAYOUT)
    solution = request.data_dir / KAGGLE_SOLUTION
    find = {"train": lambda: find_in_class_folders(root / "train"), "eval": lambda: _find_val(root / "val", solution)}
    found = {split: find[split]() for split in request.splits}
    classes = order_classes(root, request, found)
    return Dataset(
        name="ImageNet",
        classes=classes,
        image_size=request.image_size or IMAGE_SIZE,
        mean=request.mean or IMAGENET_MEAN,
        std=request.std or IMAGENET_STD,
        padding=0,  # of resident images only
        flip=True,
        **{split: label_files(split, found[split], classes) for split in request.splits},
    )


def _find_val(folder: Path, solution: Path) -> FilesByClass:
    if not holds_images(folder):
        return find_in_class_folders(folder)
    if not solution.is_file():
        raise FileNotFoundError(
            f"the images of {folder} are not sorted into a folder for each class, and there is no {solution} "
            "to tell their classes: move them into val/<wnid>/, or put Kaggle's file there"
        )
    images = read_list(solution)
    images.pop("ImageId", None)  # the header, ImageId,PredictionString
    return find_listed(folder, {f"{image}.JPEG": wnid for image, wnid in images.items()}, solution)
