"""The experiment's folder while it is being written, its tables, and what did not come out well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from landscape_cli import store
from landscape_cli.config import Settings
from landscape_cli.experiment import cell_records
from landscape_cli.experiment.session import Record, Session
from landscape_cli.registry import REGISTRY

if TYPE_CHECKING:
    from pandas import DataFrame


def runs_table(session: Session) -> DataFrame:
    """runs.csv, written and returned."""
    records = session.finished()
    ordered = [records[run.run_id] for run in session.runs if run.run_id in records]
    table = store.runs_table(ordered)
    store.write(session.folder / "runs.csv", store.table_bytes(table))
    return table


def metrics_table(session: Session, records: dict[str, Record], settings_of: dict[str, Settings]) -> DataFrame:
    """metrics.csv, which is returned, and tables/<metric>.csv of the metrics that give curves: all from the cells."""
    cells = cell_records.current(session, records, settings_of)
    table = store.metrics_table(cells, list(records.values()), list(REGISTRY["metric"]))
    store.write(session.folder / "metrics.csv", store.table_bytes(table))
    curves = store.curve_tables(cells, list(records.values()))
    stale = [name for name in REGISTRY["metric"] if name not in curves]
    store.write_curves(session.folder, {name: store.table_bytes(curve) for name, curve in curves.items()}, stale)
    return table


def as_json(table: DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as JSON values, missing ones null."""
    rows = table.astype(object).to_dict("records")  # to_json would round to 15 decimals
    return [{str(k): None if v is None or v != v else v for k, v in row.items()} for row in rows]


BAD = ("failed", "diverged", "not_converged")


def outcome(session: Session) -> tuple[DataFrame, list[str]]:
    """runs.csv, and a line for each run or metric of a minimum that did not come out well; snapshots joined."""
    table = store.read_table(session.folder / "runs.csv")
    metrics = store.read_table(session.folder / "metrics.csv")
    lines = [f"{r['run_id']}: {r['status']}: {r['message']}" for r in table.to_dict("records") if r["status"] in BAD]
    for row in metrics[metrics["epoch"].isna()].to_dict("records"):
        if row["status"] in BAD:
            of = f"{row['metric']}({row['setting']})"
            lines.append(f"{row['run_id']}: {of}: {row['status']}: {row['message']}")
    return table, session.failures + lines + trouble_along(metrics)


def trouble_along(metrics: DataFrame) -> list[str]:
    """A line for each metric that did not come out well at snapshots: how many, and what the first one says."""
    lost = metrics[metrics["epoch"].notna() & metrics["status"].isin(BAD)]
    lines = []
    for (metric, setting, status), part in lost.groupby(["metric", "setting", "status"], sort=False):
        first = part.iloc[0]
        where = f"{len(part)} snapshots of {part['run_id'].nunique()} runs"
        lines.append(
            f"{metric}({setting}): {status} at {where}: {first['run_id']} epoch {first['epoch']}: {first['message']}"
        )
    return lines
