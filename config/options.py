"""Every option but those of losses, which their files in distillation/losses describe: groups, by what reads them.

An option of a command line, of a file of options and of `results.json` is an entry of one flat dictionary; behind the
door of a job it is an attribute, `options.protocol.epochs`. Standard library only.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from config.schema import EVERY_JOB, JOBS, Bears, Option, filled, option, options_of

Config = dict[str, Any]

TRAIN = ("train",)
PATCHES = ("kmeans", "LDA")  # jobs on the patches of a map
OFFLINE = (*PATCHES, "class_means")  # jobs on the training images of a trained network
TRAINED = ("export", "probe", "layers", "predict", "pictures")  # jobs on a trained network, beside its evaluation
COMPUTE = tuple(job for job in EVERY_JOB if job != "export")
TEACHES = ("train", "layers", "pictures")  # jobs that read a teacher and what was made from it
OF_TEACHER = ("train", *OFFLINE, "layers", "pictures")  # jobs that read the teacher of a pair
WEIGHED = ("train", "layers")  # jobs that sum the terms of letKD
OF_STUDENT = ("train", "evaluate", *TRAINED)  # jobs that read its student
ON_WEIGHTS = tuple(job for job in EVERY_JOB if job != "train")
STUDY = ("study",)
ALONE = "classification"  # the method of a network alone: cross-entropy and no teacher
EMA = "ema"  # what `teacher=` calls the average of the student


def group(cls: type) -> type:
    """A dataclass of options, compared by its values.

    The methods that `dataclass` would write for it are compiled whenever this module is imported, for every group.
    """
    cls.__eq__, cls.__hash__ = _is_equal, None
    return dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)


def _seen(by: str, what: str, jobs: tuple[str, ...] = EVERY_JOB) -> Any:
    """The option `<by>_<what>`, of what a network sees of the images.

    Args:
        by: "network", "teacher" or "student".
        what: "input", "size", "mean", "std" or "interpolation".
        jobs: those that read it.
    """
    unless = f"None: as `{by}_input` says"
    channels = {"length": 3, "elements": OF_CHANNELS[what]} if what in OF_CHANNELS else {}
    said = {
        "input": {
            "help": f"what the {by} sees: own, what its weights or its library tell; data, what the images are; None: "
            "what it was trained with here, or else what the images are",
            "choices": ("own", "data"),
        },
        "size": {"help": f"side of the images that the {by} sees, resized on the device; {unless}", "at_least": 1},
        "mean": {"help": f"mean of the channels for the {by}; {unless}", "at_least": 0, "at_most": 1},
        "std": {"help": f"standard deviation of the channels for the {by}; {unless}", "above": 0, "at_most": 1},
        "interpolation": {
            "help": f"how images are resized for the {by}; {unless}, or else bilinear",
            "choices": ("nearest", "bilinear", "bicubic"),
        },
    }
    return option(None, **said[what], **channels, jobs=jobs, bears="input")


OF_CHANNELS = {
    "mean": "three numbers in 0..1, one for each channel",
    "std": "three numbers above 0 and up to 1, one for each channel",
}


# --- of every command ------------------------------------------------------------------------------------------------


@group
class Job:
    """Which experiment, and what shall be done with it."""

    config: str = option(
        "digits.RN8",
        "the experiment: its options are those of the module config/A/B/C.py, or of methods of a pair, A.B.letKD-2+DKD",
        jobs=(*EVERY_JOB, "report"),
        bears="nothing",
    )
    name: str | None = option(
        None,
        "the run's own name A.B.C, and so its directory, in place of its experiment's; or a study's name",
        jobs=(*EVERY_JOB, "study"),
        bears="nothing",
    )
    evaluate: bool = option(
        False, "measure a trained network instead of training", jobs=("evaluate",), refused=True, bears="job"
    )
    best: bool = option(
        False, "take the best epoch instead of the last", jobs=("evaluate", *TRAINED), refused=True, bears="measured"
    )
    average: bool = option(
        False,
        "in training keep an average of the weights too, evaluated and saved beside them; elsewhere take it instead",
        jobs=("train", "evaluate", *TRAINED),
        refused=True,
        bears="measured",
    )
    testset: bool = option(
        False,
        "measure on the data set's third split",
        jobs=("evaluate", "probe", "layers", "pictures"),
        refused=True,
        bears="measured",
    )
    export: str | None = option(
        None, "write a trained network to a file", choices=("onnx", "pt2"), jobs=("export",), refused=True, bears="job"
    )
    probe: bool = option(
        False, "measure a linear classifier on the intermediate map", jobs=("probe",), refused=True, bears="job"
    )
    layers: bool = option(
        False, "measure what the KD layers of a trained student do", jobs=("layers",), refused=True, bears="job"
    )
    kmeans: int = option(
        0,
        "make the codebook of a network alone or of a pair's teacher, of so many words",
        at_least=0,
        jobs=("kmeans",),
        refused=True,
        bears="job",
    )
    LDA: int | str = option(
        0,
        "make the decision scores of such a network, of the first block of this stage, or of a place or module path",
        jobs=("LDA",),
        refused=True,
        bears="job",
    )
    class_means: bool = option(
        False,
        "make the class means of a network alone or of a pair's teacher, which KDPP needs",
        jobs=("class_means",),
        refused=True,
        bears="job",
    )
    prepare: bool = option(
        False,
        "first make the teacher and supervision that are missing",
        jobs=("train", *OFFLINE, "layers", "pictures"),
        bears="nothing",
    )
    allow_poor_teacher: bool = option(
        False,
        "train although the teacher is no better than guessing on the evaluation images",
        jobs=TRAIN,
        bears="nothing",
    )
    checkpoint: int = option(
        0,
        "0 from scratch, -1 go on, else this epoch",
        at_least=-1,
        jobs=("train", "evaluate", *TRAINED),
        refused=True,
        bears="measured",
    )
    trials: int = option(
        0,
        "so many runs, with seeds 0, 1, ...",
        at_least=0,
        at_most=10_000,
        jobs=("train", "evaluate", "export", "probe", "layers", "study"),
        refused=True,
        bears="seed",
    )
    seeds: list[int] = option(
        [],
        "the runs with these seeds",
        at_least=0,
        elements="different whole numbers from 0, like [0, 1, 2]",
        jobs=("train", "evaluate", *TRAINED, "study"),
        refused=True,
        bears="seed",
    )

    @property
    def run_name(self) -> str:
        """What the run is called: its own name, or that of its experiment."""
        return self.name or self.config


@group
class Run:
    """How and where it is done."""

    localpath: str = option("experiments", "where outputs go", jobs=JOBS, inherited=True, bears="nothing")
    data_dir: str | None = option(
        None, "where the images are, or are downloaded to; None: data", inherited=True, bears="nothing"
    )
    seed: int = option(
        0,
        "of everything random; the same seed on the same machine repeats a CPU run bit for bit",
        at_least=0,
        inherited=True,
        bears="seed",
    )
    view_seed: int | None = option(
        None,
        "of the order and the augmentation of training images alone; None: `seed`",
        at_least=0,
        jobs=TRAIN,
        bears="training",
    )
    precision: str = option(
        "fp32",
        "of matrix products and convolutions; a network that words, decisions or means are made of takes bf16 as tf32",
        choices=("fp32", "tf32", "bf16"),
        jobs=COMPUTE,
        inherited=True,
    )
    deterministic: bool = option(
        False, "repeat results bit for bit on a GPU too", jobs=COMPUTE, inherited=True, bears="nothing"
    )
    cuda: bool = option(True, "use the GPU where there is one", jobs=COMPUTE, inherited=True, bears="nothing")
    cuda_graph: bool = option(False, "record the step as a CUDA graph and replay it", jobs=TRAIN, bears="nothing")
    sync_bn: bool = option(
        False,
        "with several processes let BatchNorm take its statistics of the whole batch, and not of each one's part",
        jobs=TRAIN,
        bears="training",
    )
    num_workers: int = option(
        2, "processes that decode images", at_least=0, at_most=1024, inherited=True, bears="nothing"
    )
    disp_step: int = option(50, "steps between looks at the losses", at_least=1, jobs=TRAIN, bears="nothing")
    keep_every: int = option(0, "also keep the checkpoint of every n-th epoch", at_least=0, jobs=TRAIN, bears="nothing")
    mongo: str | None = option(
        None,
        "also record it in host:port/database or mongodb://...",
        jobs=("train", "evaluate", "export", "probe", "layers", *OFFLINE),
        bears="nothing",
    )

    @property
    def seed_of_views(self) -> int:
        """What the order and the augmentation of training images follow from, with the epoch."""
        return self.seed if self.view_seed is None else self.view_seed


@group
class Offline:
    """How patches are held that codebooks and decision scores are made from."""

    fname: str | None = option(
        None, "file name of the result instead of the standard one", jobs=PATCHES, refused=True, bears="nothing"
    )
    max_patches: int = option(
        0,
        "of more patches than this, so many random ones are held; 0: all",
        at_least=0,
        jobs=PATCHES,
        refused=True,
    )
    incremental: bool = option(
        False, "run the network twice instead of holding its patches", jobs=("LDA",), refused=True, bears="nothing"
    )
    memmap: bool = option(
        False, "hold the patches in a file instead of in memory", jobs=PATCHES, inherited=True, bears="nothing"
    )
    memmap_dir: str | None = option(
        None,
        "folder of the file of `memmap`; None: the output directory",
        jobs=PATCHES,
        inherited=True,
        bears="nothing",
    )


@group
class Prediction:
    """Of the command `predict`."""

    images: Any = option(
        None, "image files, a folder, a pattern, or a list of them", jobs=("predict",), refused=True, bears="nothing"
    )
    export_file: str | None = option(
        None,
        "predict with this exported .onnx file instead of an experiment",
        jobs=("predict",),
        refused=True,
        bears="nothing",
    )
    top: int = option(5, "so many classes for each image", at_least=1, jobs=("predict",), refused=True, bears="nothing")
    format: str = option(
        "table",
        "how predictions are printed",
        choices=("table", "json"),
        jobs=("predict",),
        refused=True,
        bears="nothing",
    )


@group
class Report:
    """Of the command `report`."""

    watch: bool = option(False, "write the report again every few seconds", jobs=("report",), bears="nothing")


@group
class Study:
    """Of the command `study`."""

    pairs: list[str] = option(
        [], "pairs of networks", elements="names of pairs, like digits.RN14_RN8", jobs=STUDY, bears="nothing"
    )
    methods: list[str] = option(
        [],
        "methods or sums of methods, which every pair is trained with; alone: the student without a teacher",
        elements="names of methods, like KD or letKD-2+DKD, or alone",
        jobs=STUDY,
        bears="nothing",
    )
    against: str | None = option(
        None, "the method that the others are compared with; None: the first", jobs=STUDY, bears="nothing"
    )
    search: list[str] = option(
        [],
        "values of one or two options of which every method takes the best on `val_split` held-out training images",
        elements="options with their values, like kd.temperature=[2,4,8]",
        jobs=STUDY,
        bears="nothing",
    )
    jobs: int | None = option(
        None,
        "so many runs at once, each a process of its own; None: one, and in a queue as many as it takes",
        at_least=1,
        at_most=1024,
        jobs=STUDY,
        bears="nothing",
    )
    cluster: str | None = option(
        None,
        "give the runs to a queue, by submitit: slurm, or local, processes of this machine; None: train here",
        choices=("slurm", "local"),
        jobs=STUDY,
        bears="nothing",
    )
    cluster_options: list[str] = option(
        [],
        "what each job asks its queue for, as submitit calls it, or Slurm: partition=gpu gpus_per_node=1",
        elements="parameters with their values, like partition=gpu timeout_min=240",
        jobs=STUDY,
        bears="nothing",
    )
    dry_run: bool = option(False, "list the runs and start none", jobs=STUDY, bears="nothing")


# --- of experiments --------------------------------------------------------------------------------------------------


@group
class Experiment:
    """What every experiment says."""

    method: str = option(help="classification, or a method or a sum of methods; each experiment has its own")
    published_weights: str | None = option(
        None,
        "file with published weights of the network alone, or of the pair's teacher; read where none were trained here",
        bears="nothing",
    )
    init: str | None = option(
        None,
        "weights that a training starts from: a file, or what else docs/weights.md says",
        jobs=TRAIN,
        bears="training",
    )


@group
class Data:
    """The images."""

    dataset: str = option(help="a name that `dataloaders` knows", inherited=True)
    image_size: int | None = option(
        None,
        "side of the square images; None: the data set's own, or measured",
        at_least=1,
        inherited=True,
        bears="images",
    )
    mean: list[float] | None = option(
        None,
        "mean of red, green and blue in 0..1; None: the data set's own, or measured",
        at_least=0,
        at_most=1,
        length=3,
        elements=OF_CHANNELS["mean"],
        inherited=True,
        bears="images",
    )
    std: list[float] | None = option(
        None,
        "standard deviation of red, green and blue; None: likewise",
        above=0,
        at_most=1,
        length=3,
        elements=OF_CHANNELS["std"],
        inherited=True,
        bears="images",
    )
    padding_mode: str = option(
        "reflect",
        "what is around the training images that a crop is taken of; of images that are files there is no padding",
        choices=("reflect", "zeros"),
        jobs=TRAIN,
        bears="training",
    )
    unlabelled: str | None = option(
        None,
        "a folder of pictures without classes, from which losses that need no labels learn too",
        jobs=("train", "kmeans", "layers", "pictures"),
        bears="training",
    )
    unlabelled_share: float = option(
        0.5,
        "share of these pictures in every batch; 1: all, so that no label is read, and words are of these pictures",
        above=0,
        at_most=1,
        jobs=("train", "kmeans", "layers", "pictures"),
        bears="training",
    )
    val_split: int = option(
        0,
        "so many training images are held out and choose the best epoch",
        at_least=0,
        jobs=("train", *OFFLINE),
        inherited=True,
        bears="training",
    )

    @property
    def is_label_free(self) -> bool:
        """Whether a training reads no labels; its words are of the pictures then."""
        return self.unlabelled is not None and self.unlabelled_share == 1


@group
class Augmentation:
    """What is done to the training images beside flips: dataloaders/policies.py."""

    crop: str | None = option(
        None,
        "how training images are cropped: padded and a window of their size taken, or a window of random size resized; "
        "None: padded where they are held in memory, resized where they are read from files",
        choices=("padded", "resized"),
        jobs=TRAIN,
        bears="training",
    )
    crop_scale: list[float] = option(
        [0.08, 1.0],
        "the smallest and the largest part of an image's area that crop=resized takes",
        above=0,
        at_most=1,
        length=2,
        elements="two numbers above 0 and up to 1, the smaller first, like [0.08, 1]",
        jobs=TRAIN,
        bears="training",
    )
    crop_ratio: list[float] = option(
        [3 / 4, 4 / 3],
        "the smallest and the largest width of such a window in its heights",
        above=0,
        length=2,
        elements="two numbers above 0, the smaller first, like [0.75, 1.33]",
        jobs=TRAIN,
        bears="training",
    )
    auto_augment: str | None = option(
        None,
        "the policy that draws operations on colours and geometry for each image",
        choices=("randaugment", "trivialaugment"),
        jobs=TRAIN,
        bears="training",
    )
    randaugment_ops: int = option(
        2, "operations that RandAugment applies to an image", at_least=1, at_most=16, jobs=TRAIN, bears="training"
    )
    randaugment_magnitude: int = option(
        9, "how much they change, of 30", at_least=0, at_most=30, jobs=TRAIN, bears="training"
    )
    color_jitter: list[float] | None = option(
        None,
        "how far brightness, contrast, saturation and hue are changed, each at random; the hue in 0..0.5 of a turn",
        at_least=0,
        length=4,
        elements="four numbers from 0, of brightness, contrast, saturation and hue, like [0.4, 0.4, 0.4, 0.1]",
        jobs=TRAIN,
        bears="training",
    )
    random_erasing: float = option(
        0.0,
        "the probability with which a rectangle of an image is erased",
        at_least=0,
        at_most=1,
        jobs=TRAIN,
        bears="training",
    )


@group
class Protocol:
    """Optimisation, the same for every method. The defaults are the paper's for CIFAR-100."""

    protocol: str = option(
        "paper",
        "whose values stand where nothing else is said: paper, the experiment's own, which are letKD's paper's and the "
        "same for all methods; published, those of the method's authors for the pair, where they are known",
        choices=("paper", "published"),
        jobs=TRAIN,
        bears="training",
    )
    epochs: int = option(240, "passes over the training images", at_least=1, jobs=TRAIN, bears="training")
    batch_size: int = option(  # BatchNorm needs two
        64, "images a step; an incomplete last batch is left out", at_least=2, jobs=TRAIN, bears="training"
    )
    test_batch_size: int = option(100, "images a step of everything else", at_least=1, inherited=True, bears="nothing")
    accumulate: int = option(
        1,
        "the images of a step go through the networks in so many parts, whose gradients are added: less memory",
        at_least=1,
        jobs=TRAIN,
        bears="training",
    )
    optimizer: str = option(
        "sgd", "sgd, adamw, or timm/NAME, an optimizer of timm by its name there", jobs=TRAIN, bears="training"
    )
    learning_rate: float = option(0.05, "the highest learning rate", above=0, jobs=TRAIN, bears="training")
    learning_rates: list[str] = option(
        [],
        "factors of the learning rate for parameters by pattern, the last that fits: ['backbone.*=0.1']",
        elements="patterns with factors, like ['backbone.*=0.1']",
        jobs=TRAIN,
        bears="training",
    )
    freeze: list[str] = option(
        [],
        "patterns of parameters that stay as they are and BatchNorms that keep their statistics: ['backbone.conv1']",
        elements="patterns, like ['backbone.conv1', 'backbone.layer1']",
        jobs=TRAIN,
        bears="training",
    )
    schedule: str = option(
        "step",
        "how the learning rate falls: at `milestones` by `lr_factor`, in every step to `final_learning_rate`, or never",
        choices=("step", "cosine", "linear", "constant"),
        jobs=TRAIN,
        bears="training",
    )
    milestones: list[int] = option(
        [150, 180, 210],
        "the learning rate falls after each of these epochs",
        at_least=1,
        elements="epochs from 1, like [150, 180, 210]",
        jobs=TRAIN,
        bears="training",
    )
    lr_factor: float = option(
        0.1, "what the learning rate is multiplied by at a milestone", above=0, jobs=TRAIN, bears="training"
    )
    final_learning_rate: float = option(
        0.0, "where schedule=cosine and linear end, at most `learning_rate`", at_least=0, jobs=TRAIN, bears="training"
    )
    warmup: float = option(
        0.0,
        "epochs over which the learning rate first rises, parts of one too",
        at_least=0,
        jobs=TRAIN,
        bears="training",
    )
    warmup_steps: int = option(
        0, "steps over which the learning rate first rises, instead of epochs", at_least=0, jobs=TRAIN, bears="training"
    )
    momentum: float = option(
        0.9, "the momentum of SGD, and of those of timm that have one", at_least=0, jobs=TRAIN, bears="training"
    )
    nesterov: bool = option(True, "Nesterov's form of momentum, of sgd", jobs=TRAIN, bears="training")
    betas: list[float] | None = option(
        None,
        "how much adamw, and those of timm that have them, keep of past gradients and squares in a step; None: its own",
        at_least=0,
        at_most=0.999999,
        elements="numbers from 0 to below 1, like [0.9, 0.999]",
        jobs=TRAIN,
        bears="training",
    )
    eps: float | None = option(
        None, "what the same add to a divisor so that it is not 0; None: its own", above=0, jobs=TRAIN, bears="training"
    )
    weight_decay: float = option(
        5e-4, "weight decay of everything that trains", at_least=0, jobs=TRAIN, bears="training"
    )
    decay_norms_and_biases: bool = option(
        True,
        "whether norms, biases and scales decay too, and what networks of timm want no decay of",
        jobs=TRAIN,
        bears="training",
    )
    clip_gradients: float | None = option(
        None, "the largest norm of all gradients together; None: any", above=0, jobs=TRAIN, bears="training"
    )
    dropout: float | None = option(
        None,
        "dropout in the network that trains, where it takes any; None: its own",
        at_least=0,
        at_most=0.99,
        jobs=TRAIN,
        bears="training",
    )
    drop_path: float | None = option(
        None,
        "stochastic depth in the network that trains, in its last block; None: its own",
        at_least=0,
        at_most=0.99,
        jobs=TRAIN,
        bears="training",
    )
    mixup: float = option(
        0.0,
        "mixup: pairs of training images are blended, with shares from Beta(mixup, mixup); 0: none",
        at_least=0,
        jobs=TRAIN,
        bears="training",
    )
    cutmix: float = option(
        0.0,
        "CutMix: a box of one image is pasted into another, its part from Beta(cutmix, cutmix); 0: none",
        at_least=0,
        jobs=TRAIN,
        bears="training",
    )
    mix_switch: float = option(
        0.5,
        "where mixup and cutmix are both on: the probability that a mixed batch is CutMix's",
        at_least=0,
        at_most=1,
        jobs=TRAIN,
        bears="training",
    )
    mix_probability: float = option(
        1.0, "the share of batches that mixup and cutmix mix", at_least=0, at_most=1, jobs=TRAIN, bears="training"
    )
    mix_off_epoch: int = option(
        0,
        "after this epoch mixup and cutmix mix nothing; 0: they mix to the end",
        at_least=0,
        jobs=TRAIN,
        bears="training",
    )
    ema_decay: float = option(
        0.999,
        "share of the average that stays in a step; less in the first steps",
        at_least=0,
        at_most=0.999999,
        jobs=TRAIN,
        bears="training",
    )


@group
class Network:
    """A network alone: trained with cross-entropy, and a teacher that supervision is made from."""

    network: str = option(help="a name that `architectures` knows")
    weights: str | None = option(
        None,
        "a file, instead of what was trained here or published; a training starts from it",
        bears="weights",
    )
    published_top1: float | None = option(
        None, "what published_weights should reach, in percent", jobs=("evaluate",), bears="nothing"
    )
    trained_as: str | None = option(
        None, "the experiment that trains these weights; None: this one", jobs=ON_WEIGHTS, bears="weights"
    )
    downscale: int = option(
        1,
        "side of the windows that maps are averaged over, for coarser students",
        at_least=1,
        jobs=PATCHES,
        bears="training",
    )
    network_input: str | None = _seen("network", "input")
    network_size: int | None = _seen("network", "size")
    network_mean: list[float] | None = _seen("network", "mean")
    network_std: list[float] | None = _seen("network", "std")
    network_interpolation: str | None = _seen("network", "interpolation")


@group
class Pair:
    """A student and its teacher."""

    teacher: str | None = option(
        help="the teacher's network, a name that `architectures` knows, or `ema`: the average of the student",
        jobs=TEACHES,
        bears="training",
    )
    student: str = option(help="the student's network, a name that `architectures` knows")
    teacher_experiment: str | None = option(
        None, "what trains the teacher; None: nothing here", jobs=TEACHES, bears="training"
    )
    teacher_weights: str | None = option(
        None,
        "a file, instead of what that experiment trained or was published",
        jobs=OF_TEACHER,
        bears="training",
    )
    student_weights: str | None = option(
        None, "the same as `init`, for the student of a pair", jobs=TRAIN, bears="training"
    )
    teacher_cache: str | None = option(
        None,
        "what the teacher says is kept in files, which runs with the same views read: `logits` alone, in 16 bits; "
        "`all` that the losses read, as it is",
        choices=("logits", "all"),
        jobs=TRAIN,
        bears="training",
    )
    teacher_cache_top: int | None = option(
        None,
        "of an image so many of the largest logits are kept, and one number for the others; None: all",
        at_least=1,
        jobs=TRAIN,
        bears="training",
    )
    teacher_cache_dir: str | None = option(
        None, "folder of such files; None: teacher_cache in `localpath`", jobs=TRAIN, bears="nothing"
    )
    teacher_input: str | None = _seen("teacher", "input", OF_TEACHER)
    teacher_size: int | None = _seen("teacher", "size", OF_TEACHER)
    teacher_mean: list[float] | None = _seen("teacher", "mean", OF_TEACHER)
    teacher_std: list[float] | None = _seen("teacher", "std", OF_TEACHER)
    teacher_interpolation: str | None = _seen("teacher", "interpolation", OF_TEACHER)
    student_input: str | None = _seen("student", "input", OF_STUDENT)
    student_size: int | None = _seen("student", "size", OF_STUDENT)
    student_mean: list[float] | None = _seen("student", "mean", OF_STUDENT)
    student_std: list[float] | None = _seen("student", "std", OF_STUDENT)
    student_interpolation: str | None = _seen("student", "interpolation", OF_STUDENT)


@group
class Words:
    """letKD's and QuEST's: the teacher's words, and how they are learnt. K and S are shapes of a student's weights,
    which loading compares."""

    supervision: str | None = option(
        None,
        "the experiment whose codebook and decision scores are used; None: those of the teacher's weights",
        jobs=TEACHES,
        bears="training",
    )
    codebook: str | None = option(
        None, "a file, instead of the one below experiments/VQ/<supervision>", jobs=TEACHES, bears="training"
    )
    num_words: int = option(4096, "K, the words in the codebook", at_least=2, bears="training")
    words_place: str = option(
        "penultimate",
        "where the layer of the words sits in the student: a name or a module path",
        of_loss="words.place",
    )
    temperature: float = option(
        1.0, "tau, which multiplies squared distances to the words", above=0, jobs=TEACHES, bears="training"
    )
    cls_loss_coef: float = option(
        1.0, "weight of the cross-entropy", at_least=0, jobs=WEIGHED, bears="training", of_loss="ce.weight"
    )
    quest_loss_coef: float = option(
        1.0,
        "weight of the divergence from the teacher's words",
        at_least=0,
        jobs=WEIGHED,
        bears="training",
        of_loss="words.weight",
    )


@group
class WordsMap:
    """What words are of: a network alone is a teacher too."""

    words_teacher_place: str = option(
        "penultimate",
        "the teacher's map that the words are of: a name or a module path",
        jobs=("train", "kmeans", "layers", "pictures"),
        bears="training",
        of_loss="words.teacher_place",
    )


@group
class Layers:
    """KD layers in the student."""

    penultimate: bool = option(True, "whether there is a KD layer at the penultimate map")
    intermediate: bool = option(False, "whether there is a KD layer after the first block of the last stage")
    alpha_penultimate: float = option(1.0, "weight of the values in the output of the penultimate layer")


@group
class Decisions:
    """letKD-2's: the teacher's sub-class decisions, and the second layer that learns them."""

    decisions: str | None = option(
        None, "a file, instead of those below experiments/LDA/<supervision>", jobs=TEACHES, bears="training"
    )
    decisions_place: str = option(
        "intermediate",
        "where the layer of the decisions sits in the student: a name or a module path",
        of_loss="decisions.place",
    )
    decisions_teacher_place: str = option(
        "intermediate",
        "the teacher's map that the decisions are of: a name or a module path",
        jobs=("train", "LDA", "layers", "pictures"),
        bears="training",
        of_loss="decisions.teacher_place",
    )
    alpha_intermediate: float = option(1.0, "weight of the values in the output of the intermediate layer")
    sub_loss_coef: float = option(
        1.0,
        "weight of the divergence from the teacher's decisions",
        at_least=0,
        jobs=WEIGHED,
        bears="training",
        of_loss="decisions.weight",
    )


@group
class Subclasses:
    """Of decision scores, and of the layer that learns them."""

    subclasses_per_class: int = option(8, "S, the sub-classes of a class", at_least=1, bears="training")
    lda_components: int = option(
        60, "L, the LDA components that are kept; N classes have at most N - 1", at_least=1, bears="training"
    )


@group
class Control:
    """Of the paper's control of size: FitNet with KD layers."""

    supervised: bool = option(
        False, "whether the teacher supervises the scores of the KD layers, as in letKD", jobs=TRAIN, bears="training"
    )


# --- all of them -----------------------------------------------------------------------------------------------------


@group
class Options:
    """All options of a run, by groups; those of an experiment are None where it does not have them.

    Args:
        others: options of losses by their dotted names, and of an experiment of your own.
        flat: all of them in one dictionary, as `results.json` has it: to record, to compare with records, and to print.
    """

    job: Job
    run: Run
    offline: Offline
    prediction: Prediction
    report: Report
    study: Study | None
    experiment: Experiment
    data: Data
    augmentation: Augmentation
    protocol: Protocol
    network: Network | None
    pair: Pair | None
    words: Words | None
    words_map: WordsMap | None
    layers: Layers | None
    decisions: Decisions | None
    subclasses: Subclasses | None
    control: Control | None
    others: Mapping[str, Any] = field(default_factory=dict)
    flat: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> "Options":
        """The options of a flat dictionary, which has been checked; what it does not say is the default."""
        found = {name: filled(group, config) for name, group in GROUPS.items() if _has(config, name)}
        others = {key: value for key, value in config.items() if key not in OPTIONS}
        return cls(**dict.fromkeys(GROUPS) | found, others=others, flat=config)

    def changed(self, **values: Any) -> "Options":
        """The same options but for these."""
        return Options.of({**self.flat, **values})

    def of_loss(self, name: str, default: Any = None) -> Any:
        """The option `<loss>.<name>`, whichever of its names it has here."""
        return self.flat.get(name, self.flat.get(PUBLISHED_NAMES.get(name), default))


_TYPES = typing.get_type_hints(Options)
_OF_SOME = {name: typing.get_args(kind)[0] for name, kind in _TYPES.items() if isinstance(kind, UnionType)}
GROUPS: dict[str, type] = {
    name: _OF_SOME.get(name, kind) for name, kind in _TYPES.items() if name not in ("others", "flat")
}


def _has(config: Config, name: str) -> bool:
    """Whether a dictionary has a group of options: all that have no default, or any where all have one."""
    required = {key for key, said in _DESCRIBED[name].items() if said.default is dataclasses.MISSING}
    return name not in _OF_SOME or (required <= set(config) if required else bool(set(_DESCRIBED[name]) & set(config)))


ENTRY = (Job, Run, Offline, Prediction, Report)  # what every command has
_DESCRIBED = {name: options_of(group) for name, group in GROUPS.items()}
OPTIONS: dict[str, Option] = {key: said for options in _DESCRIBED.values() for key, said in options.items()}

# Options of losses that have a published name, by the name that losses have: {"ce.weight": "cls_loss_coef"}.
PUBLISHED_NAMES = {said.of_loss: key for key, said in OPTIONS.items() if said.of_loss}

_FIELDS = {field.name: field for group in GROUPS.values() for field in dataclasses.fields(group)}


def published_field(key: str) -> Any:
    """The field of a loss for its option of the published name `key`, which is described under that name."""
    return dataclasses.field(default=_FIELDS[key].default, metadata=_FIELDS[key].metadata)


def values_of(*groups: type, **given: Any) -> Config:
    """The options of groups in one dictionary: what is given, and defaults.

    Raises:
        TypeError: something is given that is no option of theirs, or an option without a default is not.
    """
    names = {field.name for group in groups for field in dataclasses.fields(group)}
    if unknown := sorted(set(given) - names):
        raise TypeError(f"{unknown[0]!r} is no option of {', '.join(group.__name__ for group in groups)}")
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return {key: value for group in groups for key, value in dataclasses.asdict(filled(group, values)).items()}


def names(*, bears: Bears) -> frozenset[str]:
    """The options that bear on something."""
    return frozenset(key for key, said in OPTIONS.items() if said.bears == bears)
