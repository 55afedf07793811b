"""Figures that are looked at before they are gone."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from landscape_cli.report import plotting


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, to be looked into."""
    caught: list[Figure] = []
    save = plotting.save
    monkeypatch.setattr(plotting, "save", lambda figure, stem: caught.append(figure) or save(figure, stem))
    return caught
