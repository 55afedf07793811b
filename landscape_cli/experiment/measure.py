"""Metrics on stacks of minima: which cells are missing, and how an estimate becomes rows of metrics.csv."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from landscape_cli import config, engine, store
from landscape_cli.config import Measurement, Settings
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.experiment import snapshots
from landscape_cli.experiment.cell_records import (
    EMPTY,
    Cell,
    alike,
    cell_of,
    current,
    curves_of,
    has_failed,
    inputs_of,
    keys_of,
    row_of,
    vectors_of,
)
from landscape_cli.experiment.result_tables import metrics_table, runs_table
from landscape_cli.experiment.session import Record, Session, dtype, writing
from landscape_cli.experiment.train_runs import train_missing
from landscape_cli.metrics.evaluate import evaluate
from landscape_cli.metrics.point import GRAM_SAMPLES, Point
from landscape_cli.network import memory
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints

if TYPE_CHECKING:
    from pandas import DataFrame


def measure_missing(
    session: Session,
    records: dict[str, Record],
    wanted: list[Measurement],
    settings_of: dict[str, Settings],
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
    done = {(c["run_id"], c["metric"], c["key"]) for c in current(session, records, settings_of) if not has_failed(c)}
    keys = {run_id: keys_of(settings_of[run_id]) for run_id in records}

    def lacks(record: Record, what: Measurement) -> bool:
        return (record["run_id"], what[0], keys[record["run_id"]](what, record.get("epoch"))) not in done

    sites = [records, *(snapshots.by_epoch(session, records, settings_of) if along else [])]
    stacks = [[site[i] for i in stack] for site in sites for stack in _stacks(site)]
    todo = [(stack, [m for m in wanted if any(lacks(r, m) for r in stack)]) for stack in stacks]
    session.watch("measure", {"cells": sum(len(stack) * len(lacking) for stack, lacking in todo)})
    peers, inputs = peers_of(session, records, settings_of), inputs_of(session, records, settings_of)
    with gathered(session) as add:
        for stack, lacking in todo:
            if not lacking:
                continue
            settings = settings_of[stack[0]["run_id"]]
            n = len(session.data(settings).y_train)
            size = memory.pieces(8 * min(n, GRAM_SAMPLES) ** 2, memory.PASS)
            for piece in (stack[j : j + size] for j in range(0, len(stack), size)):
                at = point(session, piece, settings, settings_of)
                if any(REGISTRY["metric"][name].facts["pairs"] for name, _ in lacking):
                    at.peers = peers(piece[0]["run_id"], at)
                for what in lacking:
                    add(*_measure(session, at, piece, settings, what, lacks, inputs))


def _stacks(records: dict[str, Record]) -> list[list[str]]:
    """Run ids that are measured together: those trained together; diverged runs are left out."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run_id, record in records.items():
        if record["status"] != "diverged":
            found.setdefault(tuple(record["stack"]), []).append(run_id)
    return list(found.values())


def point(
    session: Session, records: list[Record], settings: Settings, settings_of: dict[str, Settings] | None = None
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
        if session.seen.hash(path) != record["minimum"]["sha256"]:
            raise Fault(f"{path}: {checkpoints.DAMAGED}")
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


def peers_of(
    session: Session, records: dict[str, Record], settings_of: dict[str, Settings]
) -> Callable[[str, Point], dict[str, torch.Tensor]]:
    """A function of a run and its point: run id -> parameters (p,), of the minima like it; each file is read once."""
    found = cache(lambda: alike(session, records, settings_of))

    @cache
    def theta(run_id: str, names: tuple[str, ...]) -> torch.Tensor:
        return parameters(session, records[run_id], names)

    def peers(run_id: str, at: Point) -> dict[str, torch.Tensor]:
        names = tuple(at.train.columns)
        return {r["run_id"]: theta(r["run_id"], names).to(at.theta) for r in found()[run_id]}

    return peers


def parameters(session: Session, record: Record, names: tuple[str, ...]) -> torch.Tensor:
    """The parameters of a minimum (p,), in the order of `names` and as they were written."""
    minimum = record["minimum"]
    return checkpoints.parameters(session.folder / minimum["file"], minimum["sha256"], names)


@contextmanager
def gathered(session: Session) -> Iterator[Callable[[list[Cell], list[tuple[Path, bytes]]], None]]:
    """A function that takes cells and the files that they speak of; they are written at once, or soon.

    The file of a run is written whole: where that takes long, cells wait, so that writing takes a twentieth of the
    time at most, and what a killed process loses is as little work.
    """
    due: list[Cell] = []
    files: list[tuple[Path, bytes]] = []
    written, spent = time.monotonic(), 0.0

    def write() -> None:
        nonlocal written, spent
        start = time.monotonic()
        store.write_cells(session.folder, due, files, session.seen)
        due.clear()
        files.clear()
        written = time.monotonic()
        spent = written - start

    def add(cells: list[Cell], more: list[tuple[Path, bytes]]) -> None:
        due.extend(cells)
        files.extend(more)
        if time.monotonic() - written >= 19 * spent:
            write()

    try:
        yield add
    finally:
        if due:
            write()


def _measure(
    session: Session,
    at: Point,
    records: list[Record],
    settings: Settings,
    what: Measurement,
    lacks: Callable[[Record, Measurement], bool],
    inputs: Callable[[str, Record], str],
) -> tuple[list[Cell], list[tuple[Path, bytes]]]:
    """One metric on one stack: its cells, after those of the intermediates that it was the first to need, and files."""
    engine.check()
    name, own = what
    session.watch("metric", {"metric": name})
    before = dict(at.seconds)
    estimates = evaluate(at, name, own)
    helpers = [k for k in at.seconds if k not in REGISTRY["metric"] and at.seconds[k] != before.get(k)]
    cells, files = [], []
    for k, record in enumerate(records):
        for helper in helpers:
            shared: Measurement = (f"_shared:{helper}", {})
            cells.append(
                cell_of(record, settings, shared, [{**EMPTY, "setting": ""}], at.seconds[helper] / len(records))
            )
        if lacks(record, what):
            itself = "" if "epoch" in record else f"to={record['run_id']}"  # a snapshot has a way to its own minimum
            rows = [row_of(name, own, extra, e, k) for extra, e in estimates.items() if not itself or extra != itself]
            spent = (at.seconds[name] - before.get(name, 0.0)) / len(records)
            cell = (
                cell_of(record, settings, what, rows, spent)
                | {"inputs": inputs(name, record)}
                | curves_of(estimates, what, k)
            )
            if vectors := vectors_of(at, estimates, k):
                file = store.vectors_path(session.folder, cell)
                cell["vectors"] = hashlib.sha256(vectors).hexdigest()
                files.append((file, vectors))
            cells.append(cell)
    session.watch("cell", {"metric": name, "runs": len(records)})
    return cells, files


def measure(session: Session, wanted: list[config.Measurement], *, wait: bool = False) -> DataFrame:
    """`landscape measure CONFIG`: every missing cell of the wanted metrics, then metrics.csv, which is returned.

    With `along` in the config it holds rows of the snapshots too, their `epoch` not empty.
    """
    with writing(session, wait):
        records = train_missing(session)
        runs_table(session)
        settings_of = {run.run_id: run.settings for run in session.runs}
        try:
            measure_missing(session, records, wanted, settings_of, session.experiment.along)
        finally:
            table = metrics_table(session, records, settings_of)
    return table
