"""letKD in plain PyTorch on handwritten digits: train a teacher, make its supervision, train a student with it.

python examples/plain_training.py     # a minute on a CPU; scikit-learn has the digits
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import letkd

NUM_CLASSES = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network(width: int) -> nn.Sequential:
    def block(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())

    stage1 = nn.Sequential(block(1, width), block(width, width))
    stage2 = nn.Sequential(block(width, 2 * width, stride=2), block(2 * width, 2 * width))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, NUM_CLASSES))
    return nn.Sequential(OrderedDict(stage1=stage1, stage2=stage2, head=head)).to(DEVICE)


def fit(model: nn.Module, loss_of: Callable[..., Tensor], loader: DataLoader, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = loss_of(model, images.to(DEVICE), labels.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def letkd_loss(student: letkd.Student, images: Tensor, labels: Tensor) -> Tensor:
    logits, divergences = student.forward_with_losses(images, labels)
    return F.cross_entropy(logits, labels) + sum(divergences.values())


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (model.eval()(images.to(DEVICE)).argmax(1).cpu() == labels).float().mean().item()


def main(epochs: int = 15, num_words: int = 128) -> None:
    torch.manual_seed(0)
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 8 - 1
    train, val = TensorDataset(images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    shuffled = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)

    teacher = network(width=32)
    fit(teacher, cross_entropy, shuffled, epochs)
    print(f"teacher {accuracy(teacher, *val):.1f}%")

    supervision = letkd.make_supervision(
        teacher,
        DataLoader(train, batch_size=256),
        words={"stage2": num_words},
        decisions={"stage2.0": 4},
        num_classes=NUM_CLASSES,
    )
    taps = {"stage2": supervision["stage2"], "stage2.0": supervision["stage2.0"]}  # module of the student: teacher's
    student = letkd.attach(network(width=8), taps, teacher=teacher)
    fit(student, letkd_loss, shuffled, epochs)
    print(f"student {accuracy(student, *val):.1f}%")


if __name__ == "__main__":
    main()
