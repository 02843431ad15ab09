"""Classes of image files, by a trained network or by an exported one.

An image is brought to the network's size as in evaluation (`dataloaders.decoding`): RGB with 8 bits a channel, the
shorter side scaled, the centre cropped. A file that cannot be read is named, and the others are predicted all the same.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS

from algorithms.base import Results, data_facts, set_numerics
from algorithms.evaluation import Evaluation
from algorithms.export import FORMAT, aligned, open_onnx
from algorithms.files import load_json
from dataloaders.augmentation import Normalize
from dataloaders.decoding import ImageError, Reader, SquarePixels

WILDCARDS = "*?["


@dataclass(frozen=True)
class Classifier:
    """Something that `predict` can use: pixels (B, S, S, 3) uint8 to logits (B, N) on the CPU, S = `image_size`."""

    source: Path
    classes: Sequence[str]
    image_size: int
    logits: Callable[[Tensor], Tensor]


class Prediction(Evaluation):
    """Predicts files with the last epoch of an experiment, its best, or epoch n, or with a file that was exported.

    Writes nothing.
    """

    def run(self) -> Results:
        """What `predict` returns for the files that the option `images` means."""
        config = self.config
        paths = find_images(config["images"])
        with set_numerics(config["precision"], deterministic=config["deterministic"]):
            exported = config["export_file"]
            classifier = open_export(Path(exported)) if exported else self._open_trained()
            options = {"batch_size": config["test_batch_size"], "num_workers": config["num_workers"]}
            return predict(classifier, paths, top=config["top"], **options)

    def _open_trained(self) -> Classifier:
        weights, _ = self._open_weights()
        data = weights.data or data_facts(self.open_dataset("eval"))
        size, mean, std = (self.config[key] or data[key] for key in ("image_size", "mean", "std"))
        model = self._open_model(weights, len(data["classes"])).eval()
        normalize = Normalize(mean, std, size, self.device)

        @torch.inference_mode()
        def logits(pixels: Tensor) -> Tensor:
            with self.autocast():
                return model(normalize(pixels.to(self.device))).float().cpu()

        return Classifier(weights.source, data["classes"], size, logits)


def open_export(path: Path) -> Classifier:
    """An exported ONNX file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, was not exported here, or is a pt2 file: reading one can run code that is in it.
    """
    if path.suffix == ".pt2":
        raise ValueError(f"export_file={path} is no .onnx file; export=onnx writes one, torch.export.load reads yours")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; export=onnx writes one")
    content, record = path.read_bytes(), path.with_name(f"{path.name}.json")
    if record.is_file() and load_json(record).get("file_sha256") != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{path} is damaged: its checksum in {record.name} does not fit")
    try:
        network, metadata = open_onnx(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by export=onnx: it does not say its classes and image size")

    def logits(pixels: Tensor) -> Tensor:
        return network(pixels.permute(0, 3, 1, 2).contiguous() / 255)

    return Classifier(path, metadata["classes"], metadata["preprocessing"]["center_crop"], logits)


def find_images(images: str | list[str] | None) -> list[Path]:
    """The files that a path, a pattern like photos/*.png, or a list of them means; of a folder all images in and below.

    A path that does not exist stays: reading it says so.

    Raises:
        ValueError: nothing is asked for, or a folder or pattern has no images.
    """
    wanted = [images] if isinstance(images, str) else images
    if not isinstance(wanted, list) or not wanted or not all(entry and isinstance(entry, str) for entry in wanted):
        raise ValueError(f"images={images!r} must be an image file, a folder, a pattern in quotes, or a list of them")
    return [path for entry in wanted for path in _expand(Path(entry).expanduser())]


def _expand(entry: Path) -> list[Path]:
    if not entry.exists() and set(WILDCARDS) & set(str(entry)):
        matches = Path(entry.anchor).glob(str(entry.relative_to(entry.anchor)))
        found = [path for match in sorted(matches) for path in _files(match)]
    else:
        found = _files(entry)
    if not found:
        raise ValueError(f"images={entry} has no images ({' '.join(IMG_EXTENSIONS)})")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    names = (file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    return sorted(file for file in names if not file.name.startswith(".") and file.is_file())


def predict(classifier: Classifier, paths: list[Path], *, top: int, batch_size: int, num_workers: int) -> Results:
    """The likeliest classes of image files, as plain values.

    Args:
        top: so many classes an image, or all there are.
        num_workers: processes that decode, where there is more than a batch.

    Returns:
        "network": the file it came from.
        "images": for each readable file `image`, its path; `label`, the name of its folder where that is a class, else
            None; and `predictions`, {"class", "probability"} with the likeliest first.
        "unreadable": for each other file `image` and `error`.
        "top1": accuracy in percent over the images that have a label, None without any.
    """
    images, unreadable = [], []
    for path, found in zip(paths, _classify(classifier, paths, top, batch_size, num_workers), strict=True):
        if isinstance(found, ImageError):
            unreadable.append({"image": str(path), "error": str(found)})
        else:
            label = path.parent.name if path.parent.name in classifier.classes else None
            images.append({"image": str(path), "label": label, "predictions": found})
    hits = [image["predictions"][0]["class"] == image["label"] for image in images if image["label"] is not None]
    top1 = 100 * sum(hits) / len(hits) if hits else None
    return {"network": str(classifier.source), "images": images, "unreadable": unreadable, "top1": top1}


def _classify(
    classifier: Classifier, paths: list[Path], top: int, batch_size: int, num_workers: int
) -> Iterator[list[dict[str, Any]] | ImageError]:
    loader = DataLoader(
        Reader(SquarePixels(classifier.image_size)),
        batch_size=batch_size,
        sampler=[str(path) for path in paths],
        num_workers=num_workers if len(paths) > batch_size else 0,
        collate_fn=list,
    )
    for batch in loader:
        readable = [torch.from_numpy(pixels) for pixels in batch if not isinstance(pixels, ImageError)]
        found = iter(_likeliest(classifier, torch.stack(readable), top) if readable else ())
        yield from (pixels if isinstance(pixels, ImageError) else next(found) for pixels in batch)


def _likeliest(classifier: Classifier, pixels: Tensor, top: int) -> list[list[dict[str, Any]]]:
    ranked = classifier.logits(pixels).softmax(dim=1).topk(min(top, len(classifier.classes)))
    return [
        [{"class": classifier.classes[index], "probability": value} for value, index in zip(*row, strict=True)]
        for row in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
    ]


def prediction_table(result: Results) -> str:
    """What `predict` returns as lines for a reader."""
    lines = []
    if images := result["images"]:
        labelled = any(image["label"] is not None for image in images)
        ranks = range(1, len(images[0]["predictions"]) + 1)
        rows = [["image", *["label"] * labelled, *(f"{rank}." for rank in ranks)]]
        for image in images:
            cells = [f"{guess['class']} {guess['probability']:6.1%}" for guess in image["predictions"]]
            rows.append([image["image"], *[image["label"] or "-"] * labelled, *cells])
        lines.append(aligned(rows))
    lines += [failure["error"] for failure in result["unreadable"]]
    if result["top1"] is not None:
        count = sum(image["label"] is not None for image in images)
        lines.append(f"{result['top1']:.2f}% of the {count} images in folders named like a class are predicted so")
    return "\n".join(lines)
