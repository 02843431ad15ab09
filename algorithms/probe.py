"""How well a linear classifier tells the classes apart by the intermediate map alone (supplement, table 4).

An image is the mean of its map over the grid, C numbers. scikit-learn's LDA learns from the training images without
augmentation and is measured on the evaluation split (`testset=True`: the third): before the KD layer and behind it, or
on the one map where there is no layer. Needs neither teacher nor supervision.
"""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.base import Results
from algorithms.evaluate import Evaluation, result_name
from architectures import Input
from dataloaders import Dataset
from distillation.build import build_network, load_trained, network_name
from distillation.expressions import INTERMEDIATE
from distillation.signals import Network
from engine.progress import phase
from engine.records import log
from letkd.taps import submodule
from storage.state_dicts import Weights


class LinearProbe(Evaluation):
    """Probes the last epoch of an experiment, its best, or epoch n; a teacher also with its published weights."""

    mode = "probe"
    takes_many = False

    def _run(self) -> Results:
        weights, epoch = self._open_weights()
        split = "test" if self.options.job.testset else "eval"
        dataset = self._open_images(weights, "train", split)
        seen = self._seen(weights, dataset)
        model, network_input = self._open_network(weights, dataset, seen.image_size), seen.module().to(self.device)
        known, known_labels = self._pooled_maps(model, network_input, dataset, "train", number=1)
        features, labels = self._pooled_maps(model, network_input, dataset, split, number=2)
        accuracies = {name: probe(known[name], known_labels, features[name], labels) for name in features}
        shown = ", ".join(f"{name} {accuracy:.2f}%" for name, accuracy in accuracies.items())
        log.info("%s: linear probe on %d %s images of %s: %s", weights.source, len(labels), split, dataset.name, shown)
        about = self.about(weights, epoch) | {"split": split} | self._changes(weights, dataset)
        about["num_images"] = {name: len(dataset.split(name)) for name in ("train", split)}
        return self._merge(accuracies | about)

    def _open_network(self, weights: Weights, dataset: Dataset, image_size: int) -> Network:
        """The network with its weights, on the device; nobody reads its logits, so that it may have any classes."""
        num_classes = weights.num_classes or dataset.num_classes
        model = build_network(self.options, num_classes, image_size)
        what = f"the network of {self.options.job.run_name} with {num_classes} classes"
        load_trained(model.module, network_name(self.options), weights, what=what)
        model.module.to(self.device, memory_format=torch.channels_last)
        return model

    @torch.inference_mode()
    def _pooled_maps(
        self, model: Network, network_input: Input, dataset: Dataset, split: str, *, number: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Maps (N, C) by name, pooled over the grid, and labels (N,) of all images of a split, in one of two phases."""
        loader = self.loader(dataset, split)
        model.module.eval()
        pooled, all_labels = defaultdict(list), []
        what, total = f"maps of {split} images", len(dataset.split(split))
        with phase(what, total, number=number, count=2, starts_up=True) as line:
            for batch in line.over(loader):
                with self.autocast():
                    maps = intermediate_maps(model, network_input(batch.images))
                for name, map_BCHW in maps.items():
                    pooled[name].append(map_BCHW.float().mean(dim=(2, 3)))
                all_labels.append(batch.labels)
        features = {name: torch.cat(rows).cpu().numpy() for name, rows in pooled.items()}
        return features, torch.cat(all_labels).cpu().numpy()

    def _merge(self, measured: Results) -> Results:
        """Beside what `results.json` holds already, by the name of the weights."""

        def add(results: Results) -> Results:
            results = results or self.facts()
            standing = results.get("linear_probe", {})
            return results | {"linear_probe": standing | {result_name(measured, standing): measured}}

        return self.update_results(add)


def intermediate_maps(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Maps (B, C, H, W): "layer input" and "layer output" of the intermediate KD layer, or without one the "map"."""
    maps, has_layer = {}, INTERMEDIATE in network.layers
    place = network.place_of_layer(INTERMEDIATE) if has_layer else network.outline.place(INTERMEDIATE)

    def record_layer(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        maps.update({"layer input": place.read(inputs[0]), "layer output": place.read(output[0])})

    def record_map(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        maps["map"] = place.read(output)

    if has_layer:
        hook = network.layers[INTERMEDIATE].register_forward_hook(record_layer)
    else:
        hook = submodule(network.backbone, place.path).register_forward_hook(record_map)
    with hook:
        network.module(images)
    return maps


def probe(known_NC: np.ndarray, known_labels_N: np.ndarray, features_MC: np.ndarray, labels_M: np.ndarray) -> float:
    """Accuracy in percent on M images of an LDA classifier of N others."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # takes two seconds to import

    classifier = LinearDiscriminantAnalysis().fit(known_NC, known_labels_N)
    return 100 * float(classifier.score(features_MC, labels_M))
