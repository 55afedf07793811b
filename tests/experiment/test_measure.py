"""Estimates become cells and rows: in which company, under which key, with which status."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from landscape_cli import config, engine, store
from landscape_cli.config import grid
from landscape_cli.experiment import cell_records, result_tables, train_runs
from landscape_cli.experiment import measure as measurement
from landscape_cli.experiment.cell_records import key_of
from landscape_cli.experiment.session import Record, Session
from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.network import memory
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints, files

Open = Callable[..., Session]
MODEL = {"name": "mlp", "hidden": [4]}
TINY = {"dataset": {"name": "digits", "train_size": 20}, "model": MODEL, "training": {"lr": 0.1, "batch_size": 10}}
SMALL = TINY | {"training": {**TINY["training"], "stop": {"max_epochs": 2}}, "grid": {}, "compare": None, "seeds": 3}


def trained(session: Session) -> dict[str, Record]:
    store.open_folder(session.folder.parent, session.folder.name)
    return train_runs.train_missing(session)


def measure(session: Session, records: dict[str, Record], wanted: list[Any]) -> dict[str, list[dict[str, Any]]]:
    settings_of = {run.run_id: run.settings for run in session.runs}
    measurement.measure_missing(session, records, wanted, settings_of)
    cells = cell_records.current(session, records, settings_of)
    return {c["run_id"]: c["rows"] for c in cells if c["metric"] == wanted[0][0]}


def toys(session: Session, run_id: str) -> list[dict[str, Any]]:
    """The cells of the metric `toy` of a run."""
    return [cell for cell in store.read_cells(session.folder, [run_id]) if cell["metric"] == "toy"]


def register(monkeypatch: pytest.MonkeyPatch, function: Any, version: int = 1, **grids: list[Any]) -> None:
    facts = {"invariant": "none", "source": "", "default": False, "version": version, "pairs": False, "grids": grids}
    monkeypatch.setitem(REGISTRY["metric"], "toy", Entry("toy", "metric", function, facts))


def test_the_key_depends_on_what_matters_and_nothing_else(tiny: Open) -> None:
    def settings(**changes: Any) -> Any:
        return tiny(changes | {"grid": {}, "compare": None, "seeds": 1}).runs[0].settings

    what, own = ("weight_norm", {}), settings()
    base = key_of(own, what)
    assert len(base) == 12 and base == key_of(settings(), what)
    others = TINY["training"] | {"lr": 9.0}
    assert base == key_of(settings(training=others), what)  # the hash of the minimum stands for training
    changed = [
        key_of(settings(dataset={"name": "digits", "train_size": 21}), what),
        key_of(settings(model={"name": "mlp", "hidden": [5]}), what),
        key_of(settings(precision="float64"), what),
        key_of(own, ("weight_norm", {"k": 1})),
        key_of(own, ("train_loss", {})),
    ]
    assert len({base, *changed}) == 6


def test_a_new_version_makes_cells_stale(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def toy(at: Point) -> Estimate:
        calls.append(len(at.theta))
        return Estimate(torch.full((len(at.theta),), 2.5), torch.zeros(len(at.theta)))

    session = tiny(SMALL)
    records = trained(session)
    register(monkeypatch, toy)
    measure(session, records, [("toy", {})])
    measure(session, records, [("toy", {})])
    assert calls == [3]  # all three together, once
    register(monkeypatch, toy, version=2)
    assert len(measure(session, records, [("toy", {})])) == 3 and calls == [3, 3]


def test_rows_of_an_estimate(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and Inf are empty with a status, never numbers; the status and message of each minimum go to its own row."""

    def toy(at: Point, *, eps: float = 0.5) -> dict[str, Estimate]:
        value = torch.tensor([1 / 3, math.nan, math.inf], dtype=torch.float64)
        one = Estimate(value, torch.tensor([0.1, 0.2, math.nan]), 7, 9, torch.tensor([1e-3, 0.0, math.nan]))
        two = Estimate(torch.ones(3), torch.zeros(3)).not_converged(torch.tensor([0, 1, 0]), "raise steps")
        return {"rank=1": one, "rank=2": two}

    session = tiny(SMALL)
    register(monkeypatch, toy, eps=[0.5, 0.1])
    records = trained(session)
    ids = [run.run_id for run in session.runs]
    rows = measure(session, records, [("toy", {"eps": 0.5})])
    first, second, third = (rows[i] for i in ids)
    assert first[0] == {
        "epoch": None,
        "setting": "eps=0.5;rank=1",
        "value": 1 / 3,
        "standard_error": pytest.approx(0.1),
        "samples": 7,
        "iterations": 9,
        "residual": pytest.approx(1e-3),
        "status": "ok",
        "message": "",
    }
    for row in (second[0], third[0]):
        assert (row["value"], row["standard_error"], row["status"]) == (None, None, "undefined")
        assert row["message"] == "not a finite number"
    assert [r[1]["status"] for r in (first, second, third)] == ["ok", "not_converged", "ok"]
    assert (second[1]["value"], second[1]["message"]) == (1.0, "raise steps")


def test_what_a_metric_raises_is_a_row_but_a_signal_is_not(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny(SMALL)
    records = trained(session)
    thrown: Exception = ValueError()

    def toy(at: Point) -> Estimate:
        raise thrown

    register(monkeypatch, toy)
    rows = measure(session, records, [("toy", {})])
    assert {r[0]["status"] for r in rows.values()} == {"failed"}
    assert all(r[0]["message"].startswith("ValueError: ") and r[0]["value"] is None for r in rows.values())
    thrown = engine.Interrupted(2)
    with pytest.raises(engine.Interrupted):
        measure(session, records, [("toy", {})])


def test_measured_in_the_company_in_which_they_were_trained(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that was lost is measured with its whole stack, so that it gets the same bits; the others stay."""
    sizes = []

    def toy(at: Point) -> Estimate:
        sizes.append(len(at.theta))
        return Estimate(at.theta[:, 0].clone(), torch.zeros(len(at.theta)))

    register(monkeypatch, toy)
    session = tiny(SMALL)
    records = trained(session)
    before = measure(session, records, [("toy", {})])
    lost = store.cells_path(session.folder, session.runs[1].run_id)
    kept = {p: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes())) for p in lost.parent.glob("*.json")}
    assert len(kept) == 3
    lost.unlink()
    assert measure(session, records, [("toy", {})]) == before and sizes == [3, 3]
    assert [p for p in kept if p.stat().st_mtime_ns != kept[p][0]] == [lost]


def test_a_stack_of_minima_fits_into_memory(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def toy(at: Point) -> Estimate:
        sizes.append(len(at.theta))
        return Estimate(at.theta[:, 0].clone(), torch.zeros(len(at.theta)))

    register(monkeypatch, toy)
    session = tiny(SMALL)
    records = trained(session)
    with memory.limited(2 * 2 * 8 * 20**2):  # half of it for two Gram matrices of 20 samples
        assert len(measure(session, records, [("toy", {})])) == 3 and sizes == [2, 1]


def test_diverged_runs_are_left_out(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny(SMALL)
    records = trained(session)
    records[session.runs[1].run_id]["status"] = "diverged"
    assert set(measure(session, records, [("weight_norm", {})])) == {session.runs[k].run_id for k in (0, 2)}


def test_every_metric_of_all_gives_rows(tiny: Open, tmp_path: Path) -> None:
    """All registered metrics on a real minimum: none fails, every number is finite or says why not."""
    session = tiny(SMALL | {"seeds": 2, "metrics": "all"})
    records = trained(session)
    settings_of = {run.run_id: run.settings for run in session.runs}
    wanted = config.measurements(session.experiment)
    measurement.measure_missing(session, records, wanted, settings_of)
    cells = cell_records.current(session, records, settings_of)
    assert {c["metric"] for c in cells if not c["metric"].startswith("_")} == {name for name, _ in wanted}
    for cell in cells:
        for row in cell["rows"]:
            assert row["status"] != "failed", row["message"]
            assert row["value"] is not None or row["status"] != "ok" or cell["metric"].startswith("_shared:")
            assert row["status"] == "ok" or row["message"]


def test_distances_to_the_other_minima_are_rows_and_follow_the_set_of_minima(tiny: Open) -> None:
    session = tiny(SMALL)
    records, wanted = trained(session), [("ewc_distance", {})]
    found = measure(session, records, wanted)
    for run_id, rows in found.items():
        assert [row["setting"] for row in rows] == [f"to={other}" for other in records if other != run_id]
        assert all(row["value"] > 0 for row in rows)
    fewer = dict(list(records.items())[:2])
    settings_of = {run.run_id: run.settings for run in session.runs}
    left = [c for c in cell_records.current(session, fewer, settings_of) if c["metric"] == "ewc_distance"]
    assert left == []  # one minimum less: other rows are due
    assert {r: len(rows) for r, rows in measure(session, fewer, wanted).items()} == dict.fromkeys(fewer, 1)


def test_the_data_file_is_hashed_once_a_command(tiny: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same command, however often it is asked; a changed file is new data for the next one."""
    path = tmp_path / "own.npz"
    x, y = np.random.default_rng(0).normal(size=(30, 4)).astype("float32"), np.arange(30) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    own = SMALL | {"dataset": {"name": "npz", "path": str(path)}}
    hashed, file_hash = [], files.file_hash
    monkeypatch.setattr(files, "file_hash", lambda one: hashed.append(one) or file_hash(one))
    session = tiny(own)
    trained(session)
    assert len(session.finished()) == 3 and hashed.count(path) == 1
    np.savez(path, x_train=x + 1, y_train=y, x_test=x, y_test=y)
    assert tiny(own).finished() == {} and hashed.count(path) == 2


def test_pairs_of_two_input_sizes_in_one_grid(tiny: Open) -> None:
    """Likeness is equal names and shapes: distances within each set, and whatever else is asked of all."""
    data = {"name": "gaussian", "dimension": 5, "classes": 3, "train_samples": 40, "test_samples": 40}
    session = tiny(SMALL | {"dataset": data, "grid": {"dataset.dimension": [5, 6]}, "seeds": 2})
    records, ids = trained(session), [run.run_id for run in session.runs]
    found = measure(session, records, [("ewc_distance", {}), ("weight_norm", {})])
    others = dict(zip(ids, [ids[1], ids[0], ids[3], ids[2]], strict=True))
    assert {i: [row["setting"] for row in rows] for i, rows in found.items()} == {i: [f"to={others[i]}"] for i in ids}
    assert all(row["status"] == "ok" and row["value"] > 0 for rows in found.values() for row in rows)


def test_peers_are_read_once_whatever_their_number(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks of one: each of the four looks at all four; files read and networks built are linear in them."""
    session = tiny(SMALL | {"seeds": 4})
    records = {i: record | {"stack": [i]} for i, record in trained(session).items()}
    reads, built = [], []
    read, module = checkpoints.parameters, Session.module
    monkeypatch.setattr(checkpoints, "parameters", lambda path, *more: reads.append(path.name) or read(path, *more))
    monkeypatch.setattr(Session, "module", lambda self, *more: built.append(1) or module(self, *more))
    found = measure(session, records, [("ewc_distance", {})])
    assert sorted(reads) == sorted(f"{i}.safetensors" for i in records) and len(built) == 2 * 4
    settings_of = {run.run_id: run.settings for run in session.runs}
    at = measurement.point(session, list(records.values()), session.runs[0].settings)
    distance = at.fisher_diagonal()[:, None] * (at.theta.double()[None] - at.theta.double()[:, None]) ** 2 / 2
    due = {i: [float(d) for j, d in enumerate(distance.sum(2)[k]) if j != k] for k, i in enumerate(records)}
    assert {i: [row["value"] for row in rows] for i, rows in found.items()} == {
        i: pytest.approx(values, rel=1e-6) for i, values in due.items()
    }
    (record, *_) = records.values()
    path = session.folder / record["minimum"]["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Fault, match="damaged, its hash is not the one that was recorded"):
        peers = measurement.peers_of(session, records, settings_of)
        peers(list(records)[1], at)


def test_a_row_of_several_says_which_and_replaces_the_list_in_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(at: Point, *, radius: list[float] = [0.1], seed: int = 0) -> dict[str, Estimate]:  # noqa: B006
        """Toy."""
        return {}

    register(monkeypatch, toy)
    told = grid.setting("toy", {"radius": [0.5, 0.25], "seed": 3}, "radius=0.5")
    assert told == "radius=0.5;seed=3"
    assert grid.setting("toy", {"radius": [0.1], "seed": 0}, "radius=0.1") == "radius=0.1"


def curve(at: Point, *, rows: int = 1, lost: int = -1) -> dict[str, Estimate]:
    """A curve of 3 points a minimum in its first row (in all if `rows` is negative), and two directions a row."""
    K, found = len(at.theta), {}
    x = torch.arange(3.0, dtype=torch.float64).expand(K, 3)
    for r in range(abs(rows)):
        estimate = exact(at.theta[:, 0].double())
        if r == 0 or rows < 0:
            estimate.table = {"y": (x + r) / torch.arange(K)[:, None], "x": x}  # 0 / 0 and 1 / 0 at the first
        estimate.vectors = torch.stack([at.theta * (r + 1), -at.theta], 1)
        found[f"part={r}"] = estimate.undefined(torch.arange(K) == lost, "gone")
    return found


def curves(session: Session, metric: str = "toy") -> list[dict[str, Any]]:
    result_tables.metrics_table(session, session.finished(), {run.run_id: run.settings for run in session.runs})
    table = store.read_table(session.folder / "tables" / f"{metric}.csv")
    return result_tables.as_json(table)


def test_a_curve_goes_into_its_cell_and_out_to_a_tidy_table(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny(SMALL)
    register(monkeypatch, curve)
    records, ids = trained(session), [run.run_id for run in session.runs]
    measure(session, records, [("toy", {"rows": 2, "lost": 2})])
    assert toys(session, ids[0])[0]["curves"] == [
        {"setting": "lost=2;rows=2", "columns": ["y", "x"], "values": [[None] * 3, [0.0, 1.0, 2.0]]}
    ]
    found = curves(session)
    assert list(found[0]) == ["run_id", "group", "seed", "epoch", "setting", "y", "x"]
    assert [r["run_id"] for r in found] == [ids[0]] * 3 + [ids[1]] * 3  # the third has no value, and no curve
    assert [(r["seed"], r["group"], r["epoch"], r["x"], r["y"]) for r in found[3:]] == [
        (1, "all", None, x, x) for x in (0.0, 1.0, 2.0)
    ]
    measure(session, records, [("toy", {"rows": -2})])  # a curve in each row: the setting tells them apart
    each = [r for r in curves(session) if r["run_id"] == ids[2] and "rows=-2" in r["setting"]]
    assert [(r["setting"], r["y"]) for r in each] == [
        *(("part=0;rows=-2", x / 2) for x in (0.0, 1.0, 2.0)),
        *(("part=1;rows=-2", (x + 1) / 2) for x in (0.0, 1.0, 2.0)),
    ]
    csv = session.folder / "tables" / "toy.csv"
    before = csv.read_bytes()
    csv.unlink()
    curves(session)
    assert csv.read_bytes() == before  # it is derived from the cells
    register(monkeypatch, curve, version=2)
    with pytest.raises(Fault, match="cannot be read"):
        curves(session)  # no cell is today's: no table is left
    assert not csv.exists()


def test_directions_are_kept_beside_their_cell(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def toy(at: Point, *, rows: int = 2, lost: int = 1) -> dict[str, Estimate]:
        calls.append(len(at.theta))
        return curve(at, rows=rows, lost=lost)

    session = tiny(SMALL)
    register(monkeypatch, toy)
    records, ids, wanted = trained(session), [run.run_id for run in session.runs], [("toy", {})]
    measure(session, records, wanted)
    cells = [toys(session, i)[0] for i in ids]
    told = [cell.get("vectors") for cell in cells]
    files = [store.vectors_path(session.folder, cell) for cell in cells]
    assert told == [store.file_hash(files[0]), None, store.file_hash(files[2])] and not files[1].exists()
    kept = load_file(files[2])
    theta = checkpoints.read(
        session.folder / records[ids[2]]["minimum"]["file"], session.module(session.runs[2].settings)
    )
    assert set(kept) == {f"v{i}.{name}" for i in (1, 2, 3, 4) for name in theta.params}
    for name, weight in theta.params.items():
        for i, factor in ((1, 1), (2, -1), (3, 2), (4, -1)):  # rows in order, the directions of each
            assert torch.equal(kept[f"v{i}.{name}"], factor * weight)
    files[0].unlink()
    files[2].write_bytes(b"x")
    assert len(measure(session, records, wanted)) == 3 and calls == [3, 3]  # both are made again, together
    assert [w.partition(": ")[::2] for w in session.warnings] == [
        (str(files[0]), "cannot be read (No such file or directory): taken as missing, will be made again"),
        (str(files[2]), "damaged (its hash differs): taken as missing, will be made again"),
    ]
    assert [store.file_hash(files[k]) for k in (0, 2)] == [told[0], told[2]]  # to the same bits
    measure(session, records, wanted)
    assert calls == [3, 3]


def test_directions_are_on_disk_before_the_cell_that_speaks_of_them(
    tiny: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: placed.append(Path(b).suffix) or replace(a, b))
    session = tiny(SMALL)
    register(monkeypatch, curve)
    records = trained(session)
    placed.clear()
    measure(session, records, [("toy", {})])
    assert placed == [".safetensors"] * 3 + [".json"] * 3


@pytest.mark.parametrize(
    ("table", "vectors", "wrong"),
    [
        (
            {"x": (3, 5), "y": (3, 4)},
            None,
            "columns of its table have shapes {'x': (3, 5), 'y': (3, 4)}, all must be (3, ",
        ),
        ({"x": (2, 5)}, None, "columns of its table have shapes {'x': (2, 5)}, all must be (3, points)"),
        ({"epoch": (3, 5)}, None, "a column of its table must not be called epoch"),
        ({}, (3, 9), "its vectors have shape (3, 9), must be (3, k, "),
    ],
)
def test_a_curve_that_does_not_fit_is_a_failed_row(
    tiny: Open, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], vectors: Any, wrong: str
) -> None:
    def toy(at: Point) -> Estimate:
        found = exact(at.theta[:, 0].double())
        found.table = {name: torch.zeros(shape) for name, shape in table.items()}
        found.vectors = torch.zeros(vectors) if vectors else None
        return found

    session = tiny(SMALL)
    register(monkeypatch, toy)
    found = measure(session, trained(session), [("toy", {})])
    assert all(r["status"] == "failed" and r["message"].startswith(f"ValueError: {wrong}") for (r,) in found.values())


def test_curves_of_snapshots_say_their_epoch(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny(SMALL | {"training": SMALL["training"] | {"snapshots": [0, 1]}, "seeds": 2})
    register(monkeypatch, curve)
    settings_of = {run.run_id: run.settings for run in session.runs}
    measurement.measure_missing(session, trained(session), [("toy", {})], settings_of, along=True)
    assert [r["epoch"] for r in curves(session)] == [e for e in (None, 0, 1) for _ in range(3)] * 2
    files = list((session.folder / "cells").rglob("*.safetensors"))
    assert len(files) == 6 and len({store.file_hash(f) for f in files}) == 6
