"""`landscape audit`: which minima are moved, and the files that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from landscape_cli import config, engine, store
from landscape_cli.audit import invariance
from landscape_cli.audit.transforms import Minima, alpha_groups
from landscape_cli.config import Experiment, Settings
from landscape_cli.experiment import cell_records, draw_report, measure, user_checkpoints
from landscape_cli.experiment.result_tables import runs_table
from landscape_cli.experiment.session import Record, Session, writing
from landscape_cli.experiment.train_runs import train_missing
from landscape_cli.metrics.point import Point
from landscape_cli.network import build
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault

if TYPE_CHECKING:
    from pandas import DataFrame

STIFF = "no channels of this network can be rescaled"
Wanted = tuple[list[config.Measurement], list[config.Measurement]]


def run(session: Session, run_ids: list[str], *, wait: bool = False) -> tuple[DataFrame, list[str]]:
    """`landscape audit CONFIG`: invariance.csv, which is returned, and lines on what the transforms left alone.

    Args:
        session: the experiment's.
        run_ids: whose minima are moved; none: the first run's. They are trained if need be.
        wait: for the folder.
    """
    known, run_ids = [run.run_id for run in session.runs], list(dict.fromkeys(run_ids))
    if unknown := [i for i in run_ids if i not in known]:
        raise Fault(f"--runs: {', '.join(unknown)}: no run of {session.experiment.name}; it has {', '.join(known[:4])}")
    settings_of, wanted = {run.run_id: run.settings for run in session.runs}, _audited(session.experiment)
    with writing(session, wait):
        records = train_missing(session, set(run_ids or known[:1]))
        runs_table(session)
        return _audit(session, [records[i] for i in run_ids or known[:1]], records, settings_of, wanted)


def run_checkpoints(
    base: Experiment, paths: list[Path], results: Path, device: str, watch: Any
) -> tuple[Session, DataFrame, list[str]]:
    """`landscape audit CHECKPOINT...`: the same of networks trained elsewhere, in `results/<name>-checkpoints`."""
    wanted = _audited(base)
    session, loaded = user_checkpoints.adopting(base, paths, results, device, watch)
    with writing(session):
        records = user_checkpoints.adopt(session, loaded)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        user_checkpoints.write_adopted(session, records)
        table, said = _audit(session, list(records.values()), records, settings_of, wanted)
    return session, table, said


def _audited(base: Experiment) -> Wanted:
    """What to audit, and what to sharpen.

    Raises: Fault if audit.sharpen names no metric.
    """
    named = base.audit.sharpen if base.audit else []
    if unknown := [name for name in named if name not in REGISTRY["metric"]]:
        raise Fault(f"audit.sharpen: {', '.join(unknown)}: no such metric: see `landscape list metrics`")
    sharpened = config.measurements(base.model_copy(update={"metrics": named})) if named else []
    return config.measurements(base), sharpened


def _audit(
    session: Session, chosen: list[Record], records: dict[str, Record], settings_of: dict[str, Settings], wanted: Wanted
) -> tuple[DataFrame, list[str]]:
    asked, rows = session.experiment.audit or config.Audit(), []
    said: dict[str, None] = {}
    session.watch("measure", {"cells": sum(map(len, wanted)) * len(chosen)})

    def watch(name: str) -> None:
        engine.check()
        session.watch("metric", {"metric": name})
        session.watch("cell", {"metric": name, "runs": 1})

    others = cell_records.alike(session, records, settings_of)
    for record in chosen:
        if record["status"] == "diverged":
            raise Fault(f"{record['run_id']}: diverged: there is no minimum to move")
        settings = settings_of[record["run_id"]]
        alike = [r for r in others[record["run_id"]] if r["run_id"] != record["run_id"]]
        point, at = of_record(session, record, settings, alike)
        found, cases = invariance.audit(point, at, wanted[0], watch)
        for what in wanted[1]:
            watch(f"{what[0]}, sharpened")
            driven = invariance.sharpen(point, at, what, asked.bound, engine.check)
            found += driven
            said |= {} if driven else {f"sharpen: {what[0]}: {STIFF}": None}
        rows += [{"run_id": record["run_id"], **row} for row in found]
        session.warnings += [f"{row['metric']}: failed: {row['message']}" for row in found if "message" in row]
        said |= {f"{c.transform}: {name}: {why}": None for c in cases for name, why in c.left.items()}
        if asked.drive and not alpha_groups(at):
            said[f"drive: {STIFF}"] = None
        elif asked.drive:
            curves = invariance.drive(point, at, asked.drive)
            curves = {"run_id": [record["run_id"]] * len(curves["x"]), **curves}
            store.write_curves(session.folder, {"lines": store.table_bytes(store.lines_table(curves))}, [])
    table = store.invariance_table(rows)
    store.write(session.folder / "invariance.csv", store.table_bytes(table))
    draw_report.draw_of(session, list(session.finished().values()) or chosen)
    return table, list(said)


def of_record(session: Session, record: Record, settings: Settings, others: list[Record]) -> tuple[Point, Minima]:
    """The minimum of a run in float64, with its data and one other minimum; and the same as the transforms take it."""
    plain = measure.point(session, [record], settings)
    module, shape = session.module(settings).double(), session.data(settings).input_shape
    net = build(module, shape, torch.float64, plain.train.network.loss)
    train, test = (replace(side.to(torch.float64), network=net) for side in (plain.train, plain.test))
    peers = {
        o["run_id"]: measure.parameters(session, o, (*train.columns,)).to(plain.theta).double() for o in others[:1]
    }
    initial = None if plain.initial is None else plain.initial.double()
    at = Point(plain.theta.double(), train, test, initial, peers, plain.training)
    return at, Minima(net, train.like, train.buffers, shape)
