"""The protocols that methods were published with, for CIFAR-100, by method and pair: what `protocol=published` sets.

Of each stands here what its source states and nothing else; what it does not state stays the experiment's own. Where a
repository states no protocol of its own it is the one of 240 epochs that RepDistiller and mdistiller share, which also
the tables of published figures name as the standard one. Coefficients by pair are in the files of the losses; of sums
they are here. Normalisation is the data set's own, which is RepDistiller's as well, unless it is said. Not here, and so
refused, is what is not known (WTTM alone, TTM and ITRD but for their authors' examples, what the weight of DIST++
multiplies), and what is not built (AB, FT and FSP in two phases).

    python main_classification.py print_config with config=CIFAR100.resnetv1.RN56_RN20.KD protocol=published
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from config.options import ALONE, Config

DATASET = "CIFAR100"
Pair = tuple[str, ...]  # teacher and student, or a network alone

WRNS: tuple[Pair, ...] = (("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"))
OF_56: Pair = ("resnet56", "resnet20")
OF_110: tuple[Pair, ...] = (("resnet110", "resnet20"), ("resnet110", "resnet32"))
OF_32X4: Pair = ("resnet32x4", "resnet8x4")
OF_VGG: tuple[Pair, ...] = (("vgg13", "vgg8"), ("vgg13", "mobilenetv2"))
OF_50: tuple[Pair, ...] = (("resnet50", "mobilenetv2"), ("resnet50", "vgg8"))
SHUFFLED: tuple[Pair, ...] = (
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("wrn_40_2", "shufflenetv1"),
)
# The pairs of the tables of CRD, seven of one family and six of two, and which of them others have.
COMMON = (*WRNS, OF_56, *OF_110, OF_32X4, *OF_VGG, *OF_50, *SHUFFLED)
IN_LETKD = tuple(pair for pair in COMMON if "vgg8" not in pair and "vgg13" not in pair)
IN_DKD = tuple(pair for pair in COMMON if pair not in (OF_110[0], OF_50[1]))
IN_REVIEWKD = (*WRNS, OF_56, OF_110[1], OF_32X4, *SHUFFLED)
IN_SDD = (OF_32X4, *OF_VGG, *OF_50, *SHUFFLED, ("wrn_40_2", "vgg8"))
IN_DIST = (OF_56, OF_32X4, WRNS[1], OF_50[0], *SHUFFLED[:2])
IN_KDPP = IN_DIST
IN_LSKD = tuple(pair for pair in COMMON if pair not in (OF_50[1], SHUFFLED[0], SHUFFLED[2]))
LOGS_OF_LSKD = (  # and these, which are in no common table
    ("resnet32x4", "wrn_16_2"),
    ("resnet32x4", "wrn_40_2"),
    ("wrn_40_2", "resnet8x4"),
    ("wrn_40_2", "mobilenetv2"),
)

SMALL_STEPS = ("shufflenetv1", "shufflenetv2", "mobilenetv2")  # students with a learning rate of their own


@dataclass(frozen=True)
class Protocol:
    """What one source says of optimisation and images.

    Args:
        source: whose code or paper it is.
        options: by name.
        small_steps: the learning rate of the students in `SMALL_STEPS`; None where it is that of all.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    small_steps: float | None = None


@dataclass(frozen=True)
class Known:
    """A method's protocol, and the pairs for which it is known.

    Args:
        weights: of a sum, by pair: terms and options by their names on the command line.
    """

    protocol: Protocol
    pairs: tuple[Pair, ...]
    weights: Mapping[Pair, Mapping[str, float]] = field(default_factory=dict)


# SGD without Nesterov; a crop of 32 with a padding of 4, which is of zeros where nothing else is said (torchvision's
# RandomCrop), flips.
EPOCHS_240 = {
    "epochs": 240,
    "milestones": [150, 180, 210],
    "learning_rate": 0.05,
    "lr_factor": 0.1,
    "batch_size": 64,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "padding_mode": "zeros",
}


def of_240(source: str) -> Protocol:
    """The protocol of 240 epochs in a repository."""
    return Protocol(source, EPOCHS_240, small_steps=0.01)


LETKD = Protocol("Gorgun, Gurbuz, Alatan, BMVC 2023: protocol=paper")
REPDISTILLER = of_240("HobbitLong/RepDistiller b84f547")
MDISTILLER = of_240("megvii-research/mdistiller a08d46f")
LSKD = of_240("sunshangquan/logit-standardization-KD f6e5aa5, on mdistiller")
CTKD = of_240("zhengli97/CTKD 7d52522")
SDD = of_240("shicaiwei123/SDD-CVPR2024 e412036, on mdistiller; teachers of RepDistiller")
CATKD = of_240("GzyAftermath/CAT-KD 4467073, on mdistiller")
SIMKD = of_240("DefangChen/SimKD 2b389c3, where all weights are 1")
ITRD = of_240("roymiles/ITRD 5d08c6b, the command of its README")
TTM = of_240("zkxufo/TTM fe457b3, its example")
# The schedule is that of 120 epochs at the full rate and a tenth of it every 30 epochs after them: as 150, 180, 210.
DIST = Protocol(
    "hunto/DIST_KD 2418f18",
    {"epochs": 240, "milestones": [150, 180, 210], "learning_rate": 0.05, "lr_factor": 0.1, "batch_size": 64},
    small_steps=0.01,
)
REVIEWKD = Protocol(
    "dvlab-research/ReviewKD cede6ea, with teachers of its own",
    {
        "learning_rate": 0.1,
        "batch_size": 128,
        "nesterov": True,
        "mean": [125.3 / 255, 123.0 / 255, 113.9 / 255],
        "std": [63.0 / 255, 62.1 / 255, 66.7 / 255],
    },
    small_steps=0.02,
)
KDPP = Protocol(
    "WangYZ1608/Knowledge-Distillation-via-ND fc6f3f9",
    {"learning_rate": 0.1, "batch_size": 64, "nesterov": True},
    small_steps=0.02,
)
# mmcls. The weight decay and the steps in the authors' model file are in a syntax that this version does not read.
NKD = Protocol(
    "yzd-v/cls_KD 1e5d48f",
    {
        "epochs": 200,
        "milestones": [100, 150],
        "learning_rate": 0.1,
        "lr_factor": 0.1,
        "batch_size": 128,
        "weight_decay": 1e-4,
    },
)

# alpha, beta and v of DKD++; w and v of ReviewKD++: in the order of IN_KDPP, as its authors have them.
DKDPP = ((2.5, 4.0, 3.5), (2.0, 8.0, 0.5), (1.0, 6.0, 1.0), (0.5, 8.0, 1.0), (0.5, 8.0, 4.0), (0.5, 6.0, 0.5))
REVIEWKDPP = ((1.2, 1.0), (8.0, 1.0), (5.0, 4.0), (6.0, 2.0), (7.0, 1.0), (8.0, 1.5))

KNOWN: dict[str, Known] = {
    ALONE: Known(REPDISTILLER, tuple((name,) for name in dict.fromkeys(name for pair in COMMON for name in pair))),
    **dict.fromkeys(("letKD-1", "letKD-2", "QuEST"), Known(LETKD, IN_LETKD)),
    **dict.fromkeys(
        ("KD", "FitNet", "AT", "SP", "CC", "VID", "RKD", "PKT", "NST"),
        Known(REPDISTILLER, COMMON),
    ),
    "DKD": Known(MDISTILLER, IN_DKD),
    "NKD": Known(NKD, (("resnet34", "resnet18"),)),
    "DIST": Known(DIST, IN_DIST),
    "TTM": Known(TTM, (("vgg13", "vgg8"),)),
    # mdistiller's MobileNetV2 has no maps before an activation.
    "OFD": Known(MDISTILLER, tuple(pair for pair in COMMON if "mobilenetv2" not in pair)),
    "ReviewKD": Known(REVIEWKD, IN_REVIEWKD),
    "ITRD": Known(ITRD, (("wrn_40_2", "wrn_16_2"),)),
    "CAT-KD": Known(CATKD, IN_DKD),
    "KDPP": Known(KDPP, IN_KDPP),
    **dict.fromkeys(("lskd:KD", "lskd:DKD"), Known(LSKD, IN_LSKD + LOGS_OF_LSKD)),
    "ctkd:KD": Known(CTKD, COMMON),
    "ctkd:DKD": Known(CTKD, IN_DKD),
    "ctkd:lskd:KD": Known(LSKD, IN_LSKD),
    **dict.fromkeys(("sdd:KD", "sdd:DKD", "sdd:NKD"), Known(SDD, IN_SDD)),
    "KD+SRRL": Known(SIMKD, (OF_32X4,), {OF_32X4: {"kd.weight": 1.0}}),
    "DKD+KDPP": Known(
        KDPP,
        IN_KDPP,
        {
            pair: {"dkd.tckd": alpha, "dkd.nckd": beta, "kdpp.nd": nd}
            for pair, (alpha, beta, nd) in zip(IN_KDPP, DKDPP, strict=True)
        },
    ),
    "ReviewKD+KDPP": Known(
        KDPP,
        IN_KDPP,
        {
            pair: {"reviewkd.weight": weight, "kdpp.kd": 0.0, "kdpp.nd": nd}
            for pair, (weight, nd) in zip(IN_KDPP, REVIEWKDPP, strict=True)
        },
    ),
}


def published_options(config: Config) -> Config:
    """What was published for an experiment's method and networks: optimisation, images, and weights of a sum.

    Raises:
        ValueError: it is not known; names the methods, or the pairs of the method, for which it is.
    """
    method, pair = config["method"], _pair(config)
    known = KNOWN.get(method)
    if known is None:
        raise ValueError(
            f"protocol=published is not known of {method}; known, each for some pairs of {DATASET}: {', '.join(KNOWN)}"
        )
    if config["dataset"] != DATASET or pair not in known.pairs:
        pairs = ", ".join(" ".join(other) for other in known.pairs)
        if None in pair:
            raise ValueError(
                f"protocol=published of {method} is that of a teacher and a student, and {pair[-1]} alone has no "
                f"teacher; choose a pair, teacher and student, that it is known for on {DATASET}: {pairs}"
            )
        wanted = f"{' '.join(pair)} on {config['dataset']}"
        raise ValueError(
            f"protocol=published of {method} is not known for {wanted}; it is for these on {DATASET}: {pairs}"
        )
    protocol = known.protocol
    options = {key: list(value) if isinstance(value, list) else value for key, value in protocol.options.items()}
    if pair[-1] in SMALL_STEPS and protocol.small_steps is not None:
        options["learning_rate"] = protocol.small_steps
    return options | known.weights.get(pair, {})


def _pair(config: Config) -> Pair:
    if config["method"] == ALONE:
        return (config["network"],)
    return config["teacher"], config["student"]
