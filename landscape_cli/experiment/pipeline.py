"""The pipeline: what is missing -> run it -> write it. One function a command; files are the only state."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli import config, engine, registry, store
from landscape_cli.config import Experiment
from landscape_cli.experiment import measure as measurement
from landscape_cli.experiment import snapshots, stacks
from landscape_cli.experiment import train as runs
from landscape_cli.experiment.session import Record, Session, open_session
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault
from landscape_cli.report import page as report
from landscape_cli.report import statistics
from landscape_cli.store import checkpoints

if TYPE_CHECKING:
    from pandas import DataFrame

PICTURES = (
    "training_curves",
    "metric_by_group",
    "metric_vs_gap",
    "regret_by_radius",
    "spectral_density",
    "along_training",
    "lines",
    "invariance",
    "surface_line",
    "surface_path",
    "surface_plane",
    "surface_relief",
    "surface_trajectory",
    "surface_eigen",
    "surface_curvature",
    "surface_line_curvature",
    "surface_path_curvature",
)


@contextmanager
def writing(session: Session, wait: bool = False) -> Iterator[None]:
    """The experiment's folder, made, locked, and with a manifest at the end."""
    started = datetime.now(UTC)
    results, name = session.folder.parent, session.folder.name
    store.open_folder(results, name)
    with store.lock(session.folder, wait), engine.interruptible():
        store.write(session.folder / "experiment.yaml", config.dump(session.experiment).encode())
        try:
            yield
            engine.check()  # a signal that came with the last figures
        finally:
            if session.folder.is_dir():
                store.write_manifest(session.folder, sys.argv, started, engine.facts(session.device))


def train(session: Session, *, fresh: bool = False, wait: bool = False) -> DataFrame:
    """`landscape train`: every missing run, then runs.csv, which is returned."""
    with writing(session, wait):
        if fresh:
            runs.forget(session)
        try:
            runs.train(session)
        finally:
            table = runs_table(session)
    return table


def measure(session: Session, wanted: list[measurement.Measurement], *, wait: bool = False) -> DataFrame:
    """`landscape measure CONFIG`: every missing cell of the wanted metrics, then metrics.csv, which is returned.

    With `along` in the config it holds rows of the snapshots too, their `epoch` not empty.
    """
    with writing(session, wait):
        records = runs.train(session)
        runs_table(session)
        settings_of = {run.run_id: run.settings for run in session.runs}
        try:
            measurement.measure(session, records, wanted, settings_of, session.experiment.along)
        finally:
            table = _metrics_table(session, records, settings_of)
    return table


def compare(
    session: Session,
    *,
    fresh: bool = False,
    wait: bool = False,
    around: Callable[[Session, dict[str, Record]], None] | None = None,
) -> DataFrame:
    """`landscape compare`: what is missing, then all tables, figures and the report; comparison.csv is returned.

    Args:
        session: the experiment's.
        fresh: forget its runs first.
        wait: for the folder.
        around: makes the surfaces of the config.
    """
    with writing(session, wait):
        if fresh:
            runs.forget(session)
        settings_of = {run.run_id: run.settings for run in session.runs}
        try:
            records = runs.train(session)
            wanted = config.measurements(session.experiment)
            measurement.measure(session, records, wanted, settings_of, session.experiment.along)
        finally:
            records = session.finished()
            run_table, metric_table = runs_table(session), _metrics_table(session, records, settings_of)
        table = statistics.compare(metric_table, run_table, session.groups, registry.same_as())
        store.write(session.folder / "comparison.csv", store.table_bytes(table))
        if around:
            around(session, records)
        draw(session.folder, list(records.values()), session.groups, session)
    return table


def runs_table(session: Session) -> DataFrame:
    """runs.csv, written and returned."""
    records = session.finished()
    ordered = [records[run.run_id] for run in session.runs if run.run_id in records]
    table = store.runs_table(ordered)
    store.write(session.folder / "runs.csv", store.table_bytes(table))
    return table


def _metrics_table(session: Session, records: dict[str, Record], settings_of: dict[str, Any]) -> DataFrame:
    """metrics.csv, which is returned, and tables/<metric>.csv of the metrics that give curves: all from the cells."""
    cells = measurement.current(session, records, settings_of)
    table = store.metrics_table(cells, list(records.values()), list(REGISTRY["metric"]))
    store.write(session.folder / "metrics.csv", store.table_bytes(table))
    curves = store.curve_tables(cells, list(records.values()))
    stale = [name for name in REGISTRY["metric"] if name not in curves]
    store.write_curves(session.folder, {name: store.table_bytes(curve) for name, curve in curves.items()}, stale)
    return table


def draw(folder: Path, records: Sequence[Record], groups: list[str], session: Session | None = None) -> None:
    """Figures and report.html from the tables; left alone where they were drawn from these very tables."""
    tables = ["runs.csv", "metrics.csv", "comparison.csv", "experiment.yaml", "tables/spectral_density.csv"]
    tables += ["invariance.csv", "tables/lines.csv"]
    around = [str(path.relative_to(folder)) for path in sorted((folder / "surfaces").glob("*.csv"))]
    page, stamp = folder / "report.html", folder / "plots" / ".drawn"
    sources = [(folder / t).read_bytes() for t in (*tables, *around) if (folder / t).is_file()] + [
        path.read_bytes() for path in sorted(Path(report.__file__).parent.iterdir()) if path.suffix in (".py", ".j2")
    ]
    key = hashlib.sha256(b"".join(hashlib.sha256(s).digest() for s in sources)).hexdigest()
    if page.is_file() and stamp.is_file() and stamp.read_text() == key:
        return
    from landscape_cli.report import figures_curves as curves
    from landscape_cli.report import (
        figures_runs,  # loads matplotlib
        figures_surface,
    )

    if session:
        session.watch("draw", {})
    run_table, metric_table, spectra, moved, curve = (report.table(folder / t) for t in (*tables[:2], *tables[4:]))
    stems = [folder / "plots" / name for name in PICTURES]
    drawn = [
        *figures_runs.training_curves(records, stems[0]),
        *curves.spectral_density(spectra, run_table, groups, stems[4]),
        *curves.lines(curve, stems[6]),
        *curves.invariance(moved, stems[7]),
        *figures_surface.surfaces(folder, run_table, groups),
    ]
    if len(metric_table):
        drawn += [
            *figures_runs.metric_by_group(metric_table, run_table, groups, stems[1]),
            *figures_runs.metric_vs_gap(metric_table, run_table, stems[2]),
            *figures_runs.regret_by_radius(metric_table, run_table, groups, stems[3]),
            *curves.along_training(metric_table, run_table, groups, edges(folder, records), stems[5]),
        ]
    for stale in {stem.with_suffix(kind) for stem in stems for kind in (".png", ".svg", ".html")}.difference(drawn):
        stale.unlink(missing_ok=True)  # of tables that had more to show
    about = {name: entry.summary for name, entry in REGISTRY["metric"].items()}
    store.write(page, report.render(folder, about, registry.same_as()))
    store.write(stamp, key.encode())


def edges(folder: Path, records: Sequence[Record]) -> dict[str, dict[float, str]]:
    """Group -> the largest curvature at which its gradient descent is stable on a quadratic -> how it is computed.

    2 / lr; with momentum mu 2 (1 + mu) / lr, and 2 (1 + mu) / ((1 + 2 mu) lr) for Nesterov's (Cohen et al. 2021,
    section 2 and appendix B). One a learning rate; none for other optimizers or rates that change.
    """
    try:
        base = config.read(str(folder / "experiment.yaml")).data.get("training") or {}
    except Fault:  # a report does without
        base = {}
    found: dict[str, dict[float, str]] = {}
    for record in records:
        swept = {k.partition(".")[2]: v for k, v in record["swept"].items() if k.startswith("training.")}
        own = PLAIN | base | swept
        if {k: own[k] for k in STEADY} == STEADY and isinstance(own.get("lr"), int | float):
            mu, nesterov = own["momentum"], own["nesterov"]
            factor = (1 + mu) / (1 + 2 * mu) if nesterov else 1 + mu
            formula = "2(1+μ)/((1+2μ)lr)" if nesterov else "2(1+μ)/lr" if mu else "2/lr"
            found.setdefault(str(record["group"]), {})[2 * factor / own["lr"]] = formula
    return found


STEADY = {"optimizer": "sgd", "schedule": "constant", "lr_scaling": "none", "warmup_epochs": 0}
PLAIN = STEADY | {"momentum": 0, "nesterov": False}


def measure_checkpoints(
    experiment: Experiment,
    paths: list[Path],
    results: Path,
    wanted: list[measurement.Measurement],
    device: str,
    watch: Any,
) -> tuple[Session, DataFrame]:
    """`landscape measure CHECKPOINT... --config CONFIG`: the same metrics on networks trained elsewhere.

    They are kept in a folder of their own, `results/<name>-checkpoints`: the experiment's tables stay as they are.
    """
    session, loaded = adopting(experiment, paths, results, device, watch)
    with writing(session):
        records = adopt(session, loaded)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        try:
            measurement.measure(session, records, wanted, settings_of)
        finally:
            table = _metrics_table(session, records, settings_of)
        for record in records.values():
            own = table[(table["run_id"] == record["run_id"]) & (table["setting"] == "")]
            scores = dict(zip(own["metric"], own["value"], strict=True))
            record |= {k: scores.get(k) for k in SCORES}
        write_adopted(session, records)
    return session, table


def adopting(
    experiment: Experiment, paths: list[Path], results: Path, device: str, watch: Any
) -> tuple[Session, dict[Path, checkpoints.Minimum]]:
    """A session in a folder of its own, and the checkpoints, read; nothing is written."""
    base = experiment.model_copy(update={"grid": {}, "compare": None, "seeds": 1, "along": False})
    session = open_session(base, results, device, watch)
    module = session.module(session.runs[0].settings)
    loaded = {path: checkpoints.read(path, module) for path in paths}
    session.folder = session.folder.with_name(f"{experiment.name}-checkpoints")
    return session, loaded


def adopt(session: Session, loaded: dict[Path, checkpoints.Minimum]) -> dict[str, Record]:
    """Copies of checkpoints among the minima, and their records."""
    records = {}
    for path, minimum in loaded.items():
        own_data = {"data": session.data_hash(session.runs[0].settings)}  # other data: its cells are no longer true
        data = checkpoints.to_bytes(replace(minimum, metadata=minimum.metadata | own_data))
        sha = hashlib.sha256(data).hexdigest()
        stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem).strip("-._")[:50] or "checkpoint"
        run_id = f"{stem}-{sha[:8]}"
        file = f"minima/{run_id}.safetensors"
        store.write(session.folder / file, data)
        about: Record = {"run_id": run_id, "group": "checkpoint", "seed": minimum.metadata.get("seed"), "swept": {}}
        records[run_id] = CHECKPOINT | about | {"minimum": {"file": file, "sha256": sha}, "stack": [run_id]}
    return records


def write_adopted(session: Session, records: dict[str, Record]) -> None:
    """Their records and runs.csv."""
    store.write_runs(session.folder, records.values())
    store.write(session.folder / "runs.csv", store.table_bytes(store.runs_table(list(records.values()))))


SCORES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "loss_gap", "accuracy_gap")
CHECKPOINT: Record = {
    "format": store.FORMAT,
    "status": "ok",
    "epochs": None,
    "steps": None,
    "seconds": None,
    "stack_size": 1,
    "message": "",
    "history": {"epoch": [], "step": [], "train_loss": []},
}


def rewrite_report(folder: Path) -> Path:
    """`landscape report DIR`: figures and report.html again, from the tables alone."""
    needed = [folder / t for t in ("runs.csv", "metrics.csv", "comparison.csv")]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise Fault(f"{folder}: lacks {', '.join(missing)}: run `landscape compare` first", code=5)
    with store.lock(folder):
        records = store.read_runs(folder)
        table = store.read_table(folder / "runs.csv")
        ordered = [records[i] for i in table["run_id"] if i in records]
        (folder / "plots" / ".drawn").unlink(missing_ok=True)
        draw(folder, ordered, statistics.group_names(store.read_table(folder / "comparison.csv")))
    return folder / "report.html"


def plan(session: Session) -> dict[str, Any]:
    """`landscape show`: runs and stacks, what is done, what is left and why. Writes nothing."""
    records = session.finished()
    todo = runs.pending(session, records)
    begun = {tuple(ids) for ids in stacks.begun(session.folder)} if session.folder.is_dir() else set()
    settings_of = {run.run_id: run.settings for run in session.runs}
    wanted, along = config.measurements(session.experiment), session.experiment.along
    done = {(c["run_id"], c["metric"], c["key"]) for c in measurement.current(session, records, settings_of)}
    cells = [
        (run.run_id, what[0], measurement.key_of(run.settings, what, epoch))
        for run in session.runs
        for epoch in (None, *(snapshots.epochs(run.settings, records.get(run.run_id)) if along else ()))
        for what in wanted
    ]
    return {
        "runs": len(session.runs),
        "trained": len(records),
        "stacks": [
            {
                "runs": [run.run_id for run in stack],
                "why": "goes on from its saved state" if tuple(r.run_id for r in stack) in begun else "not trained yet",
            }
            for stack in todo
        ],
        "cells": len(cells),
        "measured": sum(cell in done for cell in cells),
        "seconds_left": _time_left(session, records, todo),
        "free_bytes": shutil.disk_usage(_existing(session.folder)).free,
    }


def _existing(path: Path) -> Path:
    return path if path.is_dir() else _existing(path.parent) if path != path.parent else path


def _time_left(session: Session, records: dict[str, Record], todo: list[list[config.Run]]) -> float | None:
    """Seconds that the missing runs will take if they take as long as finished ones of their group; None if unknown."""
    by_group: dict[str, list[float]] = {}
    for record in records.values():
        by_group.setdefault(record["group"], []).append(record["seconds"])
    missing = [run.group for stack in todo for run in stack if run.run_id not in records]
    if not set(missing) <= by_group.keys():
        return None
    return sum(sum(by_group[g]) / len(by_group[g]) for g in missing)


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
