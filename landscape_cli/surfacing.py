"""`landscape surface`: whose minima, which directions, and the files that come of it, finished point by point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape_cli import config, engine, experiment, measurement, runs, store, vectors
from landscape_cli.atomic import sync_folder
from landscape_cli.config import Surface
from landscape_cli.errors import Fault
from landscape_cli.metrics.curvature import hessian_bottom
from landscape_cli.objective import flatten
from landscape_cli.point import Point
from landscape_cli.session import Record, Session
from landscape_cli.spans import OWN, SNAPSHOTS_DUE, Span, before_the_end, span
from landscape_cli.surfaces import BatchNorm, Place, grid

if TYPE_CHECKING:
    from pandas import DataFrame

VERSION = 1  # of the values
Rows = list[Any]
COLUMNS = ("draw", "x", "y", "split", "loss", "accuracy", "status")
CURVATURE = ("draw", "x", "y", "lambda_max", "lambda_min", "status", "message")
SNAPSHOTS = (
    *("epoch", "x", "y", "off_plane", "split"),
    *("loss", "accuracy", "projected_loss", "projected_accuracy", "status"),
)


def run(session: Session, asked: Surface, *, wait: bool = False) -> dict[str, DataFrame]:
    """`landscape surface CONFIG`: surfaces/<run_id>-<kind>.csv and its directions; the tables by run id.

    Args:
        session: the experiment's.
        asked: what to draw.
        wait: for the folder.
    Raises: Fault.
    """
    check(session, asked)
    chosen = _chosen(session, asked, session.runs)
    settings_of = {run.run_id: run.settings for run in session.runs}
    with experiment.writing(session, wait):
        records = runs.train(session, set(chosen))
        experiment.runs_table(session)
        found = surfaces_of(session, [records[i] for i in chosen], settings_of, asked)
        experiment.draw(session.folder, list(session.finished().values()), session.groups, session)
        return found


def run_checkpoints(
    base: config.Experiment, paths: list[Path], asked: Surface, results: Path, device: str, watch: Any
) -> tuple[Session, dict[str, DataFrame]]:
    """`landscape surface CHECKPOINT...`: the same of networks trained elsewhere, in `results/<name>-checkpoints`."""
    if asked.kind == "path" and len(paths) != 2:
        raise Fault("--kind path: goes from one checkpoint to another: name two")
    if asked.kind == "trajectory":
        raise Fault("--kind trajectory: a checkpoint has no snapshots: name the config of its experiment instead")
    if asked.runs:
        raise Fault("--runs: a checkpoint has none")
    _check(asked)
    session, loaded = experiment.adopting(base, paths, results, device, watch)
    with experiment.writing(session):
        records = experiment.adopt(session, loaded)
        experiment.write_adopted(session, records)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        found = surfaces_of(session, list(records.values()), settings_of, asked)
        experiment.draw(session.folder, list(records.values()), session.groups, session)
        return session, found


def surfaces_of(
    session: Session, records: list[Record], settings_of: dict[str, Any], asked: Surface
) -> dict[str, DataFrame]:
    """The surfaces of these minima, in the folder of a session that is being written; run id -> its values."""
    found, pairs = {}, [(records[0], records[1])] if asked.kind == "path" else [(r, None) for r in records]
    for one in records:
        if one["status"] == "diverged":
            raise Fault(f"{one['run_id']}: diverged: there is no minimum to look around")
    for record, other in pairs:
        found[record["run_id"]] = _surface(session, record, other, settings_of, asked)
    return found


def around(session: Session, records: dict[str, Record]) -> None:
    """What the `surface` section of a config asks for, of minima that are there: the first of each group that is.

    Raises: Fault.
    """
    asked = session.experiment.surface
    if asked is None:
        return
    there = [run for run in session.runs if records.get(run.run_id, {"status": "diverged"})["status"] != "diverged"]
    chosen = _chosen(session, asked, there)
    settings_of = {run.run_id: run.settings for run in session.runs}
    surfaces_of(session, [records[i] for i in chosen], settings_of, asked)


def check(session: Session, asked: Surface) -> None:
    """What a surface needs, before any work.

    Raises: Fault, exit code 5 if a file is missing.
    """
    settings_of = {run.run_id: run.settings for run in session.runs}
    for run_id in _chosen(session, asked, session.runs):
        if asked.kind == "trajectory" and len(settings_of[run_id]["training"]["snapshots"]) < 3:
            raise Fault(f"{run_id}: {SNAPSHOTS_DUE}")


def _chosen(session: Session, asked: Surface, among: Sequence[config.Run]) -> list[str]:
    """Run ids: those asked for, or the first of each group."""
    known = [run.run_id for run in session.runs]
    if unknown := [i for i in asked.runs if i not in known]:
        raise Fault(f"--runs: {', '.join(unknown)}: no run of {session.experiment.name}; it has {', '.join(known[:4])}")
    first = list({run.group: run.run_id for run in reversed(among)}.values())[::-1]
    chosen = list(dict.fromkeys(asked.runs)) or (first[:2] if asked.kind == "path" else first)
    if asked.kind == "path" and len(chosen) != 2:
        raise Fault(f"--kind path: goes from one minimum to another, not to {len(chosen)}: --runs A,B")
    _check(asked)
    return chosen


def _check(asked: Surface) -> None:
    """What one setting asks of another.

    Raises: Fault, exit code 5 if a file is missing.
    """
    if asked.batchnorm == "interpolate" and asked.kind != "path":
        raise Fault("--batchnorm interpolate: needs two minima: --kind path")
    if asked.directions and asked.kind in OWN:
        raise Fault(f"--directions: --kind {asked.kind} has directions of its own")
    if asked.draws and asked.kind in OWN:
        raise Fault(f"--draws: --kind {asked.kind} has directions of its own, which are not drawn")
    if asked.directions and asked.draws:
        raise Fault("--draws: --directions tells how many there are")
    if asked.directions and not Path(asked.directions).is_file():
        raise Fault(f"--directions: {asked.directions}: no such file", code=5)


def _surface(
    session: Session, record: Record, other: Record | None, settings_of: dict[str, Any], asked: Surface
) -> DataFrame:
    """The files of one surface, made from what is there of them and what is missing; the values are returned."""
    settings, name = settings_of[record["run_id"]], f"{record['run_id']}-{asked.kind}"
    folder = _made(session.folder / "surfaces")
    at = measurement.point(session, [record], settings)
    end = None if other is None else measurement.point(session, [other], settings_of[other["run_id"]])
    if end and {n: t.shape for n, t in end.train.like.items()} != {n: t.shape for n, t in at.train.like.items()}:
        raise Fault(f"--kind path: {record['run_id']} and {other and other['run_id']} are different networks")
    lies = span(session, record, at, end, settings, asked)
    tensors = vectors.names(lies.draws)
    facts = asked.model_dump(exclude={"runs", "directions", "curvature"}) | {"version": VERSION, "ends": lies.ends}
    facts |= {"minima": [r["minimum"]["sha256"] for r in (record, other) if r], "precision": settings["precision"]}
    facts |= {"dataset": settings["dataset"], "data": session.data_hash(settings), "values": vectors.digest(tensors)}
    key, vouching = config.digest(facts, 16), folder / f"{name}.safetensors"
    known = vectors.facts(vouching)
    done = {f for f in known.get("files", []) if (folder / f).is_file()} if known.get("key") == key else set()
    work = Work(
        session, at, lies, _rule(asked), grid(lies.ends, asked.points), _made(folder / f"{name}.parts"), key, name
    )
    jobs: dict[str, Callable[[], DataFrame]] = {f"{name}.csv": work.losses}
    if asked.kind == "trajectory":
        jobs[f"{name}-snapshots.csv"] = partial(_snapshots, work, record, settings)
    if asked.curvature:
        jobs[f"{name}-curvature.csv"] = work.curvature
    for kind in () if done else ("snapshots", "curvature"):
        (folder / f"{name}-{kind}.csv").unlink(missing_ok=True)  # of other settings
    for file, job in jobs.items():
        if file not in done:
            store.write(folder / file, store.table_bytes(job()))
    told = facts | lies.facts | {"key": key, "run_id": record["run_id"], "batchnorm": work.batchnorm}
    told |= {"to": other["run_id"] if other else "", "files": sorted({*done, *jobs})}
    if known != told:  # last: it vouches for the tables
        store.write(vouching, vectors.to_bytes(tensors, json.loads(json.dumps(told))))
    _clear(folder / f"{name}.parts")
    return store.read_table(folder / f"{name}.csv")


def _rule(asked: Surface) -> BatchNorm:
    return asked.batchnorm or ("recompute" if asked.kind in ("path", "trajectory") else "fixed")


def _clear(parts: Path) -> None:
    if parts.is_dir():
        for part in parts.iterdir():
            part.unlink()
        parts.rmdir()


@dataclass(frozen=True)
class Work:
    """What the tables of one surface are made from.

    Args:
        session: told of each step.
        at: the minimum.
        lies: its directions.
        batchnorm: statistics off the minimum.
        xy: the grid.
        parts: folder of what is finished.
        key: of all that the values depend on.
        name: of the surface.
    """

    session: Session
    at: Point
    lies: Span
    batchnorm: BatchNorm
    xy: Tensor
    parts: Path
    key: str
    name: str

    def places(self) -> list[Place]:
        """One for each draw of the directions."""
        theta = self.at.theta.double()
        sides = {"train": self.at.train, "test": self.at.test}
        flat = [{axis: flatten(d)[0].to(theta) for axis, d in draw.items()} for draw in self.lies.draws]
        return [Place(sides, theta, d["x"], d.get("y"), self.batchnorm, self.lies.other) for d in flat]

    def losses(self) -> DataFrame:
        """draw, x, y, split, loss, accuracy, status."""
        rows = [
            (draw, *point, split, *_told(*scores))
            for draw, place in enumerate(self.places())
            for point, both in zip(self.xy.tolist(), self._finished(draw, "", place, _scores), strict=True)
            for split, scores in zip(place.sides, both, strict=True)
        ]
        return _frame(COLUMNS, rows)

    def curvature(self) -> DataFrame:
        """draw, x, y, lambda_max, lambda_min, status, message."""
        rows = [
            (draw, *point, *found)
            for draw, place in enumerate(self.places())
            for point, found in zip(
                self.xy.tolist(), self._finished(draw, "-curvature", place, curvatures), strict=True
            )
        ]
        return _frame(CURVATURE, rows)

    def _finished(self, draw: int, what: str, place: Place, how: Callable[[Place, Tensor], Rows]) -> Rows:
        """One row a point; each part is on the disk before the next begins, and is not made twice."""
        found: Rows = []
        if draw == 0:
            self.session.watch("measure", {"cells": len(self.xy) * len(self.lies.draws), "unit": "points"})
        for i, some in enumerate(self.xy.split(place.together)):
            engine.check()
            self.session.watch("metric", {"metric": self.name + what})
            path = self.parts / f"{self.key}-{draw}{what}-{i:05d}.json"
            if path.is_file():
                own = json.loads(path.read_text())
            else:
                own = how(place, some)
                store.write(path, json.dumps(own).encode())
            found += own
            self.session.watch("cell", {"metric": self.name, "runs": len(some)})
        return found


def _scores(place: Place, xy: Tensor) -> Rows:
    rows: Rows = place.scores(xy).tolist()
    return rows


def curvatures(place: Place, xy: Tensor) -> Rows:
    """Largest and smallest eigenvalue of the Hessian of the training loss at points (P, 2), status and message."""
    finite = place.scores(xy)[:, 0, 0].isfinite().tolist()
    rows: Rows = [(None, None, "undefined", "the loss is not finite") for _ in finite]
    inside = [i for i, ok in enumerate(finite) if ok]
    size = 1 if place.convolves else max(1, len(inside))
    for some in (inside[i : i + size] for i in range(0, len(inside), size)):
        theta = place.points(xy[some])
        train = place.sides["train"]
        own = replace(train, like=train.unflatten(theta), buffers=place.buffers(theta, xy[some]))
        at = Point(theta, own, own)
        low, top = hessian_bottom(at), at.ritz(1, 1e-3, 200, 0)  # which that one needed too
        late = (top.residuals[:, 0] > 1e-3 * top.values[:, 0].abs()).tolist()
        for row, i in enumerate(some):
            said = (low.status[row], low.message[row])
            if late[row]:
                said = ("not_converged", "lambda_max: relative residual above 1e-3 after 200 steps")
            rows[i] = (float(top.values[row, 0]), float(low.value[row]), *said)
    return rows


def _snapshots(work: Work, record: Record, settings: dict[str, Any]) -> DataFrame:
    """epoch, x, y, off_plane, split, loss, accuracy, projected_loss, projected_accuracy, status.

    The loss at each snapshot with its own BatchNorm statistics, and that at its shadow on the plane; both are in
    off_plane, the distance between the two.
    """
    (place,), way = work.places(), work.lies.way
    assert way is not None and place.Y is not None
    moves = torch.cat([way - place.theta, torch.zeros_like(place.theta)])
    xy = moves @ torch.stack([place.X, place.Y], 1)
    off = (moves - xy @ torch.stack([place.X, place.Y])).norm(dim=1)
    kept = [*before_the_end(work.session, record, settings), record]
    rows, shadows = [], place.scores(xy.cpu()).tolist()
    for one, point, far, shadow in zip(kept, xy.tolist(), off.tolist(), shadows, strict=True):
        at = measurement.point(work.session, [one], settings)
        own = replace(place, sides={"train": at.train, "test": at.test}, theta=at.theta.double(), batchnorm="fixed")
        for split, true, seen in zip(own.sides, own.scores(torch.zeros(1, 2))[0].tolist(), shadow, strict=True):
            (*scores, status), (*projected, other) = _told(*true), _told(*seen)
            worst = status if status != "ok" else other
            rows.append((one.get("epoch", record["epochs"]), *point, far, split, *scores, *projected, worst))
    return _frame(SNAPSHOTS, rows)


def _told(loss: float, accuracy: float) -> tuple[float | None, float | None, str]:
    """A value that is not finite is left out."""
    return (loss, accuracy, "ok") if isfinite(loss) else (None, None, "undefined")


def _frame(columns: Sequence[str], rows: list[Any]) -> DataFrame:
    return store.lines_table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))


def _made(folder: Path) -> Path:
    if not folder.is_dir():
        folder.mkdir()
        sync_folder(folder.parent)
    return folder


def summary(table: DataFrame, facts: dict[str, Any]) -> str:
    """One line on a surface: training loss in the middle, how far it rises, and what its directions are."""
    train = table[table["split"] == "train"]
    here = train[(train["x"] == 0) & (train["y"] == 0)]["loss"]
    start = f"{here.iloc[0]:.4g} at the minimum" if len(here) else f"from {train['loss'].min():.4g}"
    lost = int((train["status"] != "ok").sum())
    text = f"{len(train)} points, training loss {start}, up to {train['loss'].max():.4g}"
    text += f", {lost} without a value" if lost else ""
    if shares := facts.get("explained_variance"):
        text += f"; x and y explain {shares[0]:.1%} and {shares[1]:.1%} of the snapshots' variance"
    if values := facts.get("eigenvalues"):
        text += f"; along x and y the Hessian's eigenvalues {values[0]:.4g} and {values[1]:.4g}"
    return text
