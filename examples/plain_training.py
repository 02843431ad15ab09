"""letKD in plain PyTorch: train a teacher, make its supervision, train a student with it.

python examples/plain_training.py                       # digits of scikit-learn, a minute on a CPU
python examples/plain_training.py --data my_images      # my_images/{train,val}/<class>/*, seen as 32 x 32
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import letkd


def open_data(folder: str | None) -> tuple[Dataset, Dataset, int]:
    """Training images, validation images, and the number of classes."""
    if folder:
        from torchvision import datasets
        from torchvision import transforms as T

        transform = T.Compose([T.Resize(32), T.CenterCrop(32), T.ToTensor(), T.Normalize([0.5] * 3, [0.25] * 3)])
        train, val = (datasets.ImageFolder(f"{folder}/{split}", transform) for split in ("train", "val"))
        return train, val, len(train.classes)
    from sklearn.datasets import load_digits

    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 8 - 1
    return TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:]), 10


def network(width: int, in_channels: int, num_classes: int) -> nn.Sequential:
    def block(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())

    stage1 = nn.Sequential(block(in_channels, width), block(width, width))
    stage2 = nn.Sequential(block(width, 2 * width, stride=2), block(2 * width, 2 * width))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
    return nn.Sequential(OrderedDict(stage1=stage1, stage2=stage2, head=head))


def fit(model: nn.Module, loss_of: Callable[..., Tensor], loader: DataLoader, epochs: int, device: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = loss_of(model, images.to(device), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def letkd_loss(student: letkd.AttachedStudent, images: Tensor, labels: Tensor) -> Tensor:
    logits, divergences = student.forward_with_losses(images, labels)
    return F.cross_entropy(logits, labels) + sum(divergences.values())


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    model.eval()
    correct = [(model(images.to(device)).argmax(1) == labels.to(device)).float() for images, labels in loader]
    return 100 * torch.cat(correct).mean().item()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of images; digits if there is none")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--words", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    train, val, num_classes = open_data(args.data)
    shuffled = DataLoader(train, 64, shuffle=True, drop_last=len(train) > 64)
    in_order, val_batches = DataLoader(train, 256), DataLoader(val, 256)
    in_channels = train[0][0].shape[0]

    teacher = network(32, in_channels, num_classes).to(args.device)
    fit(teacher, cross_entropy, shuffled, args.epochs, args.device)
    print(f"teacher {accuracy(teacher, val_batches, args.device):.1f}%")

    supervision = letkd.make_supervision(
        teacher, in_order, words={"stage2": args.words}, decisions={"stage2.0": 4}, num_classes=num_classes
    )
    student = letkd.attach(
        network(8, in_channels, num_classes).to(args.device),
        taps={"stage2": supervision["stage2"], "stage2.0": supervision["stage2.0"]},  # module of the student: teacher's
        teacher=teacher,
    )
    fit(student, letkd_loss, shuffled, args.epochs, args.device)
    print(f"student {accuracy(student, val_batches, args.device):.1f}%")


if __name__ == "__main__":
    main()
