"""Training as one writes it without a framework, to be measured against: nothing in letKD uses this.

A DataLoader of torchvision's transforms, networks as they come, the loss of `benchmarks.plain_methods`, and the host
reads loss and hits in every step. `crd` is a step like that of CRD (Tian, Krishnan, Isola: Contrastive Representation
Distillation, ICLR 2020), for scale; CRD is no method of letKD:

    s_BD = embedded pooled vectors of the student, t_BD of the teacher, both of length 1; M1, M2 their memories
    x1 = exp(M2[i]_BKD s_BD / 0.07) / Z1,  x2 = exp(M1[i]_BKD t_BD / 0.07) / Z2,  i: the sample and K others
    L = sum over x1 and x2 of -mean_B [log(x_0 / (x_0 + K/n)) + sum_K log((K/n) / (x_k + K/n))]

n is the number of images, Z the mean of the first scores times n. The data set draws K = 16384 images of other classes
for every sample, and the rows of the batch move half of their way to s and t.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from architectures import create_model
from benchmarks.plain_methods import divergence
from dataloaders.dataset import ImageTensors
from distillation.signals import Wanted, measured

DIMENSIONS, TAU, SMALLEST = 128, 0.07, 1e-7
CRD_WEIGHT, KD_WEIGHT, TEMPERATURE = 0.8, 0.9, 4.0


class Images(torch.utils.data.Dataset):
    """Augmented images, labels, positions, and for CRD positions of images of other classes, (1 + K,) with the own."""

    def __init__(self, split: ImageTensors, mean: tuple[float, ...], std: tuple[float, ...], negatives: int):
        self.images, self.labels, self.negatives = split.images.numpy(), split.labels.numpy(), negatives
        if negatives:
            self.others = [np.flatnonzero(self.labels != label) for label in range(self.labels.max() + 1)]
        crop = T.RandomCrop(self.images.shape[1], padding=4)
        self.transform = T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, np.ndarray]:
        label, contrast = self.labels[index], np.array([index])
        if self.negatives:
            drawn = np.random.choice(self.others[label], self.negatives, replace=False)  # noqa: NPY002, as one writes it
            contrast = np.concatenate([contrast, drawn])
        return self.transform(Image.fromarray(self.images[index])), int(label), contrast


class Contrast(nn.Module):
    """The loss of CRD, with its memories."""

    def __init__(self, channels: int, teacher_channels: int, num_images: int):
        super().__init__()
        self.embed_s, self.embed_t = nn.Linear(channels, DIMENSIONS), nn.Linear(teacher_channels, DIMENSIONS)
        bound = (DIMENSIONS / 3) ** -0.5
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, torch.empty(num_images, DIMENSIONS).uniform_(-bound, bound))
        self.scales: list[float] = []

    def forward(self, student_BC: Tensor, teacher_BC: Tensor, index_BK: Tensor) -> Tensor:
        s_BD, t_BD = F.normalize(self.embed_s(student_BC)), F.normalize(self.embed_t(teacher_BC))
        scores = [self.scores(*pair, index_BK) for pair in ((self.memory_t, s_BD), (self.memory_s, t_BD))]
        if not self.scales:
            self.scales = [x_BK.mean().item() * len(self.memory_s) for x_BK in scores]
        loss = sum(self.contrast(x_BK / scale) for x_BK, scale in zip(scores, self.scales, strict=True))
        with torch.no_grad():
            for memory, new_BD in ((self.memory_s, s_BD), (self.memory_t, t_BD)):
                memory[index_BK[:, 0]] = F.normalize(0.5 * memory[index_BK[:, 0]] + 0.5 * new_BD)
        return loss

    def scores(self, memory: Tensor, anchor_BD: Tensor, index_BK: Tensor) -> Tensor:
        rows_BKD = memory[index_BK.flatten()].view(*index_BK.shape, DIMENSIONS)
        return torch.exp(torch.bmm(rows_BKD, anchor_BD.unsqueeze(2)).squeeze(2) / TAU)

    def contrast(self, x_BK: Tensor) -> Tensor:
        ratio = (x_BK.shape[1] - 1) / len(self.memory_s)
        own_B = torch.log(x_BK[:, 0] / (x_BK[:, 0] + ratio + SMALLEST))
        others_B = torch.log(ratio / (x_BK[:, 1:] + ratio + SMALLEST)).sum(dim=1)
        return -(own_B + others_B).mean()


def train(
    method: str, networks: tuple[str, str], split: ImageTensors, mean: tuple[float, ...], std: tuple[float, ...], *,
    num_classes: int, batch_size: int, negatives: int, learning_rate: float, device: torch.device,
) -> Iterator[float]:  # fmt: skip
    """Endless steps of "KD" or "CRD"; yields the loss of each.

    Args:
        networks: teacher and student.
    """
    size, is_crd = split.images.shape[1], method == "CRD"
    teacher, student = (create_model(name, num_classes=num_classes).to(device) for name in networks)
    read = [measured(each, size).reading(Wanted(logits=True, pooled=is_crd)) for each in (teacher, student)]
    widths = [each.outline.num_features for each in read]
    crd = Contrast(widths[1], widths[0], len(split)).to(device) if is_crd else None
    parameters = [*student.parameters(), *(crd.parameters() if is_crd else ())]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    data = Images(split, mean, std, negatives if is_crd else 0)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True)
    teacher.eval()
    student.train()
    hits = 0
    while True:
        for images, labels, index in loader:
            images, labels, index = images.to(device), labels.to(device), index.to(device)  # noqa: PLW2901
            with torch.no_grad():
                taught = read[0](images)
            seen = read[1](images)
            loss = F.cross_entropy(seen.logits, labels)
            if is_crd:
                loss = loss + CRD_WEIGHT * crd(seen.pooled, taught.pooled, index)
            else:
                loss = (1 - KD_WEIGHT) * loss + KD_WEIGHT * divergence(seen.logits, taught.logits, TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += (seen.logits.argmax(dim=1) == labels).sum().item()
            yield loss.item()
