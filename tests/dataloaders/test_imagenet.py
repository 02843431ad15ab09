"""ImageNet from small trees: a folder for each class, and Kaggle's archive as it unpacks."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dataloaders import ImageFiles, load_dataset, make_eval_loader, make_train_loader

CLASSES = ("n01440764", "n01443537", "n02124075")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VAL = {f"ILSVRC2012_val_{index:08}": CLASSES[(2 * index) % 3] for index in range(1, 7)}
SOLUTION = "ImageId,PredictionString\n" + "".join(
    f"{image},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for image, wnid in reversed(VAL.items())
)


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((100, 80)).save(path)


def make_tree(root, val):
    """Three training images a class, and the evaluation images at `val(image, wnid)` below val/."""
    for label, wnid in enumerate(CLASSES):
        for index in range(3):
            save(root / "train" / wnid / f"{wnid}_{index}.JPEG", seed=10 * label + index)
    for seed, (image, wnid) in enumerate(VAL.items()):
        save(root / "val" / val(image, wnid), seed=100 + seed)


@pytest.fixture
def prepared(tmp_path):
    make_tree(tmp_path, lambda image, wnid: f"{wnid}/{image}.JPEG")
    return tmp_path


@pytest.fixture
def kaggle(tmp_path):
    make_tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", lambda image, wnid: f"{image}.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(SOLUTION)
    return tmp_path


def load(data_dir, **options):
    return load_dataset("ImageNet", data_dir=data_dir, **options)


def files_and_classes(dataset):
    stems = [path.rsplit("/", 1)[1].removesuffix(".JPEG") for path in dataset.eval.paths]
    return dict(zip(stems, (dataset.classes[label] for label in dataset.eval.labels), strict=True))


def test_a_folder_for_each_class(prepared):
    dataset = load(prepared)
    assert dataset.name == "ImageNet" and dataset.classes == CLASSES and dataset.test is None
    assert (dataset.image_size, dataset.flip, dataset.mean, dataset.std) == (224, True, MEAN, STD)
    assert isinstance(dataset.train, ImageFiles) and dataset.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert files_and_classes(dataset) == VAL


def test_kaggles_archive_as_it_unpacks(kaggle):
    dataset = load(kaggle)
    assert len(dataset.train) == 9 and files_and_classes(dataset) == VAL


def test_a_flat_val_beside_train_with_kaggles_list(kaggle):
    for split in ("train", "val"):
        (kaggle / "ILSVRC" / "Data" / "CLS-LOC" / split).rename(kaggle / split)
    assert files_and_classes(load(kaggle)) == VAL


@pytest.mark.parametrize("layout", ["prepared", "kaggle"])
def test_evaluation_needs_no_training_images(layout, request):
    data_dir = request.getfixturevalue(layout)
    next(data_dir.rglob("train")).rename(data_dir / "elsewhere")
    dataset = load(data_dir, splits=("eval",))
    assert dataset.classes == CLASSES and files_and_classes(dataset) == VAL


def test_training_crops_are_torchvisions_random_resized_crop_and_flip(prepared):
    loader = make_train_loader(load(prepared), batch_size=4, device="cpu", seed=0)
    batch = next(iter(loader))
    assert batch.images.shape == (4, 3, 224, 224) and batch.labels.shape == (4,)
    resized_crop, flip = loader.batches.dataset.read.transform.transforms
    reference = T.RandomResizedCrop(224)
    assert vars(resized_crop) == vars(reference) and vars(flip) == vars(T.RandomHorizontalFlip())


def test_evaluation_scales_the_shorter_side_to_256_and_crops_the_central_224(prepared):
    dataset = load(prepared)
    reference = T.Compose([T.Resize(256), T.CenterCrop(224), T.PILToTensor()])
    batch = next(iter(make_eval_loader(dataset, batch_size=6, device="cpu")))
    expected = torch.stack([reference(Image.open(path)) for path in dataset.eval.paths])
    assert torch.equal(batch.images, expected)


def test_small_images_are_streamed_as_well(prepared):
    dataset = load(prepared, image_size=64)
    assert isinstance(dataset.train, ImageFiles) and isinstance(dataset.eval, ImageFiles)
    batch = next(iter(make_train_loader(dataset, batch_size=2, device="cpu", seed=0)))
    assert batch.images.shape == (2, 3, 64, 64)


# Mistakes


def test_a_flat_val_without_a_list_says_what_is_needed(kaggle):
    (kaggle / "LOC_val_solution.csv").unlink()
    (kaggle / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n")
    with pytest.raises(FileNotFoundError, match=r"move them into val/<wnid>/, or put Kaggle's file there") as error:
        load(kaggle)
    assert "\n" not in str(error.value) and str(kaggle / "LOC_val_solution.csv") in str(error.value)


def test_a_half_sorted_val_is_not_taken_for_a_whole_one(prepared):
    path = next((prepared / "val").rglob("*.JPEG"))
    path.rename(prepared / "val" / path.name)
    with pytest.raises(FileNotFoundError, match="are not sorted into a folder for each class"):
        load(prepared)


def test_an_image_that_the_list_lacks_is_named(kaggle):
    (kaggle / "LOC_val_solution.csv").write_text("\n".join(SOLUTION.splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000001\.JPEG is not listed in .*LOC_val_solution\.csv"):
        load(kaggle)


def test_missing_folders_name_the_layout(tmp_path):
    layout = r"data_dir must hold train/<wnid>/ and val/<wnid>/, or Kaggle's ILSVRC/Data/CLS-LOC/"
    with pytest.raises(ValueError, match=rf"ImageNet needs data_dir: {layout}"):
        load_dataset("ImageNet")
    with pytest.raises(FileNotFoundError, match=rf"ImageNet is not in .*nowhere: {layout}"):
        load(tmp_path / "nowhere")
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*train: it must hold a folder of images"):
        load(tmp_path)


def test_there_is_no_labelled_test_split(prepared):
    with pytest.raises(ValueError, match=r"ImageNet has no split 'test': .*; choose from train, eval"):
        load(prepared, splits=("test",))
