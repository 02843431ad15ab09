"""Time and memory of the offline part: k-means against faiss, LDA and decision scores against scikit-learn and NumPy.

    python -m benchmarks.offline                          3,200,000 made-up patches, as many as CIFAR-100's of 8 x 8
    python -m benchmarks.offline config=digits.RN14       of a trained network, as its kmeans and LDA jobs see them

Made-up patches are a mixture of rectified Gaussians, one a class. Memory is the largest resident set during a row
beyond what was resident before it, so beyond the patches; what an earlier row freed is given back first. faiss assigns
the same centroids in each iteration up to rounding; its objective is printed for the same iteration.
"""

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from algorithms.features import OfflineAlgorithm
from benchmarks.precision import read_options
from benchmarks.step import describe_machine, machine_rates
from letkd import LDA, KMeans, decision_matrix, fit_subclasses
from letkd.fit import hold_patches

NUM_SUBCLASSES, NUM_COMPONENTS = 8, 60  # the paper's
STATUS = Path("/proc/self/status")


def made_up_patches(num_patches: int, num_channels: int, num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels_P = torch.randint(num_classes, (num_patches,), generator=generator)
    means_NC = torch.randn(num_classes, num_channels, generator=generator)
    return (means_NC[labels_P] + torch.randn(num_patches, num_channels, generator=generator)).relu_(), labels_P


class TrainedNetwork(OfflineAlgorithm):
    """Reads the patches of the experiment's network at both maps."""

    mode = "kmeans"
    writes_files = False

    def both(self) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (P, C) of the penultimate and of the intermediate map, and classes (P,) of the latter."""
        self.open()
        maps = [self.teacher_map(self.place(name)) for name in ("penultimate", "intermediate")]
        held = [hold_patches(self.source(of), [of.path], hold=self.hold)[of.path] for of in maps]
        (words_PC, _), (decisions_PC, labels_P) = held
        return words_PC, decisions_PC, labels_P


def _resident(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the last reset."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, MiB beyond what was resident before, and what the function returns."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins anew
    before, start = _resident("VmRSS"), time.perf_counter()
    result = function()
    return time.perf_counter() - start, _resident("VmHWM") - before, result


def plain_decisions(projected: np.ndarray, members: np.ndarray, num_targets: int) -> np.ndarray:
    """Decision matrix with full distances, chunk by chunk."""
    prototypes = np.stack([projected[members == target].mean(axis=0) for target in range(num_targets)])
    decisions = np.zeros((num_targets, num_targets))
    for start in range(0, len(projected), 2**16):
        rows = projected[start : start + 2**16]
        distances = (rows**2).sum(1)[:, None] - 2 * rows @ prototypes.T + (prototypes**2).sum(1)
        np.add.at(decisions, (members[start : start + 2**16], distances.argmin(axis=1)), 1)
    return decisions / decisions.sum(axis=1, keepdims=True)


def measure_kmeans(patches_PC: Tensor, num_words: int, iterations: dict[str, int], rate: float) -> None:
    """Rows of the table for both backends; faiss may run fewer iterations, the objective is of its last."""
    print("| k-means | iterations | seconds each | rate, share of a large product's | objective | MiB |")
    print("|---|---|---|---|---|---|")
    inertias = {}
    operations = 2 * patches_PC.numel() * num_words
    for backend, number in iterations.items():
        kmeans = KMeans(num_words, max_iter=number, backend=backend)
        seconds, memory, fitted = measure(lambda kmeans=kmeans: kmeans.fit(patches_PC))
        each = seconds / (number + 1)  # and the assignment to the last centroids
        inertias[backend] = fitted.inertias_
        print(
            f"| {backend} | {number} | {each:.2f} | {100 * operations / each / rate:.0f} % "
            f"| {fitted.inertias_[-1]:.6g} | {memory:.0f} |",
            flush=True,
        )
    common = min(iterations.values())
    ours, theirs = (inertias[backend][common - 1] for backend in ("torch", "faiss"))
    print(f"\nobjective of iteration {common}: torch {ours:.7g}, faiss {theirs:.7g}\n")


def measure_decisions(patches_PC: Tensor, labels_P: Tensor) -> None:
    """Rows of the table for LDA, sub-classes and decision matrix."""
    num_classes = int(labels_P.max()) + 1
    features, labels = patches_PC.numpy(), labels_P.numpy()
    print("| step | scikit-learn, NumPy | letKD | ratio | MiB theirs | MiB ours |")
    print("|---|---|---|---|---|---|")
    totals = np.zeros(2)

    def row(name: str, theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
        their_seconds, their_memory, their_result = measure(theirs)
        our_seconds, our_memory, our_result = measure(ours)
        totals[:] += their_seconds, our_seconds
        print(
            f"| {name} | {their_seconds:.1f} s | {our_seconds:.1f} s | {their_seconds / our_seconds:.1f} "
            f"| {their_memory:.0f} | {our_memory:.0f} |",
            flush=True,
        )
        return their_result, our_result

    _, lda = row(
        "LDA",
        lambda: LinearDiscriminantAnalysis().fit(features, labels),
        lambda: LDA().fit(patches_PC, labels_P),
    )
    lda.n_components = min(NUM_COMPONENTS, lda.scalings_.shape[1])
    projected_PL = lda.transform(patches_PC)
    projected = projected_PL.numpy()
    num_targets = num_classes * NUM_SUBCLASSES
    _, (_, members_P) = row(
        "sub-classes",
        lambda: [
            ReferenceKMeans(NUM_SUBCLASSES, n_init=1, max_iter=20, tol=0).fit(projected[labels == label])
            for label in range(num_classes)
        ],
        lambda: fit_subclasses(projected_PL, labels_P, num_classes=num_classes, num_subclasses=NUM_SUBCLASSES),
    )
    row(
        "decision matrix",
        lambda: plain_decisions(projected, members_P.numpy(), num_targets),
        lambda: decision_matrix(projected_PL, members_P, num_targets=num_targets),
    )
    print(f"| together | {totals[0]:.1f} s | {totals[1]:.1f} s | {totals[0] / totals[1]:.1f} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs="*", metavar="config=A.B.C", help="and other options of the entry")
    parser.add_argument("--patches", type=int, default=3_200_000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--words", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--faiss-iterations", type=int, default=2)
    args = parser.parse_args()
    if args.options:
        words_PC, decisions_PC, labels_P = TrainedNetwork(read_options(args.options).changed(cuda=False)).both()
    else:
        words_PC, labels_P = made_up_patches(args.patches, args.channels, args.classes)
        decisions_PC = words_PC
    rate, _ = machine_rates("cpu")
    print(f"{describe_machine('cpu', torch.get_num_threads())}; large products run at {rate / 1e9:.0f} GFLOP/s")
    print(f"{len(words_PC):,} patches of {words_PC.shape[1]} channels, {int(labels_P.max()) + 1} classes\n")
    measure_kmeans(words_PC, args.words, {"torch": args.iterations, "faiss": args.faiss_iterations}, rate)
    measure_decisions(decisions_PC, labels_P)


if __name__ == "__main__":
    main()
