"""Finished cells, run x metric x setting: the truth from which all tables are made.

All cells of a run are one file, cells/<run_id>.json. Folders of before have a file a cell, cells/<run_id>/*.json: these
are read too, and become part of the run's file when cells of that run are written next.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import AfterValidator, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from landscape_cli.registry.errors import Fault
from landscape_cli.store.files import Seen, no_link, remove, remove_if_empty, sync_folder, write_fault, write_many
from landscape_cli.store.folder import check_name
from landscape_cli.store.json_files import files_in, read_json, unreadable, warn, why
from landscape_cli.store.records import EXACT

FORMAT = 2  # 1: a file a cell
METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,120}")
KEY = re.compile("[0-9a-f]{4,64}")
SHARED = "_shared:"  # how the names of intermediates begin, which have seconds and no value

Cell = dict[str, Any]  # as `CellRecord` says
Known = dict[tuple[str, str], Cell]  # metric and key -> the cell


@with_config(EXACT)
class Row(TypedDict):
    """A value of a metric at a minimum or a snapshot."""

    epoch: int | None
    setting: str
    value: float | None
    standard_error: float | None
    samples: int | None
    iterations: int | None
    residual: float | None
    status: str
    message: str


@with_config(EXACT)
class Curve(TypedDict):
    """What a metric gives beside its values."""

    setting: str
    columns: list[str]
    values: list[list[Any]]


@with_config(EXACT)
class CellRecord(TypedDict):
    """One metric with its settings on one network."""

    run_id: str
    metric: Annotated[str, StringConstraints(pattern=f"^{METRIC.pattern}$")]
    key: Annotated[str, StringConstraints(pattern=f"^{KEY.pattern}$")]
    inputs: str
    settings: dict[str, Any]
    seconds: float
    rows: list[Row]
    epoch: NotRequired[int]
    curves: NotRequired[list[Curve]]
    vectors: NotRequired[str]


def _valued(cell: CellRecord) -> CellRecord:
    """Refuse a row that says all is well and has no value."""
    if not cell["metric"].startswith(SHARED) and any(r["value"] is None and r["status"] == "ok" for r in cell["rows"]):
        raise ValueError("no value")
    return cell


Valued = Annotated[CellRecord, AfterValidator(_valued)]


class CellFile(TypedDict):
    """All cells of a run."""

    format: int
    run_id: str
    cells: list[Valued]


class SomeCells(TypedDict):
    """The same, where not every cell need be one."""

    format: int
    run_id: str
    cells: list[Any]


class LoneCell(CellRecord):
    """A file of the earlier layout."""

    format: int


ONE: TypeAdapter[Any] = TypeAdapter(Valued)
ALL: TypeAdapter[Any] = TypeAdapter(CellFile)
SOME: TypeAdapter[Any] = TypeAdapter(SomeCells)
OLD: TypeAdapter[Any] = TypeAdapter(Annotated[LoneCell, AfterValidator(_valued)])


def cells_path(folder: Path, run_id: str) -> Path:
    """Where the cells of a run live: cells/<run_id>.json."""
    return folder / "cells" / f"{check_name(run_id)}.json"


def vectors_path(folder: Path, cell: Cell) -> Path:
    """Where the directions of a cell live: cells/<run_id>/<metric>-<key>.safetensors.

    Raises: Fault if a name of the cell is not safe in a path.
    """
    _check(cell)
    return folder / "cells" / check_name(cell["run_id"]) / f"{_stem(cell)}.safetensors"


def _check(cell: Cell) -> None:
    metric, key = cell["metric"], cell["key"]
    if not METRIC.fullmatch(metric) or not KEY.fullmatch(key):
        raise Fault(f"cell {ascii(metric)[:100]} {ascii(key)[:100]}: not the name of a metric and a hexadecimal key")


def _stem(cell: Cell) -> str:
    return f"{cell['metric'].replace(':', '-')}-{cell['key']}"


def has_vectors(folder: Path, cell: Cell, warnings: list[str] | None = None, seen: Seen | None = None) -> bool:
    """Whether the directions that a cell speaks of, if any, are there as they were written.

    Args:
        folder: of the experiment.
        cell: `vectors` is the hash of their file.
        warnings: gets a line if they are not.
        seen: what was read before.
    """
    if "vectors" not in cell:
        return True
    path = vectors_path(folder, cell)
    try:
        wrong = "" if (seen or Seen()).hash(path) == cell["vectors"] else "damaged (its hash differs)"
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
    if wrong:
        warn(path, wrong, warnings)
    return not wrong


def write_cells(
    folder: Path, cells: Iterable[Cell], files: Iterable[tuple[Path, bytes]] = (), seen: Seen | None = None
) -> None:
    """Add cells to those of their runs; the file of a run is written whole, and takes in what lies in its folder.

    Args:
        folder: of the experiment; never made.
        cells: JSON-able; one takes the place of that with the same metric and key.
        files: path and content of what cells speak of (`vectors_path`); in place before them.
        seen: what was read before.
    Raises: Fault, as `write_many`, or if the present cells of a run cannot be read; ValueError for nan or inf, which
        the caller has to give as null.
    """
    seen, files = seen or Seen(), list(files)
    added: dict[str, Known] = {}
    for cell in cells:
        _check(cell)
        added.setdefault(cell["run_id"], {})[cell["metric"], cell["key"]] = cell
    merged = {run_id: _kept(folder, run_id, seen) | own for run_id, own in added.items()}
    _make_folders(folder, [path.parent for path, _ in files])
    write_many([*files, *((cells_path(folder, i), _to_bytes(i, known.values())) for i, known in merged.items())])
    for run_id in added:  # now that all is in one file
        if old := files_in(folder / "cells" / run_id):
            remove(folder / "cells", old)
        remove_if_empty(folder / "cells" / run_id)


def _kept(folder: Path, run_id: str, seen: Seen) -> Known:
    """The present cells of a run. What is garbled is given up; what cannot be read now may be there tomorrow."""
    for path in _files_of(folder, run_id):
        if not seen.read(no_link(path), _read).readable:
            raise Fault(f"{path}: cannot be read, and the cells in it would be lost: make it readable", 1)
    return _cells_of(folder, run_id, None, seen)


def _make_folders(folder: Path, paths: Iterable[Path]) -> None:
    missing = [path for path in dict.fromkeys(paths) if not path.is_dir()]
    try:
        for path in missing:
            no_link(path).mkdir(exist_ok=True)
        if missing:
            sync_folder(folder / "cells")
    except OSError as error:
        raise write_fault(error, folder / "cells") from error


def _to_bytes(run_id: str, cells: Iterable[Cell]) -> bytes:
    """The file of a run: a line a cell, by metric and key."""
    lines = (
        json.dumps(cell, sort_keys=True, allow_nan=False, separators=(",", ":")) for cell in sorted(cells, key=_stem)
    )
    head = f'{{"format": {FORMAT}, "run_id": "{run_id}", "cells": [\n'
    return (head + ",\n".join(lines) + "\n]}\n").encode()


def read_cells(
    folder: Path, run_ids: Iterable[str] | None = None, warnings: list[str] | None = None, seen: Seen | None = None
) -> list[Cell]:
    """Finished cells; one that is garbled or lacks something counts as missing and will be computed again.

    Args:
        folder: of the experiment; it may be missing.
        run_ids: of these runs only; default all.
        warnings: gets a line for each that does not count.
        seen: what was read before.
    Returns: in the order of `run_ids` (default sorted), then by metric and key.
    Raises: Fault if one is of a newer format.
    """
    seen = seen or Seen()
    present = dict.fromkeys(path.name.removesuffix(".json") for path in files_in(folder / "cells", ""))
    wanted = present if run_ids is None else [run_id for run_id in run_ids if run_id in present]
    return [cell for run_id in wanted for cell in _cells_of(folder, run_id, warnings, seen).values()]


def _cells_of(folder: Path, run_id: str, warnings: list[str] | None, seen: Seen) -> Known:
    """The cells of a run by metric and key, sorted; those of its own file come before those of the earlier layout."""
    known: Known = {}
    for path in _files_of(folder, run_id):
        found = seen.read(path, _read)
        known |= found.cells
        for wrong in found.wrong:
            warn(path, wrong, warnings)
    return dict(sorted(known.items()))


def _files_of(folder: Path, run_id: str) -> list[Path]:
    """Where there may be cells of a run, the file that has the last word at the end."""
    own = cells_path(folder, run_id)
    return [*files_in(folder / "cells" / run_id), *([own] if os.path.lexists(own) else [])]


class Held(NamedTuple):
    """What a file holds: its cells, what is wrong with others, and whether it could be read at all."""

    cells: Known
    wrong: list[str]
    readable: bool


def _read(path: Path) -> Held:
    return _read_run(path) if path.parent.name == "cells" else _read_one(path)


def _read_one(path: Path) -> Held:
    """The one cell of a file of the earlier layout."""
    found = read_json(path, OLD, FORMAT)
    if found.content is None:
        return Held({}, [found.wrong], found.readable)
    cell = {k: v for k, v in found.content.items() if k != "format"}
    names = (f"{_stem(cell)}.json", cell["run_id"])
    wrong = [f"belongs to {n!a}" for n, own in zip(names, (path.name, path.parent.name), strict=True) if n != own]
    return Held({} if wrong else {_name(cell): cell}, wrong[:1], True)


def _read_run(path: Path) -> Held:
    """The cells of a run; one that does not fit spoils no other."""
    found, wrong = read_json(path, ALL, FORMAT), list[str]()
    cells = found.content["cells"] if found.content else []
    if found.content is None:
        some = read_json(path, SOME, FORMAT)
        if some.content is None:
            return Held({}, [some.wrong], some.readable)
        found = some
        for i, cell in enumerate(some.content["cells"]):
            try:
                cells.append(ONE.validate_python(cell))
            except ValidationError as error:
                wrong.append(f"cell {i} {unreadable(why(error))}")
    good = [cell for cell in cells if cell["run_id"] == path.stem]
    wrong += [f"belongs to {ascii(cell['run_id'])[:100]}" for cell in cells if cell["run_id"] != path.stem][:1]
    return Held({_name(cell): cell for cell in good}, wrong, True)


def _name(cell: Cell) -> tuple[str, str]:
    return cell["metric"], cell["key"]
