"""The files about the project agree with each other: licence, citation, changelog, package, README and index."""

import json
import re
from pathlib import Path

import pytest
import yaml

from config.former_names import FORMER_NAMES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = PYPROJECT["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_newest_version_is_that_of_package_and_citation():
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "Unreleased"
    newest, date = headings[1].split(" - ")
    assert (newest, date) == (CITATION["version"], str(CITATION["date-released"]))
    assert newest == PACKAGE["version"]


def test_the_changelog_has_the_usual_headings_each_once_a_version():
    usual = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Old names"}
    for version in CHANGELOG.split("\n## ")[1:]:
        found = re.findall(r"^### (.+)$", version, re.MULTILINE)
        assert set(found) <= usual and len(found) == len(set(found)), found


def test_the_changelog_has_every_old_name_of_an_option():
    assert dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", CHANGELOG, re.MULTILINE)) == FORMER_NAMES


def test_one_licence_everywhere():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) ")
    assert PACKAGE["license"] == CITATION["license"] == "MIT"
    assert PACKAGE["license-files"] == ["LICENSE"]


def test_the_package_is_letkd_alone_and_whole():
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "letkd").rglob("__init__.py")}
    assert PYPROJECT["tool"]["setuptools"]["packages"] == sorted(".".join(path.parts) for path in found)
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == {"letkd": ["py.typed"]}
    assert (ROOT / "letkd/py.typed").is_file()
    assert [re.split(r"\W", needed)[0] for needed in PACKAGE["dependencies"]] == ["torch", "numpy"]


def test_the_citation_is_of_the_paper_whose_figures_are_here():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    paper = CITATION["preferred-citation"]
    authors = ", ".join(author["family-names"] for author in paper["authors"])
    conference = paper["conference"]["name"]
    source = json.loads((ROOT / "reporting/published.json").read_text())["source"]
    assert source.startswith(f"{authors}: {paper['title']}, {conference}")
    assert conference.endswith(str(paper["year"]))
    assert f"> {authors}: *{paper['title']}*. {conference}." in (ROOT / "README.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"))
def test_the_index_has_every_page(page):
    assert f"]({page})" in (ROOT / "docs/README.md").read_text()
