"""Metrics on stacks of minima: which cells are missing, and how an estimate becomes rows of metrics.csv."""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Callable
from typing import Any

import torch

from landscape_cli import config, engine, store
from landscape_cli.config.yaml_tree import flow
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.experiment import snapshots
from landscape_cli.experiment.session import Record, Session, dtype
from landscape_cli.metrics.point import GRAM_SAMPLES, Estimate, Point
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints, tables

MEMORY = 2**30  # bytes of Gram matrices in one stack of minima
Measurement = tuple[str, dict[str, Any]]
Cell = dict[str, Any]


def measure(
    session: Session,
    records: dict[str, Record],
    wanted: list[Measurement],
    settings_of: dict[str, Any],
    along: bool = False,
) -> None:
    """Run the wanted metrics on every minimum that lacks a cell of them, stack by stack.

    Minima are measured in the company in which they were trained, so that a resumed command gives the same bits.

    Args:
        session: device and data.
        records: run id -> record with its minimum.
        wanted: metric names with complete settings.
        settings_of: run id -> resolved settings.
        along: then on the snapshots too, those of a stack at one epoch together. A metric of pairs takes the minima
            for their peers, that of the same run among them.
    """
    done = {(c["run_id"], c["metric"], c["key"]) for c in current(session, records, settings_of) if not _failed(c)}

    def lacks(record: Record, what: Measurement) -> bool:
        key = key_of(settings_of[record["run_id"]], what, record.get("epoch"))
        return (record["run_id"], what[0], key) not in done

    sites = [records, *(snapshots.by_epoch(session, records, settings_of) if along else [])]
    stacks = [[site[i] for i in stack] for site in sites for stack in _stacks(site)]
    todo = [(stack, [m for m in wanted if any(lacks(r, m) for r in stack)]) for stack in stacks]
    session.watch("measure", {"cells": sum(len(stack) * len(lacking) for stack, lacking in todo)})
    for stack, lacking in todo:
        if not lacking:
            continue
        settings = settings_of[stack[0]["run_id"]]
        n = len(session.data(settings).y_train)
        size = max(1, MEMORY // (8 * min(n, GRAM_SAMPLES) ** 2))
        for piece in (stack[j : j + size] for j in range(0, len(stack), size)):
            at = point(session, piece, settings, settings_of)
            if any(REGISTRY["metric"][name].facts["pairs"] for name, _ in lacking):
                at.peers = _peers(session, records, settings_of, settings)
            for what in lacking:
                _measure(session, at, piece, settings, what, lacks, _inputs(records, settings_of, what[0]))


def _stacks(records: dict[str, Record]) -> list[list[str]]:
    """Run ids that are measured together: those trained together; diverged runs are left out."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run_id, record in records.items():
        if record["status"] != "diverged":
            found.setdefault(tuple(record["stack"]), []).append(run_id)
    return list(found.values())


def key_of(settings: dict[str, Any], measurement: Measurement, epoch: int | None = None) -> str:
    """What a cell's content depends on, besides the minimum: metric, version, its settings, data, model, precision.

    At a snapshot its epoch too: all cells of a run lie in one folder.
    """
    name, own = measurement
    version = REGISTRY["metric"][name].facts["version"] if name in REGISTRY["metric"] else 1
    seen = {k: settings[k] for k in ("dataset", "model", "precision")} | ({} if epoch is None else {"epoch": epoch})
    return config.digest({"metric": name, "version": version, "settings": own, **seen}, 12)


def _failed(cell: Cell) -> bool:
    return any(row["status"] == "failed" for row in cell["rows"])


def point(
    session: Session, records: list[Record], settings: dict[str, Any], settings_of: dict[str, Any] | None = None
) -> Point:
    """The stack of minima (or snapshots) of these runs with its data.

    Args:
        session: device and data.
        records: of the runs; of their snapshots as `snapshots.at_epoch` gives them.
        settings: of the stack.
        settings_of: run id -> its own, which may differ in what `training.PER_RUN` names.
    """
    data, module = session.data(settings), session.module(settings)
    loaded = []
    for record in records:
        path = session.folder / record["minimum"]["file"]
        if store.file_hash(path) != record["minimum"]["sha256"]:
            raise Fault(f"{path}: damaged, its hash is not the one that was recorded: delete it and train again")
        loaded.append(snapshots.read(session, record, module) if "epoch" in record else checkpoints.read(path, module))
    params, buffers, initial = checkpoints.stack(loaded, session.device, dtype(settings))
    net = session.network(settings)
    train = Objective(net, params, buffers, data.x_train, data.y_train)
    test = Objective(net, params, buffers, data.x_test, data.y_test)
    told = [snapshots.training_facts(session, r, (settings_of or {}).get(r["run_id"], settings)) for r in records]
    known = [facts for facts in told if facts]
    at = Point(flatten(params), train, test, flatten(initial) if initial else None)
    at.training = known if len(known) == len(records) else None
    return at


def alike(records: dict[str, Record], settings_of: dict[str, Any], settings: dict[str, Any]) -> list[Record]:
    """The minima of the same model, those of diverged runs left out: what a metric of pairs looks at."""
    ok = (r for r in records.values() if r["status"] != "diverged")
    return [r for r in ok if settings_of[r["run_id"]]["model"] == settings["model"]]


def _peers(
    session: Session, records: dict[str, Record], settings_of: dict[str, Any], settings: dict[str, Any]
) -> dict[str, torch.Tensor]:
    found = alike(records, settings_of, settings)
    theta = torch.cat([point(session, [record], settings).theta for record in found])
    return {record["run_id"]: row for record, row in zip(found, theta, strict=True)}


def _inputs(records: dict[str, Record], settings_of: dict[str, Any], metric: str) -> Callable[[Record], str]:
    """The hash of the minimum, or of all minima, that a cell of this metric was made from."""
    if metric not in REGISTRY["metric"] or not REGISTRY["metric"][metric].facts["pairs"]:
        return lambda record: str(record["minimum"]["sha256"])

    def of_all(record: Record) -> str:
        found = alike(records, settings_of, settings_of[record["run_id"]])
        return config.digest([record["minimum"]["sha256"], sorted(r["minimum"]["sha256"] for r in found)], 64)

    return of_all


def _measure(
    session: Session,
    at: Point,
    records: list[Record],
    settings: dict[str, Any],
    what: Measurement,
    lacks: Callable[[Record, Measurement], bool],
    inputs: Callable[[Record], str],
) -> None:
    """One metric on one stack: its cells, after those of the intermediates that it was the first to need."""
    engine.check()
    name, own = what
    session.watch("metric", {"metric": name})
    before = dict(at.seconds)
    estimates = estimate(at, name, own)
    helpers = [k for k in at.seconds if k not in REGISTRY["metric"] and at.seconds[k] != before.get(k)]
    cells, files = [], []
    for k, record in enumerate(records):
        for helper in helpers:
            shared: Measurement = (f"_shared:{helper}", {})
            cells.append(_cell(record, settings, shared, [{**EMPTY, "setting": ""}], at.seconds[helper] / len(records)))
        if lacks(record, what):
            itself = "" if "epoch" in record else f"to={record['run_id']}"  # a snapshot has a way to its own minimum
            rows = [_row(name, own, extra, e, k) for extra, e in estimates.items() if not itself or extra != itself]
            spent = (at.seconds[name] - before.get(name, 0.0)) / len(records)
            cell = _cell(record, settings, what, rows, spent) | {"inputs": inputs(record)} | _curves(estimates, what, k)
            if vectors := _vectors(at, estimates, k):
                file = store.vectors_path(session.folder, cell)
                cell["vectors"] = hashlib.sha256(vectors).hexdigest()
                files.append((file, vectors))
            cells.append(cell)
    store.write_cells(session.folder, cells, files)
    session.watch("cell", {"metric": name, "runs": len(records)})


def _curves(estimates: dict[str, Estimate], what: Measurement, k: int) -> dict[str, Any]:
    """The tables of minimum k for its cell; where only one row of a metric has one, it is that of the whole metric."""
    with_table = [extra for extra, e in estimates.items() if e.table]
    curves = [
        {
            "setting": setting(*what, extra if len(with_table) > 1 else ""),
            "columns": list(estimates[extra].table),
            "values": [_numbers(t[k]) for t in estimates[extra].table.values()],
        }
        for extra in with_table
        if estimates[extra].status[k] not in LOST
    ]
    return {"curves": curves} if curves else {}


def _vectors(at: Point, estimates: dict[str, Estimate], k: int) -> bytes | None:
    """Directions of minimum k as a safetensors file, `v1.<parameter>`, `v2.<parameter>`, ... over all rows in order."""
    from safetensors.torch import save

    found = [e.vectors[k] for e in estimates.values() if e.vectors is not None and e.status[k] not in LOST]
    if not found:
        return None
    each = [at.train.unflatten(v[None]) for v in torch.cat(found).detach()]
    return save({f"v{i}.{n}": t[0].cpu().clone() for i, v in enumerate(each, 1) for n, t in v.items()})


def estimate(at: Point, name: str, own: dict[str, Any]) -> dict[str, Estimate]:
    """What the metric returns, as {extra setting: estimate}; a metric that raises has failed for this stack only."""
    with at.clock(name):
        try:
            found = REGISTRY["metric"][name].function(at, **own)
            _check_shapes(found if isinstance(found, dict) else {"": found}, at)
        except engine.Interrupted:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            nothing = torch.full((len(at.theta),), torch.nan, dtype=torch.float64)
            said = (str(error).splitlines() or [""])[0]
            why = f"{type(error).__name__}: {said} ({where.name}:{where.lineno})"
            K = len(at.theta)
            found = Estimate(nothing, nothing.clone(), status=["failed"] * K, message=[why] * K)
    return found if isinstance(found, dict) else {"": found}


def _check_shapes(estimates: dict[str, Estimate], at: Point) -> None:
    K, p = at.theta.shape
    for estimate in estimates.values():
        shapes = {name: tuple(t.shape) for name, t in estimate.table.items()}
        if len(set(shapes.values())) > 1 or any(len(s) != 2 or s[0] != K for s in shapes.values()):
            raise ValueError(f"columns of its table have shapes {shapes}, all must be ({K}, points)")
        if taken := shapes.keys() & tables.CURVES.keys():
            raise ValueError(f"a column of its table must not be called {', '.join(sorted(taken))}")
        V = estimate.vectors
        if V is not None and (V.dim() != 3 or (len(V), V.shape[2]) != (K, p)):
            raise ValueError(f"its vectors have shape {tuple(V.shape)}, must be ({K}, k, {p})")


LOST = ("undefined", "failed")  # no value: neither curve nor directions
EMPTY: dict[str, Any] = {
    "epoch": None,
    "value": None,
    "standard_error": None,
    "samples": None,
    "iterations": None,
    "residual": None,
    "status": "ok",
    "message": "",
}


def _row(name: str, own: dict[str, Any], extra: str, estimate: Estimate, k: int) -> dict[str, Any]:
    value, error = (_number(t[k]) for t in (estimate.value, estimate.standard_error))
    status = estimate.status[k]
    message = estimate.message[k]
    if value is None and status == "ok":
        status, message = "undefined", message or "not a finite number"
    return EMPTY | {
        "setting": setting(name, own, extra),
        "value": value,
        "standard_error": error if value is not None else None,
        "samples": estimate.samples,
        "iterations": estimate.iterations,
        "residual": None if estimate.residual is None else _number(estimate.residual[k]),
        "status": status,
        "message": message,
    }


def _number(value: torch.Tensor) -> float | None:
    number = float(value.detach())
    return number if math.isfinite(number) else None


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.detach().tolist()]


def setting(name: str, own: dict[str, Any], extra: str = "") -> str:
    """What tells the rows of a metric apart: the settings that it lists several values of, and those not at default."""
    entry = REGISTRY["metric"][name]
    grids, plain = entry.facts["grids"], entry.defaults
    told = {k: f"{k}={flow(v)}" for k, v in own.items() if k in grids or v != plain.get(k)}
    if extra:  # a row of several: it says which of a list, or how many there really were
        told[extra.partition("=")[0]] = extra
    return ";".join(sorted(told.values()))


def _cell(
    record: Record, settings: dict[str, Any], what: Measurement, rows: list[dict[str, Any]], seconds: float
) -> Cell:
    epoch = record.get("epoch")
    return {
        "format": store.FORMAT,
        "run_id": record["run_id"],
        "metric": what[0],
        "key": key_of(settings, what, epoch),
        "inputs": record["minimum"]["sha256"],
        "settings": what[1],
        "seconds": seconds,
        "rows": [{**row, "epoch": epoch} for row in rows],
        **({} if epoch is None else {"epoch": epoch}),
    }


def current(session: Session, records: dict[str, Record], settings_of: dict[str, Any]) -> list[Cell]:
    """All cells of these minima and their snapshots that are not stale: their key and the hash of the file are today's.

    A cell whose vectors are missing or damaged counts as missing; so do those of a snapshot that is gone.
    """
    known: dict[tuple[str, int], Record | None] = {}

    def record_of(cell: Cell) -> Record | None:
        record, epoch = records[cell["run_id"]], cell.get("epoch")
        if epoch is None:
            return record
        if epoch not in snapshots.epochs(settings_of[cell["run_id"]], record):
            return None
        where = (cell["run_id"], epoch)
        if where not in known:
            known[where] = snapshots.at_epoch(session, record, epoch)
        return known[where]

    def fresh(cell: Cell) -> bool:
        record, name = record_of(cell), cell["metric"]
        return (
            record is not None
            and (name in REGISTRY["metric"] or name.startswith("_shared:"))
            and cell["inputs"] == _inputs(records, settings_of, name)(record)
            and cell["key"] == key_of(settings_of[cell["run_id"]], (name, cell["settings"]), cell.get("epoch"))
            and store.has_vectors(session.folder, cell, session.warnings)
        )

    return [cell for cell in store.read_cells(session.folder, list(records), session.warnings) if fresh(cell)]
