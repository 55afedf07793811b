"""`landscape surface`: whose minima, which directions, and the files that come of it, finished point by point."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape_cli import config, engine, experiment, measurement, runs, store, vectors
from landscape_cli.atomic import sync_folder
from landscape_cli.config import Surface
from landscape_cli.errors import Fault
from landscape_cli.network import Params
from landscape_cli.objective import flatten
from landscape_cli.session import Record, Session
from landscape_cli.surfaces import Place, grid, random_directions

if TYPE_CHECKING:
    from pandas import DataFrame

VERSION = 1  # of the values
LOST = (None, None)
COLUMNS = ("draw", "x", "y", "split", "loss", "accuracy", "status")


def run(session: Session, asked: Surface, *, wait: bool = False) -> dict[str, DataFrame]:
    """`landscape surface CONFIG`: surfaces/<run_id>-<kind>.csv and its directions; the tables by run id.

    Args:
        session: the experiment's.
        asked: what to draw.
        wait: for the folder.
    Raises: Fault.
    """
    chosen = _chosen(session, asked)
    settings_of = {run.run_id: run.settings for run in session.runs}
    with experiment.writing(session, wait):
        records = runs.train(session, set(chosen))
        experiment.runs_table(session)
        return surfaces_of(session, [records[i] for i in chosen], settings_of, asked)


def run_checkpoints(
    base: config.Experiment, paths: list[Path], asked: Surface, results: Path, device: str, watch: Any
) -> tuple[Session, dict[str, DataFrame]]:
    """`landscape surface CHECKPOINT...`: the same of networks trained elsewhere, in `results/<name>-checkpoints`."""
    if asked.kind == "path" and len(paths) != 2:
        raise Fault("--kind path: goes from one checkpoint to another: name two")
    if asked.runs:
        raise Fault("--runs: a checkpoint has none")
    _check(asked)
    session, loaded = experiment.adopting(base, paths, results, device, watch)
    with experiment.writing(session):
        records = experiment.adopt(session, loaded)
        experiment.write_adopted(session, records)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        return session, surfaces_of(session, list(records.values()), settings_of, asked)


def surfaces_of(
    session: Session, records: list[Record], settings_of: dict[str, Any], asked: Surface
) -> dict[str, DataFrame]:
    """The surfaces of these minima, in the folder of a session that is being written."""
    found, pairs = {}, [(records[0], records[1])] if asked.kind == "path" else [(r, None) for r in records]
    for record, other in pairs:
        for one in (record, other):
            if one and one["status"] == "diverged":
                raise Fault(f"{one['run_id']}: diverged: there is no minimum to look around")
        found[record["run_id"]] = _surface(session, record, other, settings_of, asked)
    experiment.draw(session.folder, list(session.finished().values()) or records, session.groups, session)
    return found


def _chosen(session: Session, asked: Surface) -> list[str]:
    known = [run.run_id for run in session.runs]
    if unknown := [i for i in asked.runs if i not in known]:
        raise Fault(f"--runs: {', '.join(unknown)}: no run of {session.experiment.name}; it has {', '.join(known[:4])}")
    first = [next(run.run_id for run in session.runs if run.group == group) for group in session.groups]
    chosen = list(dict.fromkeys(asked.runs)) or (first[:2] if asked.kind == "path" else first)
    if asked.kind == "path" and len(chosen) != 2:
        raise Fault(f"--kind path: goes from one minimum to another, not to {len(chosen)}: --runs A,B")
    _check(asked)
    return chosen


def _check(asked: Surface) -> None:
    """What one setting asks of another, before any work.

    Raises: Fault, exit code 5 if a file is missing.
    """
    if asked.batchnorm == "interpolate" and asked.kind != "path":
        raise Fault("--batchnorm interpolate: needs two minima: --kind path")
    if asked.directions and asked.kind == "path":
        raise Fault("--directions: a path has a direction of its own, from one minimum to the other")
    if asked.directions and asked.draws:
        raise Fault("--draws: --directions tells how many there are")
    if asked.directions and not Path(asked.directions).is_file():
        raise Fault(f"--directions: {asked.directions}: no such file", code=5)


def _surface(
    session: Session, record: Record, other: Record | None, settings_of: dict[str, Any], asked: Surface
) -> DataFrame:
    """One file of values, made from what is there of it and what is missing."""
    settings, name = settings_of[record["run_id"]], f"{record['run_id']}-{asked.kind}"
    folder = _made(session.folder / "surfaces")
    point = measurement.point(session, [record], settings)
    end = None if other is None else measurement.point(session, [other], settings_of[other["run_id"]])
    if end is not None and {n: t.shape for n, t in end.train.like.items()} != {
        n: t.shape for n, t in point.train.like.items()
    }:
        raise Fault(f"--kind path: {record['run_id']} and {other and other['run_id']} are different networks")
    theta = point.theta.double()
    axes = _directions(point.train.unflatten(theta), None if end is None else end.train.unflatten(end.theta), asked)
    tensors = vectors.names(axes)
    facts = asked.model_dump(exclude={"runs", "directions"}) | {"version": VERSION, "data": session.data_hash(settings)}
    facts |= {"minima": [r["minimum"]["sha256"] for r in (record, other) if r], "precision": settings["precision"]}
    facts |= {"dataset": settings["dataset"], "values": vectors.digest(tensors)}
    key, table = config.digest(facts, 16), folder / f"{name}.csv"
    if table.is_file() and vectors.facts(table.with_suffix(".safetensors")).get("key") == key:
        _clear(folder / f"{name}.parts")
        return store.read_table(table)
    low = -(asked.range or (0.5 if other else 1.0))
    xy = grid([(low, (1.0 if other else 0.0) - low)] * (2 if asked.kind == "plane" else 1), asked.points)
    batchnorm = asked.batchnorm or ("recompute" if other else "fixed")
    sides = {"train": point.train, "test": point.test}
    values = []
    session.watch("measure", {"cells": len(xy) * len(axes)})
    for draw, d in enumerate(axes):
        X, Y = (flatten(d[axis])[0].to(theta) if axis in d else None for axis in "xy")
        assert X is not None
        place = Place(sides, theta, X, Y, batchnorm, None if end is None else end.train.buffers)
        values.append(_values(session, place, xy, _made(folder / f"{name}.parts"), f"{key}-{draw}", name))
    rows = [
        (draw, *point, split, *(scores if isfinite(scores[0]) else LOST), "ok" if isfinite(scores[0]) else "undefined")
        for draw, own in enumerate(values)
        for point, both in zip(xy.tolist(), own.tolist(), strict=True)
        for split, scores in zip(sides, both, strict=True)
    ]
    frame = store.lines_table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    told = facts | {"key": key, "run_id": record["run_id"], "batchnorm": batchnorm}
    told |= {"to": other["run_id"] if other else ""}
    store.write(table, store.table_bytes(frame))
    store.write(table.with_suffix(".safetensors"), vectors.to_bytes(tensors, told))  # last: it vouches for the table
    _clear(folder / f"{name}.parts")
    return store.read_table(table)


def _clear(parts: Path) -> None:
    if parts.is_dir():
        for part in parts.iterdir():
            part.unlink()
        parts.rmdir()


def _values(session: Session, place: Place, xy: Tensor, parts: Path, key: str, name: str) -> Tensor:
    """Scores at all points (P, splits, 2); each part is on the disk before the next begins, and is not made twice."""
    found, done = [], 0
    for i, some in enumerate(xy.split(place.together)):
        engine.check()
        session.watch("metric", {"metric": name})
        path = parts / f"{key}-{i:05d}.json"
        if path.is_file():
            own = torch.tensor(json.loads(path.read_text()), dtype=torch.float64)
        else:
            own = place.scores(some)
            store.write(path, json.dumps(own.tolist()).encode())
        found.append(own)
        done += len(some)
        session.watch("cell", {"metric": name, "runs": len(some)})
    return torch.cat(found)


def _directions(like: Params, end: Params | None, asked: Surface) -> list[dict[str, Params]]:
    """For each draw, axis -> direction, name -> (1, *shape) in float64."""
    if end is not None:
        return [{"x": {n: end[n].double() - t for n, t in like.items()}}]
    axes = 2 if asked.kind == "plane" else 1
    draws = asked.draws or (1 if asked.kind == "plane" else 3)
    if asked.directions:
        return vectors.read(Path(asked.directions), {n: tuple(t.shape[1:]) for n, t in like.items()}, axes)
    made = [random_directions(like, asked.normalization, asked.ignore, asked.seed, i, axes) for i in range(draws)]
    return [dict(zip("xy", one, strict=False)) for one in made]


def _made(folder: Path) -> Path:
    if not folder.is_dir():
        folder.mkdir()
        sync_folder(folder.parent)
    return folder


def summary(table: DataFrame) -> str:
    """One line on a surface: training loss in the middle, and how far it rises."""
    train = table[table["split"] == "train"]
    here = train["loss"].iloc[int((train["x"].abs() + train["y"].abs()).to_numpy().argmin())]
    lost = int((train["status"] != "ok").sum())
    text = f"{len(train)} points, training loss {here:.4g} at the minimum, up to {train['loss'].max():.4g}"
    return text + (f", {lost} without a value" if lost else "")
