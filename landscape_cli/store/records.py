"""Run records, runs/<run_id>.json: one a finished run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic takes the one of `typing` from Python 3.12 on only

from landscape_cli.store.files import Seen, write_many
from landscape_cli.store.folder import check_name
from landscape_cli.store.json_files import FORMAT, Found, files_in, is_at, read_json, to_json, warn

EXACT = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # what a later version adds is kept
SCORES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "loss_gap", "accuracy_gap")


class MinimumFile(TypedDict):
    """Where a minimum lies, and what it is."""

    file: str
    sha256: str


@with_config(EXACT)
class History(TypedDict):
    """The curve of training: a value of each at every look."""

    epoch: list[int]
    step: list[int]
    train_loss: list[float | None]


@with_config(EXACT)
class RunRecord(TypedDict):
    """A finished run. What is null in that of a checkpoint trained elsewhere is a number in one of ours."""

    format: int
    run_id: str
    group: str
    seed: int | None
    swept: dict[str, Any]
    status: str
    epochs: int | None
    steps: int | None
    seconds: float | None
    stack_size: int
    message: str
    minimum: MinimumFile
    stack: list[str]
    history: History
    data: NotRequired[str]  # hash of the user's own data file; older records have none
    snapshots: NotRequired[dict[str, str]]  # epoch -> hash of its file


def _whole(record: RunRecord) -> RunRecord:
    """Refuse a run of ours that lacks a number; the losses of one that diverged may be none."""
    if record["epochs"] is record["steps"] is record["seconds"] is None:
        return record
    due = ("seed", "epochs", "steps", "seconds", *(SCORES if record["status"] != "diverged" else ()))
    if missing := [name for name in due if record.get(name) is None]:
        raise ValueError(f"no {missing[0]}")
    return record


SCHEMA: TypeAdapter[Any] = TypeAdapter(Annotated[RunRecord, AfterValidator(_whole)])


def write_runs(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write run records to runs/<run_id>.json.

    Args:
        folder: of the experiment.
        records: JSON-able, with their `run_id`.
    Raises: Fault, as `write_many`; ValueError for nan or inf, which the caller has to give as null.
    """
    write_many([(folder / "runs" / f"{check_name(record['run_id'])}.json", to_json(record)) for record in records])


def read_runs(folder: Path, warnings: list[str] | None = None, seen: Seen | None = None) -> dict[str, dict[str, Any]]:
    """All run records of an experiment; one that is garbled or lacks something counts as missing.

    Args:
        folder: of the experiment; it may be missing.
        warnings: gets a line for each that does not count.
        seen: what was read before.
    Returns: by run_id, sorted.
    Raises: Fault if one is of a newer format.
    """
    seen, records = seen or Seen(), {}
    for path in files_in(folder / "runs"):
        record, wrong, _ = seen.read(path, _read)
        if record is None:
            warn(path, wrong, warnings)
        elif is_at(path, f"{record['run_id']}.json", warnings):
            records[path.stem] = record
    return records


def _read(path: Path) -> Found:
    return read_json(path, SCHEMA, FORMAT)
