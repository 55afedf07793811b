"""Finished cells, run x metric x setting: the truth from which all tables are made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from landscape_cli.registry.errors import Fault
from landscape_cli.store.files import file_hash, no_link, sync_folder, write_fault, write_many
from landscape_cli.store.folder import check_name
from landscape_cli.store.json_files import files_in, is_at, read_json, to_json, warn

METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,120}")


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
        warn(path, wrong, warnings)
    return not wrong


def write_cells(folder: Path, cells: Iterable[dict[str, Any]], files: Iterable[tuple[Path, bytes]] = ()) -> None:
    """Write cells, each to its `cell_path`; the folder of a run is made, the one of the experiment never.

    Args:
        folder: of the experiment.
        cells: JSON-able.
        files: path and content of what cells speak of (`vectors_path`); in place before them.
    Raises: Fault, as `write_many`; ValueError for nan or inf, which the caller has to give as null.
    """
    items = [(cell_path(folder, cell["run_id"], cell["metric"], cell["key"]), to_json(cell)) for cell in cells]
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
        run_ids = [path.name for path in files_in(folder / "cells", "")]
    cells = []
    for run_id in run_ids:
        for path in files_in(folder / "cells" / check_name(run_id)):
            cell = read_json(path, {"inputs", "rows", "seconds"}, warnings)
            name = f"{cell.get('metric')}-{cell.get('key')}.json".replace(":", "-") if cell else ""
            if cell is not None and is_at(path, name, warnings) and is_at(path.parent, cell.get("run_id"), warnings):
                cells.append(cell)
    return cells
