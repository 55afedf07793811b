"""Cells: what one depends on, which are still true, and how an estimate becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from landscape_cli import config, store
from landscape_cli.config import Measurement, Settings
from landscape_cli.config.grid import setting
from landscape_cli.experiment import snapshots
from landscape_cli.experiment.session import Record, Session
from landscape_cli.metrics.evaluate import LOST
from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.registry import REGISTRY
from landscape_cli.store import checkpoints

Cell = dict[str, Any]


def keys_of(settings: Settings) -> Callable[[Measurement, int | None], str]:
    """What a cell's content depends on, besides the minimum: metric, version, its settings, data, model, precision.

    At a snapshot its epoch too: all cells of a run lie in one file.

    Args:
        settings: of the run.
    Returns: a function of a measurement and an epoch (None for the minimum): hexadecimal digits.
    """
    seen = {k: settings.hashed[k] for k in ("dataset", "model", "precision")}
    text = config.canonical(seen)

    def key(measurement: Measurement, epoch: int | None = None) -> str:
        name, own = measurement
        version = REGISTRY["metric"][name].facts["version"] if name in REGISTRY["metric"] else 1
        known = (name, version, repr(own), text, epoch)  # thousands of runs share a model and its data
        if known not in _keys:
            at = {} if epoch is None else {"epoch": epoch}
            _keys[known] = config.digest({"metric": name, "version": version, "settings": own, **seen, **at}, 12)
        return _keys[known]

    return key


_keys: dict[tuple[Any, ...], str] = {}


def key_of(settings: Settings, measurement: Measurement, epoch: int | None = None) -> str:
    """`keys_of` for one cell."""
    return keys_of(settings)(measurement, epoch)


def has_failed(cell: Cell) -> bool:
    """Whether any row of a cell has failed, so that it is tried again."""
    return any(row["status"] == "failed" for row in cell["rows"])


def alike(session: Session, records: dict[str, Record], settings_of: dict[str, Settings]) -> dict[str, list[Record]]:
    """What a metric of pairs looks at: for each minimum those with equal names and shapes of parameters, itself too.

    Those of diverged runs are left out.
    """
    layouts: dict[str, Any] = {}
    classes: dict[Any, list[Record]] = {}
    found = {}
    for run_id, record in records.items():
        made_of = config.canonical([settings_of[run_id].dataset, settings_of[run_id].model])
        if made_of not in layouts:
            layouts[made_of] = session.seen.read(session.folder / record["minimum"]["file"], checkpoints.layout)
        found[run_id] = classes.setdefault(layouts[made_of], [])
        if record["status"] != "diverged":
            found[run_id].append(record)
    return found


def inputs_of(
    session: Session, records: dict[str, Record], settings_of: dict[str, Settings]
) -> Callable[[str, Record], str]:
    """A function of a metric and a record: the hash of the minimum, or of all minima, that its cell is made from."""
    others: dict[str, list[str]] = {}

    def inputs(metric: str, record: Record) -> str:
        own = str(record["minimum"]["sha256"])
        if metric not in REGISTRY["metric"] or not REGISTRY["metric"][metric].facts["pairs"]:
            return own
        if not others:
            found = alike(session, records, settings_of)
            others.update({run_id: [r["minimum"]["sha256"] for r in peers] for run_id, peers in found.items()})
        return config.digest([own, sorted(others[record["run_id"]])], 64)

    return inputs


def curves_of(estimates: dict[str, Estimate], what: Measurement, k: int) -> dict[str, Any]:
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


def vectors_of(at: Point, estimates: dict[str, Estimate], k: int) -> bytes | None:
    """Directions of minimum k as a safetensors file, `v1.<parameter>`, `v2.<parameter>`, ... over all rows in order."""
    from safetensors.torch import save

    found = [e.vectors[k] for e in estimates.values() if e.vectors is not None and e.status[k] not in LOST]
    if not found:
        return None
    each = [at.train.unflatten(v[None]) for v in torch.cat(found).detach()]
    return save({f"v{i}.{n}": t[0].cpu().clone() for i, v in enumerate(each, 1) for n, t in v.items()})


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


def row_of(name: str, own: dict[str, Any], extra: str, estimate: Estimate, k: int) -> dict[str, Any]:
    """One row of a cell: the estimate of minimum k."""
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


def cell_of(record: Record, settings: Settings, what: Measurement, rows: list[dict[str, Any]], seconds: float) -> Cell:
    """A cell of one run, metric and setting."""
    epoch = record.get("epoch")
    return {
        "run_id": record["run_id"],
        "metric": what[0],
        "key": key_of(settings, what, epoch),
        "inputs": record["minimum"]["sha256"],
        "settings": what[1],
        "seconds": seconds,
        "rows": [{**row, "epoch": epoch} for row in rows],
        **({} if epoch is None else {"epoch": epoch}),
    }


def current(session: Session, records: dict[str, Record], settings_of: dict[str, Settings]) -> list[Cell]:
    """All cells of these minima and their snapshots that are not stale: their key and the hash of the file are today's.

    A cell whose vectors are missing or damaged counts as missing; so do those of a snapshot that is gone.
    """
    known: dict[tuple[str, int], Record | None] = {}
    inputs = inputs_of(session, records, settings_of)
    keys = {run_id: keys_of(settings_of[run_id]) for run_id in records}

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
            and cell["inputs"] == inputs(name, record)
            and cell["key"] == keys[cell["run_id"]]((name, cell["settings"]), cell.get("epoch"))
            and store.has_vectors(session.folder, cell, session.warnings, session.seen)
        )

    return [cell for cell in store.read_cells(session.folder, records, session.warnings, session.seen) if fresh(cell)]
