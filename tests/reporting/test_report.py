"""The report of a made-up tree: what is averaged, what is marked, what is missing, what is damaged."""

import ast
import base64
import html
import itertools
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sacred.arg_parser import get_config_updates

import config
import main_classification
from algorithms import check_options, make_algorithm, trials
from config.experiments import (
    ENTRY_OPTIONS,
    composed_config,
    default_config,
    default_configs,
    defaults_for,
    load_experiment,
)
from config.updates import check_updates
from engine import records
from reporting import charts, curves, tables
from reporting.charts import draw_curves
from reporting.report import code, escape_markdown, write_report
from results import collect, places
from storage.documents import save_json

ROOT = Path(main_classification.__file__).parent
OWN, _ = default_configs()
NAMES = list(OWN)
PAIR = "CIFAR100.resnetv1.RN56_RN20"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


class Tree:
    """A folder of results that no training made."""

    def __init__(self, root: Path):
        self.root = root

    def put(self, name: str, top1: float | None = 70.0, *, place: str | None = None, **facts: Any) -> Path:
        """A finished training of the experiment `name`; `options` are added to its own."""
        own = OWN.get(name, {"dataset": "digits", "method": "classification", "network": "mine", "epochs": 8})
        seed = facts.get("seed", 0)
        results = {
            "config": name,
            "mode": "train",
            "method": own["method"],
            "dataset": own["dataset"],
            "epochs": own["epochs"],
            "top1": top1,
            "top5": 99.0,
            "best_top1": top1 and top1 + 0.25,
            "best_epoch": 7,
            "seed": seed,
            "device": "A device",
            "precision": "fp32",
            "images_per_second": 1000.0,
            "seconds": 60.0,
            "command": f"main_classification.py with config={name}",
            "environment": {"python": "3.11.7", "versions": {"torch": "2.15.0"}, "commit": None},
        }
        options = facts.pop("options", {})
        if options is not None:
            options = ENTRY_OPTIONS | own | {"config": name, "seed": seed} | options
        path = self.root / (place or "/".join(name.split("."))) / collect.RESULTS
        save_json(path, results | {"options": options} | facts)
        return path

    def trials(self, name: str, values: list[float], **facts: Any) -> None:
        for seed, value in enumerate(values):
            self.put(name, value, place=f"{'/'.join(name.split('.'))}/seed{seed}", seed=seed, **facts)

    def write(self, **options: Any) -> "Written":
        report = write_report(self.root, OWN, command="python main_classification.py report", **options)
        return Written(report, *((self.root / "report" / name).read_text() for name in ("index.html", "report.md")))


class Written:
    def __init__(self, report: tables.Report, page: str, markdown: str):
        self.report = report
        self.page = page
        self.markdown = markdown

    @property
    def commands(self) -> list[str]:
        """Of all cells and variants."""
        cells = [cell for section in self.report.sections for row in section.rows for cell in row.cells.values()]
        variants = [variant for section in self.report.sections for variant in section.variants]
        found = [part.command for part in (*cells, *variants) if part.command]
        return [*found, *(command for cell in cells for command in cell.continuations.values())]

    def cell(self, column: str, *, row: str = "RN56 → RN20", scope: str = "CIFAR100") -> tables.Cell:
        section = next(section for section in self.report.sections if section.scope.dataset == scope)
        return next(found for found in section.rows if found.label == row).cells[column]

    def says(self, text: str) -> None:
        """Both files have this, markup aside."""
        for whole in (self.page, self.markdown):
            assert text in html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", whole))), text


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


def test_students_of_a_teacher_that_was_trained_again_are_marked(tree):
    """And their means stand apart; a teacher that was chosen is another setting as it is."""
    now, then = "a" * 64, "b" * 64
    tree.put("CIFAR100.resnetv1.RN56", fingerprint=now)
    tree.put(f"{PAIR}.QuEST", teacher_fingerprint=now)
    tree.put(f"{PAIR}.letKD-1", teacher_fingerprint=then)
    tree.trials(f"{PAIR}.letKD-2", [70.0, 71.0], teacher_fingerprint=then)
    tree.put(
        f"{PAIR}.letKD-2", 72.0, place="CIFAR100/resnetv1/RN56_RN20/letKD-2/seed2", seed=2, teacher_fingerprint=now
    )
    chosen = {"options": {"teacher_weights": "other.pth"}, "teacher_fingerprint": then}
    tree.put(f"{PAIR}.QuEST", **chosen, place="CIFAR100/resnetv1/RN56_RN20/QuEST/seed1", seed=1)
    written = tree.write()
    marks = {column: [group.marks for group in written.cell(column).groups] for column in tables.METHODS}
    old = ["weights of the teacher=bbbbbbbb (default: aaaaaaaa)"]
    assert marks["letKD-1"] == [old]
    assert marks["letKD-2"] == [[], old]
    assert marks["QuEST"] == [[], ["teacher_weights=other.pth (default: None)"]]
    assert [group.statistic("top1").mean for group in written.cell("letKD-2").groups] == [72.0, 70.5]
    assert not written.cell("letKD-1").is_measured and written.cell("QuEST").is_measured
    written.says("◇ weights of the teacher=bbbbbbbb (default: aaaaaaaa)")


def test_runs_on_a_part_of_a_data_set_are_marked(tree):
    """A run that does not say its number of images counts as one of the whole."""
    whole, part = {"train": 50_000, "eval": 10_000}, {"train": 500, "eval": 10_000}
    tree.trials(f"{PAIR}.letKD-2", [70.0, 71.0], num_images=whole)
    for seed, told in ((2, {"num_images": part}), (3, {})):
        place = f"CIFAR100/resnetv1/RN56_RN20/letKD-2/seed{seed}"
        tree.put(f"{PAIR}.letKD-2", 60.0, place=place, seed=seed, **told)
    tree.put(f"{PAIR}.QuEST", num_images=part | {"eval": 100})
    written = tree.write()
    marks = {column: [group.marks for group in written.cell(column).groups] for column in tables.METHODS}
    fewer = "training images=500 (default: 50000)"
    assert marks == {
        "letKD-1": [],
        "letKD-2": [[], [fewer]],
        "QuEST": [[fewer, "evaluation images=100 (default: 10000)"]],
    }
    assert [group.statistic("top1").mean for group in written.cell("letKD-2").groups] == [67.0, 60.0]
    assert not written.cell("QuEST").is_measured
    written.says(f"◇ {fewer}")


def test_runs_on_a_folder_with_other_images_than_at_last_are_marked(tree):
    """The name of a data set in a folder does not say how many there should be."""
    for day, number in ((1, 40), (3, 50), (2, 50), (4, None)):
        told = {"num_images": {"train": number, "eval": 9}} if number else {}
        tree.put(
            "ImageFolder.RN8", place=f"ImageFolder/RN8/seed{day}", seed=day, finished=f"2026-01-0{day}", **told,
            options={"data_dir": "pets"},
        )  # fmt: skip
    tree.put("ImageFolder.RN8", place="birds", num_images={"train": 7, "eval": 9}, options={"data_dir": "birds"})
    found = collect.collect(tree.root, OWN.get)
    assert [run.changed for run in found.runs if run.trial] == [{"training images": (50, 40)}, {}, {}, {}]
    assert not any("training images" in run.changed for run in found.runs if not run.trial)


@pytest.mark.parametrize("facts", [{}, {"fingerprint": "a" * 64}], ids=["of no record", "with one"])
def test_runs_that_do_not_say_who_taught_them_are_not_marked(facts, tree):
    tree.put("CIFAR100.resnetv1.RN56", **facts)
    tree.put(f"{PAIR}.letKD-1")
    tree.put(f"{PAIR}.letKD-2", teacher_fingerprint=facts.get("fingerprint", "b" * 64))
    written = tree.write()
    assert written.cell("letKD-1").is_measured and written.cell("letKD-2").is_measured


VOID = frozenset({"br", "img", "input", "meta"})
SVG = frozenset({"g", "line", "path", "rect", "use"})  # may be closed where they are opened


class Page(HTMLParser):
    """Checks that every element is closed where it must be, and collects attributes and the text of elements."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attributes}) == len(attributes), attributes
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert name in VOID | SVG, name
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def values(self, attribute: str) -> list[str]:
        return [found[attribute] for _, found in self.tags if found.get(attribute) is not None]

    @property
    def curves(self) -> list[dict[str, Any]]:
        """What every figure of learning curves shows."""
        return [json.loads(found) for found in self.values("data-curves")]


# --- means and what stands beside them -------------------------------------------------------------------------------


def test_seeds_are_averaged_and_compared_with_what_was_published(tree):
    tree.trials(f"{PAIR}.letKD-2", [73.0, 72.0, 74.0])
    written = tree.write()
    group = written.cell("letKD-2").groups[0]
    assert group.statistic("top1") == (73.0, 1.0, 3)
    assert written.cell("letKD-2").difference(group) == pytest.approx(73.0 - 73.27)
    for text in ("73.00 ± 1.00", "3 runs", "best 73.25 ± 1.00 (epoch 7)", "published 73.27 ± 0.16", f"{MINUS}0.27"):
        written.says(text)


@pytest.mark.parametrize(
    ("method", "figure"),
    [
        ("letKD-2", f"published 73.27 ± 0.16 (letKD, 5 runs, epoch not said), {MINUS}0.27"),
        ("QuEST", "published 71.84 (letKD, copied, 5 runs, epoch not said), +1.16"),
        ("KD", "published 70.66 (CRD, 5 runs, last epoch), +2.34"),
        ("DKD", "published 71.97 (DKD, best epoch), +1.28 at the best epoch"),
        ("DIST", "published 71.75 ± 0.30 (DIST, epoch not said), +1.25"),
        ("CAT-KD", "published 71.62 (LSKD-paper, copied, epoch not said), +1.38"),
        ("lskd:KD", "published 71.43 (LSKD, 4 runs, best epoch), +1.82 at the best epoch"),
    ],
)
def test_a_published_figure_says_its_kind_and_is_compared_with_the_same_epoch(method, figure, tree):
    """All runs have 73.00 after the last epoch and 73.25 at the best."""
    put_method(tree, method, 73.0)
    written = tree.write(composed=composed_config)
    written.says(figure)
    source = figure.partition("(")[2].partition(",")[0]
    written.says(
        f"{source}: {tables.PUBLISHED['source'] if source == 'letKD' else tables.METHOD_FIGURES['sources'][source]}."
    )


@pytest.mark.parametrize(("method", "epoch"), [("sdd:NKD", "best"), ("NKD", None)])
def test_a_figure_whose_run_nobody_tells_is_of_no_epoch(method, epoch):
    """The paper of SDD states the best epoch of its own method; who ran NKD for its table it does not say."""
    found = tables.figure_of_method(method, "CIFAR100", "vgg13", "mobilenetv2")
    assert (found.source, found.epoch) == ("SDD", epoch)


def put_method(tree: Tree, method: str, top1: float, **facts: Any) -> Path:
    """A run of a method of the pair, with the options of its experiment."""
    own = load_experiment(f"{PAIR}.{method}")
    facts["options"] = own | {"config": f"{PAIR}.{method}"} | facts.get("options", {})
    name = facts["options"].get("name") or f"{PAIR}.{method}"
    place = "/".join(places.folders_of(name))
    facts |= {"method": own["method"], "dataset": own["dataset"], "epochs": own["epochs"], "place": place}
    return tree.put(name, top1, **facts)


def test_runs_by_another_protocol_have_a_row_of_their_own_with_its_figure(tree):
    name = {"protocol": "published", "name": "published.RN56_RN20.KD"}
    options = defaults_for(default_config(f"{PAIR}.KD"), name) | name
    put_method(tree, "KD", 70.0, options=options)
    put_method(tree, "KD", 68.0)
    written = tree.write(composed=composed_config)
    cells = {row: written.cell("KD", row=row) for row in ("RN56 → RN20", "RN56 → RN20, protocol=published")}
    assert [[group.statistic("top1").mean for group in cell.groups] for cell in cells.values()] == [[68.0], [70.0]]
    assert {cell.published.top1 for cell in cells.values()} == {70.66}
    assert all(group.marks == [] for cell in cells.values() for group in cell.groups)
    written.says(f"{MINUS}0.66")


@pytest.mark.parametrize("other", [{"epochs": 3}, {"student": "resnet8"}], ids=str)
def test_a_run_with_a_name_of_its_own_and_other_settings_has_no_figure(other, tree):
    put_method(tree, "KD", 60.0, options={"name": "mine.pair.KD"} | other)
    written = tree.write(composed=composed_config)
    assert written.cell("KD", row="pair").published is None


def test_a_run_with_a_name_of_its_own_says_its_networks_and_what_else_is_its_own(tree):
    student = "timm/vit_tiny_patch16_224(depth=2,patch_size=8)"
    put_method(tree, "KD", 60.0, options={"name": "mine.pair.KD", "student": student, "epochs": 3})
    put_method(tree, "KD", 68.0)
    written = tree.write(composed=composed_config)
    written.says(f"{PAIR}.KD with student={student}, epochs=3")
    assert written.markdown.count("| defaults |") == 1


def test_a_student_that_is_larger_than_the_plain_one_is_marked(tree):
    tree.put(f"{PAIR}.letKD-2", 73.0, parameters=1200, parameters_without_kd_layers=1000)
    tree.put(f"{PAIR}.QuEST", 72.0, parameters=1000, parameters_without_kd_layers=1000)
    written = tree.write()
    written.says("larger student: 200 parameters more (+20.0 %)")
    assert written.markdown.count("parameters more") == 1
    written.says("SimKD (larger student)")


def test_one_run_has_no_deviation(tree):
    tree.put(f"{PAIR}.letKD-1", 72.5)
    written = tree.write()
    assert written.cell("letKD-1").groups[0].statistic("top1") == (72.5, None, 1)
    written.says("1 run")
    written.says("+0.06")


def test_other_settings_stand_apart_with_a_mark_and_without_a_comparison(tree):
    tree.trials(f"{PAIR}.letKD-2", [73.0, 74.0])
    tree.put(f"{PAIR}.letKD-2", 50.0, place="short/seed9", seed=9, options={"epochs": 3, "num_words": 64})
    tree.put(f"{PAIR}.letKD-2", 60.0, options={"epochs": 3, "num_words": 64}, seed=1)
    written = tree.write()
    full, short = written.cell("letKD-2").groups
    assert full.statistic("top1").mean == 73.5 and full.marks == []
    assert short.marks == ["num_words=64 (default: 4096)", "epochs=3 (default: 240)"]
    assert short.statistic("top1") == (60.0, None, 1), "the other one is in another tree"
    assert written.cell("letKD-2").difference(short) is None
    written.says("◇ num_words=64 (default: 4096), epochs=3 (default: 240)")


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"val_split": 500}, {"teacher_weights": "other.pth"}])
def test_what_bears_on_accuracy_is_another_setting(tree, options):
    tree.put(f"{PAIR}.letKD-2", 73.0, options=options)
    assert not tree.write().cell("letKD-2").is_measured


@pytest.mark.parametrize(
    "options", [{"data_dir": "elsewhere"}, {"num_workers": 9}, {"test_batch_size": 7}, {"memmap": True}, {"top": 1}]
)
def test_what_does_not_is_none(tree, options):
    tree.put(f"{PAIR}.letKD-2", 73.0, options=options)
    assert tree.write().cell("letKD-2").is_measured


def test_an_ablation_is_compared_with_its_own_figure(tree):
    tree.put(f"{PAIR}.letKD-2", 72.0, options={"alpha_intermediate": 0.0})
    written = tree.write()
    cell = written.cell("letKD-2")
    assert not cell.is_measured and cell.difference(cell.groups[0]) == pytest.approx(72.0 - 72.13)
    assert cell.command in written.page


def test_a_seed_counts_once(tree):
    tree.trials(f"{PAIR}.QuEST", [71.0, 73.0])
    tree.put(f"{PAIR}.QuEST", 99.0, seed=1)
    written = tree.write()
    (group,) = written.cell("QuEST").groups
    assert group.statistic("top1").mean == 72.0
    assert [str(run.place) for run in group.repeated] == ["CIFAR100/resnetv1/RN56_RN20/QuEST"]
    assert "not counted: its seed is among the trials" in written.page


def test_a_run_whose_classifier_nothing_has_trained_says_so(tree):
    tree.put(f"{PAIR}.QuEST", 9.0, classifier="untrained")
    tree.put(f"{PAIR}.KD", 71.0)
    assert tree.write().page.count("nothing has trained its classifier") == 1


def test_means_and_headlines_of_untrained_classifiers_say_so(tree):
    tree.trials(f"{PAIR}.QuEST", [9.0, 11.0], classifier="untrained")
    tree.trials(f"{PAIR}.KD", [71.0, 72.0])
    written = tree.write()
    assert written.markdown.count("untrained classifier") == 1  # in the table
    assert " %), untrained classifier" in written.page


def test_last_and_best_epoch_are_told_apart(tree):
    tree.put("digits.RN8", 96.5, best_top1=97.25, best_epoch=6)
    tree.write().says("best 97.25 (epoch 6)")


def test_the_average_of_weights_stands_below_the_student(tree):
    average = {"average_top1": 97.5, "best_average_top1": 97.75, "best_average_epoch": 8}
    tree.put("digits.RN8", 96.5, best_top1=97.25, best_epoch=6, **average)
    tree.write().says("average 97.50, best 97.75 (epoch 8)")


def test_macro_f1_stands_below_the_accuracy_and_the_least_accurate_classes_with_an_evaluation(tree):
    by_class = {"cat": 91.25, "dog": 71.5, "emu": None, "fox": 80.0, "gnu": 99.0}
    found = {"top1": 96.5, "macro_f1": 94.125, "class_accuracies": by_class}
    tree.put("digits.RN8", best_top1=97.25, best_epoch=6, evaluations={"last": found}, **found)
    written = tree.write()
    written.says("macro-F1 94.12")
    written.says("top1 96.50, macro-F1 94.12, least accurate dog 71.50, fox 80.00, cat 91.25")
    assert "gnu" not in written.page


def test_teacher_and_student_alone_stand_in_every_row_of_theirs(tree):
    tree.put("CIFAR100.resnetv1.RN20", 69.0)
    tree.put("CIFAR100.resnetv1.RN110", 74.0)
    written = tree.write()
    for row in ("RN56 → RN20", "RN110 → RN20"):
        assert written.cell("student", row=row).is_measured
    for row in ("RN110 → RN20", "RN110 → RN32"):
        assert written.cell("teacher", row=row).is_measured
    section = next(section for section in written.report.sections if section.scope.dataset == "CIFAR100")
    assert [group.experiment for group in section.groups].count("CIFAR100.resnetv1.RN110") == 1


def test_an_evaluated_teacher_is_no_training(tree):
    tree.put("CIFAR100.resnetv1.RN56", 72.3, mode="evaluate", epochs=None, best_top1=None)
    written = tree.write()
    written.says("evaluation only")
    assert written.cell("teacher").groups[0].statistic("top1").mean == 72.3


def test_a_training_goes_before_an_evaluation_of_published_weights(tree):
    tree.put("CIFAR100.resnetv1.RN56", 72.34, mode="evaluate", epochs=None, best_top1=None)
    tree.trials("CIFAR100.resnetv1.RN56", [73.0, 74.0])
    tree.trials(f"{PAIR}.letKD-2", [75.0, 76.0])
    written = tree.write()
    assert [group.is_trained for group in written.cell("teacher").groups] == [True, False]
    strips = written.page.partition('class="strips"')[2].partition("</figure>")[0]
    assert "Teacher 73.5" in strips and "Teacher 72.34" not in strips
    assert re.search(r'class="headline">(<[^>]*>)*73\.50', written.page)


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        ({"options": {"best": True}}, "best=True (default: False)"),
        ({"options": {"testset": True}}, "testset=True (default: False)"),
        ({"options": {"checkpoint": 3}}, "checkpoint=3 (default: 0)"),
        ({"epoch": 3}, "epoch=3 (default: 240)"),
    ],
)
def test_an_evaluation_of_something_else_is_not_compared(tree, facts, mark):
    tree.put(f"{PAIR}.letKD-2", 60.0, mode="evaluate", **facts)
    cell = tree.write().cell("letKD-2")
    assert cell.groups[0].marks == [mark]
    assert not cell.is_measured and cell.difference(cell.groups[0]) is None


@pytest.mark.parametrize("facts", [{"epoch": 240}, {"options": {"checkpoint": -1}}, {"options": {"seeds": [3]}}])
def test_an_evaluation_of_the_last_epoch_is(tree, facts):
    tree.put(f"{PAIR}.letKD-2", 73.0, mode="evaluate", **facts)
    assert tree.write().cell("letKD-2").is_measured


def test_runs_without_recorded_settings_stand_apart(tree):
    for seed in (0, 1):
        tree.put(f"{PAIR}.letKD-2", 73.0, place=f"a/seed{seed}", seed=seed, options=None)
    tree.put(f"{PAIR}.letKD-2", 73.0, options={})
    written = tree.write()
    apart = [run for run in written.report.collection.runs if run.apart]
    assert [group.marks for group in tables.group_runs(apart)] == [["settings not recorded"]] * 2
    assert all(tables.published_variant(group) is None for group in tables.group_runs(apart))
    written.says("settings not recorded")
    assert "| defaults |" in written.markdown, "of the other run"


@pytest.mark.parametrize(("facts", "is_shown"), [({"num_classes": 5}, False), ({"num_classes": 6}, True), ({}, True)])
def test_top5_stands_where_it_says_something(facts, is_shown, tree):
    history = [{"epoch": epoch, "eval": {"top1": 50.0, "top5": 98.76}} for epoch in (1, 2)]
    tree.put("CIFAR100.resnetv1.RN56", top5=98.76, history=history, **facts)
    written = tree.write()
    assert ("98.76" in written.page) == is_shown
    assert ("Top-5, evaluation images" in written.page) == is_shown


def test_settings_of_an_experiment_that_has_gone_are_not_mixed(tree):
    for seed in (0, 1):
        tree.put("gone.net", 90.0 + seed, place=f"gone/net/seed{seed}", seed=seed, options={"seeds": [seed]})
    tree.put("gone.net", 10.0, place="gone/net/seed2", seed=2, options={"seeds": [2], "epochs": 3})
    tree.put("gone.net", 20.0, place="gone/net/seed3", seed=3, options={"seeds": [3]}, mode="evaluate")
    groups = tables.group_runs(tree.write().report.collection.runs)
    assert sorted((group.statistic("top1").mean, len(group.runs)) for group in groups) == [(10, 1), (20, 1), (90.5, 2)]


def test_times_of_different_devices_never_share_a_mean(tree):
    tree.put("digits.RN8", seconds=10.0, device="One")
    tree.put("digits.RN8", seconds=30.0, device="Other", place="digits/RN8/seed1", seed=1)
    written = tree.write()
    section = next(section for section in written.report.sections if section.scope.dataset == "digits")
    costs = {device: groups[0].statistic("seconds").mean for device, groups in section.by_device().items()}
    assert costs == {"One": 10.0, "Other": 30.0}
    assert section.groups[0].statistic("top1").count == 2, "accuracies do"


def test_processors_are_different_devices():
    assert {
        collect.Run(
            Path(), "x", Path(), None, True, {"device": "CPU, 2 threads", "environment": {"cpu": cpu}}, {}
        ).device
        for cpu in ("Fast", "Slow", None)
    } == {"CPU, 2 threads, Fast", "CPU, 2 threads, Slow", "CPU, 2 threads"}


def test_what_layers_cost_stands_beside_what_the_network_costs(tree):
    sizes = {"parameters": 300, "parameters_without_kd_layers": 200, "multiply_adds": 3e6}
    tree.put(f"{PAIR}.letKD-2", **sizes, multiply_adds_without_kd_layers=2e6)
    written = tree.write()
    written.says(f"300 ({TIMES}1.50)")
    written.says(f"3.00 M ({TIMES}1.50)")


def test_folders_of_images_are_data_sets_of_their_own(tree):
    for number, folder in enumerate(("cats", "dogs")):
        options = {"data_dir": folder}
        tree.put("ImageFolder.RN8", 50.0 + number, place=f"{folder}/ImageFolder/RN8", options=options)
    scopes = [section.scope for section in tree.write().report.sections if section.has_runs]
    assert [(str(scope.branch), scope.data_dir) for scope in scopes] == [("cats", "cats"), ("dogs", "dogs")]


# --- what is missing, unfinished or damaged --------------------------------------------------------------------------


def test_an_empty_cell_has_the_command_that_fills_it(tree):
    tree.put("digits.RN8")
    written = tree.write()
    commands = [shlex.split(line) for line in re.findall(r"^    (python .*)$", written.markdown, re.MULTILINE)]
    assert {word for words in commands for word in words if word.startswith("config=")} == {
        f"config=digits.{name}" for name in ("RN14", "RN14_RN8.QuEST", "RN14_RN8.letKD-1", "RN14_RN8.letKD-2")
    }
    for words in commands:
        assert words[:3] == ["python", "main_classification.py", "with"] and f"localpath={tree.root}" in words
        assert ("prepare=True" in words) == ("RN14_RN8" in words[3])
    for experiment in NAMES:
        if experiment.endswith(tables.METHODS):
            assert f"config={experiment} " in written.page


def test_a_command_asks_for_as_many_trials_as_were_published(tree):
    page = tree.write().page
    for method in ("QuEST", "letKD-1", "letKD-2"):
        assert f"config={PAIR}.{method} prepare=True trials=5 localpath" in page
    assert "config=CIFAR100.resnetv1.RN20 trials=5 localpath" in page
    assert "config=CIFAR100.resnetv1.RN56 localpath" in page, "the teachers of all runs are the same one"
    assert "config=TinyImageNet.resnetv1.RN56_RN20.letKD-1 prepare=True trials=3 " in page
    assert "config=ImageNet.RN34_RN18.QuEST prepare=True data_dir=FOLDER localpath" in page


def test_a_command_has_the_folder_of_the_images_where_runs_have_told_it(tree):
    tree.put("ImageNet.RN18", options={"data_dir": "my images"})
    assert "config=ImageNet.RN34_RN18.letKD-1 prepare=True 'data_dir=my images' localpath=" in tree.write().markdown


def test_published_variants_have_commands_and_then_their_runs(tree):
    tree.put(f"{PAIR}.letKD-2", 73.0)
    name = f"{PAIR}.letKD-2 alpha_intermediate=0"
    written = tree.write()
    titles = [variant.title for section in written.report.sections for variant in section.variants]
    assert len(titles) == len(set(titles)) == len(tables.PUBLISHED["variants"])
    assert "CIFAR100.resnetv1.RN110_RN32.FitNet-layers" in titles and name in titles
    place = tree.root / "variants/alpha_intermediate=0"
    command = f"with config={name} prepare=True trials=5 localpath={place}"
    assert command in written.page and command in written.markdown
    Tree(place).put(f"{PAIR}.letKD-2", 72.0, options={"alpha_intermediate": 0})
    written = tree.write()
    assert command not in written.page and command not in written.markdown
    written.says(f"72.00 (1 run, {MINUS}0.13)")


def test_every_command_is_one_that_the_entry_accepts(tree):
    tree.put("digits.RN8", place="second/digits/RN8")
    tree.put("ImageFolder.RN8", options={"data_dir": "my images"})
    for name, trial, facts in (
        ("digits.RN14_RN8.letKD-2", None, {"options": {"num_words": 64, "milestones": [2, 3]}, "seed": 4}),
        ("digits.RN14_RN8.QuEST", 3, {"options": {"seeds": [3], "cuda": False}, "seed": 3}),
    ):
        folder = "/".join(name.split(".")) + ("" if trial is None else f"/seed{trial}")
        path = tree.put(name, None, place=folder, epoch=1, state="stopped", **facts)
        path.rename(path.with_name(collect.PROGRESS))
    commands = tree.write().commands
    assert len(commands) > 100
    for command in commands:
        python, program, with_, *words = shlex.split(command)
        assert (python, program, with_) == ("python", "main_classification.py", "with")
        updates, _ = get_config_updates(words)
        defaults = main_classification.default_config(updates["config"])
        check_updates(updates, defaults)
        config = defaults | updates
        check_options(config)
        make_algorithm(config | {"cuda": False})
        assert config["data_dir"] or config["dataset"] not in ("ImageNet", "ImageFolder")
    assert (
        "python main_classification.py with config=digits.RN14_RN8.letKD-2 num_words=64 'milestones=[2,3]' seed=4 "
        f"checkpoint=-1 localpath={tree.root}"
    ) in commands
    assert f"config=digits.RN14_RN8.QuEST cuda=False 'seeds=[3]' localpath={tree.root}" in "".join(commands)


def test_what_has_diverged_would_diverge_again(tree):
    path = tree.put("digits.RN8", None, epoch=3, state="diverged")
    path.rename(path.with_name(collect.PROGRESS))
    cell = tree.write().cell("student", row="RN14 → RN8", scope="digits")
    assert cell.unfinished and not cell.continuations


def test_a_run_that_was_moved_away_does_not_go_on(tree):
    path = tree.put("digits.RN8", None, place="digits/RN8.old/seed0", epoch=3, state="stopped")
    path.rename(path.with_name(collect.PROGRESS))
    assert "checkpoint=-1" not in tree.write().page


def test_a_run_with_other_settings_that_goes_on_fills_no_cell(tree):
    path = tree.put("digits.RN8", None, epoch=1, state="running", options={"epochs": 3})
    path.rename(path.with_name(collect.PROGRESS))
    written = tree.write()
    cell = written.cell("student", row="RN14 → RN8", scope="digits")
    assert cell.lacks_runs and f"    {cell.command}\n" in written.markdown


def test_nothing_at_all_is_a_report_too(tree):
    written = tree.write()
    assert "There is no result here yet" in written.page
    assert "No results yet: " in written.markdown
    assert Page(written.page).values("href") == []


def test_a_run_that_goes_on_says_how_far_it_is(tree):
    path = tree.put("digits.RN8", None, epoch=3, state="stopped", best_top1=91.5)
    path.rename(path.with_name(collect.PROGRESS))
    written = tree.write()
    written.says("stopped, epoch 3 of 8, best so far 91.50")
    cell = written.cell("student", row="RN14 → RN8", scope="digits")
    assert not cell.groups and len(cell.unfinished) == 1


def test_a_run_that_goes_on_after_its_end_is_unfinished(tree):
    longer = {"options": {"epochs": 12}, "epochs": 12, "epoch": 8, "updated": "2026-01-01T00:00:01+00:00"}
    tree.put("digits.RN8", **longer).rename(tree.root / "digits/RN8" / collect.PROGRESS)
    tree.put("digits.RN8", finished="2026-01-01T00:00:00+00:00")
    (run,) = tree.write().report.collection.runs
    assert not run.finished


def test_a_run_that_goes_on_before_its_end_is_unfinished(tree):
    back = {"epoch": 3, "updated": "2026-01-01T00:00:01+00:00"}
    tree.put("digits.RN8", **back).rename(tree.root / "digits/RN8" / collect.PROGRESS)
    tree.put("digits.RN8", finished="2026-01-01T00:00:00+00:00")
    (run,) = tree.write().report.collection.runs
    assert not run.finished


def test_a_run_that_was_killed_when_its_results_were_written_is_finished(tree):
    last = {"epoch": 8, "state": "running", "updated": "2026-01-01T00:00:00+00:00"}
    tree.put("digits.RN8", **last).rename(tree.root / "digits/RN8" / collect.PROGRESS)
    tree.put("digits.RN8", finished="2026-01-01T00:00:01+00:00")
    (run,) = tree.write().report.collection.runs
    assert run.finished


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def change_a_digit(path: Path) -> None:
    path.write_text(path.read_text().replace("70.0", "79.0", 1))


def hold_a_text(path: Path) -> None:
    save_json(path, json.loads(path.read_text()) | {"top1": "<b>70"})


def hold_no_config(path: Path) -> None:
    save_json(path, {"top1": 70.0})


def hold_a_list(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize("damage", [truncate, change_a_digit, hold_a_text, hold_no_config, hold_a_list])
@pytest.mark.parametrize("name", [collect.RESULTS, collect.PROGRESS])
def test_a_damaged_file_is_listed_with_its_error(tree, damage, name):
    tree.put("digits.RN14", 98.0)
    path = tree.put("digits.RN8").rename(tree.root / "digits/RN8" / name)
    damage(path)
    written = tree.write()
    (damaged,) = written.report.collection.damaged
    assert str(damaged.place) == f"digits/RN8/{name}" and damaged.error
    assert len(written.report.collection.runs) == 1
    written.says(f"digits/RN8/{name}")
    assert "<b>70" not in written.page


def test_damaged_trials_are_listed(tree):
    tree.trials("digits.RN8", [96.0, 97.0])
    (tree.root / "digits/RN8" / collect.TRIALS).write_text("{")
    tree.write().says("digits/RN8/trials.json")


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"seconds": float("nan")}, "seconds is nan, not a finite number"),
        ({"macro_f1": "high"}, "macro_f1 is 'high', not a finite number"),
        ({"class_accuracies": {"cat": "high"}}, "class_accuracies holds no accuracies by class"),
        ({"evaluations": {"last": {"class_accuracies": [1.0]}}}, "class_accuracies holds no accuracies by class"),
        ({"num_images": 5}, "num_images holds no numbers of images by split"),
        ({"evaluations": {"last": {"num_images": {"eval": "all"}}}}, "num_images holds no numbers of images by split"),
        ({"top1": float("nan")}, "top1 is nan"),
        ({"images_per_second": float("inf")}, "images_per_second is inf"),
        ({"multiply_adds": 10**400}, "multiply_adds is 1000"),
        ({"seconds": 1e300}, "seconds is 1e+300"),
        ({"history": [{"epoch": float("nan")}]}, "epoch is nan"),
        ({"history": {"epoch": 1}}, "history is {'epoch': 1}, not a list"),
        ({"environment": {"versions": "torch 2.15"}}, "versions is 'torch 2.15', not a dictionary"),
        ({"environment": "here"}, "environment is 'here', not a dictionary"),
        ({"options": {"dataset": 5}}, "dataset is 5, not a text"),
        ({"options": {"teacher_experiment": ["a"]}}, "teacher_experiment is ['a'], not a text"),
        ({"exports": {"last.onnx": {"bytes": "many"}}}, "bytes is 'many'"),
        (
            {"exports": {"last.onnx": 5}},
            "history, evaluations, linear_probe, kd_layers, exports do not hold dictionaries",
        ),
    ],
)
def test_facts_of_another_kind_are_damage(tree, facts, error):
    tree.trials("digits.RN8", [96.0])
    tree.put("digits.RN8", place="digits/RN8/seed1", seed=1, **facts)
    written = tree.write()
    (damaged,) = written.report.collection.damaged
    assert str(damaged.place) == "digits/RN8/seed1/results.json" and damaged.error.startswith(error)
    assert written.report.sections[0].groups[0].statistic("top1") == (96.0, None, 1)


@pytest.mark.parametrize("mode", places.OUTPUT_FOLDERS)
def test_what_any_job_writes_is_read(tree, mode):
    tree.put("digits.RN8", None if mode == "export" else 96.0, mode=mode)
    collection = tree.write().report.collection
    assert [run.mode for run in collection.runs] == [mode] and not collection.damaged


def test_a_trial_that_was_moved_away_is_no_trial(tree):
    tree.trials("digits.RN8", [96.0, 97.0])
    for folder in ("seed1.old", "seed3_1", "seed²"):
        tree.put("digits.RN8", 10.0, place=f"digits/RN8/{folder}", seed=1)
    written = tree.write()
    assert written.cell("student", row="RN14 → RN8", scope="digits").groups[0].statistic("top1")[::2] == (96.5, 2)
    assert [run.trial for run in written.report.collection.runs] == [0, 1, None, None, None]


def test_modules_of_config_that_cannot_be_loaded_are_listed(tree, tmp_path, monkeypatch):
    for name, text in (
        ("common", "WORDS = 64\n"),
        ("broken", "import nothing_of_this_name\n"),
        ("half", 'config = {"epochs": 3}\n'),
        ("pair/KD", 'config = {"method": "KD", "dataset": "digits", "student": "resnet8"}\n'),
    ):
        path = tmp_path / "code/config/mine" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(main_classification, "__file__", str(tmp_path / "code/main_classification.py"))
    monkeypatch.setattr(config, "__path__", [str(tmp_path / "code/config")])
    tree.put("digits.RN8")
    assert main_classification.main(["x", "report", "with", f"localpath={tree.root}"]) == 0
    page = (tree.root / "report/index.html").read_text()
    damaged = page.partition('id="damaged"')[2].partition("</section>")[0]
    assert "config/mine/broken.py" in damaged and "nothing_of_this_name" in damaged
    assert "config/mine/half.py" in damaged and "no method and dataset" in damaged
    assert "config/mine/common.py" not in page and "config=mine.pair.KD prepare=True" in page
    with pytest.raises(ValueError, match=r"^config/mine/common.py is no experiment: it holds no dictionary `config`$"):
        load_experiment("mine.common")


def test_earlier_runs_and_records_of_sacred_are_not_read(tree):
    for place in ("digits/RN8/replaced", "sacred/1", "report", ".hidden"):
        tree.put("digits.RN8", place=place)
    assert tree.write().report.collection.runs == []


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere; localpath="):
        write_report(tmp_path / "nowhere", OWN, command="")


def test_results_of_few_words_are_shown(tree):
    save_json(tree.root / "old" / collect.RESULTS, {"config": "gone.net", "mode": "train", "top1": 50})
    save_json(tree.root / "pair" / collect.RESULTS, {"config": "a.b", "mode": "probe", "options": {"method": "mine"}})
    written = tree.write()
    Page(written.page)
    written.says("no such experiment in config/")


# --- curves ----------------------------------------------------------------------------------------------------------


def history(top1: float) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "learning_rate": 0.05 * 0.1**epoch,
            "train": {"loss": 1 / epoch, "top1": top1},
            "eval": {"top1": top1 + epoch, "loss": float("nan")},
            "statistics": {"perplexity": 99.0},
        }
        for epoch in (1, 2, 3)
    ]


def test_curves_have_a_mean_and_a_range_over_seeds(tree):
    for seed, top1 in enumerate((90.0, 92.0)):
        tree.put("digits.RN8", place=f"digits/RN8/seed{seed}", seed=seed, history=history(top1))
    written = tree.write()
    runs = written.report.collection.runs
    assert curves.quantities(runs) == [
        "eval top1",
        "train top1",
        "train loss",
        "statistics perplexity",
        "learning_rate",
    ]
    course = curves.course(runs, "eval top1", [1, 2, 3])
    assert course == [(1, 92.0, 91.0, 93.0), (2, 93.0, 92.0, 94.0), (3, 94.0, 93.0, 95.0)]
    page = Page(written.page)
    of_pair, of_experiment = page.curves
    assert of_pair["epochs"] == of_experiment["epochs"] == [1, 2, 3]
    assert of_pair["metrics"]["eval top1"]["series"] == [[[92, 91, 93], [93, 92, 94], [94, 93, 95]]]
    assert of_experiment["metrics"]["eval top1"]["series"] == [[[91], [92], [93]], [[93], [94], [95]]]
    pictures = [found for name, found in page.tags if name == "svg" and "role" in found]
    shown = [found["aria-label"].partition(":")[0] for found in pictures]
    assert shown == ["Top-1, evaluation images (%) by epoch, 1 to 3"] * 2
    assert all(found["tabindex"] == "0" for found in pictures)


def test_a_single_run_is_drawn_once(tree):
    tree.put("digits.RN8", history=history(90.0))
    page = tree.write().page
    assert page.count('class="curves"') == 1
    assert 'Learning curves: <a href="#data-digits">Digits</a>' in page


def test_the_sign_of_a_curve_is_whole_at_its_lowest_value(tree):
    tree.put("digits.RN8", history=history(90.0))
    tree.put("digits.RN14", history=history(70.0))
    page = Page(tree.write().page)
    heights = [float(found["y"]) for name, found in page.tags if name == "use"]
    assert max(heights) > charts.HEIGHT / 2, "that of the lower curve"
    assert max(heights) + charts.MARKER_SIZE / 2 <= charts.HEIGHT - charts.BOTTOM


def test_long_courses_are_thinned_and_keep_their_ends(tree):
    whole = [{"epoch": epoch, "eval": {"top1": 70 + epoch / 100}} for epoch in range(1, 241)]
    tree.put("digits.RN14", history=whole[:76])
    tree.put("digits.RN8", history=whole)
    (found,) = Page(tree.write().page).curves
    epochs = found["epochs"]
    assert len(epochs) == curves.MOST_EPOCHS + 1 and {1, 76, 240} <= set(epochs)
    assert max(b - a for a, b in itertools.pairwise(epochs)) <= 3
    for values, last in zip(found["metrics"]["eval top1"]["series"], (70.76, 72.4), strict=True):
        assert len(values) == len(epochs) and [value for value in values if value][-1] == [last]


def test_the_page_of_many_long_runs_stays_small(tree):
    """200 runs of 240 epochs are to stay below 8 MB, so 20 below 0.8."""
    recorded = {
        "train": ("loss", "ce", "words", "decisions", "top1"),
        "eval": ("loss", "top1", "top5"),
        "statistics": ("perplexity", "dead_words", "mean_max_assignment", "word_accuracy"),
        "scales": ("penultimate scores", "penultimate values", "intermediate scores", "intermediate values"),
    }

    def long_history(seed: int) -> list[dict[str, Any]]:
        return [
            {"epoch": epoch, "learning_rate": 0.05, "images_per_second": 5432.1 + epoch, "seconds": 9.87 + seed}
            | {part: dict.fromkeys(names, 71.2345 + epoch / 7 + seed / 9) for part, names in recorded.items()}
            for epoch in range(1, 241)
        ]

    empty = len(tree.write().page)
    for name in (f"{PAIR}.QuEST", f"{PAIR}.letKD-1", f"{PAIR}.letKD-2", "CIFAR100.resnetv1.RN20"):
        for seed in range(5):
            place = f"{'/'.join(name.split('.'))}/seed{seed}"
            tree.put(name, 70.0 + seed, place=place, seed=seed, history=long_history(seed))
    assert len(tree.write().page) - empty < 800_000


def test_results_without_a_history_have_no_curves(tree):
    tree.put("digits.RN8")
    assert Page(tree.write().page).curves == []


# --- the page itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tree) -> Tree:
    """Something of everything."""
    tree.trials(f"{PAIR}.letKD-2", [73.0, 72.0], history=history(70.0))
    tree.put(f"{PAIR}.letKD-1", 60.0, options={"epochs": 3, "milestones": [2]})
    tree.put("CIFAR100.resnetv1.RN56", 72.3, linear_probe={"last": {"map": 50.5}})
    tree.put("digits.RN8", 96.0, evaluations={"best": {"top1": 97.0, "weights": "best.pth"}}, device="CPU, 2 threads")
    tree.put("digits.RN14", None, mode="kmeans", place="VQ/digits/RN14", words=128, perplexity=115.5)
    tree.put("digits.RN14", None, mode="LDA", place="LDA/digits/RN14", tap="layer3.0", components=9)
    tree.put("digits.RN14", None, mode="class_means", place="class_means/digits/RN14", cosine=0.25)
    tree.put("digits.RN8", place="second/digits/RN8")
    (tree.root / "digits/RN14").mkdir()
    (tree.root / "digits/RN14/results.json").write_text("{")
    return tree


def test_supervision_is_no_run_where_runs_are_counted(full):
    written = full.write()
    assert str(written.report) == "6 runs, 1 damaged files"
    assert "\n6 runs · 4 experiments · 1 damaged file · " in written.markdown
    assert "6 runs · 4 experiments" in written.page


def test_the_page_is_well_formed_and_its_links_lead_somewhere(full):
    page = Page(full.write().page)
    names = page.values("id")
    assert len(set(names)) == len(names)
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(names)
    assert not any(re.search(r"\s", name) for name in names)


def test_the_page_loads_nothing(full):
    text = full.write().page
    page = Page(text)
    assert all(link.startswith("#") for link in page.values("href"))
    assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
    assert {name for name, _ in page.tags} & {"link", "iframe", "object", "embed", "base"} == set()
    assert re.findall(r"url\((?!#)|@import|https?://|fetch\(|XMLHttpRequest|import\(", text) == []


def test_the_page_reloads_itself_only_where_it_is_watched(full):
    def refreshes(page: str) -> bool:
        return "http-equiv" in page.partition("<style>")[0]

    assert not refreshes(full.write().page)
    assert refreshes(full.write(refresh=5).page)


def rows_of_tables(markdown: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)


def test_strange_names_stay_text(tree):
    strange = "\"><script>alert('1')</script>&|"
    tree.put("ImageFolder.RN8", options={"data_dir": strange}, device=strange, command=strange)
    tree.put(f"my.{strange.replace('/', '')}", place="odd")
    written = tree.write()
    assert [name for name, _ in Page(written.page).tags].count("script") == 1
    assert "alert('1')" not in written.page and "&lt;script&gt;" in written.page
    for line in written.markdown.splitlines():
        assert "<script" not in line or line.startswith("    "), "an indented line is shown as it stands"
    assert sum("alert" in table for table in rows_of_tables(written.markdown)) == 4, "accuracy, costs, costs, runs"
    for table in rows_of_tables(written.markdown):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a|b", "a&#124;b"),
        ("<b>&amp;", "&#60;b>&#38;amp;"),
        ("`a` *b* ~~c~~", "&#96;a&#96; &#42;b&#42; &#126;&#126;c&#126;&#126;"),
        ("[a](b)", "[a]&#40;b)"),
        ("__a__ RN56_RN20", "&#95;&#95;a&#95;&#95; RN56_RN20"),
        ("a\nb\x00c", "a b c"),
        (1.5, "1.5"),
    ],
)
def test_markdown_shows_names_as_they_are(name, escaped):
    assert escape_markdown(name) == escaped
    assert escape_markdown(escape_markdown(name)) == escaped, "what is markup already stays"
    assert code(name) == (f"`{escaped}`" if escaped == str(name) else f"<code>{escaped}</code>")


def test_a_command_of_several_lines_stays_in_its_block(tree):
    tree.put("ImageFolder.RN8", options={"data_dir": "a\n<script>"})
    written = tree.write()
    assert (
        "    python main_classification.py with config=ImageFolder.RN20 'data_dir=a\n    <script>'" in written.markdown
    )
    assert not any(line.startswith("<script>") for line in written.markdown.splitlines())


def test_equal_results_are_drawn_equally(full):
    def drawn() -> list[str]:
        draw_curves.cache_clear()
        return re.findall(r"<svg .*?</svg>", full.write().page, re.DOTALL)

    first = drawn()
    assert len(first) > 3 and first == drawn()


def test_only_what_has_changed_is_drawn_again(tree):
    for name in ("RN8", "RN14"):
        tree.put(f"digits.{name}", place=f"{name}/digits/{name}", history=history(90.0))
    tree.write()
    drawn = draw_curves.cache_info().misses
    tree.write()
    assert draw_curves.cache_info().misses == drawn
    tree.put("digits.RN8", place="RN8/digits/RN8", history=history(91.0))
    tree.write()
    assert draw_curves.cache_info().misses == drawn + 1


def test_a_run_without_the_first_metric_is_not_drawn_in_it(tree):
    tree.put("digits.RN14", history=history(90.0))
    tree.put("digits.RN8", history=[{"epoch": 1, "train": {"loss": 3.0}}])
    page = Page(tree.write().page)
    classes = {
        found["class"]: found["data-series"] for _, found in page.tags if found.get("class") in ("line", "empty")
    }
    assert classes == {"line": "0", "empty": "1"}
    (curve,) = page.curves
    assert curve["metrics"]["train loss"]["series"][1] == [[3.0], None, None]


def test_supervision_evaluations_and_probes_are_told(full):
    written = full.write()
    for text in (
        "codebook of 128 visual words", "perplexity 115.50", "decision scores at layer3.0, 9 LDA components",
        "class means", "mean cosine of two classes 0.25",
    ):  # fmt: skip
        written.says(text)
    for text in ("Linear probe", "map 50.50", "top1 97.00", "best.pth"):
        assert text in written.page


def test_exports_are_told_with_their_size_and_speed(tree):
    measured = {
        "bytes": 440_200, "parameters": 5, "milliseconds_batch_1": 1.234, "milliseconds_batch_64": 20.5,
        "largest_difference": 1.2e-6, "file": "experiments/digits/RN8/export/digits.RN8-last.onnx",
    }  # fmt: skip
    tree.put("digits.RN8", exports={"last.onnx": measured})
    written = tree.write()
    written.says(
        "440 kB, parameters 5, 1.23 ms for 1 image, 20.50 ms for 64, largest difference 1.2e-06, "
        "file experiments/digits/RN8/export/digits.RN8-last.onnx"
    )


def test_settings_are_shown_for_every_run_and_once_where_they_are_equal(tree):
    for seed in (0, 1, 2):
        command = f"main_classification.py with config=digits.RN8 trials={3 if seed < 2 else 9}"
        options = {"seeds": [seed]}
        tree.put("digits.RN8", place=f"digits/RN8/seed{seed}", seed=seed, command=command, options=options)
    tree.put("gone.net", place="gone/net", options={"epochs": 3})
    tree.put("gone.net", place="gone/net/seed1", seed=1, options={"epochs": 4})
    whole = r"<summary>Settings, versions and command of (.*?)</summary>(.*?)</details>"
    found = re.findall(whole, tree.write().page, re.DOTALL)
    blocks = {re.sub("<.*?>", "", places): re.sub(r"\s|</?p>", "", text) for places, text in found}
    assert set(blocks) == {"digits/RN8/seed0, digits/RN8/seed1", "digits/RN8/seed2", "gone/net", "gone/net/seed1"}
    assert "trials=9" in blocks["digits/RN8/seed2"] and "trials=9" not in blocks["digits/RN8/seed0, digits/RN8/seed1"]
    for place, epochs in (("gone/net", 3), ("gone/net/seed1", 4)):
        assert f"<code>epochs</code></th><td>{epochs}</td>" in blocks[place]


def test_what_differs_from_the_experiment_is_highlighted(full):
    page = re.sub(r"\s|</?p>", "", full.write().page)
    assert re.search(r"<code>epochs</code></th><td><mark>3</mark></td><td>240</td>", page)
    assert "<mark>[2]</mark>" in page and "<mark>240</mark>" not in page


def test_the_commit_is_told(tree):
    commit = {"id": "0123456789abcdef", "dirty": True}
    tree.put("digits.RN8", environment={"commit": commit})
    tree.write().says("0123456789ab, with uncommitted changes")


def test_pictures_are_in_the_page_with_their_captions(tree):
    tree.put("digits.RN8")
    folder = tree.root / "digits/RN8" / collect.PICTURES
    folder.mkdir()
    (folder / "confusion.png").write_bytes(b"PNG")
    save_json(folder / "confusion.json", {"title": "Confusion <1>", "caption": "Rows are & classes."})
    page = tree.write().page
    assert f'src="data:image/png;base64,{base64.b64encode(b"PNG").decode()}"' in page
    assert "Confusion &lt;1&gt;" in page and "Rows are &amp; classes." in page


# --- what it builds on -----------------------------------------------------------------------------------------------


def test_names_of_files_are_those_that_runs_write():
    assert (collect.RESULTS, collect.PROGRESS) == (records.RESULTS, records.PROGRESS)
    assert collect.TRIALS == trials.TRIALS
    assert set(places.OUTPUT_FOLDERS) == collect.MODES
    folders = {mode: folder for mode, folder in places.OUTPUT_FOLDERS.items() if folder}
    assert {mode: folders[mode] for mode in collect.SUPERVISION} == collect.SUPERVISION


PAIRS = [name for name in NAMES if name.rpartition(".")[0] in tables.PUBLISHED["pairs"]]


@pytest.mark.parametrize("name", PAIRS)
def test_published_figures_are_those_that_the_experiments_name(name):
    source = (ROOT / "config" / Path(*name.split(".")).parent / f"{name.rpartition('.')[2]}.py").read_text()
    figures = [float(number) for number in re.findall(r"\d\d\.\d\d|0\.\d\d", ast.get_docstring(ast.parse(source)))]
    published = tables.published_value(*name.rpartition(".")[::2])
    second = published.std if published.top5 is None else published.top5
    assert figures == [published.top1, *([] if second is None else [second])]


def test_every_published_pair_is_an_experiment():
    assert {name.rpartition(".")[0] for name in PAIRS} == set(tables.PUBLISHED["pairs"])
    assert {variant["experiment"] for variant in tables.PUBLISHED["variants"]} <= set(NAMES)


# --- sums of methods -------------------------------------------------------------------------------------------------

SUM = f"{PAIR}.letKD-2+FitNet"


def put_sum(tree: Tree, top1: float, **facts: Any) -> Path:
    own = load_experiment(SUM)
    facts["options"] = own | facts.get("options", {})
    return tree.put(SUM, top1, method=own["method"], dataset=own["dataset"], epochs=own["epochs"], **facts)


def test_a_sum_of_methods_is_a_column_of_its_pair(tree):
    tree.put("CIFAR100.resnetv1.RN56", 72.0)
    tree.put("CIFAR100.resnetv1.RN20", 69.0)
    put_sum(tree, 74.25, data_dir=None)
    written = tree.write(composed=composed_config)
    cell = written.cell("letKD-2+FitNet")
    assert cell.experiment == SUM and [group.statistic("top1").mean for group in cell.groups] == [74.25]
    assert cell.is_measured and cell.published is None
    assert written.cell("teacher").experiment == "CIFAR100.resnetv1.RN56" and written.cell("teacher").has_runs
    assert written.cell("student").experiment == "CIFAR100.resnetv1.RN20" and written.cell("student").has_runs
    assert cell.command == f"python main_classification.py with config={SUM} prepare=True localpath={tree.root}"
    assert cell.groups[0].marks == []
    written.says("letKD-2+FitNet")


def test_other_options_of_a_loss_stand_apart(tree):
    for seed, (top1, weight) in enumerate([(74.0, 100.0), (76.0, 100.0), (60.0, 50.0)]):
        put_sum(tree, top1, options={"hint_loss_coef": weight}, seed=seed, place=f"{SUM.replace('.', '/')}/seed{seed}")
    own, other = tree.write(composed=composed_config).cell("letKD-2+FitNet").groups
    assert (own.marks, own.statistic("top1").mean) == ([], 75.0)
    assert (other.marks, other.statistic("top1").mean) == (["fitnet.weight=50.0 (default: 100.0)"], 60.0)


def test_an_unfinished_sum_goes_on_by_its_own_command(tree):
    path = put_sum(tree, None, state="stopped", epoch=3, updated="2026-01-01T00:00:00+00:00", seed=2)
    path.rename(path.with_name(collect.PROGRESS))
    cell = tree.write(composed=composed_config).cell("letKD-2+FitNet")
    (command,) = cell.continuations.values()
    assert f"config={SUM} seed=2 checkpoint=-1" in command


def test_a_sum_of_a_method_that_is_gone_is_shown_and_marked(tree):
    name = f"{PAIR}.letKD-2+Gone"
    tree.put(name, 74.0, options=load_experiment(f"{PAIR}.letKD-2") | {"method": "letKD-2+Gone"},
             dataset="CIFAR100", method="letKD-2+Gone")  # fmt: skip
    written = tree.write(composed=composed_config)
    (group,) = written.cell("letKD-2+Gone").groups
    assert group.marks == [collect.GONE]


def test_a_network_alone_that_its_own_average_has_taught_is_the_experiment_as_it_stands(tree):
    name = "digits.RN8.KD"
    for seed in (0, 1):
        options = composed_config(name) | {"teacher": "ema", "seed": seed}
        tree.put(name, 96.0 + seed, place=f"digits/RN8/KD/seed{seed}", seed=seed, method="KD", options=options)
    (group,) = tree.write(composed=composed_config).cell("KD", row="RN8", scope="digits").groups
    assert (group.marks, group.statistic("top1").mean) == ([], 96.5)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_both_files_without_torch_and_leaves_no_record(tree):
    tree.put("digits.RN8")
    words = ["x", "report", "with", f"localpath={tree.root}"]
    source = f"import sys, main_classification as entry; print(entry.main({words!r}), 'torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "0 False", process
    assert {path.name for path in (tree.root / "report").iterdir()} == {"index.html", "report.md"}
    assert not (tree.root / "sacred").exists()


@pytest.mark.parametrize("words", [["with", "watch=True"], ["--watch", "with"], ["--watch"]])
def test_watching_writes_again_until_it_is_stopped(words, tree, monkeypatch, capsys):
    naps, pages = [], []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        pages.append((tree.root / "report/index.html").read_text())
        tree.put("digits.RN8", 90.0 + len(naps))
        if len(naps) == 3:
            raise KeyboardInterrupt

    # Its own name alone: threads of other tests sleep too.
    monkeypatch.setattr(main_classification, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setitem(ENTRY_OPTIONS, "localpath", str(tree.root))
    given = words + [f"localpath={tree.root}"] * ("with" in words)
    assert main_classification.main(["x", "report", *given]) == 0
    pages.append((tree.root / "report/index.html").read_text())
    assert "92.00" in pages[2] and "93.00" in pages[3]
    refreshed = ["http-equiv" in page.partition("<style>")[0] for page in pages]
    assert refreshed == [True, True, True, False], "nobody writes the last one again"
    assert capsys.readouterr().out.count("index.html") == 4


def test_only_the_report_can_be_watched():
    words = ["x", "with", "config=digits.RN8", "--watch"]
    assert main_classification.spelt_out(words) == words


def test_a_wrong_localpath_is_one_line(tmp_path, capsys):
    assert main_classification.main(["x", "report", "with", f"localpath={tmp_path / 'nowhere'}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: no directory {tmp_path / 'nowhere'}")
