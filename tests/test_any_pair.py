"""Any pair is an experiment: networks of every kind through the jobs, under a name of the run's own."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
import torchvision
from objective_tools import batch_of, no_facts
from PIL import Image
from torch import nn

import main_classification
from algorithms import KMeansCodebook
from algorithms.probe import intermediate_maps
from architectures import Place, create_model
from config.experiments import ENTRY_OPTIONS
from config.options import Options
from config.recipes import letkd2
from dataloaders import Dataset, load_dataset
from distillation.build import build_network, build_objective, fold_teacher_, open_teacher
from distillation.deployment import deploy
from distillation.prepared import PREPARED
from distillation.signals import Wanted
from letkd import Codebook, FrozenTaps, SubclassTargets, pool_map, to_patches
from reporting.pictures.layers import look_inside
from storage.state_dicts import Weights

IMAGE_SIZE, NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES = 32, 10, 16, 2
SWIN = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 1)}


def swin(num_classes: int) -> nn.Module:
    """Swin with maps (B, H, W, C), small."""
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=IMAGE_SIZE, num_classes=num_classes, **SWIN)


def deit(num_classes: int) -> nn.Module:
    """A small DeiT, whose two heads read two tokens."""
    small = {"img_size": IMAGE_SIZE, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=num_classes, **small)


KINDS = {
    "ResNet": "timm/test_resnet",
    "ViT": "timm/test_vit",
    "Swin": f"{__name__}:swin",
    "EfficientNet": "timm/test_efficientnet",
}
pytestmark = pytest.mark.usefixtures("few_digits")


def config_of(teacher: str, student: str, **updates: Any) -> dict[str, Any]:
    """As a module of three lines below config/ has it, with the options of the entry."""
    own = letkd2(dataset="digits", teacher=teacher, student=student, teacher_weights="T.pth", num_words=NUM_WORDS)
    small = {"image_size": IMAGE_SIZE, "subclasses_per_class": NUM_SUBCLASSES}
    return ENTRY_OPTIONS | own | small | updates


@pytest.fixture(scope="module")
def digits(few_digits) -> Dataset:
    return load_dataset("digits", splits=("train", "eval"), image_size=IMAGE_SIZE)


# --- the parts, of every kind ----------------------------------------------------------------------------------------


def drawn(places: dict[str, Place]) -> dict[str, Any]:
    """Supervision of random numbers."""
    rows, channels = NUM_CLASSES * NUM_SUBCLASSES, places["decisions"].channels
    tensors = (torch.randn(channels, 9), torch.zeros(channels), torch.randn(rows, 9))
    decisions = SubclassTargets(*tensors, torch.rand(rows, rows).softmax(1), num_subclasses=NUM_SUBCLASSES)
    return {"codebook": Codebook(torch.randn(NUM_WORDS, places["words"].channels)), "decisions": decisions}


@pytest.mark.parametrize("name", [*KINDS.values(), f"{__name__}:deit"], ids=[*KINDS, "DeiT"])
def test_a_step_reaches_every_parameter_of_the_student_and_none_of_the_teacher(name: str, digits: Dataset) -> None:
    torch.manual_seed(0)
    network = build_network(Options.of(config_of(name, name)), NUM_CLASSES, IMAGE_SIZE)
    made = drawn({"words": network.outline.place("penultimate"), "decisions": network.outline.place("intermediate")})
    kinds = {key: SimpleNamespace(open=lambda *_, key=key: made[key], facts=no_facts) for key in PREPARED}
    weights = Weights(network.backbone.state_dict(), Path("T.pth"))
    with patch.dict(PREPARED, kinds):
        objective = build_objective(Options.of(config_of(name, name)), digits, weights).train()
    teacher = objective.teacher.network.module
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    images = torch.randint(256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    step = objective(batch_of(images, torch.arange(8)))
    step.loss.backward()
    assert {"ce", "words", "decisions"} == set(step.terms) and all(term > 0 for term in step.terms.values())
    assert [key for key, parameter in objective.student.named_parameters() if parameter.grad is None] == []
    # The semantic vectors learn from the logits alone.
    layers = objective.student.layers.named_parameters()
    assert [key for key, parameter in layers if not parameter.grad.any()] == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def trained_student(name: str):
    """A student whose BatchNorms and layers are not as they were drawn."""
    torch.manual_seed(0)
    network = build_network(Options.of(config_of(name, name)), NUM_CLASSES, IMAGE_SIZE)
    images = torch.randn(16, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        for _ in range(3):
            network.module.train()(images)
    network.module.eval()
    return network, images[:2]


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_what_is_deployed_computes_the_same(name: str) -> None:
    network, images = trained_student(name)
    backbone = create_model(name, num_classes=NUM_CLASSES, image_size=IMAGE_SIZE)
    deployed = deploy(network.module, (0, 0, 0), (1, 1, 1), backbone=backbone)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), network.module(images), rtol=1e-4, atol=1e-4)
        without = network.backbone.state_dict()
        backbone = create_model(name, num_classes=NUM_CLASSES, image_size=IMAGE_SIZE).eval()
        backbone.load_state_dict(without)
        assert not torch.allclose(backbone(images), network.module(images), atol=1e-2), "the layers do something"


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_maps_of_layers_are_channels_first(name: str) -> None:
    network, images = trained_student(name)
    with torch.no_grad():
        probed = intermediate_maps(network, images)
    views = look_inside(network.module, images, ["intermediate", "penultimate"])
    for layer, view in views.items():
        place = network.place_of_layer(layer)
        assert view.before_BCHW.shape == view.after_BCHW.shape == (2, place.channels, *place.grid)
        assert view.weights_BKHW.shape[2:] == place.grid
    torch.testing.assert_close(probed["layer input"], views["intermediate"].before_BCHW)
    torch.testing.assert_close(probed["layer output"], views["intermediate"].after_BCHW)


def test_places_that_are_chosen() -> None:
    config = config_of("timm/test_vit", "timm/test_resnet", words_place="layer3", decisions_place="stage2")
    network = build_network(Options.of(config), NUM_CLASSES, IMAGE_SIZE)
    assert network.module.paths == {"penultimate": "layer3", "intermediate": "layer2.0"}
    config["words_place"] = "layer9"
    with pytest.raises(
        ValueError, match=r"timm/test_resnet has no place 'layer9'; .*penultimate \(layer4: 96 channels, 1"
    ):
        build_network(Options.of(config), NUM_CLASSES, IMAGE_SIZE)


# --- places ----------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One ReLU for layers of different widths."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.late(self.relu(self.early(images)))).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("student", "place", "message"),
    [
        (
            "timm/test_vit",
            "norm",
            "does not depend on the patches of 'norm': the values of a KD layer there would change",
        ),
        ("timm/test_vit", "blocks.5", "does not depend on the patches of 'blocks.5'"),
        (f"{__name__}:Shared", "relu", "module 'relu' runs 2 times for one image; choose one that runs once"),
    ],
)
def test_a_place_where_no_layer_can_be_is_refused(student: str, place: str, message: str) -> None:
    config = config_of("timm/test_resnet", student, words_place=place, intermediate=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        build_network(Options.of(config), NUM_CLASSES, IMAGE_SIZE)


def test_a_layer_that_is_supervised_only_may_be_behind_the_last_block() -> None:
    config = config_of("timm/test_vit", "timm/test_vit", words_place="norm", alpha_penultimate=0)
    assert build_network(Options.of(config), NUM_CLASSES, IMAGE_SIZE).module.paths["penultimate"] == "norm"


def dense(num_classes: int) -> nn.Module:
    """A small DenseNet of torchvision: its features are overwritten by a function."""
    return torchvision.models.DenseNet(8, (2, 2), 8, num_classes=num_classes)


class Behind(Shared):
    """A map behind `forward_features`, which overwrites the features."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.early(images)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.late(features.relu_()).mean(dim=(2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


OVERWRITTEN = [
    (f"{__name__}:dense", "features"),
    (f"{__name__}:dense", "features.norm0"),
    (f"{__name__}:Behind", "early"),
    ("timm/test_resnet", "layer1.0.bn1"),
]
KEPT = [
    (f"{__name__}:Behind", "late"),
    ("timm/test_vit", "norm"),
    (f"{__name__}:swin", "layers.0"),
    (f"{__name__}:swin", "norm"),
]


@pytest.mark.parametrize("downscale", [1, 2])
@pytest.mark.parametrize(("name", "path"), OVERWRITTEN + KEPT)
def test_the_jobs_read_what_training_reads(
    name: str, path: str, downscale: int, digits: Dataset, tmp_path: Path
) -> None:
    """Also of maps that the network overwrites, and behind `forward_features`; and so do the taps of `attach`."""
    torch.manual_seed(0)
    weights = Weights(create_model(name, num_classes=NUM_CLASSES, image_size=IMAGE_SIZE).state_dict(), tmp_path / "T")
    torch.save(weights.state, weights.source)
    config = main_classification.default_config("digits.RN8")
    config |= {"network": name, "weights": str(weights.source), "kmeans": 4, "downscale": downscale}
    config |= {"image_size": IMAGE_SIZE, "cuda": False, "localpath": str(tmp_path), "num_workers": 0}
    job = KMeansCodebook(Options.of(config))
    job.open()
    of = job.teacher_map(job.place(path))
    rows, _ = next(job.source(of).batches([path]))[path]

    images = job.seen.module()(next(iter(job.loader(digits, "train"))).images)
    teacher = open_teacher(name, digits, weights, ["words"])
    teacher.network = teacher.network.reading(Wanted(maps=(path,)))
    fold_teacher_(teacher)
    trained = to_patches(pool_map(teacher(images).maps[path], downscale))
    torch.testing.assert_close(rows, trained, rtol=1e-4, atol=1e-5)
    attached = to_patches(of.read(FrozenTaps(job.network, {path: path})(images)[path]))
    torch.testing.assert_close(rows, attached)
    assert teacher.network.maps[path].changed_later == ((name, path) in OVERWRITTEN)
    assert (rows < 0).any(), "no activation has been at it"


def test_pictures_show_what_a_layer_hands_on() -> None:
    """Though the network overwrites it."""
    config = config_of("timm/test_resnet", f"{__name__}:dense", intermediate=False)
    network = build_network(Options.of(config), NUM_CLASSES, IMAGE_SIZE)
    view = look_inside(network.module.eval(), torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE), ["penultimate"])["penultimate"]
    assert network.module.paths["penultimate"] == "features" and (view.after_BCHW < 0).any()


# --- all jobs --------------------------------------------------------------------------------------------------------


class Run:
    """Commands of one pair, whose teacher is given by its weights alone."""

    def __init__(self, folder: Path, teacher: str, student: str, capsys: pytest.CaptureFixture):
        self.folder, self.capsys, self.weights = folder, capsys, folder / "T.pth"
        torch.manual_seed(0)
        torch.save(create_model(teacher, num_classes=NUM_CLASSES, image_size=IMAGE_SIZE).state_dict(), self.weights)
        self.words = [
            *("config=digits.RN14_RN8.letKD-2", "name=mine.pair.letKD-2", f"teacher={teacher}", f"student={student}"),
            *(f"teacher_weights={self.weights}", f"image_size={IMAGE_SIZE}", f"num_words={NUM_WORDS}", "epochs=1"),
            *("subclasses_per_class=2", "lda_components=5", "milestones=[]", "num_workers=0", "cuda=False"),
            "allow_poor_teacher=True",
        ]
        self.directory = folder / "mine" / "pair" / "letKD-2"

    def __call__(self, *words: str, command: str | None = None) -> tuple[int, str, str]:
        self.capsys.readouterr()
        argv = ["main.py", *([command] if command else []), "with", *self.words, *words, f"localpath={self.folder}"]
        return main_classification.main(argv), *self.capsys.readouterr()

    def results(self) -> dict[str, Any]:
        return json.loads((self.directory / "results.json").read_text())


def go_through(run: Run, *, jobs: list[str]) -> None:
    """Make what is missing by the commands that the errors print, train, and do other jobs."""
    for product in ("codebook", "decision scores"):
        status, _, error = run()
        assert status == 1 and f"no {product}" in error
        printed = re.search(r"make it: python main_classification.py (.*)", error)[1]
        assert main_classification.main(["main.py", *shlex.split(printed)]) == 0, printed
    assert run()[0] == 0
    results = run.results()
    assert results["config"] == "mine.pair.letKD-2" and results["mode"] == "train"
    for job in jobs:
        assert run(job)[0] == 0, job
    results = run.results()
    assert results["evaluations"]["last"]["top1"] == results["top1"]


def test_a_pair_goes_through_the_jobs(tmp_path, capsys) -> None:
    """A vision transformer teaches a ResNet of half its resolution: nothing but the weights is given."""
    run = Run(tmp_path, "timm/test_vit", "timm/test_resnet", capsys)
    go_through(run, jobs=["evaluate=True", "probe=True"])
    assert set(run.results()["objective"]["places"]["words"]) == {"student", "teacher"}
    (supervision,) = (tmp_path / "VQ" / "weights" / "digits").iterdir()
    assert re.fullmatch(r"[0-9a-f]{16}", supervision.name)
    assert (supervision / f"codebook_pooled2_K{NUM_WORDS}.pth").is_file()
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(image)
    status, out, _ = run(f"images={image}", command="predict")
    assert status == 0 and "image.png" in out
    capsys.readouterr()
    assert main_classification.main(["main.py", "report", "with", f"localpath={tmp_path}"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "0 damaged" in capsys.readouterr().out
    assert [line for line in page.splitlines() if line.startswith("| pair") and "◇" not in line], page
    # Under another name it is another run, and the supervision of the teacher serves it.
    assert run("name=mine.other.letKD-2")[0] == 0


def test_keyword_arguments_go_through_the_jobs(tmp_path, capsys) -> None:
    """Of both networks; they are in the commands that errors print, in what is recorded, and what is built from it."""
    run = Run(tmp_path, "timm/test_vit(patch_size=32,depth=4)", "timm/test_resnet( stem_type='deep' )", capsys)
    go_through(run, jobs=["evaluate=True"])
    recorded = run.results()["options"]
    networks = ["timm/test_vit(depth=4, patch_size=32)", "timm/test_resnet(stem_type='deep')"]
    assert [recorded["teacher"], recorded["student"]] == networks
    assert "backbone.conv1.0.weight" in torch.load(run.directory / "last.pth")["model"], "the stem is of three layers"
    status, out, _ = run("checkpoint=-1", "epochs=2", f"student={networks[1]}")
    assert status == 0 and "note: changed since that epoch: epochs\n" in out
    status, out, _ = run("checkpoint=-1", "epochs=3", "student=timm/test_resnet(stem_type='deep',drop_path=.1)")
    assert status == 0 and "note: changed since that epoch: student, epochs\n" in out
    status, _, error = run("checkpoint=-1", "epochs=4", "student=timm/test_resnet(stem_type='')")
    assert status == 1 and "conv1" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["student=timm/test_resnet(dept=2)"], "timm/test_resnet does not take dept=2 ("),
        (["teacher=timm/test_vit(dept=2)"], "timm/test_vit does not take dept=2 ("),
        (["teacher=timm/test_vit(depth=2"], "'timm/test_vit(depth=2' must have different keyword arguments"),
        (["student=resnet8(drop_path=0.1)", "drop_path=0.2"], "are one rate; leave out one of them"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(words: list[str], message: str, tmp_path, capsys) -> None:
    run = Run(tmp_path, "timm/test_vit", "timm/test_resnet", capsys)
    status, _, error = run(*words)
    assert status == 1 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [run.weights]


def test_a_network_alone_may_have_arguments(tmp_path, capsys) -> None:
    network = "network=timm/test_vit(depth=2)"
    words = ["config=digits.RN8", "name=mine.vit", network, "image_size=32", "epochs=1", "milestones=[]", "cuda=False"]
    for job in ([], ["evaluate=True"]):
        assert main_classification.main(["main.py", "with", *words, *job, f"localpath={tmp_path}"]) == 0
    assert main_classification.main(["main.py", "print_outline", "with", *words]) == 0
    assert "network timm/test_vit(depth=2), images of 32 x 32" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("student", [*KINDS.values(), "timm/test_vit(depth=4)"], ids=[*KINDS, "with arguments"])
def test_every_kind_goes_through_all_jobs(student: str, tmp_path, capsys) -> None:
    run = Run(tmp_path, student, student, capsys)
    go_through(run, jobs=["evaluate=True", "probe=True", "export=onnx", "export=pt2"])
    status, out, _ = run(command="pictures")
    assert status == 0 and len(list((run.directory / "pictures").glob("*.png"))) == 5, out


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["student=timm/test_resnet"],
            "student=timm/test_resnet is another network than that of digits.RN14_RN8.letKD-2:",
        ),
        (["teacher=resnet20", "student=resnet8x4"], "teacher=resnet20 student=resnet8x4 is another network than"),
        (["config=digits.RN8", "network=resnet14"], "such a run needs a name of its own, name=mine.pair for example"),
        (["name=pair"], "name='pair' must be names of folders with dots between them, like mine.pair.letKD-2"),
        (["name=../../x.y"], "must be names of folders"),
        (["name=mine..x"], "must be names of folders"),
        (["name=mine.seed0"], "the program itself has folders called 'seed0'; choose another name"),
        (["name=VQ.pair"], "the program itself has folders called 'VQ'"),
        (["name=digits.RN8"], "name='digits.RN8' is an experiment of config/; choose another name"),
        (["name=digits.RN14_RN8.DKD"], "name='digits.RN14_RN8.DKD' is an experiment of config/"),
        (["name=digits.RN8.mine"], "lies in the folder of digits.RN8, an experiment of config/"),
        (
            ["name=digits.RN14_RN8"],
            "name='digits.RN14_RN8' is the folder of experiments of config/",
        ),
        (["name=CIFAR100.resnetv1"], "is the folder of experiments of config/"),
    ],
)
def test_names_that_cannot_be(words: list[str], message: str, tmp_path, capsys) -> None:
    config = [] if words[0].startswith("config") else ["config=digits.RN14_RN8.letKD-2"]
    assert main_classification.main(["main.py", "with", *config, *words, f"localpath={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_run_of_its_experiments_networks_may_have_a_name(tmp_path, capsys) -> None:
    words = ["config=digits.RN8", "name=mine.again", "image_size=8", "epochs=1", "milestones=[]", "cuda=False"]
    assert main_classification.main(["main.py", "with", *words, f"localpath={tmp_path}"]) == 0
    assert (tmp_path / "mine" / "again" / "last.pth").is_file() and not (tmp_path / "digits").exists()


def test_a_teacher_without_weights_is_said(tmp_path, capsys) -> None:
    words = ["config=digits.RN14_RN8.letKD-2", "name=mine.pair", "teacher=timm/test_vit"]
    assert main_classification.main(["main.py", "with", *words, f"localpath={tmp_path}"]) == 1
    told = "nothing says what the weights of the teacher timm/test_vit are: give the file, teacher_weights=, or the "
    assert told in capsys.readouterr().err


def test_grids_that_do_not_meet_say_both_sizes(tmp_path, capsys) -> None:
    run = Run(tmp_path, "timm/test_resnet", "timm/test_vit", capsys)
    status, _, error = run()
    assert status == 1
    assert (
        "the penultimate map of timm/test_resnet (1 x 1) is no whole multiple of that of timm/test_vit (2 x 2)" in error
    )
