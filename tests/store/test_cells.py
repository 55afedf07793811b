"""Cells: all of a run in one file, there wholly or not at all; the layout before is read, and never loses one."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from store_examples import cell

from landscape_cli import store
from landscape_cli.registry.errors import Fault
from landscape_cli.store import cells as module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store.open_folder(tmp_path / "results", "exp")


def old(folder: Path, one: dict[str, Any]) -> Path:
    """A cell as the version before wrote it."""
    place = folder / "cells" / one["run_id"]
    place.mkdir(exist_ok=True)
    path = place / f"{one['metric'].replace(':', '-')}-{one['key']}.json"
    path.write_text(json.dumps({"format": 1, **one}, indent=1))
    return path


def test_cells_read_back(folder: Path) -> None:
    cells = [cell("r2"), cell("r1", "_shared:gram"), cell("r1"), cell("r1", key="00ff00ff00ff", seconds=5e-324)]
    assert store.read_cells(folder) == []
    store.write_cells(folder, cells)
    warnings: list[str] = []
    assert store.read_cells(folder, None, warnings) == [cells[1], cells[3], cells[2], cells[0]]
    assert store.read_cells(folder, ["r2", "none", "r1"], warnings) == [cells[0], cells[1], cells[3], cells[2]]
    assert warnings == []
    path = store.cells_path(folder, "r1")
    assert path == folder / "cells" / "r1.json"
    first, *lines, last = path.read_text().splitlines()
    assert (first, last) == ('{"format": 2, "run_id": "r1", "cells": [', "]}")
    assert [json.loads(line.rstrip(",")) for line in lines] == [cells[1], cells[3], cells[2]]  # a line a cell
    before = path.read_bytes()
    store.write_cells(folder, [cells[2], cells[3], cells[1]])
    assert path.read_bytes() == before  # whatever the order in which they come
    store.write_cells(folder, [cell("r1", "other")])
    assert len(store.read_cells(folder, ["r1"])) == 4  # the others are kept
    store.write_cells(folder, [cell("r1", "other", seconds=9.0)])
    assert [c["seconds"] for c in store.read_cells(folder, ["r1"]) if c["metric"] == "other"] == [9.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written(folder: Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        store.write_cells(folder, [cell("r1", seconds=value)])
    assert not any((folder / "cells").iterdir())


GARBLED = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}', b'{"format": true}', b"NaN"]


@pytest.mark.parametrize("content", GARBLED, ids=range(len(GARBLED)))
@pytest.mark.parametrize("layout", ["new", "old"])
def test_garbled_files_count_as_missing_and_are_named(folder: Path, content: bytes, layout: str) -> None:
    store.write_cells(folder, [cell("r2")])
    path = old(folder, cell("r1")) if layout == "old" else store.cells_path(folder, "r1")
    path.write_bytes(content)
    warnings: list[str] = []
    assert store.read_cells(folder, warnings=warnings) == [cell("r2")]
    assert [w.split(": ")[0] for w in warnings] == [str(path)]
    assert all(w.endswith(": taken as missing, will be made again") and w.isprintable() for w in warnings)
    store.write_cells(folder, [cell("r1")])
    warnings.clear()
    assert store.read_cells(folder, warnings=warnings) == [cell("r1"), cell("r2")] and warnings == []


@pytest.mark.parametrize("change", ["missing", "null"])
@pytest.mark.parametrize("key", [*cell("r1"), *(f"rows.0.{k}" for k in cell("r1")["rows"][0])])
@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_cell_without_what_is_due_counts_as_missing_alone(folder: Path, key: str, change: str, layout: str) -> None:
    name, nullable = key.split(".")[-1], ("epoch", "standard_error", "samples", "iterations", "residual")
    if change == "null" and name in nullable:
        return
    broken = cell("r1")
    part = broken["rows"][0] if "." in key else broken
    del part[name]
    if change == "null":
        part[name] = None
    path = store.cells_path(folder, "r1")
    store.write_cells(folder, [cell("r1", "zeta")])
    if layout == "old":
        path = old(folder, cell("r1"))
        path.write_text(json.dumps({"format": 1, **broken}))
    else:
        path.write_text(json.dumps({"format": 2, "run_id": "r1", "cells": [broken, cell("r1", "zeta")]}))
    warnings: list[str] = []
    assert store.read_cells(folder, warnings=warnings) == [cell("r1", "zeta")]
    assert len(warnings) == 1 and warnings[0].startswith(f"{path}: ")
    assert warnings[0].endswith(": taken as missing, will be made again")


def test_an_intermediate_has_no_value_and_rows_may_be_none(folder: Path) -> None:
    row = cell("r1")["rows"][0] | {"value": None}
    cells = [cell("r1", "_shared:gram", rows=[row]), cell("r1", "alone", rows=[])]
    store.write_cells(folder, cells)
    assert store.read_cells(folder) == cells


def test_files_of_another_run_count_as_missing(folder: Path) -> None:
    store.write_cells(folder, [cell("r1")])
    (folder / "cells" / "r2.json").write_bytes((folder / "cells" / "r1.json").read_bytes())
    old(folder, cell("r3")).rename(folder / "cells" / "r3" / "other-00.json")
    path = old(folder, cell("r4"))
    path.write_text(path.read_text().replace("r4", "r3"))
    warnings: list[str] = []
    assert store.read_cells(folder, warnings=warnings) == [cell("r1")]
    assert [w.split(": ")[1] for w in warnings] == [
        "belongs to 'r1'",
        "belongs to 'regret-0123456789ab.json'",
        "belongs to 'r3'",
    ]


def test_newer_format_is_refused(folder: Path) -> None:
    path = store.cells_path(folder, "r1")
    path.write_text('{"format": 7, "cells": {}}')
    for attempt in (store.read_cells, lambda folder: store.write_cells(folder, [cell("r1")])):
        with pytest.raises(Fault) as caught:
            attempt(folder)
        assert str(caught.value) == f"{path}: has format 7, this version reads up to 2: upgrade landscape-cli"
    assert path.read_text() == '{"format": 7, "cells": {}}'


def test_the_layout_before_is_read_merged_and_then_cleared(folder: Path) -> None:
    """Of a cell in both, that in the run's own file counts; directions stay where they are."""
    paths = [old(folder, cell("r1", key="aaaa", seconds=1.0)), old(folder, cell("r1", key="bbbb", seconds=2.0))]
    other = old(folder, cell("r2"))
    vectors = store.vectors_path(folder, cell("r1", key="aaaa"))
    vectors.write_bytes(b"v")
    store.write_cells(folder, [cell("r1", key="cccc")])
    old(folder, cell("r1", key="aaaa", seconds=9.0))  # as after a kill in the middle, or a version before at work
    seconds = {c["key"]: c["seconds"] for c in store.read_cells(folder, ["r1"])}
    assert seconds == {"aaaa": 1.0, "bbbb": 2.0, "cccc": 1.5}
    store.write_cells(folder, [cell("r1", key="cccc", seconds=3.0)])
    assert not any(path.exists() for path in paths) and vectors.read_bytes() == b"v" and other.exists()
    seconds = {c["key"]: c["seconds"] for c in store.read_cells(folder) if c["run_id"] == "r1"}
    assert seconds == {"aaaa": 1.0, "bbbb": 2.0, "cccc": 3.0}
    store.write_cells(folder, [cell("r2", "more")])
    assert len(store.read_cells(folder, ["r2"])) == 2 and not other.parent.exists()  # an empty folder goes


@pytest.mark.parametrize("name", ["open", "fsync", "replace", "unlink"])
@pytest.mark.parametrize("after", range(4))
def test_stopped_anywhere_in_the_middle_no_cell_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    """Each system call of writing fails in turn, as if the process had been killed there."""
    cells = [cell("r1", key=key) for key in ("aaaa", "bbbb", "cccc")]
    for one in cells:
        old(folder, one)
    real, calls = getattr(os, name), [0]

    def fails(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > after and str(args[0]).startswith(str(folder)) | (name == "fsync"):
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        with suppress(KeyboardInterrupt):
            store.write_cells(folder, [cell("r1", key="dddd")])
    warnings: list[str] = []
    kept = store.read_cells(folder, warnings=warnings)
    assert kept[:3] == cells and len(kept) in (3, 4) and warnings == []
    store.write_cells(folder, [cell("r1", key="dddd")])
    assert store.read_cells(folder) == [*cells, cell("r1", key="dddd")]
    assert [p.name for p in (folder / "cells").iterdir() if not p.name.startswith(".")] == ["r1.json"]


@pytest.mark.parametrize("layout", ["new", "old"])
def test_what_cannot_be_read_now_is_not_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    path = old(folder, cell("r1")) if layout == "old" else store.cells_path(folder, "r1")
    if layout == "new":
        store.write_cells(folder, [cell("r1")])
    read_bytes = Path.read_bytes

    def stale(this: Path) -> bytes:
        if this == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read_bytes(this)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        with pytest.raises(Fault) as caught:
            store.write_cells(folder, [cell("r1", "other")])
    wrong = "cannot be read, and the cells in it would be lost: make it readable"
    assert (str(caught.value), caught.value.code) == (f"{path}: {wrong}", 1)
    assert store.read_cells(folder) == [cell("r1")]


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_cells(folder, [cell(f"r{i}") for i in range(5)])
    old(folder, cell("r0", "old"))
    opened, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    seen = store.Seen()
    for _ in range(3):
        assert len(store.read_cells(folder, None, None, seen)) == 6
    assert sorted(opened) == ["old-0123456789ab.json", *(f"r{i}.json" for i in range(5))]


def test_names_that_are_not_safe_are_refused(folder: Path) -> None:
    for wrong in (cell("r1", "../x"), cell("r1", key="../../x"), cell("r1", key="xyz0")):
        with pytest.raises(Fault, match="not the name of a metric and a hexadecimal key"):
            store.write_cells(folder, [wrong])
        store.cells_path(folder, "r1").write_text(json.dumps({"format": 2, "run_id": "r1", "cells": [wrong]}))
        assert store.read_cells(folder) == []
        assert module.FORMAT == 2
