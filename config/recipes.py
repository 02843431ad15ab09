"""The training protocols as pure functions from what differs to a complete, plain dictionary.

An experiment module calls one of them and holds nothing else. Numbers are those of the published experiments (CIFAR-100
protocol of the paper) where nothing else is said. The dictionaries are what `print_config` shows and what the command
line overrides; behind a key is what it means, and before a colon the jobs that read it (see `docs/make_options.py`).
"""

from typing import Any, NamedTuple

Config = dict[str, Any]


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
# What options of losses are called in the recipes, which are older than losses by name.
PUBLISHED_NAMES = {
    "ce.weight": "cls_loss_coef",
    "words.weight": "quest_loss_coef",
    "decisions.weight": "sub_loss_coef",
    "fitnet.weight": "hint_loss_coef",
    "fitnet.hint": "hint",
    # With a dot they would be parts of `decisions`, which is an option itself.
    "words.place": "words_place",
    "words.teacher_place": "words_teacher_place",
    "decisions.place": "decisions_place",
    "decisions.teacher_place": "decisions_teacher_place",
}
# Students of another family than their teacher's: half its resolution, and a lower learning rate.
CROSS_ARCHITECTURE_STUDENTS = ("shufflenetv1", "shufflenetv2", "mobilenetv2")
CROSS_ARCHITECTURE_LEARNING_RATE = 0.01
LEARNING_RATE = 0.05


def protocol(
    *,
    dataset: str,
    epochs: int = 240,
    milestones: tuple[int, ...] = (150, 180, 210),
    learning_rate: float = LEARNING_RATE,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
) -> Config:
    """Data and optimisation, the same for every method."""
    return {
        "dataset": dataset,  # a name that `dataloaders` knows
        "image_size": None,  # side of the square images; None: the data set's own, or measured
        "mean": None,  # of the colours red, green, blue in 0..1; None: the data set's own, or measured
        "std": None,  # their standard deviation; None: likewise
        "batch_size": batch_size,  # train: images a step; an incomplete last batch is left out
        "test_batch_size": 100,  # images a step of everything else
        "val_split": 0,  # train, kmeans, LDA: so many training images are held out and choose the best epoch
        "epochs": epochs,  # train: passes over the training images
        "milestones": list(milestones),  # train: the learning rate falls after each of these epochs
        "learning_rate": learning_rate,  # train: up to the first milestone
        "lr_factor": 0.1,  # train: what the learning rate is multiplied by at a milestone
        "momentum": 0.9,  # train: the momentum of SGD
        "nesterov": True,  # train: Nesterov's form of it
        "weight_decay": weight_decay,  # train: on everything that trains
    }


# ImageNet: the paper's schedule; batch size and weight decay, which it does not state, are the customary ones.
IMAGENET_PROTOCOL: Config = {
    "dataset": "ImageNet",
    "epochs": 100,
    "milestones": (30, 60, 90),
    "learning_rate": 0.1,
    "batch_size": 256,
    "weight_decay": 1e-4,
}

# The demonstration: few epochs, few words, so that it takes seconds and leaves room between the methods.
DIGITS_PROTOCOL: Config = {"dataset": "digits", "epochs": 8, "milestones": (5, 7)}
DIGITS_PAIR: Config = {
    "teacher": "resnet14",
    "student": "resnet8",
    "teacher_experiment": "digits.RN14",
    "num_words": 128,
    **DIGITS_PROTOCOL,
}


def classification(
    *,
    network: str,
    dataset: str,
    downscale: int = 1,
    trained_as: str | None = None,
    learning_rate: float | None = None,
    **options: Any,
) -> Config:
    """A network alone: trained with cross-entropy, and the teacher that codebooks and decision scores are made from.

    Args:
        learning_rate: None for the published choice, 0.01 for ShuffleNets and MobileNets and 0.05 else.
        options: of `protocol`.
    """
    return {
        "method": "classification",  # a name that `algorithms` knows; each experiment has its own
        "network": network,  # a name that `architectures` knows
        "weights": None,  # all but train: a file, instead of what was trained here or published
        "published_weights": _published_weights(network, dataset),  # the teacher's, where none was trained here
        "published_top1": _published_top1(network, dataset),  # evaluate: what those weights should reach, in percent
        "trained_as": trained_as,  # all but train: the experiment that trains these weights; None: this one
        "downscale": downscale,  # kmeans, LDA: side of the windows that maps are averaged over, for coarser students
        "subclasses_per_class": 8,  # S, the sub-classes of a class
        "lda_components": 60,  # L, the LDA components that are kept; N classes have at most N - 1
        **protocol(dataset=dataset, learning_rate=learning_rate or _learning_rate(network), **options),
    }


def taught(
    *,
    teacher: str,
    student: str,
    dataset: str,
    teacher_experiment: str | None = None,
    supervision: str | None = None,
    num_words: int | None = None,
    learning_rate: float | None = None,
    teacher_weights: str | None = None,
    **options: Any,
) -> Config:
    """A student and its teacher, whatever it learns from it: the method and its options come on top.

    Args:
        teacher_experiment: None for the one of the published name, where there is one; else its weights are to be
            given, `teacher_weights`.
        supervision, num_words: of a pair's codebook, which `letkd1` reads alone.
        learning_rate: None for the published choice, 0.01 for ShuffleNet and MobileNet students and 0.05 else.
        options: of `protocol`.
    """
    pair = _pair(teacher, student, dataset, teacher_experiment, teacher_weights)
    return pair | protocol(dataset=dataset, learning_rate=learning_rate or _learning_rate(student), **options)


def _pair(
    teacher: str, student: str, dataset: str, teacher_experiment: str | None, teacher_weights: str | None
) -> Config:
    if teacher_experiment is None and teacher in TEACHERS and teacher_weights is None:
        teacher_experiment = f"{dataset}.{TEACHERS[teacher].experiment}"
    return {
        "teacher": teacher,  # train, pictures: a name that `architectures` knows
        "student": student,  # a name that `architectures` knows
        "teacher_experiment": teacher_experiment,  # train, pictures: what trains the teacher; None: nothing here
        "teacher_weights": teacher_weights,  # train, kmeans, LDA, pictures: a file, instead of what that trained
        "published_weights": _published_weights(teacher, dataset),
    }


def quest(**options: Any) -> Config:
    """The student predicts the teacher's words; its features pass unchanged. Options of `letkd1` but the alphas."""
    config = letkd1(**options) | {"method": "QuEST"}
    for key in ("alpha_penultimate", "penultimate", "intermediate"):
        del config[key]
    return config


def letkd1(
    *,
    teacher: str,
    student: str,
    dataset: str,
    teacher_experiment: str | None = None,
    supervision: str | None = None,
    num_words: int = 4096,
    alpha_penultimate: float = 1.0,
    learning_rate: float | None = None,
    teacher_weights: str | None = None,
    **options: Any,
) -> Config:
    """A KD layer at the penultimate map, supervised by the teacher's words.

    Args:
        supervision: None for the teacher's own, or for cross-architecture students the one that pools its maps.
        teacher_experiment, learning_rate, teacher_weights, options: of `taught`.
    """
    pair = _pair(teacher, student, dataset, teacher_experiment, teacher_weights)
    return {
        "method": "letKD-1",
        **pair,
        "supervision": supervision  # train, pictures: whose codebook and decision scores are used; None: the weights'
        or _supervision(pair["teacher_experiment"], student),
        "codebook": None,  # train, pictures: a file, instead of the one below experiments/VQ/<supervision>
        "penultimate": True,  # whether there is a KD layer at the penultimate map
        "intermediate": False,  # whether there is one after the first block of the last stage
        "words_place": "penultimate",  # where that layer sits in the student: a name or a module path
        "words_teacher_place": "penultimate",  # train, kmeans, pictures: the teacher's map that the words are of
        "num_words": num_words,  # K, the words in the codebook
        "temperature": 1.0,  # train, pictures: tau, which multiplies squared distances to the words
        "alpha_penultimate": alpha_penultimate,  # weight of the values in the output of the penultimate layer
        "cls_loss_coef": 1.0,  # train: weight of the cross-entropy
        "quest_loss_coef": 1.0,  # train: weight of the divergence from the teacher's words
        **protocol(dataset=dataset, learning_rate=learning_rate or _learning_rate(student), **options),
    }


def letkd2(
    *, alpha_intermediate: float = 1.0, subclasses_per_class: int = 8, lda_components: int = 60, **options: Any
) -> Config:
    """letKD-1 and a second KD layer after the first block of the last stage, supervised by sub-class decisions.

    Args:
        options: of `letkd1`.
    """
    return letkd1(**options) | {
        "method": "letKD-2",
        "intermediate": True,
        "decisions": None,  # train, pictures: a file, instead of those below experiments/LDA/<supervision>
        "decisions_place": "intermediate",  # where the intermediate layer sits in the student, likewise
        "decisions_teacher_place": "intermediate",  # train, LDA, pictures: the teacher's map that the decisions are of
        "subclasses_per_class": subclasses_per_class,
        "lda_components": lda_components,
        "alpha_intermediate": alpha_intermediate,  # weight of the values in the output of the intermediate layer
        "sub_loss_coef": 1.0,  # train: weight of the divergence from the teacher's decisions
    }


def fitnet(
    *,
    hint: str = "intermediate",
    penultimate: bool = False,
    intermediate: bool = False,
    supervised: bool = False,
    **options: Any,
) -> Config:
    """The student regresses a map of the teacher; with KD layers in it, the paper's control of their size (RN110_RN32).

    Args:
        options: of `letkd2`.
    """
    return letkd2(**options) | {
        "method": "FitNet",
        "hint": hint,  # train: the map that is regressed, intermediate or penultimate
        "hint_loss_coef": 100.0,  # train: weight of its squared error, RepDistiller's
        "penultimate": penultimate,
        "intermediate": intermediate,
        "supervised": supervised,  # train: whether the teacher supervises the scores of the KD layers, as in letKD
    }


def _supervision(teacher_experiment: str | None, student: str) -> str | None:
    if teacher_experiment is None:
        return None
    return teacher_experiment + ("_downscale" if student in CROSS_ARCHITECTURE_STUDENTS else "")


def _learning_rate(network: str) -> float:
    return CROSS_ARCHITECTURE_LEARNING_RATE if network in CROSS_ARCHITECTURE_STUDENTS else LEARNING_RATE


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
