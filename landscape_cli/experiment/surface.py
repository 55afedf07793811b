"""`landscape surface`: whose minima, which directions, and the files that come of it, finished point by point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape_cli import config, store
from landscape_cli.config import Surface
from landscape_cli.experiment import adopted, drawing, measure, surface_tables
from landscape_cli.experiment.result_tables import runs_table
from landscape_cli.experiment.session import Record, Session, writing
from landscape_cli.experiment.snapshots import before_the_end
from landscape_cli.experiment.train import train_missing
from landscape_cli.registry.errors import Fault
from landscape_cli.store import directions as vectors
from landscape_cli.store.files import no_link, sync_folder
from landscape_cli.surface.kinds import OWN, span
from landscape_cli.surface.values import BatchNorm, grid

if TYPE_CHECKING:
    from pandas import DataFrame


pass


VERSION = 1  # of the values


def asked_for(
    section: Surface | None, given: dict[str, Any], directions: str | None, run_ids: list[str] | None
) -> Surface:
    """A config's section, into which options were read, with what the command line alone can say.

    Args:
        section: with defaults where there is none.
        given: the options, None where there was none.
        directions: a file.
        run_ids: whose minima.
    Raises: Fault, for an option that would do nothing.
    """
    asked = section or Surface()
    more: dict[str, Any] = {} if run_ids is None else {"runs": run_ids}
    if directions or asked.kind in OWN:
        why = "--directions are taken as they are" if directions else f"--kind {asked.kind} has directions of its own"
        for key in ("normalization", "ignore", "seed", "draws"):
            if given[key] is not None:
                raise Fault(f"--{key}: {why}")
        if directions or given["kind"]:
            more["draws"] = None  # a config's are for its own kind
    return asked.model_copy(update=more | ({"directions": directions} if directions else {}))


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
    with writing(session, wait):
        records = train_missing(session, set(chosen))
        runs_table(session)
        found = surfaces_of(session, [records[i] for i in chosen], settings_of, asked)
        drawing.draw_of(session, list(session.finished().values()))
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
    session, loaded = adopted.adopting(base, paths, results, device, watch)
    with writing(session):
        records = adopted.adopt(session, loaded)
        adopted.write_adopted(session, records)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        found = surfaces_of(session, list(records.values()), settings_of, asked)
        drawing.draw_of(session, list(records.values()))
        return session, found


def surfaces_of(
    session: Session, records: list[Record], settings_of: dict[str, Any], asked: Surface
) -> dict[str, DataFrame]:
    """The surfaces of these minima, in the folder of a session that is being written; run id -> its values.

    One that cannot be made is among the session's failures.
    """
    found, pairs = {}, [(records[0], records[1])] if asked.kind == "path" else [(r, None) for r in records]
    for record, other in pairs:
        lost = [f"{one['run_id']}: no surface: it diverged" for one in (record, other) if one and _diverged(one)]
        try:
            if not lost:
                found[record["run_id"]] = _surface(session, record, other, settings_of, asked)
        except Fault as fault:
            lost = [str(fault)]
        session.failures += lost
    return found


def _diverged(record: Record) -> bool:
    return str(record["status"]) == "diverged"


def around(session: Session, records: dict[str, Record]) -> None:
    """What the `surface` section of a config asks for, of minima that are there: the first of each group that is."""
    asked = session.experiment.surface
    if asked is None:
        return
    there = [run for run in session.runs if run.run_id in records and not _diverged(records[run.run_id])]
    try:
        chosen = _chosen(session, asked, there)
    except Fault as fault:  # too few minima for a path
        session.failures.append(f"no surface: {fault}")
        return
    settings_of = {run.run_id: run.settings for run in session.runs}
    surfaces_of(session, [records[i] for i in chosen], settings_of, asked)


def check(session: Session, asked: Surface) -> None:
    """What a surface needs, before any work.

    Raises: Fault, exit code 5 if a file is missing.
    """
    settings_of = {run.run_id: run.settings for run in session.runs}
    chosen = _chosen(session, asked, session.runs)
    for section in ("model", "dataset", "precision") if asked.kind == "path" else ():
        if len({config.canonical(settings_of[run_id][section]) for run_id in chosen}) > 1:
            raise Fault(
                f"--kind path: {' and '.join(chosen)} differ in {section}: name two runs of one with --runs A,B"
            )
    for run_id in chosen:
        if asked.kind == "trajectory" and len(settings_of[run_id]["training"]["snapshots"]) < 3:
            raise Fault(f"{run_id}: {SNAPSHOTS_DUE}")
        if asked.directions:
            shapes = {n: tuple(p.shape) for n, p in session.module(settings_of[run_id]).named_parameters()}
            vectors.read(Path(asked.directions), shapes, 2 if asked.kind == "plane" else 1)


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
    if asked.draws and (asked.kind in OWN or asked.directions):
        raise Fault(f"surface.draws: {asked.kind if asked.kind in OWN else 'with directions'}: nothing is drawn")
    if asked.directions and Path(asked.directions).is_dir():
        raise Fault(f"--directions: {asked.directions}: is a folder, name a file in it")
    if asked.directions and not Path(asked.directions).is_file():
        raise Fault(f"--directions: {asked.directions}: no such file", code=5)


def _surface(
    session: Session, record: Record, other: Record | None, settings_of: dict[str, Any], asked: Surface
) -> DataFrame:
    """The files of one surface, made from what is there of them and what is missing; the values are returned."""
    settings, name = settings_of[record["run_id"]], f"{record['run_id']}-{asked.kind}"
    folder = _made(session.folder / "surfaces")
    at = measure.point(session, [record], settings)
    end = None if other is None else measure.point(session, [other], settings_of[other["run_id"]])
    way = trajectory(session, record, settings) if asked.kind == "trajectory" else None
    lies = span(at, end, way, asked)
    tensors = vectors.names(lies.draws)
    facts = asked.model_dump(exclude={"runs", "directions", "curvature"}) | {"version": VERSION, "ends": lies.ends}
    if asked.directions or asked.kind in OWN:  # nothing was drawn
        facts |= dict.fromkeys(("normalization", "ignore", "seed", "draws"))
    facts |= {"minima": [r["minimum"]["sha256"] for r in (record, other) if r], "precision": settings["precision"]}
    facts |= {"dataset": settings["dataset"], "data": session.data_hash(settings), "values": vectors.digest(tensors)}
    key, vouching, parts = config.digest(facts, 16), folder / f"{name}.safetensors", _made(folder / f"{name}.parts")
    work = surface_tables.Survey(session, at, lies, _rule(asked), grid(lies.ends, asked.points), parts, key, name)
    jobs: dict[str, Callable[[], DataFrame]] = {f"{name}.csv": work.losses}
    if asked.kind == "trajectory":
        jobs[f"{name}-snapshots.csv"] = partial(surface_tables.snapshots, work, record, settings)
    if asked.curvature:
        jobs[f"{name}-curvature.csv"] = work.curvature
    done = _intact(vouching, key)
    old = [f"{name}-{kind}.csv" for kind in ("snapshots", "curvature")]
    stale = [folder / f for f in (*([] if done else [vouching.name]), *old) if f not in done]
    store.remove(folder, stale)  # before any table of these settings takes the place of one of others
    for file in [f for f in jobs if f not in done]:
        data = store.table_bytes(jobs[file]())
        store.write(folder / file, data)
        done[file] = hashlib.sha256(data).hexdigest()
    told = facts | lies.facts | {"key": key, "run_id": record["run_id"], "batchnorm": work.batchnorm}
    told |= {"to": other["run_id"] if other else "", "files": done}
    told = json.loads(json.dumps(told))  # as it will be read
    if vectors.facts(vouching) != told:  # last: it vouches for the tables
        store.write(vouching, vectors.to_bytes(tensors, told))
    _clear(parts, key)
    return store.read_table(folder / f"{name}.csv")


def _intact(vouching: Path, key: str) -> dict[str, str]:
    """The tables of a surface with this key that are as they were written, and their hashes."""
    known = vectors.facts(vouching)
    files = known.get("files", {}) if known.get("key") == key else {}
    paths = {file: vouching.with_name(file) for file in files}
    return {f: sha for f, sha in files.items() if paths[f].is_file() and store.file_hash(paths[f]) == sha}


def _rule(asked: Surface) -> BatchNorm:
    return asked.batchnorm or ("recompute" if asked.kind in ("path", "trajectory") else "fixed")


def _clear(parts: Path, key: str) -> None:
    """Remove the parts of a surface that is finished; those of other settings stay."""
    store.remove(parts, parts.glob(f"{key}-*"))
    store.remove_if_empty(parts)


def _made(folder: Path) -> Path:
    if not no_link(folder).is_dir():
        try:
            folder.mkdir()
        except FileExistsError:
            raise Fault(f"{folder}: cannot be made, a file is in its place: move it away") from None
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


SNAPSHOTS_DUE = "--kind trajectory: needs training.snapshots at three or more epochs before the end, as [0, 1, 2, 5]"


def trajectory(session: Session, record: Record, settings: Any) -> Tensor:
    """The snapshots of a run before its end (n, p), in float64.

    Raises: Fault if there are fewer than three.
    """
    kept = before_the_end(session, record, settings)
    if len(kept) < 3:
        raise Fault(f"{record['run_id']}: {SNAPSHOTS_DUE}")
    return torch.cat([measure.point(session, [one], settings).theta.double() for one in kept])
