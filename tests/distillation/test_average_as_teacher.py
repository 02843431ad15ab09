"""teacher=ema, and methods behind a network alone: which there are, and what is refused in one line."""

import pytest
import torch
from objective_tools import IMAGE_SIZE, NUM_CLASSES, small_digits, takes_average
from torch import Tensor

import main_classification
from architectures import Input, create_model
from config.experiments import canonical_name, default_config, load_experiment
from config.options import EMA, Augmentation, Data, Options, Protocol
from config.schema import options_of
from distillation.build import build_loss, build_network, check_networks
from distillation.expressions import PAPER, brought_by, check_teacher, list_methods, weights_of
from distillation.losses import find_loss
from distillation.objective import Teacher
from distillation.places import table
from distillation.signals import measured

# All that may be refused: what is built from files of a trained teacher, and margins of its BatchNorm.
FROM_A_TRAINED_TEACHER = {*PAPER, "KDPP", "OFD"}
WITHOUT = {"LS", "TfKD"}


def options_for(method: str, **updates: str) -> Options:
    """Of a method behind a network alone."""
    return Options.of(default_config(f"digits.RN8.{method}") | {"image_size": IMAGE_SIZE} | updates)


def tensors_of_loss(method: str, seed: int) -> dict[str, Tensor]:
    """What a loss has from the start, for a teacher with drawn weights."""
    options = options_for(method, teacher="resnet8")
    student = build_network(options, NUM_CLASSES, IMAGE_SIZE)
    network = create_model("resnet8", num_classes=NUM_CLASSES)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    teacher = Teacher(measured(network, IMAGE_SIZE, "resnet8"), Input((0.5,) * 3, (0.5,) * 3), "drawn")
    loss = build_loss(brought_by(method)[0], options, small_digits(), student, teacher)
    return dict(loss.named_parameters()) | dict(loss.named_buffers())


@pytest.mark.parametrize("method", [method for method in list_methods() if method not in (*PAPER, "KDPP")])
def test_a_loss_without_files_says_whether_it_is_built_from_weights_of_the_teacher(method):
    one, other = (tensors_of_loss(method, seed) for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one) != find_loss(method.lower()).reads_weights


@pytest.mark.parametrize("method", list_methods())
def test_every_method_has_the_average_as_teacher_or_says_why_not(method):
    options = options_for(method, teacher=EMA)
    assert takes_average(method) == (method not in FROM_A_TRAINED_TEACHER | WITHOUT)
    if takes_average(method):
        check_teacher(options)
        check_networks(options, small_digits())
    else:
        with pytest.raises(ValueError, match="reads no teacher" if method in WITHOUT else "of a trained teacher"):
            check_teacher(options)


# --- behind a network alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["digits.RN8", "CIFAR100.cross_model.MNv2", "ImageNet.RN18"])
@pytest.mark.parametrize("method", ["LS", "LS+KD", "sdd:DKD+FitNet"])
def test_a_method_behind_a_network_alone_has_its_student_and_protocol(network, method):
    alone, found = load_experiment(network), load_experiment(f"{network}.{method}")
    assert (found["student"], found["teacher"]) == (alone["network"], None)
    shared = {*options_of(Data), *options_of(Augmentation), *options_of(Protocol)}
    assert {key: found[key] for key in shared} == {key: alone[key] for key in shared}
    assert "network" not in found and "published_top1" not in found


def test_its_weights_are_those_of_a_pair():
    assert weights_of(options_for("LS")) == {"ce": 0.9, "ls": 0.1}
    pair = Options.of(default_config("digits.RN14_RN8.LS+KD"))
    assert weights_of(options_for("LS+KD")) == weights_of(pair)
    assert canonical_name("digits.RN8.LS+KD") == "digits.RN8.KD+LS"


def test_places_of_the_average_are_those_of_the_student():
    assert "teacher" not in table(options_for("KD"))
    assert "teacher resnet8, images of 8 x 8" in table(options_for("KD", teacher=EMA))


KD, PAIR = "config=digits.RN8.KD", "config=digits.RN14_RN8.KD name=mine.ema teacher=ema"
REFUSED = [
    (KD, "KD needs a teacher, and digits.RN8.KD has none: teacher=ema is the average of the student"),
    ("config=digits.RN8.letKD-2", "letKD-2 needs a teacher, and digits.RN8.letKD-2 has none"),
    (f"{KD}+OFD teacher=ema", "teacher=ema: OFD is built from the weights of a trained teacher"),
    ("config=digits.RN8.letKD-2 teacher=ema", "teacher=ema: words is built from the weights of a trained teacher"),
    ("config=digits.RN8.LS teacher=ema", "LS reads no teacher: leave out teacher=ema; average=True keeps the average"),
    (f"{KD} teacher=ema teacher_weights=a.pth", "teacher=ema has the weights of the run alone; leave out teacher_weig"),
    (f"{PAIR} teacher_experiment=digits.RN14", "teacher=ema has the weights of the run alone; leave out teacher_exp"),
    (f"{PAIR} published_weights=a.pth", "teacher=ema has the weights of the run alone; leave out published_weights=a"),
    ("config=digits.RN14_RN8.KD teacher=ema", "teacher=ema is another network than that of digits.RN14_RN8.KD"),
    (f"{KD} teacher=resnet14", "teacher=resnet14 is another network than that of digits.RN8.KD"),
    (f"{KD} teacher=ema kmeans=8", "digits.RN8.KD has no teacher that is trained before it"),
    (f"{KD} class_means=True", "digits.RN8.KD has no teacher that is trained before it"),
    (f"{KD} teacher=ema ema_decay=1", "ema_decay=1 must be at most 0.999999"),
    (f"{KD} kmeans=8 average=True", "average=True concerns train and evaluate and "),
    ("config=digits.RN8.KD evaluate=True average=True", "digits.RN8.KD has not been trained"),
    (f"{KD} teacher=eman", "teacher=eman is another network than that of digits.RN8.KD"),
]


@pytest.mark.parametrize(("words", "error"), REFUSED)
def test_what_cannot_be_is_one_line_and_leaves_nothing(words, error, tmp_path, capsys):
    argv = ["main.py", "with", *words.split(), "cuda=False", f"localpath={tmp_path / 'out'}"]
    assert main_classification.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {error}") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
