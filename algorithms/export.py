"""Take the student away: one file of a trained network that runs without this project.

    <experiment>/export/<config>-<weights>.onnx     for ONNX Runtime, and whatever else reads ONNX
    <experiment>/export/<config>-<weights>.pt2      for torch.export.load
    <either>.json                                   its metadata once more, its size and its hash

The network takes `images` (batch, 3, S, S) float32, RGB in 0..1, any number of them, to `logits` (batch, N).
Normalisation and KD layers are inside, BatchNorm is folded where it can be (`distillation.deployment`). The file says
what `Export.metadata` lists: ONNX in `metadata_props`, whose values are JSON; pt2 in the extra file `metadata.json`.
"""

import hashlib
import importlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from algorithms.base import Results
from algorithms.evaluate import Evaluation, refuse_untrained, result_name
from architectures import InputConfig, create_model
from config.options import Options
from dataloaders import Dataset
from dataloaders.decoding import MAX_RESIDENT_SIZE
from distillation.build import network_name
from distillation.complexity import count_multiply_adds, count_parameters
from distillation.deployment import Resizing, deploy, trace
from distillation.signals import backbone_of
from engine.numerics import device_name
from engine.records import environment, log, now, read_results
from results.places import folders_of
from storage.state_dicts import Weights
from storage.tensor_files import first_line, save_json, write_atomically

FORMAT = "letkd-export-1"
FOLDER = "export"
INPUT, OUTPUT = "images", "logits"
PT2_METADATA = "metadata.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest absolute difference of a logit
CHECKED_BATCHES = (1, 2, 7)
TIMED_BATCHES = (1, 64)
MIN_CALLS, TIMED_SECONDS = 5, 0.5  # a latency is the median of so many calls, or of more in that time

Network = Callable[[Tensor], Tensor]  # images, RGB in 0..1, to logits
Metadata = dict[str, Any]


def to_onnx(program: ExportedProgram, metadata: Metadata) -> bytes:
    """A traced network as an ONNX file."""
    exported = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    model = exported.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "batch"
    for node in model.graph:
        node.metadata_props.clear()  # how torch called it
    model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    return exported.model_proto.SerializeToString()


def to_pt2(program: ExportedProgram, metadata: Metadata) -> bytes:
    """A traced network as a file of torch.export."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={PT2_METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def open_onnx(content: bytes) -> tuple[Network, Metadata]:
    """The network in an ONNX file, on the CPU with as many threads as torch has, and its metadata: {} if it is foreign.

    Raises:
        ValueError: onnxruntime is not installed, or cannot read the file.
    """
    (onnxruntime,) = require_packages("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise ValueError(f"onnxruntime cannot read it: {first_line(error)}") from error
    texts = session.get_modelmeta().custom_metadata_map
    is_ours = texts.get("format") == json.dumps(FORMAT)
    metadata = {key: json.loads(text) for key, text in texts.items()} if is_ours else {}
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0]), metadata


def open_pt2(content: bytes) -> tuple[Network, Metadata]:
    """The network in a file of torch.export, and its metadata. For files of our own: reading one may run code."""
    extra_files = {PT2_METADATA: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=extra_files)
    return torch.no_grad()(program.module()), json.loads(extra_files[PT2_METADATA])


WRITERS = {"onnx": to_onnx, "pt2": to_pt2}
READERS = {"onnx": open_onnx, "pt2": open_pt2}


def require_packages(*names: str) -> list[ModuleType]:
    """Import packages that only ONNX files need.

    Raises:
        ValueError: one is not installed; says what to install.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"ONNX files need a package that is missing ({error}): pip install {' '.join(names)}"
        ) from error


class Export(Evaluation):
    """Exports the last epoch of an experiment, its best, or epoch n; a teacher also with its published weights.

    A file that stands there has been read back and compared with the network in evaluation: logits of random images and
    of images of the evaluation split, in batches of 1, 2 and 7. All of it happens on the CPU in float32.
    """

    mode = "export"
    takes_many = False

    def __init__(self, options: Options):
        super().__init__(options.changed(cuda=False, precision="fp32"))
        self.given = options

    def _run(self) -> Results:
        kind = self.options.job.export
        if kind == "onnx":
            require_packages(*ONNX_PACKAGES)
        weights, epoch = self._open_weights()
        refuse_untrained(weights)
        dataset = self._open_images(weights, "eval")
        seen = self._seen(weights, dataset)
        model = self._open_model(weights, dataset.num_classes, seen.image_size).eval()
        metadata = self.metadata(dataset, seen, weights, epoch)
        about = self.about(weights, epoch) | self._changes(weights, dataset)
        name = result_name(about, self._standing(kind))
        path = self.directory / FOLDER / f"{self._name(name)}.{kind}"
        try:
            program = trace(self._deployed(model, dataset.num_classes, seen), seen.crop_size)
            content = WRITERS[kind](program, metadata)
        except Exception as error:  # a network of the user's own can fail in any way
            raise ValueError(f"cannot make {path}: {type(error).__name__}: {first_line(error)}") from error

        original = in_evaluation(model, seen)
        exported, found = READERS[kind](content)
        assert found == metadata, "the file has lost metadata"
        difference = largest_difference(exported, original, checked_images(self.loader, dataset))
        if not difference <= TOLERANCE:  # nor is NaN
            raise ValueError(
                f"{path} is not written: a logit is off by {difference:.2g}, and rounding makes {TOLERANCE:g} at most"
            )
        self.refuse_gone()
        record = path.with_name(f"{path.name}.json")
        record.unlink(missing_ok=True)  # first, and written last: a kill between leaves none of another file
        write_atomically(path, lambda file: file.write(content))
        facts = {"bytes": len(content), "largest_difference": difference}
        seal = {"file_sha256": hashlib.sha256(content).hexdigest()}
        save_json(record, metadata | facts | seal)

        costs = costs_of_network(model, seen.image_size) | latencies(original, seen.crop_size)
        export_costs = costs_of_export(content, program, seen.crop_size) | latencies(exported, seen.crop_size)
        log.info("%s\nfrom %s\n\n%s\n", path, weights.source, cost_table(costs, export_costs))
        log.info("checked: a logit differs by %.1e at most, on random and on real images", difference)
        return self._record_export(f"{name}.{kind}", export_costs | facts | {"file": str(path)} | about)

    def _changed(self, weights: Weights) -> dict[str, tuple[Any, Any]]:
        """All but the precision: an exported network has float32 whatever it was trained in."""
        return {key: values for key, values in super()._changed(weights).items() if key != "precision"}

    def metadata(self, dataset: Dataset, seen: InputConfig, weights: Weights, epoch: int | None) -> Metadata:
        """What a file says of itself: its classes, how to prepare an image, and what it was made from."""
        size = seen.crop_size
        inside = {"mean": list(seen.mean), "std": list(seen.std)}
        if seen.resizes:
            inside |= {"image_size": seen.image_size, "interpolation": _described(seen.interpolation)}
        return {
            "format": FORMAT,
            "classes": list(dataset.classes),
            "input": {"name": INPUT, "shape": ["batch", 3, size, size], "colours": "RGB", "range": [0, 1]},
            "preprocessing": {
                "shorter_side": shorter_side(size), "interpolation": _described("bilinear"), "center_crop": size,
                "divide_by": 255,
            },
            "inside": inside,
            "output": {"name": OUTPUT, "shape": ["batch", dataset.num_classes], "softmax": False},
            "provenance": {
                "config": self.options.job.config, "method": self.options.experiment.method,
                "dataset": self.options.data.dataset, "seed": self.options.run.seed,
                **({"name": self.options.job.name} if self.options.job.name else {}),
                "network": network_name(self.options), "weights": weights.source.name,
                **({"average": True} if self.options.job.average else {}),
                "weights_sha256": weights.fingerprint, "epoch": epoch, "exported": now(),
                "environment": environment(),
            },
        }  # fmt: skip

    def _standing(self, kind: str) -> dict[str, Results]:
        """What was exported in this format, by names without its ending."""
        exports = read_results(self.directory).get("exports", {})
        return {name.removesuffix(f".{kind}"): entry for name, entry in exports.items() if name.endswith(f".{kind}")}

    def _name(self, weights: str) -> str:
        trial = [f"seed{seed}" for seed in self.options.job.seeds]
        return "-".join([".".join(folders_of(self.options.job.run_name)), *trial, weights])

    def _deployed(self, model: nn.Module, num_classes: int, seen: InputConfig) -> nn.Module:
        backbone = None
        if backbone_of(model) is not model:
            size = {"num_classes": num_classes, "image_size": seen.image_size}
            backbone = create_model(network_name(self.options), **size)
        # ONNX has no memory formats: what is fast in channels_last would only be more transpositions there.
        memory_format = torch.contiguous_format if self.options.job.export == "onnx" else torch.channels_last
        resizing = Resizing(seen) if seen.resizes else None
        return deploy(model, seen.mean, seen.std, backbone=backbone, memory_format=memory_format, resizing=resizing)

    def _record_export(self, name: str, measured: Results) -> Results:
        """Beside what `results.json` holds already."""

        def add(results: Results) -> Results:
            results = results or self.facts()
            return results | {"exports": results.get("exports", {}) | {name: measured}}

        return self.update_results(add)


def shorter_side(image_size: int) -> int:
    """What `dataloaders.decoding.fit_square` scales an image's shorter side to."""
    return image_size if image_size <= MAX_RESIDENT_SIZE else int(image_size * 256 / 224)


def _described(interpolation: str) -> str:
    return interpolation if interpolation == "nearest" else f"{interpolation}, antialiased"


def in_evaluation(model: nn.Module, seen: InputConfig) -> Network:
    """A network as evaluation runs it, behind its input."""
    network = nn.Sequential(seen.module(), model)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return network(255 * images)

    return run


def checked_images(make_loader: Callable[[Dataset, str], Iterable], dataset: Dataset) -> list[Tensor]:
    """Batches of random images and of images of the evaluation split, RGB in 0..1."""
    split = dataset.split("eval")
    few = split.take(torch.arange(sum(CHECKED_BATCHES)) % len(split))
    pixels = torch.cat([batch.images for batch in make_loader(replace(dataset, eval=few), "eval")])
    real = pixels.contiguous() / 255
    return [*torch.rand(real.shape).split(CHECKED_BATCHES), *real.split(CHECKED_BATCHES)]


def largest_difference(exported: Network, original: Network, batches: Iterable[Tensor]) -> float:
    """Of any logit, absolute; NaN where either has one."""
    return torch.stack([(exported(images) - original(images)).abs().max() for images in batches]).max().item()


def latencies(network: Network, image_size: int) -> dict[str, float]:
    """Median milliseconds of a call, by batch size."""
    medians = {}
    for size in TIMED_BATCHES:
        images = torch.rand(size, 3, image_size, image_size)
        network(images)
        times: list[float] = []
        while len(times) < MIN_CALLS or sum(times) < TIMED_SECONDS:
            start = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - start)
        medians[f"milliseconds_batch_{size}"] = 1000 * statistics.median(times)
    return medians


def costs_of_network(model: nn.Module, image_size: int) -> dict[str, int]:
    """Bytes of its weights, parameters, and multiply-adds for one image."""
    return {
        "bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "parameters": count_parameters(model)["parameters"],
        "multiply_adds": count_multiply_adds(model, image_size)["multiply_adds"],
    }


def costs_of_export(content: bytes, program: ExportedProgram, image_size: int) -> dict[str, int]:
    """As `costs_of_network`, but the bytes are the file's, and the multiply-adds are counted as they run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(torch.zeros(1, 3, image_size, image_size))
    return {
        "bytes": len(content),
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def cost_table(network: dict[str, float], export: dict[str, float]) -> str:
    """Costs of the network and of the export side by side."""
    sides = (network, export)
    rows = [["", "network", "export"], ["size, kB", *(f"{side['bytes'] / 1000:,.0f}" for side in sides)]]
    rows += [[key.replace("_", "-"), *(f"{side[key]:,}" for side in sides)] for key in ("parameters", "multiply_adds")]
    for size in TIMED_BATCHES:
        name = f"ms for {size} ({device_name(torch.device('cpu'))})"
        rows.append([name, *(f"{side[f'milliseconds_batch_{size}']:.2f}" for side in sides)])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Rows as lines, their first cells flush left and the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
