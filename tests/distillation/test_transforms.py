"""Transforms in front of losses on logits: their names, options and directories, and runs that learn a temperature."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from objective_tools import IMAGE_SIZE, objective_of_method
from training_tools import STEPS, differences, outcome, results_of, stop_at

import main_classification
from algorithms import check_options
from architectures import create_model
from config.experiments import canonical_name, default_config, load_experiment
from config.options import Options
from distillation.expressions import canonical, weights_of
from distillation.labels import check_labels, labels_read
from distillation.losses import Data, Transform, find_loss, find_transform, logits, weighs_mixed
from distillation.losses.sdd import region_logits
from distillation.mixing import check_losses
from distillation.signals import measured
from engine.checkpoints import load_checkpoint
from results.collect import collect
from results.places import folders_of, output_directory

pytestmark = pytest.mark.usefixtures("few_digits")

PAIR = "digits.RN14_RN8"
CIFAR = "CIFAR100.resnetv1.RN56_RN20"
SMALL = ["image_size=8", "cuda=False", "teacher=resnet8", "teacher_experiment=digits.RN8", "milestones=[]", "epochs=2"]
NAME = "mine.RN8_RN8.ctkd:lskd:KD"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("lskd:DKD", "lskd:DKD"),
        ("lskd(DKD)", "lskd:DKD"),
        ("ctkd(lskd(KD))+letKD-2", "letKD-2+ctkd:lskd:KD"),
        ("lskd:ctkd:KD", "ctkd:lskd:KD"),
        ("lskd:ctkd:sdd:NKD", "sdd:ctkd:lskd:NKD"),
        ("ReviewKD+lskd:DKD", "lskd:DKD+ReviewKD"),
        ("lskd:DKD+sdd:KD", "sdd:KD+lskd:DKD"),
    ],
)
def test_expressions_have_one_form(written, expected):
    assert canonical(written) == expected
    assert canonical_name(f"{PAIR}.{written}") == f"{PAIR}.{expected}"
    assert load_experiment(f"{PAIR}.{written}") == load_experiment(f"{PAIR}.{expected}")
    assert load_experiment(f"{PAIR}.{written}")["method"] == expected


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("lksd:DKD", "unknown transform 'lksd'; did you mean 'lskd'? known: sdd, ctkd, lskd"),
        ("LSKD:DKD", "unknown transform 'LSKD'; did you mean 'lskd'?"),
        ("lskd:DKX", f"unknown method 'DKX'; did you mean config='{PAIR}.lskd:DKD'"),
        ("lskd:", f"unknown method '' in '{PAIR}.lskd:'"),
        ("lskd:lskd:KD", "lskd:lskd:KD: lskd is there twice"),
        ("KD+lskd:KD", "KD+lskd:KD: KD is there twice"),
        ("lskd:AT", "lskd:AT: lskd stands in front of a loss on logits, and AT is none; try KD, DKD, NKD, DIST, TTM"),
        ("lskd:letKD-2", "lskd:letKD-2: lskd stands in front of a loss on logits, and letKD-2 is none"),
        ("ctkd:TTM", "ctkd:TTM: ctkd sets the temperature, and TTM has none; leave out ctkd"),
        ("sdd:DIST", "sdd:DIST: sdd weighs what DIST compares, which is no mean over samples; leave it out"),
    ],
)
def test_what_cannot_stand_in_front_is_one_line_and_leaves_nothing(expression, error, tmp_path, capsys):
    status = main_classification.main(["main.py", "with", f"config={PAIR}.{expression}", f"localpath={tmp_path}"])
    err = capsys.readouterr().err
    assert status == 1 and err.startswith(f"error: {error}") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_transforms_that_set_one_option_are_refused(monkeypatch):
    monkeypatch.setitem(
        logits._TRANSFORMS, "fixed", type("Fixed", (Transform,), {"key": "fixed", "replaces": ("temperature",)})
    )
    message = r"^lskd:fixed:ctkd:KD: fixed and ctkd both set the temperature; leave out one of them$"
    with pytest.raises(ValueError, match=message):
        canonical("lskd:fixed:ctkd:KD")
    assert canonical("lskd:fixed:KD") == "fixed:lskd:KD"


@pytest.mark.parametrize(
    ("reads_labels", "method", "labels"),
    [(True, "DIST", "all"), (True, "KD", "any"), (True, "DKD", "any"), (False, "DIST", "none"), (False, "KD", "none")],
)
def test_what_reads_labels_in_front_of_a_loss_is_asked_for_mixed_and_unlabelled_images(
    reads_labels, method, labels, monkeypatch
):
    """By a name on the command line, and as the objective has it: samples that are compared cannot be weighed."""
    own = type("ByClass", (Transform,), {"key": "byclass", "reads_labels": reads_labels})
    monkeypatch.setitem(logits._TRANSFORMS, "byclass", own)
    loss = find_loss(method.lower())
    assert labels_read(loss, ("byclass",)) == labels
    built = loss(**loss.defaults()).behind({"byclass": own()})
    assert (built.labels, weighs_mixed(built)) == (labels, labels != "all") and loss.labels == loss.labels_behind(())
    options = Options.of(default_config(f"{PAIR}.byclass:{method}+AT") | {"mixup": 0.4})
    if labels == "all":
        with pytest.raises(ValueError, match=r"cannot learn from mixed images: dist needs one class an image; leave"):
            check_losses(options)
        with pytest.raises(ValueError, match=r"^dist does not say what it makes of images without labels; leave out"):
            check_labels(options, 32)
    else:
        check_losses(options)
        check_labels(options, 32)


def test_a_directory_has_no_colon():
    directory = output_directory("experiments", NAME, "train")
    assert directory.parts == ("experiments", "mine", "RN8_RN8", "ctkd~lskd~KD")
    assert folders_of("digits.RN14_RN8.letKD-2+DKD") == ("digits", "RN14_RN8", "letKD-2+DKD")


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{PAIR}.lskd:KD", {"ce.weight": 0.1, "kd.weight": 9.0, "kd.temperature": 2.0}),
        (f"{PAIR}.lskd:KD+AT", {"ce.weight": 1.0, "kd.weight": 9.0, "kd.temperature": 2.0, "at.weight": 1000.0}),
        (f"{PAIR}.ctkd:lskd:KD", {"ce.weight": 0.1, "kd.weight": 9.0, "ctkd.decay": None}),
        ("CIFAR100.cross_model.RN50_MNv2.lskd:KD", {"ce.weight": 0.1, "kd.weight": 1.0, "kd.temperature": 3.0}),
        ("CIFAR100.cross_model.RN50_MNv2.ctkd:lskd:KD", {"ce.weight": 0.1, "kd.weight": 9.0}),
        ("CIFAR100.resnetv1.RN110_RN20.ctkd:lskd:KD", {"ce.weight": 0.1, "kd.weight": 9.0}),
        (f"{PAIR}.ctkd:KD", {"ce.weight": 0.1, "kd.weight": 0.9}),
        (f"{PAIR}.lskd:DKD", {"dkd.tckd": 9.0, "dkd.nckd": 72.0, "dkd.temperature": 2.0}),
        (f"{CIFAR}.lskd:DKD", {"dkd.tckd": 18.0, "dkd.nckd": 36.0, "dkd.temperature": 3.0, "ce.weight": 1.0}),
        (f"{CIFAR}.DKD", {"dkd.tckd": 1.0, "dkd.nckd": 2.0, "dkd.temperature": 4.0}),
        (f"{CIFAR}.sdd:NKD", {"nkd.non_target": 2.0, "nkd.all_classes": True, "nkd.warmup": None, "sdd.grids": [2, 4]}),
        ("CIFAR100.resnetv1.RN32x4_RN8x4.sdd:NKD", {"nkd.non_target": 8.0, "nkd.temperature": 4.0, "sdd.grids": [2]}),
        ("CIFAR100.resnetv1.RN32x4_RN8x4.sdd:DKD", {"dkd.nckd": 8.0, "sdd.grids": [2]}),
        (f"{PAIR}.NKD", {"nkd.non_target": 3.5, "nkd.all_classes": False, "nkd.warmup": 0.0}),
        ("ImageNet.RN34_RN18.NKD", {"nkd.non_target": 1.5, "nkd.temperature": 1.0}),
        ("ImageNet.RN34_RN18.DIST", {"dist.inter": 2.0, "dist.temperature": 1.0}),
    ],
)
def test_what_is_published_belongs_to_an_expression_and_a_pair(name, expected):
    found = load_experiment(name)
    assert {key: found.get(key, "missing") for key in expected} == expected
    check_options(default_config(name))


@pytest.mark.parametrize(
    ("expression", "word", "error"),
    [
        ("ctkd:KD", "kd.temperature=2", "unknown option 'kd.temperature'"),
        ("ctkd:KD", "ctkd.deca=2", "unknown option 'ctkd.deca'; did you mean 'ctkd.decay'"),
        ("lskd:KD", "ctkd.decay=2", f"'ctkd.decay': {PAIR}.lskd:KD has no loss ctkd; its losses: ce, kd, lskd"),
        ("ctkd:KD", "ctkd.decay=-1", "ctkd.decay=-1 must be at least 0"),
        ("sdd:KD", "sdd.grids=[0]", "sdd.grids=[0] must be a list of sides of grids"),
        ("sdd:KD", "sdd.grids=2", "sdd.grids=2 must be a list of sides of grids, like [2, 4]"),
    ],
)
def test_options_of_transforms_are_checked(expression, word, error, tmp_path, capsys):
    words = [f"config={PAIR}.{expression}", word, f"localpath={tmp_path}"]
    assert main_classification.main(["main.py", "with", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and error in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_print_config_shows_options_of_transforms(tmp_path, capsys):
    words = [f"config={PAIR}.lskd:ctkd:KD", "ctkd.decay=4", f"localpath={tmp_path}"]
    assert main_classification.main(["main.py", "print_config", "with", *words]) == 0
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    shown = {line.split("#")[0].strip() for line in out.splitlines()}
    assert {f"config = '{PAIR}.ctkd:lskd:KD'", "method = 'ctkd:lskd:KD'", "ctkd:", "decay = 4", "weight = 9.0"} <= shown
    assert not any(line.startswith("temperature") for line in shown)


# --- networks and runs ------------------------------------------------------------------------------------------------


class Normalising(torch.nn.Module):
    """A network that normalises the mean of its last map before it classifies."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.norm(self.conv(images).relu().mean(dim=(2, 3))))


def test_a_network_that_does_not_average_its_last_map_has_neither_regions_nor_class_maps():
    network = measured(Normalising(), 8, "normalising")
    assert network.outline.place("penultimate").channels == network.outline.num_features == 4
    assert not network.pools("penultimate")
    other = measured(create_model("resnet8", num_classes=5), 8, "resnet8")
    for part, name in ((find_transform("sdd"), "sdd"), (find_loss("cat-kd"), "CAT-KD")):
        for pair in ((network, other), (other, network)):
            message = rf"^{name} needs a map .*, which the penultimate map of normalising is not; choose"
            with pytest.raises(ValueError, match=message):
                part.build(*pair, Data(8, 5), **part.defaults())


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "shufflenetv2", "mobilenetv2", "vgg8"])
def test_our_networks_average_their_last_maps(name):
    torch.manual_seed(0)
    assert measured(create_model(name, num_classes=5), 32, name).pools("penultimate")


def run(folder, *words: str) -> int:
    words = [f"config={PAIR}.ctkd:lskd:KD", f"name={NAME}", *SMALL, *words]
    return main_classification.main(["main.py", "with", *words, f"localpath={folder}"])


def test_a_learnt_temperature_is_saved_and_goes_on(folder, tmp_path_factory, monkeypatch):
    """A run that is stopped within its second epoch is the run that nobody stops, bit for bit."""
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    assert run(folder) == 0
    directory = output_directory(str(folder), NAME, "train")
    losses = load_checkpoint(directory / "last.pth")["losses"]
    assert set(losses) == {"kd.transforms.ctkd.raw", "kd.transforms.ctkd.reversal"}
    raw = losses["kd.transforms.ctkd.raw"]
    assert raw.shape == () and raw != 1 and losses["kd.transforms.ctkd.reversal"] == -1
    results = results_of(directory)
    assert results["method"] == "ctkd:lskd:KD" and results["config"] == NAME
    (found,) = (run for run in collect(folder, default_config).runs if run.experiment == NAME)
    assert found.branch == Path() and found.has_own_name
    assert results["objective"]["weights"] == weights_of(Options.of(load_experiment(f"{PAIR}.ctkd:lskd:KD")))
    assert 1 < results["history"][-1]["statistics"]["kd.temperature"] < 21

    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(other) == 143
    assert run(other, "checkpoint=-1") == 0
    assert differences(outcome(output_directory(str(other), NAME, "train")), outcome(directory)) == []


def test_the_whole_is_what_the_student_says_behind_its_layers():
    """The logits of region 0 are those of the network, with a KD layer at the map."""
    torch.manual_seed(0)
    objective = objective_of_method("letKD-1+sdd:DKD").train()
    places = objective.describe()["places"]["dkd"]
    assert places["student"]["penultimate"]["path"] == places["teacher"]["penultimate"]["path"] == "layer3"
    found = objective.network(torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    transform = objective.losses["dkd"].transforms["sdd"]
    regions_BRN = region_logits(found.maps["penultimate"], found.head, transform.windows)
    torch.testing.assert_close(regions_BRN[:, 0], found.logits)
