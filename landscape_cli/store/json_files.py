"""JSON files of the results folder: written canonically, read with mistrust."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from landscape_cli.registry.errors import Fault

FORMAT = 1  # of run records, cells and the manifest


def files_in(folder: Path, suffix: str = ".json") -> list[Path]:
    """Paths of the files with this ending in a folder, sorted; none if it is missing."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.endswith(suffix) and not name.startswith(".")]


def to_json(value: Any) -> bytes:
    """Canonical JSON with a newline at the end; ValueError for nan or inf."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def read_json(path: Path, required: set[str], warnings: list[str] | None) -> dict[str, Any] | None:
    """An object of ours; None, with a warning, if it is missing, garbled or lacks what is required.

    Raises: Fault if it is of a newer format.
    """
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
        warn(path, f"cannot be read ({ascii(str(error))[1:-1][:100]})", warnings)
        return None
    return record


def is_at(path: Path, name: Any, warnings: list[str] | None) -> bool:
    """Whether a file lies under the name that its content gives it; else a warning."""
    if path.name != name:
        warn(path, f"belongs to {ascii(name)[:100]}", warnings)
    return bool(path.name == name)


def warn(path: Path, wrong: str, warnings: list[str] | None) -> None:
    """Note that a file is taken as missing."""
    if warnings is not None:
        warnings.append(f"{path}: {wrong}: taken as missing, will be made again")


def utc(time: datetime) -> str:
    """ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).isoformat(timespec="seconds")
