"""letKD with two timm networks on a folder of images, data/train/<class>/* and data/val/<class>/*.

    python examples/timm_pair.py --data my_images --pretrained
    python examples/timm_pair.py --data my_images --student resnet18 \\
        --words layer4=s4 --decisions layer4.0=s4.b1

Each tap is a module of the student, `=`, and the module of the teacher that supervises it. Modules of a network:
`[name for name, _ in timm.create_model(NAME).named_modules()]`. When the teacher's map has twice the resolution of the
student's, say `--pooling 2`. The student stays in `--output`.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from PIL import ImageOps
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose

import letkd


def check_classes(folder: str, classes: Iterable[str]) -> None:
    """val/ may lack a class of train/, but has no other: labels count the folders of train/."""
    there = {path.name for path in Path(folder, "val").iterdir() if path.is_dir() and not path.name.startswith(".")}
    if others := sorted(there - set(classes)):
        raise SystemExit(f"error: {folder}/val has classes that {folder}/train has not: {', '.join(others)}")


def network(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
        except Exception:  # of any kind: without an answer what was downloaded earlier is used, and nothing tried again
            huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    except OSError as error:
        raise SystemExit(
            f"error: the published weights of {name} could not be loaded ({' '.join(str(error).split())[:200]}); "
            "--teacher-checkpoint takes a file"
        ) from None


def load_teacher(teacher: nn.Module, file: Path) -> None:
    """Weights of one's own: a state dict with the names and shapes of the teacher."""
    try:
        teacher.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # no file, no torch file or other weights fail in many ways
        raise SystemExit(f"error: {file} does not fit the teacher: {' '.join(str(error).split())[:200]}") from None


def upright(transform: Compose) -> Compose:
    """The same for images that lie on their side: they are turned first, as their camera has noted."""
    return Compose([ImageOps.exif_transpose, *transform.transforms])


def fit(
    model: nn.Module, loss_of: Callable[..., Tensor], train: DataLoader, val: DataLoader, args: argparse.Namespace
) -> None:
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, momentum=0.9, weight_decay=1e-4)
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
    parser.add_argument("--teacher", default="regnety_008")
    parser.add_argument("--student", default="regnety_002")
    parser.add_argument("--pretrained", action="store_true", help="start both from published weights")
    parser.add_argument("--teacher-checkpoint", type=Path, help="state dict of a trained teacher, instead of training")
    parser.add_argument("--words", default="s4=s4", help="last maps, student=teacher")
    parser.add_argument("--num-words", type=int, default=1024)
    parser.add_argument("--decisions", default="s4.b1=s4.b1", help="maps in the last stage, student=teacher")
    parser.add_argument("--num-subclasses", type=int, default=8)
    parser.add_argument("--pooling", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30, help="of the teacher and of the student")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output"))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)

    clean = ImageDataset(f"{args.data}/train")
    num_classes = len(clean.reader.class_to_idx)
    check_classes(args.data, clean.reader.class_to_idx)
    teacher = network(args.teacher, num_classes, args.pretrained and not args.teacher_checkpoint).to(args.device)
    student = network(args.student, num_classes, args.pretrained).to(args.device)
    # Both networks see the same images: the teacher's normalisation is taken.
    data = resolve_model_data_config(teacher) | {"input_size": (3, args.image_size, args.image_size)}
    clean.transform = upright(create_transform(**data))
    augmented = ImageDataset(f"{args.data}/train", transform=upright(create_transform(**data, is_training=True)))
    numbers = clean.reader.class_to_idx  # of train/, for val/ too
    val = ImageDataset(f"{args.data}/val", class_map=numbers, transform=clean.transform)
    val = DataLoader(val, args.batch_size)
    train = DataLoader(augmented, args.batch_size, shuffle=True, drop_last=len(augmented) > args.batch_size)

    if args.teacher_checkpoint:
        load_teacher(teacher, args.teacher_checkpoint)
    else:
        fit(teacher, cross_entropy, train, val, args)
    (words_at, words_of), (decisions_at, decisions_of) = args.words.split("="), args.decisions.split("=")
    supervision = letkd.make_supervision(
        teacher,
        DataLoader(clean, args.batch_size),
        words={words_of: args.num_words},
        decisions={decisions_of: args.num_subclasses},
        num_classes=num_classes,
        pooling=args.pooling,
        progress=print,
    )
    taps = {words_at: supervision[words_of], decisions_at: supervision[decisions_of]}
    student = letkd.attach(student, taps, teacher=teacher)
    fit(student, letkd_loss, train, val, args)
    saved = {"taps": student.taps, "alphas": student.alphas, "model": student.state_dict()}
    torch.save(saved, args.output / f"{args.student}.letkd.pth")


if __name__ == "__main__":
    main()
