"""Experiments without a module: a pair and a method, or a sum of them, by name; options of losses by dotted names."""

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

import config
import main_classification
from algorithms import check_method, check_options
from config import experiments, recipes
from config.experiments import canonical_name, default_config, load_experiment
from config.options import Layers, Options, Words, WordsMap
from config.schema import options_of
from config.updates import check_updates, flat
from distillation.expressions import losses_of, summands, weights_of
from distillation.losses import Loss, base, option, register_loss
from main_classification import nested
from results.settings import changed_network, changed_settings

PAIR = "digits.RN14_RN8"
CIFAR = "CIFAR100.resnetv1.RN56_RN20"
OF_LETKD = {*options_of(Words), *options_of(WordsMap), *options_of(Layers)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A loss of two terms with options of every kind, for the tests of this file alone."""
    monkeypatch.setattr(base, "_LOSSES", dict(base._LOSSES))

    @register_loss("Tiny")
    class Tiny(Loss):
        terms: ClassVar = {"tiny": 3, "far": 0.5}
        ce = 0.1
        published: ClassVar = {("resnet56", "resnet20"): {"far": 6, "scale": 9.0}}

        @dataclass(frozen=True)
        class Options:
            scale: float = option(2.0, "how much", above=0)
            steps: int = option(4, "how often", at_least=1)
            kind: str = option("soft", "which", choices=("soft", "hard"))
            length: float | None = option(None, "how long")

    return Tiny


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command line with its outputs below `tmp_path`: exit status, what it printed, its one line of error."""

    def run(*words: str, name: str | None = "print_config") -> tuple[int, str, str]:
        argv = ["main.py", *([name] if name else []), "with", *words, f"localpath={tmp_path}"]
        status = main_classification.main(argv)
        out, err = capsys.readouterr()
        plain = re.sub(r"\x1b\[\d*m", "", out)
        return status, re.sub(r" +# .*", "", plain), err  # without what options mean

    return run


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{PAIR}.letKD-2", f"{PAIR}.letKD-2"),
        ("digits.RN8", "digits.RN8"),
        ("CIFAR100.resnetv1.RN110_RN32.FitNet-letKD", "CIFAR100.resnetv1.RN110_RN32.FitNet-letKD"),
        (f"{PAIR}.FitNet", f"{PAIR}.FitNet"),
        (f"{PAIR}.Tiny+FitNet+letKD-2", f"{PAIR}.letKD-2+FitNet+Tiny"),
        (f"{CIFAR}.FitNet+QuEST", f"{CIFAR}.QuEST+FitNet"),
    ],
)
def test_names_are_in_canonical_order(name, expected):
    assert canonical_name(name) == default_config(name)["config"] == expected


def test_the_order_of_a_sum_changes_nothing():
    assert default_config(f"{PAIR}.FitNet+letKD-2") == default_config(f"{PAIR}.letKD-2+FitNet")


def test_a_sum_is_made_of_the_module_of_its_pair():
    """Alphas of the published experiment stay, and FitNet brings its hint alone."""
    pair = "CIFAR100.cross_model.RN50_MNv2"
    own, found = load_experiment(f"{pair}.letKD-2"), load_experiment(f"{pair}.letKD-2+FitNet")
    assert found["alpha_intermediate"] == own["alpha_intermediate"] == 0.2
    assert found == own | {
        "method": "letKD-2+FitNet",
        "fitnet.hint": "stage2",
        "fitnet.regressor": "resizing",
        "fitnet.weight": 100.0,
    }
    assert losses_of(Options.of(found)) == ["ce", "words", "decisions", "fitnet"]


def test_a_sum_takes_the_recipe_where_its_pair_has_no_module(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__path__", [str(tmp_path)])
    folder = tmp_path / "mine_of_names" / "RN20_RN8"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        'pair = {"dataset": "digits", "teacher": "resnet20", "student": "resnet8", "teacher_experiment": "digits.RN20"}'
    )
    found = load_experiment("mine_of_names.RN20_RN8.Tiny+letKD-1")
    made = recipes.letkd1(dataset="digits", teacher="resnet20", student="resnet8", teacher_experiment="digits.RN20")
    assert {key: found[key] for key in made} == made | {"method": "letKD-1+Tiny"}


@pytest.mark.parametrize("pair", [PAIR, CIFAR, "ImageNet.RN50_MNv1"])
def test_other_methods_bring_nothing_of_letkd(pair):
    found, letkd = load_experiment(f"{pair}.Tiny+FitNet"), load_experiment(f"{pair}.letKD-1")
    assert not OF_LETKD & set(found)
    shared = set(letkd) - OF_LETKD - {"method"}
    assert {key: found[key] for key in shared} == {key: letkd[key] for key in shared}
    check_options(default_config(f"{pair}.Tiny+FitNet"))


def test_weights_are_those_of_the_method_alone_of_the_pair_and_of_a_sum():
    assert weights_of(Options.of(load_experiment(f"{PAIR}.Tiny"))) == {"ce": 0.1, "tiny": 3.0, "tiny.far": 0.5}
    assert weights_of(Options.of(load_experiment(f"{CIFAR}.Tiny"))) == {"ce": 0.1, "tiny": 3.0, "tiny.far": 6.0}
    assert load_experiment(f"{CIFAR}.Tiny")["tiny.scale"] == 9.0
    assert weights_of(Options.of(load_experiment(f"{PAIR}.Tiny+FitNet")))["ce"] == 1.0
    summed = weights_of(Options.of(load_experiment(f"{PAIR}.letKD-2+Tiny")))
    assert summed == {"ce": 1.0, "words": 1.0, "decisions": 1.0, "tiny": 3.0, "tiny.far": 0.5}


def test_every_pair_says_once_what_its_methods_share():
    """And its modules hold what the recipes make of that."""
    pairs = [name.removesuffix(".letKD-2") for name in experiments.list_experiments() if name.endswith(".letKD-2")]
    assert len(pairs) >= 20
    for name in pairs:
        pair = experiments._pair_of(experiments._module(name))
        assert pair is not None, name
        for method, recipe in experiments.OF_THE_PAPER.items():
            own = load_experiment(f"{name}.{method}")
            assert own == recipe(**pair) | {key: own[key] for key in own if key.startswith("alpha_")}


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = [
    (f"{PAIR}.letKD-2+", "letKD-2+: a method is missing after '+'"),
    (f"{PAIR}.+letKD-2", "+letKD-2: a method is missing before '+letKD-2'"),
    (f"{PAIR}.KD++", "KD++: a method is missing after '+'; did you mean 'KDPP'?"),
    (f"{PAIR}.lskd:DKD+++AT", "lskd:DKD+++AT: a method is missing after '+'; did you mean 'lskd:DKD+KDPP+AT'?"),
    (f"{PAIR}.letKD-2+FitNt", f"unknown method 'FitNt'; did you mean config='{PAIR}.letKD-2+FitNet'?"),
    (f"{PAIR}.fitnet", f"unknown method 'fitnet'; did you mean config='{PAIR}.FitNet'"),
    (f"{PAIR}.fitnet + letKD-2", f"unknown method 'fitnet '; did you mean config='{PAIR}.FitNet+letKD-2'"),
    (f"{PAIR}.letKD-2+xyzzy", f"unknown method 'xyzzy' in '{PAIR}.letKD-2+xyzzy'; known: letKD-1, letKD-2, QuEST, "),
    (f"{PAIR}.classification", "unknown method 'classification'"),
    (f"{PAIR}.FitNet+FitNet", "FitNet+FitNet: FitNet is there twice"),
    (f"{PAIR}.letKD-2+QuEST", "letKD-2+QuEST: letKD-2 and QuEST both bring the loss 'words'; leave out one of them"),
    ("digits.RN8.classification", "unknown method 'classification'"),
    ("digits.RN8.FitNt", "unknown method 'FitNt'; did you mean config='digits.RN8.FitNet'?"),
    (PAIR, f"config={PAIR} is a pair, and a method is missing behind it; try config={PAIR}.QuEST"),
    (f"{PAIR}.", f"unknown config '{PAIR}.'; did you mean"),
    ("digits.RN99.FitNet", "unknown config 'digits.RN99.FitNet'"),
    (f"{PAIR}.letKD-2.FitNet", "unknown method 'letKD-2.FitNet'"),
]


@pytest.mark.parametrize(("name", "error"), REFUSED)
@pytest.mark.parametrize("job", [None, "print_config", "report"])
def test_a_name_that_is_no_experiment_is_one_line_and_leaves_nothing(job, name, error, command, tmp_path):
    status, out, err = command(f"config={name}", name=job)
    assert (status, out) == (1, "") and err.startswith(f"error: {error}") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "word", "error"),
    [
        ("letKD-2", "tiny.far=8", f"'tiny.far': {PAIR}.letKD-2 has no loss tiny; its losses: ce, words, decisions"),
        ("letKD-2", "nothing.at_all=8", f"'nothing.at_all': {PAIR}.letKD-2 has no loss nothing; its losses: ce, words"),
        ("Tiny", "words.weight=2", f"'words.weight': {PAIR}.Tiny has no loss words; its losses: ce, tiny"),
        ("Tiny", "tiny.fra=8", "unknown option 'tiny.fra'; did you mean 'tiny.far'"),
        ("Tiny", "tiny.far.away=8", "unknown option 'tiny.far.away'; did you mean 'tiny.far'"),
        ("FitNet", "fitnet.hnt=penultimate", "unknown option 'fitnet.hnt'; did you mean 'fitnet.hint'"),
        ("Tiny", "tiny=8", "unknown option 'tiny'"),
        ("KD", "decisions=file", f"{PAIR}.KD (KD) has no option decisions: it is one of methods with decisions, "),
        ("KD", "network_size=8", f"{PAIR}.KD (KD) has no option network_size: it is one of a network alone"),
        ("Tiny", "epochs.x=8", "epochs is an option of its own, and epochs.x is none"),
        ("Tiny", ".x=8", "unknown option '.x'"),
        ("Tiny", "tiny.=8", "unknown option 'tiny.'; did you mean"),
        ("Tiny", "tiny.far=much", "tiny.far='much' must be of type float"),
        ("Tiny", "tiny.steps=1.5", "tiny.steps=1.5 must be of type int"),
        ("letKD-2", "words.weight=much", "words.weight='much' must be of type float"),
        ("letKD-2", "cls_loss_coef=2 ce.weight=3", "cls_loss_coef and ce.weight are one option; leave out one of them"),
        ("Tiny", "epochs=3 epochs.x=8", "epochs and epochs.x cannot be options both"),
        ("Tiny", "tiny.far.away=8 tiny.far=3", "tiny.far and tiny.far.away cannot be options both"),
        ("Tiny", 'tiny={"far":8}', "tiny={'far': 8} must be a text"),
    ],
)  # fmt: skip
def test_an_option_of_a_loss_that_is_none_is_one_line_and_leaves_nothing(name, word, error, command, tmp_path):
    status, out, err = command(f"config={PAIR}.{name}", *word.split(), name=None)
    assert (status, out) == (1, "") and error in err and err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("updates", "error"),
    [
        ({"tiny.far": -1.0}, "tiny.far=-1.0 must be at least 0"),
        ({"tiny.weight": -1}, "tiny.weight=-1 must be at least 0"),
        ({"tiny.scale": 0.0}, "tiny.scale=0.0 must be above 0"),
        ({"tiny.steps": 0}, "tiny.steps=0 must be at least 1"),
        ({"tiny.kind": "har"}, "tiny.kind='har' must be soft or hard"),
        ({"tiny.length": "x"}, "tiny.length='x' must be of type float, or None"),
        ({"tiny.scale": None}, "tiny.scale=None is not possible: it needs a value"),
        ({"tiny.far": 1e30}, "tiny.far=1e+30 must be a number of at most"),
        ({"fitnet.regressor": "last"}, "fitnet.regressor='last' must be resizing or pointwise"),
        ({"ce.weight": -0.1}, "ce.weight=-0.1 must be at least 0"),
    ],
)
def test_options_of_losses_have_the_bounds_that_the_losses_say(updates, error):
    defaults = default_config(f"{PAIR}.Tiny+FitNet")
    check_options(defaults | check_updates({"tiny.length": 3.5}, defaults))
    with pytest.raises(ValueError) as caught:
        check_options(defaults | check_updates(updates, defaults))
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("tiny.far=-1", "tiny.far=-1 must be at least 0"),
        ("tiny.length=x", "tiny.length='x' must be of type float, or None"),
        ("tiny.kind=har", "tiny.kind='har' must be soft or hard"),
        ("fitnet.regressor=layer9", "fitnet.regressor='layer9' must be resizing or pointwise"),
        ("method=Tiny", f"method=Tiny does not fit {PAIR}.FitNet+Tiny; choose its experiment"),
        ("evaluate=True export=pt2", "evaluate and export are different jobs"),
        ("testset=True", "testset=True concerns evaluate and probe and layers and pictures only"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_work_is_one_line_and_leaves_nothing(words, error, command, tmp_path):
    status, out, err = command(f"config={PAIR}.Tiny+FitNet", *words.split(), name=None)
    assert (status, out) == (1, "") and err.startswith(f"error: {error}") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("made", "method"), [("codebook", "Tiny"), ("decisions", "Tiny"), ("decisions", "letKD-1+Tiny")]
)
def test_a_loss_of_a_file_without_its_options_is_one_line(made, method, tiny, command, monkeypatch):
    monkeypatch.setattr(tiny, "prepared", (made,))
    status, _, err = command(f"config={PAIR}.{method}", "cuda=False", name=None)
    assert status == 1 and err.count("\n") == 1
    assert err.startswith("error: tiny is built from the ") and f"of which {method} has no options; sum it with" in err


@pytest.mark.parametrize(
    ("name", "method", "fits"),
    [
        ("letKD-2+FitNet", "FitNet+letKD-2", True),
        ("letKD-2", "letKD-1", True),
        ("letKD-2+FitNet", "letKD-2", False),
        ("letKD-2", "letKD-2+FitNet", False),
        ("FitNet", "Tiny", False),
        ("letKD-1", "QuEST", False),
    ],
)
def test_a_method_must_fit_its_experiment(name, method, fits):
    options = default_config(f"{PAIR}.{name}") | {"method": method}
    if fits:
        check_method(options)
        return
    with pytest.raises(ValueError, match=f"does not fit {re.escape(f'{PAIR}.{name}')}; choose its experiment"):
        check_method(options)


# --- options ---------------------------------------------------------------------------------------------------------


def test_print_config_shows_the_resolved_weights(command, tmp_path):
    status, out, _ = command(f"config={PAIR}.Tiny+letKD-2", "tiny.far=8", "ce.weight=2")
    assert status == 0 and not list(tmp_path.iterdir())
    shown = {line.strip() for line in out.splitlines()}
    assert {
        f"config = '{PAIR}.letKD-2+Tiny'", "method = 'letKD-2+Tiny'", "cls_loss_coef = 2", "quest_loss_coef = 1.0",
        "tiny:", "far = 8", "weight = 3.0", "scale = 2.0",
    } <= shown  # fmt: skip


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("ce.weight=2", "cls_loss_coef"),
        ("cls_loss_coef=2", "cls_loss_coef"),
        ("words.weight=2", "quest_loss_coef"),
        ("decisions.weight=2", "sub_loss_coef"),
        ("fitnet.weight=2", "fitnet.weight"),
        ("hint_loss_coef=2", "fitnet.weight"),
    ],
)
def test_published_options_have_two_names(word, key):
    name, value = word.split("=")
    defaults = default_config(f"{PAIR}.letKD-2+FitNet")
    assert check_updates({name: float(value)}, defaults) == {key: 2.0}


def test_options_arrive_flat_and_are_recorded(command, tmp_path):
    """What a command gets is a flat dictionary, whatever sacred makes of it."""
    seen = []

    def look(_config: dict) -> None:
        seen.append(main_classification._plain(_config))

    words = {"tiny.far": 8, "tiny.scale": 0.5, "epochs": 3}
    experiment = main_classification.experiment
    main_classification.experiment.command(look, unobserved=True)
    try:
        command(f"config={PAIR}.Tiny", *(f"{key}={value}" for key, value in words.items()), name="look")
    finally:
        del experiment.commands["look"]
    assert seen == [default_config(f"{PAIR}.Tiny") | words | {"localpath": str(tmp_path)}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nested.json", '{"config": "%s", "tiny": {"far": 8, "kind": "hard"}}'),
        ("flat.json", '{"config": "%s", "tiny.far": 8, "tiny.kind": "hard"}'),
        ("nested.yaml", "config: %s\ntiny:\n  far: 8\n  kind: hard\n"),
        ("flat.yaml", "config: %s\ntiny.far: 8\ntiny.kind: hard\n"),
    ],
)
def test_options_files_may_nest_the_options_of_a_loss(name, content, command, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text(content % f"{PAIR}.Tiny")
    status, out, _ = command(str(path), "tiny.kind=soft")  # a word goes before a file
    shown = {line.strip() for line in out.splitlines()}
    assert status == 0 and {"far = 8", "kind = 'soft'", "scale = 2.0"} <= shown


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"epochs": {"x": 1}}', "epochs is an option of its own, and epochs.x is none"),
        ('{"tiny": {"far": {"x": 1}}}', "tiny={'far': {'x': 1}} must be"),
        ('{"tiny": {}}', "tiny={} must be"),
        ('{"tiny": {"py/object": "os.system"}}', "tiny={'py/object': 'os.system'} must be"),
        ('{"tiny": {"far": [1, [2]]}}', "tiny={'far': [1, [2]]} must be"),
        ('{"tiny..far": 1}', "'tiny..far' is no name of an option"),
    ],
)
def test_other_dictionaries_in_files_are_refused(content, error, command, tmp_path):
    path = tmp_path / "options.json"
    path.write_text(content)
    status, _, err = command(f"config={PAIR}.Tiny", str(path))
    assert status == 1 and error in err and err.count("\n") == 1


def test_what_is_nested_is_flat_again():
    options = default_config(f"{PAIR}.letKD-2+Tiny")
    assert flat(nested(options)) == options
    assert nested(options)["tiny"]["far"] == 0.5


def test_options_of_losses_bear_on_a_result_and_make_no_other_network():
    own = default_config(f"{PAIR}.Tiny")
    other = own | {"tiny.far": 8.0, "tiny.scale": 3.0, "ce.weight": 1.0}
    assert set(changed_settings(own, other)) == {"tiny.far", "tiny.scale", "ce.weight"}
    assert changed_network(own, other) == {}


@pytest.mark.parametrize("method", ["", "+", "++", "+DKD", "DKD+", " ", "letKD-2 + DKD", "classification+KD"])
def test_an_expression_that_is_none_is_refused(method):
    with pytest.raises(ValueError, match=r"is missing|unknown method"):
        summands(method)
