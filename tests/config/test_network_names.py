"""One spelling of networks with keyword arguments, whoever says them."""

import pytest

from config.experiments import load_experiment
from config.network_names import spelled
from config.updates import check_updates
from main_classification import default_config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/test_vit", "timm/test_vit"),
        ("timm/x(b=2,a=1)", "timm/x(a=1, b=2)"),
        ("timm/x( a = (1,2) , b = 'c')", "timm/x(a=(1, 2), b='c')"),
        ('timm/x(b="c")', "timm/x(b='c')"),
        ("timm/x()", "timm/x()"),
        ("timm/x(a=1", "timm/x(a=1"),
        ("timm/x(a=1)(b=2)", "timm/x(a=1)(b=2)"),
    ],
)
def test_spelling(name: str, expected: str) -> None:
    assert spelled(name) == spelled(expected) == expected


def test_networks_of_a_command_are_spelled_so() -> None:
    defaults = default_config("digits.RN14_RN8.KD")
    given = {"teacher": "timm/x(b=2,a=1)", "student": "resnet8(drop_path=.1)", "name": "a.b(c)"}
    expected = {"teacher": "timm/x(a=1, b=2)", "student": "resnet8(drop_path=0.1)", "name": "a.b(c)"}
    assert check_updates(given, defaults) == expected


def test_networks_of_an_experiment_are_spelled_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from config.digits import RN8

    monkeypatch.setitem(RN8.config, "network", "resnet8(drop_path=.1)")
    assert load_experiment("digits.RN8")["network"] == "resnet8(drop_path=0.1)"
    assert load_experiment("digits.RN8.LS")["student"] == "resnet8(drop_path=0.1)"
