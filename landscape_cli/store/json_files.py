"""JSON files of the results folder: written canonically, read with mistrust against a schema."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from landscape_cli.registry.errors import Fault

FORMAT = 1  # of run records and the manifest
CONSTANTS = (b"NaN", b"Infinity")  # which are not JSON, but taken for it


class Found(NamedTuple):
    """What a file holds: `content` is None if that is nothing of ours, and `wrong` says why."""

    content: dict[str, Any] | None
    wrong: str = ""
    readable: bool = True  # whatever it is


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


def read_json(path: Path, schema: TypeAdapter[Any], newest: int) -> Found:
    """An object of ours that fits a schema with a `format`.

    Args:
        path: of the file.
        schema: of its content.
        newest: format that is known.
    Returns: what there is; what does not fit, as read, only if the file says that it is ours.
    Raises: Fault if it is of a newer format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return Found(None, unreadable(error.strerror or error), False)
    try:
        content = None if any(c in data for c in CONSTANTS) else schema.validate_json(data)
    except ValidationError:
        content = None
    if content is None:
        return _read_again(path, data, schema, newest)
    _check_format(path, content, newest)
    return Found(content)


def _read_again(path: Path, data: bytes, schema: TypeAdapter[Any], newest: int) -> Found:
    """What is wrong with a file that does not fit: of a newer format it need not."""
    try:
        content = json.loads(data, parse_constant=_refuse)
        if not isinstance(content, dict) or type(content.get("format")) is not int:
            raise ValueError("not a record of ours")
        _check_format(path, content, newest)
        return Found(schema.validate_python(content))
    except ValidationError as error:
        return Found(None, unreadable(why(error)))
    except (ValueError, RecursionError) as error:
        return Found(None, unreadable(error))


def _check_format(path: Path, content: dict[str, Any], newest: int) -> None:
    if content["format"] > newest:
        wrong = f"has format {content['format']}, this version reads up to {newest}: upgrade landscape-cli"
        raise Fault(f"{path}: {wrong}")


def why(error: ValidationError) -> str:
    """The first thing that does not fit a schema."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def unreadable(error: Exception | str) -> str:
    """That a file is of no use, and why."""
    return f"cannot be read ({ascii(str(error))[1:-1][:100]})"


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
