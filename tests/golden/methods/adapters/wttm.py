"""WTTM: `WTTM` of the authors. The file has the arrays of TTM's."""

from tests.golden.methods.adapters import ttm
from tests.golden.methods.core import Golden


def compare(golden: Golden) -> None:
    ttm.compare(golden, "wttm")
