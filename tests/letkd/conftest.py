"""Both ways to the statistics of a batch, for the tests of the layer and of its arithmetic."""

import pytest

from letkd import values


@pytest.fixture(params=["many patches", "few patches"])
def _passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes."""
    limits = {"many patches": 10**6, "few patches": 0}
    monkeypatch.setattr(values, "SQUARED_CHANNELS_A_PATCH", limits[request.param])
