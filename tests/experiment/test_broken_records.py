"""A key that is gone from a record or a cell, or null: each command says so and makes it again; none ends in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from landscape_cli.experiment import draw_report, measure, planning, train_runs
from landscape_cli.experiment.session import Session

Open = Callable[..., Session]
SMALL = {"seeds": 1, "grid": {}, "compare": None, "metrics": ["weight_norm"]}
OPTIONAL = ("data", "snapshots")  # which older records lack; null they are wrong too
REMADE = ": taken as missing, will be made again"


@pytest.fixture
def whole(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(draw_report, "draw", lambda *args: None)
    session = tiny(SMALL | {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 2}}})
    measure.measure(session, [("weight_norm", {})])
    shutil.copytree(session.folder, session.folder.with_name("good"))
    return session


def commands(tiny: Open) -> list[list[str]]:
    """Show, train and measure, each in a session of its own; what each warned of."""
    said = []
    for command in (planning.plan, train_runs.train, lambda s: measure.measure(s, [("weight_norm", {})])):
        session = tiny(SMALL | {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 2}}})
        command(session)
        said.append(session.warnings)
    return said


def broken(content: dict[str, Any], key: str, change: str) -> dict[str, Any]:
    """The content without a key, or with null in it."""
    rest = {k: v for k, v in content.items() if k != key}
    return rest if change == "missing" else rest | {key: None}


@pytest.mark.parametrize("part", ["runs", "cells"])
def test_every_key_of_what_is_written_is_needed(tiny: Open, whole: Session, part: str) -> None:
    (path,) = (whole.folder / part).glob("*.json")
    content = json.loads(path.read_text())
    cells = content.get("cells", [])
    at = next((i for i, cell in enumerate(cells) if cell["metric"] == "weight_norm"), 0)
    for key in cells[at] if cells else content:
        for change in ("missing", "null"):
            shutil.rmtree(whole.folder)
            shutil.copytree(whole.folder.with_name("good"), whole.folder)
            wrong = [broken(c, key, change) if i == at else c for i, c in enumerate(cells)]
            path.write_text(json.dumps(content | {"cells": wrong} if cells else broken(content, key, change)))
            show, trained, measured = commands(tiny)
            where = f"{part}: {key} {change}"
            if key in OPTIONAL and change == "missing":
                assert show == trained == measured == [], where
                continue
            assert show and all(w.startswith(f"{path}: ") and w.endswith(REMADE) for w in show), where
            assert (trained if part == "runs" else measured)[:1] == show[:1] and commands(tiny) == [[], [], []], where
            made = json.loads(path.read_text())
            assert made.keys() == content.keys() and not (cells and made["cells"][at]["rows"] != cells[at]["rows"])
