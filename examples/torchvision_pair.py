"""letKD with two torchvision networks on a folder of images, data/train/<class>/* and data/val/<class>/*.

    python examples/torchvision_pair.py --data my_images --pretrained

The teacher is trained first, from the published ImageNet weights with `--pretrained`. Teacher, supervision and student
stay in `--output`; what is there is not made again.
"""

import argparse
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import letkd

socket.setdefaulttimeout(10)  # of the download of published weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the published weights


class Validation(ImageFolder):
    """Images whose labels count the folders of train/."""

    def __init__(self, class_to_idx: dict[str, int], *args: object):
        self.numbers = class_to_idx
        super().__init__(*args, allow_empty=True)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return list(self.numbers), self.numbers


def check_classes(folder: str, classes: Iterable[str]) -> None:
    """val/ may lack a class of train/, but has no other: labels count the folders of train/."""
    there = {path.name for path in Path(folder, "val").iterdir() if path.is_dir() and not path.name.startswith(".")}
    if others := sorted(there - set(classes)):
        raise SystemExit(f"error: {folder}/val has classes that {folder}/train has not: {', '.join(others)}")


def loaders(folder: str, size: int, batch_size: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Augmented training images, the same ones without augmentation, and validation images."""
    as_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    upright = v2.Lambda(ImageOps.exif_transpose)  # as the camera has noted
    augmented = v2.Compose([upright, v2.RandomResizedCrop(size, scale=(0.5, 1)), v2.RandomHorizontalFlip(), *as_tensor])
    plain = v2.Compose([upright, v2.Resize(size), v2.CenterCrop(size), *as_tensor])
    train, clean = ImageFolder(f"{folder}/train", augmented), ImageFolder(f"{folder}/train", plain)
    check_classes(folder, train.classes)
    val = Validation(train.class_to_idx, f"{folder}/val", plain)
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=len(train) > batch_size),
        DataLoader(clean, batch_size),
        DataLoader(val, batch_size),
    )


def network(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """A ResNet of torchvision with a classifier for our classes."""
    try:
        net = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise SystemExit(
            f"error: the published weights of {name} could not be loaded ({error}); --teacher-checkpoint takes a file"
        ) from None
    net.fc = nn.Linear(net.fc.in_features, num_classes)
    return net


def load_teacher(teacher: nn.Module, file: Path) -> None:
    """Weights of one's own: a state dict with the names and shapes of the teacher."""
    try:
        teacher.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # no file, no torch file or other weights fail in many ways
        raise SystemExit(f"error: {file} does not fit the teacher: {' '.join(str(error).split())[:200]}") from None


def check_sizes(supervision: letkd.Supervision, wanted: dict[str, int]) -> None:
    """Refuse a file that was made with other --words or --subclasses.

    Args:
        wanted: words, or sub-classes of all classes, by module path.
    """
    for path, number in wanted.items():
        if (found := supervision[path].num_templates) != number:
            kind = "words" if supervision[path].num_subclasses is None else "sub-classes of all classes"
            raise ValueError(f"{path} has {found} {kind}, and {number} are asked for")


def fit(
    model: nn.Module, loss_of: Callable[..., Tensor], train: DataLoader, val: DataLoader, args: argparse.Namespace
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in train:
            loss = loss_of(model, images.to(args.device), labels.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch}: {accuracy(model, val, args.device):.2f}%")


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def letkd_loss(student: letkd.Student, images: Tensor, labels: Tensor) -> Tensor:
    logits, divergences = student.forward_with_losses(images, labels)
    return F.cross_entropy(logits, labels) + sum(divergences.values())


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    model.eval()
    correct = [(model(images.to(device)).argmax(1) == labels.to(device)).float() for images, labels in loader]
    return 100 * torch.cat(correct).mean().item()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--pretrained", action="store_true", help="start the teacher from weights of ImageNet")
    parser.add_argument("--teacher-checkpoint", type=Path, help="state dict of a trained teacher, instead of training")
    parser.add_argument("--words", type=int, default=1024)
    parser.add_argument("--subclasses", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30, help="of the teacher and of the student")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output"))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    train, clean, val = loaders(args.data, args.image_size, args.batch_size)
    num_classes = len(clean.dataset.classes)

    teacher = network(args.teacher, num_classes, args.pretrained and not args.teacher_checkpoint).to(args.device)
    teacher_file = args.teacher_checkpoint or args.output / f"{args.teacher}.pth"
    if args.teacher_checkpoint or teacher_file.is_file():
        load_teacher(teacher, teacher_file)
    else:
        fit(teacher, cross_entropy, train, val, args)
        torch.save(teacher.state_dict(), teacher_file)

    supervision_file = args.output / f"{args.teacher}.supervision"
    if not supervision_file.is_file():
        letkd.make_supervision(
            teacher,
            clean,
            words={"layer4": args.words},
            decisions={"layer4.0": args.subclasses},
            num_classes=num_classes,
            progress=print,
        ).save(supervision_file)
    try:
        supervision = letkd.load_supervision(supervision_file)
        check_sizes(supervision, {"layer4": args.words, "layer4.0": args.subclasses * num_classes})
        taps = {"layer4": supervision["layer4"], "layer4.0": supervision["layer4.0"]}
        student = letkd.attach(network(args.student, num_classes).to(args.device), taps, teacher=teacher)
    except ValueError as error:  # damaged, or of another teacher, image size or number of words
        raise SystemExit(f"error: {supervision_file}: {error}; remove it, or choose another --output") from None
    fit(student, letkd_loss, train, val, args)
    saved = {"taps": student.taps, "alphas": student.alphas, "model": student.state_dict()}
    torch.save(saved, args.output / f"{args.student}.letkd.pth")


if __name__ == "__main__":
    main()
