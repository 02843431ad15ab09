"""`protocol=published`: what it sets, by method and pair, what goes before it, and where it is refused."""

import re

import pytest

from architectures import list_models
from config.experiments import check_name, default_config, defaults_for, own_options
from config.options import OPTIONS
from config.protocols import ALONE, COMMON, DATASET, KNOWN
from distillation.expressions import described, summands

PREFIX = "CIFAR100.resnetv1.RN56_RN20"
PUBLISHED = {"protocol": "published", "name": "published.pair.X"}


def resolved(experiment: str, **updates):
    """The options of an experiment with this on its command line."""
    return defaults_for(default_config(experiment), updates) | updates


def of_pair(method: str, teacher: str, student: str, **updates):
    return resolved(f"{PREFIX}.{method}", teacher=teacher, student=student, **PUBLISHED, **updates)


# Typed from the notes on the methods' code, and not from `config/protocols.py`.
SGD_240 = {"epochs": 240, "milestones": [150, 180, 210], "batch_size": 64, "weight_decay": 5e-4, "nesterov": False}
EXPECTED = {
    ("KD", "resnet56", "resnet20"): SGD_240
    | {"learning_rate": 0.05, "padding_mode": "zeros", "mean": None, "ce.weight": 0.1, "kd.weight": 0.9},
    ("KD", "resnet50", "mobilenetv2"): SGD_240 | {"learning_rate": 0.01, "padding_mode": "zeros"},
    ("DKD", "vgg13", "vgg8"): SGD_240 | {"dkd.nckd": 6.0, "dkd.tckd": 1.0, "ce.weight": 1.0},
    ("DKD", "resnet32x4", "shufflenetv2"): {"dkd.nckd": 8.0, "learning_rate": 0.01},
    ("lskd:DKD", "resnet56", "resnet20"): SGD_240 | {"dkd.temperature": 3.0, "dkd.tckd": 18.0, "dkd.nckd": 36.0},
    ("sdd:KD", "resnet32x4", "resnet8x4"): {"sdd.grids": [2]},
    ("sdd:KD", "resnet50", "mobilenetv2"): {"sdd.grids": [2, 4]},
    ("DIST", "resnet56", "resnet20"): {"nesterov": True, "padding_mode": "reflect", "batch_size": 64},  # not stated
    ("ReviewKD", "resnet56", "resnet20"): {
        "batch_size": 128, "learning_rate": 0.1, "nesterov": True, "padding_mode": "reflect", "epochs": 240,
        "mean": [125.3 / 255, 123.0 / 255, 113.9 / 255], "std": [63.0 / 255, 62.1 / 255, 66.7 / 255],
        "reviewkd.weight": 0.6,
    },
    ("ReviewKD", "resnet32x4", "shufflenetv2"): {"learning_rate": 0.02, "reviewkd.weight": 8.0},
    ("NKD", "resnet34", "resnet18"): {
        "epochs": 200, "milestones": [100, 150], "learning_rate": 0.1, "batch_size": 128, "weight_decay": 1e-4,
        "nkd.temperature": 3.0, "nkd.non_target": 3.5,
    },
    ("ITRD", "wrn_40_2", "wrn_16_2"): {"itrd.alpha": 1.01, "itrd.mutual": 1.0, "itrd.correlation": 2.0},
    ("KDPP", "resnet50", "mobilenetv2"): {"learning_rate": 0.02, "nesterov": True, "kdpp.kd": 3.0, "kdpp.nd": 0.5},
    ("DKD+KDPP", "wrn_40_2", "wrn_40_1"): {"dkd.tckd": 1.0, "dkd.nckd": 6.0, "kdpp.nd": 1.0, "kdpp.kd": 0.0},
    ("ReviewKD+KDPP", "resnet32x4", "shufflenetv1"): {"reviewkd.weight": 7.0, "kdpp.nd": 1.0, "kdpp.kd": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("wanted", EXPECTED, ids=" ".join)
def test_a_method_has_the_published_values_of_its_pair(wanted):
    found = of_pair(*wanted)
    assert {key: found[key] for key in EXPECTED[wanted]} == EXPECTED[wanted]


# By the options that have the values: experiment, networks given, what follows. Typed like `EXPECTED`.
OTHER_NETWORKS = [
    (f"{PREFIX}.CAT-KD", {"teacher": "resnet32x4", "student": "shufflenetv2"},
     {"cat-kd.weight": 600.0, "cat-kd.normalize": True, "learning_rate": 0.01}),
    (f"{PREFIX}.CAT-KD", {"teacher": "timm/resnet18d"}, {"cat-kd.weight": 400.0, "cat-kd.normalize": True}),
    (f"{PREFIX}.ReviewKD", {"teacher": "resnet32x4", "student": "shufflenetv2"}, {"reviewkd.weight": 8.0}),
    (f"{PREFIX}.letKD-2+DKD", {"student": "resnet8"}, {"dkd.nckd": 8.0, "dkd.tckd": 1.0, "learning_rate": 0.05}),
    (f"{PREFIX}.lskd:KD", {"teacher": "resnet50", "student": "mobilenetv2"}, {"kd.weight": 1.0, "learning_rate": 0.01}),
    (f"{PREFIX}.letKD-2", {"student": "shufflenetv1"}, {"learning_rate": 0.01, "cls_loss_coef": 1.0}),
    ("CIFAR100.resnetv1.RN20", {"network": "mobilenetv2"}, {"learning_rate": 0.01}),
    ("CIFAR100.cross_model.MNv2", {"network": "resnet20"}, {"learning_rate": 0.05}),
    ("ImageNet.RN34_RN18.KD", {"student": "shufflenetv2"}, {"learning_rate": 0.1}),  # the protocol of ImageNet says it
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "networks", "expected"), OTHER_NETWORKS, ids=str)
def test_other_networks_have_what_is_published_for_them(experiment, networks, expected):
    """Without `protocol=published` too: its coefficients are the same."""
    found = resolved(experiment, **networks)
    assert {key: found[key] for key in expected} == expected
    assert own_options(found) == networks
    given = dict.fromkeys(expected, 7.0)
    assert {key: resolved(experiment, **networks, **given)[key] for key in expected} == given


def test_what_an_experiment_says_itself_stays_with_other_networks():
    defaults = default_config(f"{PREFIX}.CAT-KD") | {"cat-kd.weight": 3.0, "learning_rate": 0.02}
    found = defaults_for(defaults, {"teacher": "resnet32x4", "student": "shufflenetv2"})
    assert (found["cat-kd.weight"], found["learning_rate"], found["cat-kd.normalize"]) == (3.0, 0.02, True)


def test_the_protocol_of_the_paper_is_the_default_and_letkds_own():
    default = default_config(f"{PREFIX}.letKD-2")
    assert default["protocol"] == "paper"
    assert resolved(f"{PREFIX}.letKD-2", **PUBLISHED) == default | PUBLISHED
    student = resolved("CIFAR100.cross_model.MNv2", **PUBLISHED)
    assert (student["learning_rate"], student["nesterov"], student["padding_mode"]) == (0.01, False, "zeros")


def test_what_is_given_goes_before_the_protocol():
    found = of_pair("KD", "resnet56", "resnet20", nesterov=True, epochs=3, **{"kd.weight": 2.0})
    assert (found["nesterov"], found["epochs"], found["kd.weight"], found["padding_mode"]) == (True, 3, 2.0, "zeros")


def test_its_values_are_no_words_of_a_command():
    updates = PUBLISHED | {"epochs": 3}
    assert own_options(resolved(f"{PREFIX}.ReviewKD", **updates)) == updates


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("WTTM", {}, "protocol=published is not known of WTTM; known, .*: classification, letKD-1, .*KD, FitNet, "),
        ("KD+AT", {}, r"not known of KD\+AT; "),
        ("TTM", {}, "of TTM is not known for resnet56 resnet20 on CIFAR100; it is for these on CIFAR100: vgg13 vgg8$"),
        ("KD", {"teacher": "resnet8"}, "of KD is not known for resnet8 resnet20 on CIFAR100; .*wrn_40_2 wrn_16_2, "),
        ("KD", {"dataset": "CIFAR10"}, "of KD is not known for resnet56 resnet20 on CIFAR10; it is for"),
    ],
)
def test_what_is_not_known_is_refused_in_a_line(method, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolved(f"{PREFIX}.{method}", **PUBLISHED, **given)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_teacher_is_told_that_one_is_missing():
    """A method behind a network alone, whose teacher the command may say or not."""
    with pytest.raises(ValueError, match=r"and resnet8 alone has no teacher; choose .* resnet56 resnet20,") as caught:
        resolved("digits.RN8.KD", **PUBLISHED)
    assert "None" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="of KD is not known for ema resnet8 on digits"):
        resolved("digits.RN8.KD", **PUBLISHED, teacher="ema")


def test_a_run_by_it_needs_a_name_of_its_own():
    config = resolved(f"{PREFIX}.KD", protocol="published")
    name = f"published.{PREFIX}.KD"
    with pytest.raises(ValueError, match=f"protocol=published is another .* name={re.escape(name)} for example"):
        check_name(config)
    check_name(config | {"name": name})


@pytest.mark.parametrize("method", KNOWN)
def test_a_protocol_sets_options_that_there_are_within_their_bounds(method):
    known = KNOWN[method]
    if method != ALONE:
        assert summands(method) == method.split("+"), "in canonical order"
    for pair in known.pairs:
        assert set(pair) <= set(list_models())
        assert len(pair) == (1 if method == ALONE else 2)
        for name, value in {**known.protocol.options, **known.weights.get(pair, {})}.items():
            (OPTIONS.get(name) or described(name)).check(value)
    assert len(COMMON) == len(set(COMMON)) == 13 and DATASET == "CIFAR100"
