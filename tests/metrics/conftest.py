"""Both ways to eigenvalues."""

from __future__ import annotations

import pytest
from spectrum_cases import matrix_free


@pytest.fixture(params=["dense", "products"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices in full, and as if they were too large for that."""
    if request.param == "products":
        matrix_free(monkeypatch)
