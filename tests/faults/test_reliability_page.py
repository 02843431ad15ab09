"""docs/reliability.md names tests that exist, and every fault test stands on it."""

import ast
import functools
import re
from pathlib import Path

from fault_tools import ROOT

FAULTS = ROOT / "tests" / "faults"
APART = {"test_the_events_are_those_of_a_run"}  # it tests another test
NAMED = re.findall(r"`(\S+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())


@functools.cache
def names_in(path: Path) -> set[str]:
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_named_test_exists():
    assert len(NAMED) > 40
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_in(ROOT / "tests" / file)]
    assert missing == []


def test_every_fault_test_stands_on_the_page():
    named, here = {name for _, name in NAMED}, Path(__file__).name
    found = {name for path in FAULTS.glob("test_*.py") if path.name != here for name in names_in(path)}
    assert len(found) > 40 and found - named - APART == set()


def test_every_promise_has_a_test():
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    assert [row for row in rows[1:] if "::test_" not in row] == []
