"""The experiments as pure functions from what differs to a complete, plain dictionary.

An experiment module calls one of them and holds nothing else. The dictionaries are what `print_config` shows and what
the command line overrides. What their options mean, and their values where nothing else is said, which are those of the
published experiments, stand in `config/options.py`.
"""

from typing import Any, NamedTuple

from config.options import (
    ALONE,
    Augmentation,
    Config,
    Control,
    Data,
    Decisions,
    Experiment,
    Layers,
    Network,
    Pair,
    Protocol,
    Subclasses,
    Words,
    WordsMap,
    values_of,
)


class PublishedTeacher(NamedTuple):
    """A teacher of the published experiments: its own experiment below a data set's name, and its CIFAR-100 weights."""

    experiment: str
    directory: str
    top1: float  # CIFAR-100, percent


TEACHERS = {
    "wrn_40_2": PublishedTeacher("WRN.WRN40w2", "wrn_40_2_vanilla", 75.61),
    "resnet56": PublishedTeacher("resnetv1.RN56", "resnet56_vanilla", 72.34),
    "resnet110": PublishedTeacher("resnetv1.RN110", "resnet110_vanilla", 74.31),
    "resnet32x4": PublishedTeacher("resnetv1.RN32x4", "resnet32x4_vanilla", 79.42),
    "vgg13": PublishedTeacher("vgg.VGG13", "vgg13_vanilla", 74.64),
    "resnet50": PublishedTeacher("resnetv2.RN50", "ResNet50_vanilla", 79.34),
}
# The ImageNet weights of torchvision, as at its address, and their top-1 in percent (the teachers of the paper).
TORCHVISION_WEIGHTS = {
    "torchvision/resnet34": ("resnet34-b627a593.pth", 73.31),
    "torchvision/resnet50": ("resnet50-0676ba61.pth", 76.13),
}
# Students of another family than their teacher's: half its resolution, and a lower learning rate.
CROSS_ARCHITECTURE_STUDENTS = ("shufflenetv1", "shufflenetv2", "mobilenetv2")
CROSS_ARCHITECTURE_LEARNING_RATE = 0.01


def protocol(*, dataset: str, **options: Any) -> Config:
    """Data and optimisation, the same for every method."""
    return values_of(Data, Augmentation, Protocol, dataset=dataset, **options)


# ImageNet: the paper's schedule; batch size and weight decay, which it does not state, are the customary ones.
IMAGENET_PROTOCOL: Config = {
    "dataset": "ImageNet",
    "epochs": 100,
    "milestones": (30, 60, 90),
    "learning_rate": 0.1,
    "batch_size": 256,
    "weight_decay": 1e-4,
}

# The smallest data: few epochs and few words, so that all takes seconds.
DIGITS_PROTOCOL: Config = {"dataset": "digits", "epochs": 8, "milestones": (5, 7)}
DIGITS_PAIR: Config = {
    "teacher": "resnet14",
    "student": "resnet8",
    "teacher_experiment": "digits.RN14",
    "num_words": 128,
    **DIGITS_PROTOCOL,
}

# The demonstration (docs/demo.md): its teacher is clearly above the student alone.
NUMBERS_PROTOCOL: Config = {"dataset": "numbers", "epochs": 4, "milestones": (3,), "batch_size": 32}
NUMBERS_PAIR: Config = {
    "teacher": "resnet14",
    "student": "resnet8",
    "teacher_experiment": "numbers.RN14",
    "num_words": 128,
    **NUMBERS_PROTOCOL,
}

# CIFAR-100/10k: few enough images and epochs for three seeds of seven methods in an afternoon on two cores; the rate
# falls at the parts of the training where it does in the paper's protocol.
CIFAR100_10K_PROTOCOL: Config = {"dataset": "CIFAR100_10k", "epochs": 16, "milestones": (10, 12, 14)}


def classification(*, network: str, dataset: str, **options: Any) -> Config:
    """A network alone: trained with cross-entropy, and the teacher that codebooks and decision scores are made from.

    Args:
        options: the others; the learning rate is the published one of the network unless it is given.
    """
    known = {
        "published_weights": _published_weights(network, dataset),
        "published_top1": _published_top1(network, dataset),
        **learning_rate(network),
    }
    groups = (Experiment, Network, WordsMap, Subclasses, Data, Augmentation, Protocol)
    return values_of(*groups, method=ALONE, network=network, dataset=dataset, **known | options)


def taught(*, supervision: str | None = None, num_words: int | None = None, **options: Any) -> Config:
    """A student and its teacher, whatever it learns from it: the method and its options come on top.

    Args:
        supervision, num_words: of a pair's codebook, which methods of words read alone.
        options: as `quest`.
    """
    return _pair("", **options)


def quest(**options: Any) -> Config:
    """The student predicts the teacher's words; its features pass unchanged.

    Args:
        options: teacher, student, dataset, and any other. Unless it is given, the experiment that trains the teacher is
            the one of the published name, where there is one and no `teacher_weights`; the supervision is made from it,
            or for cross-architecture students from the experiment that pools its maps; and the learning rate is the
            published one of the student.
    """
    return _pair("QuEST", Words, WordsMap, **options)


def label_free(**options: Any) -> Config:
    """The student predicts the teacher's words of pictures without classes, and nothing reads a label.

    Args:
        options: as `quest`; which pictures is for the command to say, `unlabelled=`.
    """
    return quest(**{"cls_loss_coef": 0.0, "unlabelled_share": 1.0} | options)


def letkd1(**options: Any) -> Config:
    """A KD layer at the penultimate map, supervised by the teacher's words; options as `quest`."""
    return _pair("letKD-1", Words, WordsMap, Layers, **options)


def letkd2(**options: Any) -> Config:
    """letKD-1 and a second KD layer after the first block of the last stage, supervised by sub-class decisions."""
    return _pair("letKD-2", Words, WordsMap, Layers, Decisions, Subclasses, **{"intermediate": True} | options)


def fitnet(*, hint: str = "intermediate", **options: Any) -> Config:
    """The student regresses a map of the teacher; with KD layers in it, the paper's control of their size (RN110_RN32).

    This is the paper's form; FitNet by its name, of any other pair, is that of `distillation/losses/fitnet.py`.

    Args:
        hint: which map, by name or module path.
        options: as `letkd2`, and `supervised`; there are no KD layers unless they are asked for.
    """
    without = {"penultimate": False, "intermediate": False}
    config = _pair("FitNet", Words, WordsMap, Layers, Decisions, Subclasses, Control, **without | options)
    return config | {"fitnet.hint": hint, "fitnet.regressor": "pointwise", "fitnet.weight": 100.0}


def _pair(
    method: str,
    *groups: type,
    teacher: str,
    student: str,
    dataset: str,
    teacher_experiment: str | None = None,
    supervision: str | None = None,
    **options: Any,
) -> Config:
    """The options of a pair, and those of `groups`."""
    if teacher_experiment is None and teacher in TEACHERS and options.get("teacher_weights") is None:
        teacher_experiment = f"{dataset}.{TEACHERS[teacher].experiment}"
    known = {"published_weights": _published_weights(teacher, dataset), **learning_rate(student)}
    if Words in groups and (supervision or teacher_experiment):
        pooled = "_downscale" if student in CROSS_ARCHITECTURE_STUDENTS else ""
        known["supervision"] = supervision or teacher_experiment + pooled
    return values_of(
        *(Experiment, Pair, *groups, Data, Augmentation, Protocol),
        method=method,
        teacher=teacher,
        student=student,
        dataset=dataset,
        teacher_experiment=teacher_experiment,
        **known | options,
    )


def learning_rate(network: str | None) -> Config:
    """The published one of a network that trains, where it is not the protocol's."""
    return {"learning_rate": CROSS_ARCHITECTURE_LEARNING_RATE} if network in CROSS_ARCHITECTURE_STUDENTS else {}


def _published_weights(network: str, dataset: str) -> str | None:
    if dataset == "CIFAR100" and network in TEACHERS:
        return f"saved_models/{TEACHERS[network].directory}/ckpt_epoch_240.pth"
    if dataset == "ImageNet" and network in TORCHVISION_WEIGHTS:
        return f"saved_models/torchvision/{TORCHVISION_WEIGHTS[network][0]}"
    return None


def _published_top1(network: str, dataset: str) -> float | None:
    if dataset == "CIFAR100" and network in TEACHERS:
        return TEACHERS[network].top1
    if dataset == "ImageNet" and network in TORCHVISION_WEIGHTS:
        return TORCHVISION_WEIGHTS[network][1]
    return None
