"""Options as dataclasses: what is derived from a field, and what earlier versions called options."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import config
import main_classification
from algorithms import check_options
from config.experiments import ENTRY_OPTIONS, default_config, load_experiment
from config.former_names import FORMER_NAMES, renamed, say_renamed
from config.options import GROUPS, OPTIONS, PUBLISHED_NAMES, Options, Protocol, values_of
from config.recipes import classification
from config.schema import like, option, options_of
from config.updates import check_updates
from distillation.expressions import described
from distillation.losses import find_loss, find_transform, list_losses, list_transforms
from results.settings import changed_settings

FITNET = "CIFAR100.resnetv1.RN110_RN32.FitNet"
WRONG = {bool: "yes", int: 1.5, float: "much", str: 5}
PARTS = [*map(find_loss, list_losses()), *map(find_transform, list_transforms())]
OF_LOSSES = {name: said for part in PARTS for name, said in part.described().items()}


@dataclass(frozen=True)
class Sample:
    flag: bool = option(False, "a flag")
    count: int = option(4, "a number", at_least=1, at_most=9)
    share: float | None = option(None, "another", above=0)
    kind: str = option("soft", "which", choices=("soft", "hard"))
    lengths: list[int] = option([1, 2], "several", at_least=1, elements="lengths from 1")
    triple: list[float] | None = option(None, "three", above=0, at_most=1, length=3, elements="three shares")
    stage: int | str = option(0, "a number or a name", at_least=0)
    anything: Any = option(None, "what somebody else checks")


def refused(name: str, value: Any) -> str | None:
    try:
        options_of(Sample)[name].check(value)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", True), ("count", 9), ("share", 1), ("share", None), ("kind", "hard"), ("lengths", []),
        ("lengths", [3, 1]), ("stage", 5), ("stage", "layer3"), ("anything", None), ("anything", ["a", "b"]),
        ("anything", 5),
    ],
)  # fmt: skip
def test_what_an_option_may_be(name, value):
    assert refused(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("flag", 1, "flag=1 must be of type bool"),
        ("flag", None, "flag=None is not possible: it needs a value of type bool"),
        ("count", True, "count=True must be of type int"),
        ("count", 2.0, "count=2.0 must be of type int"),
        ("count", 0, "count=0 must be at least 1"),
        ("count", 10, "count=10 must be at most 9"),
        ("count", 2**32, "count=4294967296 must be a number of at most 4294967295"),
        ("share", "x", "share='x' must be of type float, or None"),
        ("share", False, "share=False must be of type float, or None"),
        ("share", 0.0, "share=0.0 must be above 0"),
        ("share", float("nan"), "share=nan must be a number of at most"),
        ("kind", "har", "kind='har' must be soft or hard"),
        ("stage", -1, "stage=-1 must be at least 0"),
        ("stage", 0.5, "stage=0.5 must be of type int or str"),
        ("lengths", 5, "lengths=5 must be a list of lengths from 1"),
        ("lengths", [1, "a"], "lengths=[1, 'a'] must be a list of lengths from 1"),
        ("lengths", [1, True], "lengths=[1, True] must be a list of lengths from 1"),
        ("lengths", [1, 0], "lengths=[1, 0] must be a list of lengths from 1"),
        ("triple", [0.5, 1], "triple=[0.5, 1] must be a list of three shares, or None"),
        ("triple", [0.5, 1, 0], "triple=[0.5, 1, 0] must be a list of three shares, or None"),
        ("triple", [0.5, 1, 1.5], "triple=[0.5, 1, 1.5] must be a list of three shares, or None"),
    ],
)
def test_what_an_option_may_not_be(name, value, reason):
    assert (refused(name, value) or "").startswith(reason)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_type_names_option_type_and_value(name):
    said = OPTIONS[name]
    if object in said.types:  # `images`, of which `find_images` says more
        return
    value = WRONG[said.types[0]]
    with pytest.raises(ValueError) as caught:
        check_updates({name: value}, {name: said.default})
    what = f"a list of {said.elements}" if said.is_list else f"of type {said.types[0].__name__}"
    assert str(caught.value).startswith(f"{name}={value!r} must be {what}")


@pytest.mark.parametrize("name", OF_LOSSES)
def test_a_wrong_type_of_an_option_of_a_loss_says_what_the_loss_says(name):
    said = OF_LOSSES[name]
    value = WRONG[said.types[0]]
    with pytest.raises(ValueError) as caught:
        check_updates({name: value}, {name: said.default})
    assert said.elements or not said.is_list
    what = f"a list of {said.elements}" if said.is_list else f"of type {said.types[0].__name__}"
    assert str(caught.value) == f"{name}={value!r} must be {what}{', or None' * said.optional}"


def test_options_are_described_once_and_completely():
    assert sum(len(dataclasses.fields(group)) for group in GROUPS.values()) == len(OPTIONS)
    for said in OPTIONS.values():
        assert said.help and (not said.is_list or said.elements), said.name
        if said.default is not dataclasses.MISSING:
            said.check(said.default)


@pytest.mark.parametrize("name", ["digits.RN8", "digits.RN14_RN8.letKD-2+DKD", FITNET])
def test_every_option_of_an_experiment_is_described(name):
    for key, value in default_config(name).items():
        said = OPTIONS.get(key) or described(key)
        assert said is not None and said.help, key
        said.check(value)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_an_option_of_a_loss_with_a_published_name_is_described_under_it(name):
    said, published = described(name), OPTIONS[PUBLISHED_NAMES[name]]
    assert said == dataclasses.replace(published, name=name)
    key, _, field = name.partition(".")
    own = {field.name: field for field in find_loss(key).options()}
    assert field not in own or (own[field].default, own[field].metadata["help"]) == (published.default, said.help)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5, 0.5, 1.5], [-0.1, 0.5, 0.5], [0.5] * 4])
def test_a_normalisation_that_cannot_be_is_refused_before_images_are_read(key, value):
    with pytest.raises(
        ValueError, match=rf"^{key}=.* must be a list of three numbers .*, one for each channel, or None"
    ):
        check_options(default_config("digits.RN8") | {key: value})


def test_an_option_that_nobody_explains_is_refused():
    with pytest.raises(ValueError, match="an option needs a help"):
        option(1)


def test_a_default_that_is_a_list_is_nobodys():
    one, other = values_of(Protocol), values_of(Protocol)
    one["milestones"].append(300)
    assert other["milestones"] == [150, 180, 210] == options_of(Protocol)["milestones"].default


def test_a_recipe_knows_its_options():
    with pytest.raises(TypeError, match="'epoch' is no option of Experiment, Network"):
        classification(network="resnet8", dataset="digits", epoch=3)


def test_an_option_of_ones_own_is_like_its_default():
    like("dropout", 0.5).check(1)
    like("anything", None).check("a text")
    like("several", []).check(["a", 1])
    for default, value, kind in [(0.5, "much", "float"), (5, 0.5, "int"), ("a", 5, "str"), ([], "a", "list")]:
        with pytest.raises(ValueError, match=rf"^mine=.* must be of type {kind}$"):
            like("mine", default).check(value)


def test_groups_have_all_that_the_dictionary_has():
    flat = default_config("digits.RN14_RN8.letKD-2+DKD") | {"mine": 5}
    options = Options.of(flat)
    groups = [group for name in GROUPS if (group := getattr(options, name)) is not None]
    found = {key: value for group in groups for key, value in dataclasses.asdict(group).items()}
    assert found | options.others == options.flat == flat
    assert (options.network, options.control) == (None, None) and options.words.num_words == 128
    assert options.others == {key: value for key, value in flat.items() if key.startswith("dkd.")} | {"mine": 5}


def test_what_a_dictionary_of_ones_own_does_not_say_has_its_default():
    own = {"method": "classification", "network": "resnet8", "dataset": "digits"}
    options = Options.of(ENTRY_OPTIONS | own)
    assert options.protocol.epochs == 240 and options.data.val_split == 0 and options.network.downscale == 1
    assert options.words is options.pair is None


def test_changed_options_are_so_in_their_groups_and_in_the_dictionary():
    options = Options.of(default_config("digits.RN8"))
    changed = options.changed(seed=3, epochs=1)
    assert (changed.run.seed, changed.protocol.epochs) == (3, 1) == (changed.flat["seed"], changed.flat["epochs"])
    assert (options.run.seed, options.flat["seed"]) == (0, 0) and options.changed() == options


def test_an_option_of_a_loss_has_any_of_its_names():
    options = Options.of(default_config("digits.RN14_RN8.letKD-2+DKD") | {"quest_loss_coef": 2.0, "dkd.nckd": 3.0})
    assert (options.of_loss("words.weight"), options.of_loss("dkd.nckd")) == (2.0, 3.0)
    assert options.of_loss("at.weight", 5.0) == 5.0


# --- names of earlier versions ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def unsaid():
    """Nothing has been mentioned yet."""
    say_renamed.cache_clear()


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_a_former_name_is_read_on_the_command_line_with_a_notice(former, capsys):
    defaults = default_config(FITNET)
    now = FORMER_NAMES[former]
    value = defaults[now]
    assert check_updates({former: value}, defaults) == {now: value} == check_updates({now: value}, defaults)
    assert capsys.readouterr().err == f"note: {former} is called {now} now\n"


def test_a_former_name_is_read_in_files_once_with_a_notice(tmp_path, capsys):
    path = tmp_path / "options.yaml"
    path.write_text("hint: penultimate\nfitnet:\n  weight: 50\n")
    argv = ["main.py", "print_config", "with", f"config={FITNET}", str(path)]
    assert main_classification.main(argv) == 0
    out, err = capsys.readouterr()
    assert "hint = 'penultimate'" in out and "weight = 50" in out
    assert err == "note: hint is called fitnet.hint now\n"


def test_a_former_name_is_read_in_a_module_of_ones_own_with_a_notice(tmp_path, monkeypatch, capsys):
    """Also one that was put over what a recipe says."""
    folder = tmp_path / "mine_of_former_names"
    folder.mkdir()
    (folder / "FitNet.py").write_text(
        "from config.recipes import fitnet\n"
        "pair = {'dataset': 'CIFAR100', 'teacher': 'resnet56', 'student': 'resnet20'}\n"
        "config = fitnet(**pair) | {'hint_loss_coef': 50.0}\n"
    )
    monkeypatch.setattr(config, "__path__", [str(tmp_path)])
    found = load_experiment("mine_of_former_names.FitNet")
    assert found["fitnet.weight"] == 50.0 and not set(FORMER_NAMES) & set(found)
    file = "config/mine_of_former_names/FitNet.py"
    assert capsys.readouterr().err == f"note: {file}: hint_loss_coef is called fitnet.weight now\n"
    for module in [name for name in sys.modules if "mine_of_former_names" in name]:
        monkeypatch.delitem(sys.modules, module)


def test_a_former_name_and_todays_are_one_option():
    with pytest.raises(ValueError, match=r"fitnet\.hint and hint are one option; leave out one of them"):
        check_updates({"fitnet": {"hint": "penultimate"}, "hint": "penultimate"}, default_config(FITNET))


def test_an_unknown_option_is_no_former_name_of_another_experiment():
    with pytest.raises(ValueError, match="unknown option 'hint'"):
        check_updates({"hint": "penultimate"}, default_config("digits.RN8"))


def test_earlier_results_are_compared_by_todays_names(capsys):
    own = default_config(FITNET)
    former = {name: key for key, name in FORMER_NAMES.items()}
    earlier = {former.get(key, key): value for key, value in own.items()}
    assert set(FORMER_NAMES) <= set(earlier) and renamed(earlier) == own
    assert changed_settings(earlier, own) == changed_settings(own, earlier) == {}
    assert changed_settings(own, earlier | {"hint_loss_coef": 50.0}) == {"fitnet.weight": (100.0, 50.0)}
    assert capsys.readouterr().err == ""


LATER = ("optimizer", "schedule", "freeze", "protocol", "sync_bn")


def test_what_an_earlier_version_had_no_option_for_it_did_as_the_default_says():
    now = default_config("digits.RN8")
    earlier = {key: value for key, value in now.items() if key not in LATER}
    assert changed_settings(earlier, now) == changed_settings(now, earlier) == {}
    other = {"optimizer": "adamw", "schedule": "constant", "freeze": ["conv1"], "sync_bn": True}
    assert changed_settings(earlier, now | other) == {
        "optimizer": ("sgd", "adamw"), "schedule": ("step", "constant"), "freeze": ([], ["conv1"]),
        "sync_bn": (False, True),
    }  # fmt: skip
    of_no_training = {"config": "digits.RN8", "precision": "fp32"}
    assert changed_settings(of_no_training, now | other) == {}


def test_options_are_described_without_torch():
    source = "import sys, config.updates, results.settings; print('torch' in sys.modules)"
    root = Path(main_classification.__file__).parent
    process = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
