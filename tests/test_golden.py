"""A folder that version 0.1.0 wrote stays readable, and its numbers stay what they were, to the byte.

tests/golden/v1 is `landscape compare golden.yaml` and `audit` of that version, without figures, report and
surfaces; tables/spectral_density.csv is known by its hash in the manifest, like every other table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from landscape_cli import config, store
from landscape_cli.experiment import compare, draw_report, planning, session
from landscape_cli.experiment import measure as measurement

GOLDEN = Path(__file__).parent / "golden" / "v1"
TABLES = ("runs.csv", "metrics.csv", "comparison.csv", "tables/spectral_density.csv")
CONVERT = """
import os, signal, sys
from pathlib import Path
from landscape_cli import store

folder, call, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
count, real = 0, getattr(os, call)
def killed(*args, **kwargs):
    global count
    count += 1
    if count == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
cells = store.read_cells(folder)
setattr(os, call, killed)
store.write_cells(folder, {cell["run_id"]: cell for cell in cells}.values())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(draw_report, "draw", lambda *args: None)
    shutil.copytree(GOLDEN / "golden", tmp_path / "golden")
    return tmp_path / "golden"


def opened(folder: Path) -> session.Session:
    return session.open_session(session.resolve(config.read(str(GOLDEN / "golden.yaml"))), folder.parent, "cpu")


def check_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is there, nothing is made again, and the tables made from it are those of the version before."""
    plan = planning.plan(opened(folder))
    assert (plan["trained"], plan["runs"], plan["measured"], plan["cells"]) == (4, 4, 176, 176)
    due = json.loads((GOLDEN / "golden" / "manifest.json").read_text())["files"]
    for table in TABLES:
        (folder / table).unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "point", lambda *args: pytest.fail("measured again"))
        one = opened(folder)
        compare.compare(one)
    assert one.warnings == []
    made = {table: hashlib.sha256((folder / table).read_bytes()).hexdigest() for table in TABLES}
    assert made == {table: due[table] for table in TABLES}


def test_it_is_read_and_its_tables_are_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for part in ("cells", "runs", "minima") for path in (folder / part).rglob("*.*")}
    check_whole(folder, monkeypatch)
    assert {path: path.read_bytes() for path in before} == before
    cells = store.read_cells(folder)
    store.write_cells(folder, {cell["run_id"]: cell for cell in cells}.values())  # as if one of each were new
    assert store.read_cells(folder) == cells and len(cells) == 352
    assert {path.name for path in (folder / "cells").iterdir()} == {f"{c['run_id']}.json" for c in cells}
    check_whole(folder, monkeypatch)


@pytest.mark.parametrize(
    ("call", "when"), [("replace", 2), ("replace", 4), ("unlink", 1), ("unlink", 40), ("rmdir", 1)]
)
def test_killed_while_it_is_converted_it_loses_nothing(folder: Path, call: str, when: int) -> None:
    cells = store.read_cells(folder)
    command = [sys.executable, "-c", CONVERT, str(folder), call, str(when)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL, done.stderr
    warnings: list[str] = []
    assert store.read_cells(folder, None, warnings) == cells and warnings == []
    with store.lock(folder):
        store.write_cells(folder, {cell["run_id"]: cell for cell in cells}.values())
    assert store.read_cells(folder) == cells and len(list((folder / "cells").iterdir())) == 4
