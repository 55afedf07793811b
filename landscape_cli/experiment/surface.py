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
from landscape_cli.config import Settings, Surface
from landscape_cli.experiment import draw_report, measure, surface_tables, user_checkpoints
from landscape_cli.experiment.result_tables import runs_table
from landscape_cli.experiment.session import Record, Session, writing
from landscape_cli.experiment.snapshots import before_the_end
from landscape_cli.experiment.train_runs import train_missing
from landscape_cli.network import Params
from landscape_cli.registry.entries import OPTIONS, RANDOM
from landscape_cli.registry.errors import Fault
from landscape_cli.store import surface_files
from landscape_cli.store.files import no_link, sync_folder
from landscape_cli.surface.kinds import KINDS, directions_of, is_random
from landscape_cli.surface.values import grid

if TYPE_CHECKING:
    from pandas import DataFrame


VERSION = 1  # of the values


def request_of(
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
    request = section or Surface()
    more: dict[str, Any] = {} if run_ids is None else {"runs": run_ids}
    idle = _idle(request.kind, directions)
    why = "--directions are taken as they are" if directions else f"--kind {request.kind} has directions of its own"
    for key in idle:
        if given[key] is not None:
            raise Fault(f"--{key}: {why if key in RANDOM else f'--kind {request.kind} takes none'}")
    if "draws" in idle and (directions or given["kind"]):
        more["draws"] = None  # a config's are for its own kind
    return request.model_copy(update=more | ({"directions": directions} if directions else {}))


def _idle(kind: str, directions: str | None) -> list[str]:
    """Options that mean nothing to a kind, or beside directions that are given."""
    return [key for key in OPTIONS if key not in KINDS[kind].facts["options"] or (directions and key in RANDOM)]


def _needs(request: Surface, what: str) -> bool:
    return what in KINDS[request.kind].facts["needs"]


def run(session: Session, request: Surface, *, wait: bool = False) -> dict[str, DataFrame]:
    """`landscape surface CONFIG`: surfaces/<run_id>-<kind>.csv and its directions; the tables by run id.

    Args:
        session: the experiment's.
        request: what to draw.
        wait: for the folder.
    Raises: Fault.
    """
    check(session, request)
    chosen = _chosen(session, request, session.runs)
    settings_of = {run.run_id: run.settings for run in session.runs}
    with writing(session, wait):
        records = train_missing(session, set(chosen))
        runs_table(session)
        found = surfaces_of(session, [records[i] for i in chosen], settings_of, request)
        draw_report.draw_of(session, list(session.finished().values()))
        return found


def run_checkpoints(
    base: config.Experiment, paths: list[Path], request: Surface, results: Path, device: str, watch: Any
) -> tuple[Session, dict[str, DataFrame]]:
    """`landscape surface CHECKPOINT...`: the same of networks trained elsewhere, in `results/<name>-checkpoints`."""
    pair = _needs(request, "other")
    if pair and len(paths) != 2:
        raise Fault(f"--kind {request.kind}: goes from one checkpoint to another, not to {len(paths)}: name two")
    if _needs(request, "snapshots"):
        raise Fault(f"--kind {request.kind}: a checkpoint has no snapshots: name the config of its experiment instead")
    if request.runs:
        raise Fault("--runs: a checkpoint has none")
    _check(request)
    session, loaded = user_checkpoints.adopting(base, paths, results, device, watch)
    if pair and _alike([one.params for one in loaded.values()]):
        names = " and ".join(map(str, paths))
        raise Fault(f"--kind {request.kind}: {names} hold the same minimum: name two that differ")
    with writing(session):
        records = user_checkpoints.adopt(session, loaded)
        user_checkpoints.write_adopted(session, records)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        found = surfaces_of(session, list(records.values()), settings_of, request)
        draw_report.draw_of(session, list(records.values()))
        return session, found


def _alike(minima: list[Params]) -> bool:
    """Whether all are one point of parameter space, as a file is that is named twice."""
    first, *others = minima
    return all(torch.equal(t, other[name]) for other in others for name, t in first.items())


def surfaces_of(
    session: Session, records: list[Record], settings_of: dict[str, Settings], request: Surface
) -> dict[str, DataFrame]:
    """The surfaces of these minima, in the folder of a session that is being written; run id -> its values.

    One that cannot be made is among the session's failures.
    """
    pairs = [(records[0], records[1])] if _needs(request, "other") else [(r, None) for r in records]
    found = {}
    for record, other in pairs:
        lost = [f"{one['run_id']}: no surface: it diverged" for one in (record, other) if one and _diverged(one)]
        try:
            if not lost:
                found[record["run_id"]] = _surface(session, record, other, settings_of, request)
        except Fault as fault:
            lost = [str(fault)]
        session.failures += lost
    return found


def _diverged(record: Record) -> bool:
    return str(record["status"]) == "diverged"


def around(session: Session, records: dict[str, Record]) -> None:
    """What the `surface` section of a config asks for, of minima that are there: the first of each group that is."""
    request = session.experiment.surface
    if request is None:
        return
    present = [run for run in session.runs if run.run_id in records and not _diverged(records[run.run_id])]
    try:
        chosen = _chosen(session, request, present)
    except Fault as fault:  # too few minima for a path
        session.failures.append(f"no surface: {fault}")
        return
    settings_of = {run.run_id: run.settings for run in session.runs}
    surfaces_of(session, [records[i] for i in chosen], settings_of, request)


def check(session: Session, request: Surface) -> None:
    """What a surface needs, before any work.

    Raises: Fault, exit code 5 if a file is missing.
    """
    settings_of = {run.run_id: run.settings for run in session.runs}
    chosen = _chosen(session, request, session.runs)
    for section in ("model", "dataset", "precision") if _needs(request, "other") else ():
        if len({config.canonical(getattr(settings_of[run_id], section)) for run_id in chosen}) > 1:
            pair = " and ".join(chosen)
            raise Fault(f"--kind {request.kind}: {pair} differ in {section}: name two runs of one with --runs A,B")
    for run_id in chosen:
        if _needs(request, "snapshots") and len(settings_of[run_id].training.snapshots) < 3:
            raise Fault(f"{run_id}: {_snapshots_due(request.kind)}")
        if request.directions:
            shapes = {n: tuple(p.shape) for n, p in session.module(settings_of[run_id]).named_parameters()}
            surface_files.read(Path(request.directions), shapes, KINDS[request.kind].facts["axes"])


def _chosen(session: Session, request: Surface, among: Sequence[config.Run]) -> list[str]:
    """Run ids: those asked for, or the first of each group."""
    known = [run.run_id for run in session.runs]
    if unknown := [i for i in request.runs if i not in known]:
        raise Fault(f"--runs: {', '.join(unknown)}: no run of {session.experiment.name}; it has {', '.join(known[:4])}")
    first = list({run.group: run.run_id for run in reversed(among)}.values())[::-1]
    pair = _needs(request, "other")
    chosen = list(dict.fromkeys(request.runs)) or (first[:2] if pair else first)
    if pair and len(chosen) != 2:
        raise Fault(f"--kind {request.kind}: goes from one minimum to another, not to {len(chosen)}: --runs A,B")
    _check(request)
    return chosen


def _check(request: Surface) -> None:
    """What one setting asks of another.

    Raises: Fault, exit code 5 if a file is missing.
    """
    kind, file = KINDS[request.kind], request.directions
    if request.batchnorm == "interpolate" and not _needs(request, "other"):
        pairs = " or ".join(name for name, other in KINDS.items() if "other" in other.facts["needs"])
        raise Fault(f"--batchnorm interpolate: needs two minima: --kind {pairs}")
    if file and not is_random(kind):
        raise Fault(f"--directions: --kind {kind.name} has directions of its own")
    if request.draws and "draws" in _idle(kind.name, file):
        raise Fault(f"surface.draws: {'with directions' if file else kind.name}: nothing is drawn")
    if file and Path(file).is_dir():
        raise Fault(f"--directions: {file}: is a folder, name a file in it")
    if file and not Path(file).is_file():
        raise Fault(f"--directions: {file}: no such file", code=5)


def _surface(
    session: Session, record: Record, other: Record | None, settings_of: dict[str, Settings], request: Surface
) -> DataFrame:
    """The files of one surface, made from what is present of them and what is missing; the values are returned."""
    settings, name = settings_of[record["run_id"]], f"{record['run_id']}-{request.kind}"
    folder = _made(session.folder / "surfaces")
    at = measure.point(session, [record], settings)
    end = None if other is None else measure.point(session, [other], settings_of[other["run_id"]])
    points = snapshots_of(session, record, settings, request.kind) if _needs(request, "snapshots") else None
    found = directions_of(at, end, points, request)
    tensors = surface_files.names(found.draws)
    facts = request.model_dump(exclude={"runs", "directions", "curvature"}) | {"version": VERSION, "ends": found.ends}
    facts |= dict.fromkeys(key for key in _idle(request.kind, request.directions) if key in RANDOM)
    facts |= {"minima": [r["minimum"]["sha256"] for r in (record, other) if r], "precision": settings.precision}
    facts |= {"dataset": settings.hashed["dataset"], "data": session.data_hash(settings)}
    facts |= {"values": surface_files.digest(tensors)}
    key, vouching, parts = config.digest(facts, 16), folder / f"{name}.safetensors", _made(folder / f"{name}.parts")
    rule = request.batchnorm or KINDS[request.kind].facts["batchnorm"]
    work = surface_tables.Survey(session, at, found, rule, grid(found.ends, request.points), parts, key, name)
    done = _tables(work, folder, _jobs(work, record, settings, request.curvature), _intact(vouching, key))
    about = facts | found.facts | {"key": key, "run_id": record["run_id"], "batchnorm": work.batchnorm}
    about |= {"to": other["run_id"] if other else "", "files": done}
    about = json.loads(json.dumps(about))  # as it will be read
    if surface_files.facts(vouching) != about:  # last: it vouches for the tables
        store.write(vouching, surface_files.to_bytes(tensors, about))
    _clear(parts, key)
    return store.read_table(folder / f"{name}.csv")


def _jobs(
    work: surface_tables.Survey, record: Record, settings: Settings, curvature: bool
) -> dict[str, Callable[[], Any]]:
    """File name -> what makes its table."""
    jobs: dict[str, Callable[[], DataFrame]] = {f"{work.name}.csv": work.losses}
    if work.span.snapshots is not None:
        jobs[f"{work.name}-snapshots.csv"] = partial(surface_tables.snapshots, work, record, settings)
    return jobs | ({f"{work.name}-curvature.csv": work.curvature} if curvature else {})


def _tables(
    work: surface_tables.Survey, folder: Path, jobs: dict[str, Callable[[], Any]], done: dict[str, str]
) -> dict[str, str]:
    """Make the tables that are not done; file name -> hash of each."""
    stale = [f"{work.name}-{kind}.csv" for kind in ("snapshots", "curvature")]
    stale = [*([] if done else [f"{work.name}.safetensors"]), *stale]
    store.remove(folder, [folder / f for f in stale if f not in done])  # before a table takes the place of another's
    done = dict(done)
    for file in [f for f in jobs if f not in done]:
        data = store.table_bytes(jobs[file]())
        store.write(folder / file, data)
        done[file] = hashlib.sha256(data).hexdigest()
    return done


def _intact(vouching: Path, key: str) -> dict[str, str]:
    """The tables of a surface with this key that are as they were written, and their hashes."""
    known = surface_files.facts(vouching)
    files = known.get("files", {}) if known.get("key") == key else {}
    paths = {file: vouching.with_name(file) for file in files}
    return {f: sha for f, sha in files.items() if paths[f].is_file() and store.file_hash(paths[f]) == sha}


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


def summary(kind: str, table: DataFrame, facts: dict[str, Any]) -> str:
    """One line on a surface: training loss in the middle, how far it rises, and what its directions are."""
    train = table[table["split"] == "train"]
    middle = train[(train["x"] == 0) & (train["y"] == 0)]["loss"]
    start = f"{middle.iloc[0]:.4g} at the minimum" if len(middle) else f"from {train['loss'].min():.4g}"
    lost = int((train["status"] != "ok").sum())
    text = f"{len(train)} points, training loss {start}, up to {train['loss'].max():.4g}"
    text += f", {lost} without a value" if lost else ""
    return "; ".join(filter(None, [text, KINDS[kind].facts["note"](facts)]))


def _snapshots_due(kind: str) -> str:
    due = "needs training.snapshots at three or more epochs before the end, as [0, 1, 2, 5]"
    return f"--kind {kind}: {due}"


def snapshots_of(session: Session, record: Record, settings: Settings, kind: str) -> Tensor:
    """The snapshots of a run before its end (n, p), in float64.

    Raises: Fault if there are fewer than three.
    """
    kept = before_the_end(session, record, settings)
    if len(kept) < 3:
        raise Fault(f"{record['run_id']}: {_snapshots_due(kind)}")
    return torch.cat([measure.point(session, [one], settings).theta.double() for one in kept])
