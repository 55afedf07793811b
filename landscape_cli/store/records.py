"""Run records, runs/<run_id>.json: one a finished run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from landscape_cli.store.files import write_many
from landscape_cli.store.folder import check_name
from landscape_cli.store.json_files import files_in, is_at, read_json, to_json


def write_runs(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write run records to runs/<run_id>.json.

    Args:
        folder: of the experiment.
        records: JSON-able, with their `run_id`.
    Raises: Fault, as `write_many`; ValueError for nan or inf, which the caller has to give as null.
    """
    write_many([(folder / "runs" / f"{check_name(record['run_id'])}.json", to_json(record)) for record in records])


def read_runs(folder: Path, warnings: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """All run records of an experiment; one that is garbled counts as missing.

    Args:
        folder: of the experiment; it may be missing.
        warnings: gets a line for each garbled file.
    Returns: by run_id, sorted.
    Raises: Fault if one is of a newer format.
    """
    records = {}
    for path in files_in(folder / "runs"):
        record = read_json(path, {"group", "seed", "swept", "status"}, warnings)
        if record is not None and is_at(path, f"{record.get('run_id')}.json", warnings):
            records[path.stem] = record
    return records
