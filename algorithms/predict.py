"""Classes of image files, by a trained network or by an exported one.

An image is brought to the network's size as in evaluation (`dataloaders.decoding`): RGB with 8 bits a channel, the
shorter side scaled, the centre cropped. A file that cannot be read is named, and the others are predicted all the same.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from algorithms.base import Results
from algorithms.evaluate import Evaluation, refuse_untrained
from algorithms.export import FORMAT, aligned, open_onnx
from architectures import InputConfig
from dataloaders.decoding import ImageError, Reader, SquarePixels
from dataloaders.facts import data_facts
from dataloaders.image_files import count_unused, counted, images_below, shown, visible, why_unused
from distillation.inputs import network_input, role_of
from engine.numerics import set_numerics
from letkd.processes import ALONE, Member, member, of_all
from results.settings import PREPARATION
from storage.tensor_files import load_json

WILDCARDS = "*?["


@dataclass(frozen=True)
class Classifier:
    """Something that `predict` can use: pixels (B, 3, S, S) uint8 to logits (B, N) on the CPU, S = `image_size`."""

    source: Path
    classes: Sequence[str]
    image_size: int
    logits: Callable[[Tensor], Tensor]


class Prediction(Evaluation):
    """Predicts files with the last epoch of an experiment, its best, or epoch n, or with a file that was exported.

    Writes nothing.
    """

    def run(self) -> Results:
        """What `predict` returns for the files that the option `images` means, and under "unused" how many more its
        folders and patterns hold, by ending.
        """
        options = self.options
        unused: dict[str, str] = {}
        paths = find_images(options.prediction.images, unused)
        with set_numerics(options.run.precision, deterministic=options.run.deterministic):
            exported = options.prediction.export_file
            classifier = open_export(Path(exported)) if exported else self._open_trained()
            predicted = predict(
                classifier,
                paths,
                member=member(),
                top=options.prediction.top,
                batch_size=options.protocol.test_batch_size,
                num_workers=options.run.num_workers,
            )
            return predicted | {"unused": count_unused(unused)}

    def _open_trained(self) -> Classifier:
        weights, _ = self._open_weights()
        refuse_untrained(weights)
        told = all(key in weights.trained_with for key in ("classes", *PREPARATION))
        data = weights.data or (weights.trained_with if told else data_facts(self._open_images(weights, "eval")))
        size, mean, std = (getattr(self.options.data, key) or data[key] for key in PREPARATION)
        images = InputConfig(size, size, tuple(mean), tuple(std))
        seen = network_input(self.options, role_of(self.options), images, weights)
        network = self._open_model(weights, len(data["classes"]), seen.image_size).eval()
        model = nn.Sequential(seen.module().to(self.device), network)

        @torch.inference_mode()
        def logits(pixels: Tensor) -> Tensor:
            with self.autocast():
                return model(pixels.to(self.device)).float().cpu()

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
        return network(pixels.contiguous() / 255)

    return Classifier(path, metadata["classes"], metadata["preprocessing"]["center_crop"], logits)


def find_images(images: str | list[str] | None, unused: dict[str, str] | None = None) -> list[Path]:
    """The files that a path, a pattern like photos/*.png, or a list of them means; of a folder all images in and below.

    What is an image `dataloaders.image_files` says, of folders and patterns alike. A single path is taken as it is, one
    that does not exist too: reading it says so.

    Args:
        unused: what else folders and patterns hold is added: why it is no image, by path.

    Raises:
        ValueError: nothing is asked for, or a folder or pattern has no images.
    """
    unused = {} if unused is None else unused
    wanted = [images] if isinstance(images, str) else images
    if not isinstance(wanted, list) or not wanted or not all(entry and isinstance(entry, str) for entry in wanted):
        raise ValueError(f"images={images!r} must be an image file, a folder, a pattern in quotes, or a list of them")
    # Unlike Path.expanduser this leaves ~name as it is where there is no such user: it may be a file's name.
    return [path for entry in wanted for path in _expand(os.path.expanduser(entry), unused)]  # noqa: PTH111


def _expand(entry: str, unused: dict[str, str]) -> list[Path]:
    path, others = Path(entry), {}
    if os.path.isdir(entry):  # noqa: PTH112  of a name that no file can have, pathlib raises an error
        found = images_below(path, others)
    elif not os.path.exists(entry) and set(WILDCARDS) & set(entry):  # noqa: PTH110
        found = sorted(set(_matching(Path(path.anchor), list(path.relative_to(path.anchor).parts), others)))
    else:
        return [path]
    if not found:
        holds = f": it holds {counted(count_unused(others))}" if others else " (.jpg, .png and what else Pillow reads)"
        raise ValueError(f"images={shown(entry)} has no images{holds}")
    unused.update(others)
    return [Path(file) for file in found]


def _matching(folder: Path, pattern: list[str], unused: dict[str, str]) -> Iterator[str]:
    """Images that lie where a pattern's parts lead, and below folders that match it.

    Path.glob would follow links to folders, and find what is hidden.
    """
    first, *rest = pattern
    if first == "**":
        yield from _matching(folder, rest or ["*"], unused)
        for entry in visible(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from _matching(Path(entry.path), pattern, unused)
    elif not set(WILDCARDS) & set(first) and rest:
        if (folder / first).is_dir():
            yield from _matching(folder / first, rest, unused)
    else:
        for entry in visible(folder):
            if not fnmatchcase(entry.name, first):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _matching(Path(entry.path), rest, unused) if rest else images_below(entry.path, unused)
            elif not rest and (reason := why_unused(entry)):
                unused[entry.path] = reason
            elif not rest:
                yield entry.path


def predict(
    classifier: Classifier,
    paths: list[Path],
    *,
    top: int,
    batch_size: int,
    num_workers: int,
    member: Member = ALONE,
) -> Results:
    """The likeliest classes of image files, as plain values.

    Args:
        top: so many classes an image, or all there are.
        num_workers: processes that decode, where there is more than a batch.
        member: of the processes that predict a part of the files each, and get what is found of all.

    Returns:
        "network": the file it came from.
        "images": for each readable file `image`, its path; `label`, the name of its folder where that is a class, else
            None; and `predictions`, {"class", "probability"} with the likeliest first.
        "unreadable": for each other file `image` and `error`.
        "top1": accuracy in percent over the images that have a label, None without any.
    """
    share, images, unreadable = member.share(len(paths)), [], []
    paths = paths[share.start : share.stop]
    for path, found in zip(paths, _classify(classifier, paths, top, batch_size, num_workers), strict=True):
        if isinstance(found, ImageError):
            unreadable.append({"image": str(path), "error": str(found)})
        else:
            label = path.parent.name if path.parent.name in classifier.classes else None
            images.append({"image": str(path), "label": label, "predictions": found})
    if member.size > 1:
        images, unreadable = (list(chain.from_iterable(of_all(found))) for found in (images, unreadable))
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
        found = iter(_likeliest(classifier, torch.stack(readable).permute(0, 3, 1, 2), top) if readable else ())
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
            cells = [f"{shown(guess['class'])} {guess['probability']:6.1%}" for guess in image["predictions"]]
            rows.append([shown(image["image"]), *[shown(image["label"] or "-")] * labelled, *cells])
        lines.append(aligned(rows))
    lines += [failure["error"] for failure in result["unreadable"]]
    if result["unused"]:
        lines.append(f"not used: {counted(result['unused'])}")
    if result["top1"] is not None:
        count = sum(image["label"] is not None for image in images)
        lines.append(f"{result['top1']:.2f}% of the {count} images in folders named like a class are predicted so")
    return "\n".join(lines)
