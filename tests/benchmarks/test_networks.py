"""The benchmark of networks: pairs of every kind run, what is refused is said, and the page shows what was measured."""

import json

import pytest

from benchmarks import networks
from benchmarks.networks import DEFAULT, METHODS, PAIRS, QUICK, Pair, Size
from docs import make_networks

SWIN = "timm/swin_tiny_patch4_window7_224(depths=(1, 2), embed_dim=8, num_heads=(1, 1))"
DEIT = "timm/deit_tiny_distilled_patch16_224(depth=3, embed_dim=16, num_heads=2)"
VIT = "timm/vit_tiny_patch16_224(depth=4, embed_dim=16, num_heads=2, patch_size=32)"
MIXER = "timm/mixer_s32_224(mlp_ratio=(0.1, 0.1))"
CNN, MOBILE = "timm/test_resnet", "torchvision/mobilenet_v3_small"
SMALL = {  # what is refused of each
    Pair(CNN, MOBILE): (),
    Pair(DEIT, CNN): ("ReviewKD", "RKD"),  # three stages, and logits that are the mean of two heads
    Pair(SWIN, "timm/test_efficientnet"): ("ReviewKD",),  # two stages
    Pair(MIXER, CNN): (),
    Pair(CNN, VIT): (),
}


@pytest.mark.parametrize("pair", SMALL, ids=str)
def test_a_small_pair_of_each_kind(pair: Pair) -> None:
    for method in METHODS:
        row = networks.measure(pair, method, QUICK)
        if method in SMALL[pair]:
            assert set(row) == {"refused"} and "\n" not in row["refused"], method
            continue
        assert row["finite"] and row["ms"] > 0 and row["terms"]["ce"] > 0, (method, row)
        assert method == "KD" or set(row["places"].popitem()[1]) == {"student", "teacher"}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair(pair: Pair) -> None:
    """letKD-2 and KD with all, and what the others refuse is what the page says."""
    small = Size(batch=2, words=8, steps=1)
    rows = {method: networks.measure(pair, method, small) for method in METHODS}
    assert rows["KD"]["finite"] and rows["letKD-2"]["finite"]
    recorded = make_networks._of(pair)
    assert {method: row.get("refused") for method, row in rows.items()} == {
        method: row.get("refused") for method, row in recorded.items()
    }
    for method, row in rows.items():
        assert row.get("places") == recorded[method].get("places") and row.get("finite", True)
    for name in (pair.teacher, pair.student):
        assert networks.described(name, small) == make_networks._found()["networks"][name]


def test_what_was_measured_is_of_these_pairs() -> None:
    """Others would be on the page as not measured."""
    found = json.loads(networks.FILE.read_text())
    assert [Pair(row["teacher"], row["student"], row["options"]) for row in found["pairs"]] == list(PAIRS)
    assert all(set(row["methods"]) == set(METHODS) for row in found["pairs"])
    assert set(found["networks"]) == {name for pair in PAIRS for name in (pair.teacher, pair.student)}
    assert "--quick" not in found["measured"] and "-dirty" not in found["measured"]


def test_it_runs_and_writes_what_the_page_shows(monkeypatch, tmp_path, capsys) -> None:
    pair = Pair(CNN, "timm/test_vit", {"words_teacher_place": "stage2", "decisions_teacher_place": "stage2"})
    other = Pair("timm/test_vit", CNN)
    monkeypatch.setattr(networks, "PAIRS", (pair, other))
    file = tmp_path / "networks.json"
    assert networks.main(["test_vit > timm/test_r", "--quick", "--methods", "KD", "--write", str(file)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "timm" in first and "commit" in first and first.endswith("4 images of 32 x 32 a step, 1 steps, --quick")
    assert any(line.startswith("| `timm/test_vit` | `timm/test_resnet` | ") for line in lines)
    (row,) = json.loads(file.read_text())["pairs"]
    assert row["methods"]["KD"]["finite"] and (row["teacher"], row["options"]) == ("timm/test_vit", {})

    monkeypatch.setattr(make_networks, "FILE", file)
    monkeypatch.setattr(make_networks, "PAIRS", (pair, other))
    monkeypatch.setattr(make_networks, "KINDS", {"both": (pair, other)})
    make_networks._found.cache_clear()
    try:
        page = make_networks.render()
    finally:
        make_networks._found.cache_clear()
    shown = " | ".join(["not measured", networks.cell(row["methods"]["KD"]), "not measured", "not measured"])
    assert f"| `timm/test_vit` | `timm/test_resnet` | — | {shown} |" in page
    options = "`words_teacher_place=stage2` `decisions_teacher_place=stage2`"
    assert f"| `{CNN}` | `timm/test_vit` | {options} | {' | '.join(['not measured'] * 4)} |" in page
    assert f"`--write`: {first}.".removeprefix("`--write`: ") in page


def test_a_page_without_figures_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(make_networks, "FILE", tmp_path / "none.json")
    make_networks._found.cache_clear()
    try:
        page = make_networks.render()
    finally:
        make_networks._found.cache_clear()
    assert page.count("| not measured ") >= len(PAIRS) * len(METHODS) and " ms |" not in page


def test_places_are_told() -> None:
    found = networks.described(SWIN, QUICK)
    assert set(DEFAULT) < set(found["places"]) and found["parameters"] > 0
    assert networks.told(found["places"]["penultimate"]) == "`norm`: 16 channels, 4 x 4, map with channels last"


def test_terms_that_are_not_finite_are_said(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(networks, "PAIRS", (Pair(CNN, CNN),))
    monkeypatch.setattr(networks, "measure", lambda *_: {"ms": 1.0, "finite": False, "terms": {}, "places": {}})
    assert networks.main(["--methods", "KD", "--quick"]) == 1
    assert "**not finite**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["resnext"], "no pair has a network with 'resnext' in its name; the pairs: timm/resnet18d > timm/resnet10t, "),
        (["lite0", "--methods", "KDD", "--quick"], "unknown method 'KDD'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], error: str, capsys) -> None:
    assert networks.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and error in printed and printed.count("\n") == 1
