"""Run records: read back exactly, each once, and taken as missing where anything in them is not as it was written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from store_examples import run

from landscape_cli import store
from landscape_cli.registry.errors import Fault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store.open_folder(tmp_path / "results", "exp")


def test_records_read_back(folder: Path) -> None:
    runs = [run("b10-s1", train_loss=5e-324), run("b10-s0", train_loss=1.7976931348623157e308, swept={"x": 1})]
    assert store.read_runs(folder) == {}
    store.write_runs(folder, runs)
    warnings: list[str] = []
    found = store.read_runs(folder, warnings)
    assert found == {"b10-s0": runs[1], "b10-s1": runs[0]} and list(found) == ["b10-s0", "b10-s1"]
    assert warnings == [] and type(found["b10-s0"]["swept"]["x"]) is int
    assert store.read_runs(folder / "nowhere") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written(folder: Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        store.write_runs(folder, [run("r1"), run("r2", train_loss=value)])
    assert not any((folder / "runs").iterdir())


GARBLED = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": true}', b"NaN"]
GARBLED += [json.dumps(run("r1", swept={"x": float("nan")})).encode(), json.dumps(run("r1", seed="0")).encode()]


@pytest.mark.parametrize("content", GARBLED, ids=range(len(GARBLED)))
def test_garbled_files_count_as_missing_and_are_named(folder: Path, content: bytes) -> None:
    store.write_runs(folder, [run("r1"), run("r2")])
    path = folder / "runs" / "r1.json"
    path.write_bytes(content)
    warnings: list[str] = []
    assert list(store.read_runs(folder, warnings)) == ["r2"]
    assert [w.split(": ")[0] for w in warnings] == [str(path)]
    assert warnings[0].endswith(": taken as missing, will be made again") and warnings[0].isprintable()
    assert store.read_runs(folder) == {"r2": run("r2")}  # without a list to report to


@pytest.mark.parametrize("change", ["missing", "null"])
@pytest.mark.parametrize("key", [k for k in run("r1") if k not in ("data", "snapshots")])
def test_a_record_without_what_is_due_counts_as_missing(folder: Path, key: str, change: str) -> None:
    broken = {k: v for k, v in run("r1").items() if k != key} | ({key: None} if change == "null" else {})
    (folder / "runs" / "r1.json").write_text(json.dumps(broken))
    warnings: list[str] = []
    assert store.read_runs(folder, warnings) == {} and len(warnings) == 1
    if key == "minimum" and change == "missing":
        said = "cannot be read (minimum: Field required): taken as missing, will be made again"
        assert warnings == [f"{folder}/runs/r1.json: {said}"]


def test_what_may_be_missing_may_be_missing(folder: Path) -> None:
    """Older records lack hashes; a run that diverged may have no loss; of a user's checkpoint little is known."""
    old = {k: v for k, v in run("r1").items() if k not in ("data", "snapshots")}
    diverged = run("r2", status="diverged", test_loss=None)
    foreign = run("r3", seed=None, epochs=None, steps=None, seconds=None, train_loss=None, later="kept")
    store.write_runs(folder, [old, diverged, foreign])
    assert list(store.read_runs(folder).values()) == [old, diverged, foreign]


def test_files_of_another_run_count_as_missing(folder: Path) -> None:
    store.write_runs(folder, [run("r1")])
    shutil.copy(folder / "runs" / "r1.json", folder / "runs" / "r9.json")
    warnings: list[str] = []
    assert list(store.read_runs(folder, warnings)) == ["r1"]
    assert warnings == [f"{folder}/runs/r9.json: belongs to 'r1.json': taken as missing, will be made again"]


@pytest.mark.parametrize("more", [{}, {"minimum": None}])
def test_newer_format_is_refused(folder: Path, more: dict[str, Any]) -> None:
    store.write_runs(folder, [run("r1", format=2, **more)])
    with pytest.raises(Fault) as caught:
        store.read_runs(folder)
    wrong = "has format 2, this version reads up to 1: upgrade landscape-cli"
    assert str(caught.value) == f"{folder}/runs/r1.json: {wrong}"


def test_each_of_many_run_records_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_runs(folder, [run(f"r{i}") for i in range(200)])
    opened, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.stem) or read_bytes(path))
    seen = store.Seen()
    assert len(store.read_runs(folder, None, seen)) == len(opened) == 200
    assert store.read_runs(folder, None, seen) == store.read_runs(folder, None, seen) and len(opened) == 200
    store.write_runs(folder, [run("r7", seed=1)])
    opened.clear()
    assert store.read_runs(folder, None, seen)["r7"]["seed"] == 1 and opened == ["r7"]  # what was replaced is seen
    (folder / "runs" / "r7.json").unlink()
    assert "r7" not in store.read_runs(folder, None, seen)
