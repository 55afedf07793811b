"""The results folder: its lock, run records and cells, the manifest."""

import errno
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from landscape_cli.atomic import TEMPORARY, no_link, sync_folder, write, write_fault, write_many
from landscape_cli.errors import Fault
from landscape_cli.tables import (
    curve_tables,
    invariance_table,
    lines_table,
    metrics_table,
    read_table,
    runs_table,
    table_bytes,
)

FORMAT = 1  # of run records, cells and the manifest
LOCK, OWNER, MANIFEST = ".lock", ".lock-owner.json", "manifest.json"
SUBFOLDERS = ("runs", "cells", "minima", "plots", "stacks")
PACKAGES = ["torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "safetensors", "distributed"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,120}")

# One door to the results folder: what atomic.py and tables.py hold is found here too.
__all__ = ["curve_tables", "invariance_table", "lines_table", "metrics_table", "read_table", "runs_table"]
__all__ += ["table_bytes", "write", "write_many"]


# --- the folder and its lock ---


def check_name(name: str, results: Path | None = None) -> str:
    """An experiment's or run's name, if it is safe as the name of a folder.

    Args:
        name: as the user or a file gave it.
        results: if given, results/name must not be a link either, to anywhere.
    Returns: the name.
    Raises: Fault if it is not safe.
    """
    if not NAME.fullmatch(name):
        remedy = "use 1 to 81 letters, digits, '.', '_', '-', the first a letter or digit"
        raise Fault(f"name {ascii(name)[:100]}: {remedy}")
    if results is not None and (results / name).resolve() != results.resolve() / name:
        raise Fault(f"{results / name}: is a symbolic link, which is not followed: remove it, or use another name")
    return name


def open_folder(results: Path, name: str, subfolders: Iterable[str] = SUBFOLDERS) -> Path:
    """Make the folder of an experiment, and try whether it can be written; the only place that makes folders.

    Args:
        results: holds all experiments; made if missing.
        name: of the experiment.
        subfolders: made in it.
    Returns: results/name.
    Raises: Fault if the name is not safe or the place cannot be written.
    """
    folder = results / check_name(name, results)
    place = folder
    try:
        for place in (folder, *(folder / subfolder for subfolder in subfolders)):
            (place if place == folder else no_link(place)).mkdir(parents=True, exist_ok=True)
            probe = place / f"{TEMPORARY}{os.urandom(8).hex()}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        for place in (folder, results):
            sync_folder(place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            wrong = "cannot be made, a file is in its place: remove that, or use --results with another folder"
            raise Fault(f"{place}: {wrong}") from error
        raise write_fault(error, place) from error
    return folder


@contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Own an experiment's folder: one process at a time; files that killed processes left unfinished are removed.

    Args:
        folder: from `open_folder`.
        wait: wait for the present owner to finish, however long.
    Raises: Fault with code 4 if another process owns it; the lock of a killed process is free at once.
    """
    from filelock import FileLock, Timeout

    guard = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        if not folder.is_dir():  # else filelock would make it
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        guard.acquire()
    except Timeout:
        wrong = f"results folder {folder} is in use by {_owner(folder)}: wait for it, or use --results"
        raise Fault(wrong, code=4) from None
    except OSError as error:
        raise write_fault(error, folder / LOCK) from error
    try:
        owner = {"pid": os.getpid(), "host": platform.node(), "since": _utc(datetime.now(UTC))}
        write(folder / OWNER, _json(owner))
        _sweep(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink()
        guard.release()


def _owner(folder: Path) -> str:
    """Who holds the lock, as its owner wrote it down; that may be missing for a moment, or garbled."""
    for _ in range(5):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            owner = json.loads((folder / OWNER).read_bytes())
            who = f"process {int(owner['pid'])} on {owner['host'][:80]} since {owner['since'][:40]}"
            return who if who.isprintable() else "another process"
        time.sleep(0.02)  # it is written right after the lock was taken
    return "another process"


def _sweep(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            if name.startswith(TEMPORARY):
                with suppress(OSError):
                    Path(parent, name).unlink()


# --- run records and cells ---


def write_runs(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write run records to runs/<run_id>.json.

    Args:
        folder: of the experiment.
        records: JSON-able, with their `run_id`.
    Raises: Fault, as `write_many`; ValueError for nan or inf, which the caller has to give as null.
    """
    write_many([(folder / "runs" / f"{check_name(record['run_id'])}.json", _json(record)) for record in records])


def read_runs(folder: Path, warnings: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """All run records of an experiment; one that is garbled counts as missing.

    Args:
        folder: of the experiment; it may be missing.
        warnings: gets a line for each garbled file.
    Returns: by run_id, sorted.
    Raises: Fault if one is of a newer format.
    """
    records = {}
    for path in _files(folder / "runs"):
        record = _read_json(path, {"group", "seed", "swept", "status"}, warnings)
        if record is not None and _is_at(path, f"{record.get('run_id')}.json", warnings):
            records[path.stem] = record
    return records


def cell_path(folder: Path, run_id: str, metric: str, key: str) -> Path:
    """Where a cell lives: cells/<run_id>/<metric>-<key>.json.

    Args:
        folder: of the experiment.
        run_id: of the run.
        metric: its name; `:` becomes `-`.
        key: hexadecimal hash of settings and version.
    Returns: the path.
    Raises: Fault if one of them is not safe in a path.
    """
    if not METRIC.fullmatch(metric) or not re.fullmatch("[0-9a-f]{4,64}", key):
        raise Fault(f"cell {ascii(metric)[:100]} {ascii(key)[:100]}: not the name of a metric and a hexadecimal key")
    return folder / "cells" / check_name(run_id) / f"{metric.replace(':', '-')}-{key}.json"


def vectors_path(folder: Path, cell: dict[str, Any]) -> Path:
    """Where the directions of a cell live, beside it: cells/<run_id>/<metric>-<key>.safetensors."""
    return cell_path(folder, cell["run_id"], cell["metric"], cell["key"]).with_suffix(".safetensors")


def has_vectors(folder: Path, cell: dict[str, Any], warnings: list[str] | None = None) -> bool:
    """Whether the directions that a cell speaks of, if any, are there as they were written.

    Args:
        folder: of the experiment.
        cell: `vectors` is the hash of their file.
        warnings: gets a line if they are not.
    """
    if "vectors" not in cell:
        return True
    path = vectors_path(folder, cell)
    try:
        wrong = "" if file_hash(path) == cell["vectors"] else "damaged (its hash differs)"
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
    if wrong:
        _warn(path, wrong, warnings)
    return not wrong


def write_cells(folder: Path, cells: Iterable[dict[str, Any]], files: Iterable[tuple[Path, bytes]] = ()) -> None:
    """Write cells, each to its `cell_path`; the folder of a run is made, the one of the experiment never.

    Args:
        folder: of the experiment.
        cells: JSON-able.
        files: path and content of what cells speak of (`vectors_path`); in place before them.
    Raises: Fault, as `write_many`; ValueError for nan or inf, which the caller has to give as null.
    """
    items = [(cell_path(folder, cell["run_id"], cell["metric"], cell["key"]), _json(cell)) for cell in cells]
    items = [*files, *items]
    missing = [parent for parent in dict.fromkeys(path.parent for path, _ in items) if not parent.is_dir()]
    try:
        for parent in missing:
            no_link(parent).mkdir(exist_ok=True)
        if missing:
            sync_folder(folder / "cells")
    except OSError as error:
        raise write_fault(error, folder / "cells") from error
    write_many(items)


def read_cells(
    folder: Path, run_ids: Iterable[str] | None = None, warnings: list[str] | None = None
) -> list[dict[str, Any]]:
    """Finished cells; one that is garbled counts as missing and will be computed again.

    Args:
        folder: of the experiment; it may be missing.
        run_ids: of these runs only; default all.
        warnings: gets a line for each garbled file.
    Returns: in the order of `run_ids` (default sorted), then of file names.
    Raises: Fault if one is of a newer format.
    """
    if run_ids is None:
        run_ids = [path.name for path in _files(folder / "cells", "")]
    cells = []
    for run_id in run_ids:
        for path in _files(folder / "cells" / check_name(run_id)):
            cell = _read_json(path, {"inputs", "rows", "seconds"}, warnings)
            name = f"{cell.get('metric')}-{cell.get('key')}.json".replace(":", "-") if cell else ""
            if cell is not None and _is_at(path, name, warnings) and _is_at(path.parent, cell.get("run_id"), warnings):
                cells.append(cell)
    return cells


def write_curves(folder: Path, curves: dict[str, bytes], stale: Iterable[str]) -> None:
    """Write tables/<metric>.csv; the folder `tables` is made when there is one to write.

    Args:
        folder: of the experiment.
        curves: content by metric.
        stale: metrics that have none any more; their files are removed.
    Raises: Fault, as `write_many`.
    """
    place = folder / "tables"
    try:
        if curves and not place.is_dir():
            no_link(place).mkdir()
            sync_folder(folder)
        for metric in stale:
            (place / f"{metric}.csv").unlink(missing_ok=True)
    except OSError as error:
        raise write_fault(error, place) from error
    write_many([(place / f"{metric}.csv", data) for metric, data in curves.items()])


def _files(folder: Path, suffix: str = ".json") -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.endswith(suffix) and not name.startswith(".")]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _read_json(path: Path, required: set[str], warnings: list[str] | None) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes(), parse_constant=_refuse)
        if not isinstance(record, dict) or type(record.get("format")) is not int:
            raise ValueError("not a record of ours")
        if record["format"] > FORMAT:
            wrong = f"has format {record['format']}, this version reads up to {FORMAT}: upgrade landscape-cli"
            raise Fault(f"{path}: {wrong}")
        if not required <= record.keys():
            raise ValueError("incomplete")
    except (OSError, ValueError, RecursionError) as error:
        _warn(path, f"cannot be read ({ascii(str(error))[1:-1][:100]})", warnings)
        return None
    return record


def _is_at(path: Path, name: Any, warnings: list[str] | None) -> bool:
    if path.name != name:
        _warn(path, f"belongs to {ascii(name)[:100]}", warnings)
    return bool(path.name == name)


def _warn(path: Path, wrong: str, warnings: list[str] | None) -> None:
    if warnings is not None:
        warnings.append(f"{path}: {wrong}: taken as missing, will be made again")


# --- the manifest ---


def file_hash(path: Path) -> str:
    """sha256 of a file's content, hexadecimal.

    Args:
        path: of the file.
    Returns: 64 hexadecimal digits.
    Raises: OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path, argv: Sequence[str], started: datetime, extra: dict[str, Any]) -> None:
    """Write manifest.json: how the results came to be, and a hash of every file. Never environment variables.

    Args:
        folder: of the experiment.
        argv: the command.
        started: when it began, with its time zone.
        extra: what else belongs there, JSON-able: device, threads, ...
    Raises: Fault, as `write`.
    """
    content = extra | {
        "format": FORMAT,
        "command": list(argv),
        "versions": _versions(),
        "platform": platform.platform(),
        "git": _git(),
        "started": _utc(started),
        "ended": _utc(datetime.now(UTC)),
        "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in _lasting(folder)},
    }
    write(folder / MANIFEST, _json(content))


def _lasting(folder: Path) -> list[Path]:
    """Files that make up the results: not the lock, unfinished files, snapshots of stacks, nor the manifest."""
    found = []
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != "stacks"]
            names = [name for name in names if name not in (LOCK, OWNER, MANIFEST)]
        paths = [Path(parent, name) for name in names if not name.startswith(TEMPORARY)]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Versions of ourselves and of what the numbers depend on, from package metadata: nothing is imported."""
    versions = {"python": platform.python_version()}
    for name in ("landscape-cli", *PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git() -> dict[str, Any] | None:
    """Commit of the current directory, and whether tracked files differ from it; None outside a checkout."""

    def ask(*words: str) -> str:
        command = ("git", "-c", "core.fsmonitor=false", "--no-optional-locks", *words)
        return subprocess.run(command, capture_output=True, check=True, timeout=2).stdout.decode().strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": ask("status", "--porcelain", "-uno") != ""}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
