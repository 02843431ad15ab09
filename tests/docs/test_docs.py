"""The pages say what is true: links, files, figures, options, and commands that the entry accepts."""

import json
import re
from pathlib import Path

import pytest
from docs_tools import ENTRY, PAGES, ROOT, entry_commands, programs, shell_lines, title

import main_classification
from algorithms import Study, check_options, make_algorithm
from config.experiments import ENTRY_OPTIONS, canonical_name
from config.protocols import COMMON
from config.updates import check_updates, flat
from docs import make_methods, make_networks, make_options

PUBLISHED = json.loads((ROOT / "reporting" / "published.json").read_text())
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text()
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
PLACEHOLDER = "A.B.C"  # any experiment
REGISTERED = r'@register_loss\("(\w+)"\)'
WRITTEN = {file for page in PAGES for file, _ in programs(page)}  # what the reader writes
OWN = ("config/A/B/C.py", "config/mine/", "studies/")  # and may write, or a run
OWN_METHODS = {name for page in PAGES for _, program in programs(page) for name in re.findall(REGISTERED, program)}

every_page = pytest.mark.parametrize("page", PAGES, ids=title)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_files_that_are_named_exist(page):
    for file in re.findall(r"`((?:\w+/)+[\w.-]+\.(?:py|json|md))[:`]", page.read_text()):
        places = (ROOT / file, ROOT / "tests" / file, page.parent / file)
        assert file in WRITTEN or file.startswith(OWN) or any(place.exists() for place in places), file


@every_page
def test_commands_are_of_this_project(page):
    for words in shell_lines(page):
        if words[0] == "make":
            assert words[1] in TARGETS, words
        elif words[0] == "python" and words[:2] != ENTRY:
            file = words[3] if words[1:3] == ["-m", "pytest"] else words[1]
            assert any((place / file).is_file() for place in (ROOT, page.parent)) or words[1] == "-m", words
        else:
            assert words[0] in ("python", "torchrun", "pip", "tensorboard"), words


@every_page
def test_commands_are_accepted_by_the_entry(page):
    names = {"--help", *main_classification.experiment.commands}
    for command in entry_commands(page):
        assert command.name in names, command
        updates = {key: value for key, value in command.updates.items() if value != PLACEHOLDER}
        if command.name == "study":
            Study(main_classification.STUDY_OPTIONS | flat(updates))
            continue
        experiment = updates.get("config", ENTRY_OPTIONS["config"])
        methods = set(experiment.rpartition(".")[2].split("+"))
        if f"config/{experiment.replace('.', '/')}.py" in WRITTEN or methods & OWN_METHODS:
            continue  # `test_docs_commands` runs it
        defaults = main_classification.default_config(experiment)
        updates = check_updates(updates, defaults)
        if command.name == "run":
            check_options(defaults | updates)
            make_algorithm(defaults | updates)
        else:
            check_options(defaults | updates | {"watch": False})


PROGRAMS = [make_options, make_methods, make_networks]


@pytest.mark.parametrize("program", PROGRAMS, ids=["options", "methods", "networks"])
def test_a_page_is_what_its_program_writes(program):
    assert program.PAGE.read_text() == program.render(), f"out of date; write it: python -m {program.__name__}"


def test_published_figures_are_of_methods_and_sources_that_there_are():
    known = json.loads((ROOT / "reporting" / "published_methods.json").read_text())
    pair = "CIFAR100.resnetv1.RN56_RN20"
    assert {tuple(names) for names in known["pairs"].values()} == set(COMMON)
    for table in known["tables"]:
        assert set(table) <= {"source", "runs", "epoch", "copied", "top1", "std"}
        assert table.get("epoch") in (None, "last", "best") and table.get("copied") in (None, True)
        for method, figures in table["top1"].items():
            assert method in ("teacher", "student") or canonical_name(f"{pair}.{method}") == f"{pair}.{method}"
            assert not set(figures) - set(known["pairs"]) and all(50 < figure < 80 for figure in figures.values())
        for method, deviations in table.get("std", {}).items():
            assert set(deviations) <= set(table["top1"][method])
    assert known["mixed"]["plain"] in known["sources"]
    for figures in known["mixed"]["top1"].values():
        assert not set(figures) - set(known["pairs"]) and all(50 < figure < 80 for figure in figures.values())
    used = {table["source"] for table in known["tables"]} | {"letKD"}  # whose figures are in published.json
    assert used == set(known["sources"])


@pytest.mark.parametrize("pair", PUBLISHED["pairs"])
def test_published_figures_are_the_papers(pair):
    (row,) = re.findall(rf"^\| `{re.escape(pair)}` \| (.+) \|$", REPRODUCE, re.MULTILINE)
    figures = [PUBLISHED["pairs"][pair][column] for column in ("teacher", "student", "QuEST", "letKD-1", "letKD-2")]
    assert row.split(" | ") == [written(**figure) for figure in figures]


def written(top1: float, std: float | None = None, top5: float | None = None) -> str:
    return f"{top1:.2f}" + (f" ± {std:.2f}" if std else "") + (f" / {top5:.2f}" if top5 else "")


def test_published_ablations_are_the_papers():
    for variant in PUBLISHED["variants"]:
        options = " ".join(f"{key}={value}" for key, value in variant["options"].items())
        assert f"`{options or variant['experiment']}` | {variant['top1']:.2f} |\n" in REPRODUCE


def test_the_picture_needs_no_other_file():
    picture = (ROOT / "docs" / "how-it-works.svg").read_text()
    assert set(re.findall(r"https?://[^\"' ]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in picture
