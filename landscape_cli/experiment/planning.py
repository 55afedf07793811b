"""What is done, what is left to do and why; writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from landscape_cli import config
from landscape_cli.experiment import cell_records, snapshots, stacks
from landscape_cli.experiment.session import Record, Session
from landscape_cli.experiment.train_runs import pending


def plan(session: Session) -> dict[str, Any]:
    """`landscape show`: runs and stacks, what is done, what is left and why. Writes nothing."""
    records = session.finished()
    todo = pending(session, records)
    begun = {tuple(ids) for ids in stacks.begun(session.folder)} if session.folder.is_dir() else set()
    settings_of = {run.run_id: run.settings for run in session.runs}
    wanted, along = config.measurements(session.experiment), session.experiment.along
    done = {(c["run_id"], c["metric"], c["key"]) for c in cell_records.current(session, records, settings_of)}
    cells = [
        (run.run_id, what[0], key(what, epoch))
        for run in session.runs
        for key in (cell_records.keys_of(run.settings),)
        for epoch in (None, *(snapshots.epochs(run.settings, records.get(run.run_id)) if along else ()))
        for what in wanted
    ]
    return {
        "runs": len(session.runs),
        "trained": len(records),
        "stacks": [
            {
                "runs": [run.run_id for run in stack],
                "why": "goes on from its saved state" if tuple(r.run_id for r in stack) in begun else "not trained yet",
            }
            for stack in todo
        ],
        "cells": len(cells),
        "measured": sum(cell in done for cell in cells),
        "seconds_left": _time_left(session, records, todo),
        "free_bytes": shutil.disk_usage(_existing(session.folder)).free,
    }


def _existing(path: Path) -> Path:
    return path if path.is_dir() else _existing(path.parent) if path != path.parent else path


def _time_left(session: Session, records: dict[str, Record], todo: list[list[config.Run]]) -> float | None:
    """Seconds that the missing runs will take if they take as long as finished ones of their group; None if unknown."""
    by_group: dict[str, list[float]] = {}
    for record in records.values():
        by_group.setdefault(record["group"], []).append(record["seconds"])
    missing = [run.group for stack in todo for run in stack if run.run_id not in records]
    if not set(missing) <= by_group.keys():
        return None
    return sum(sum(by_group[g]) / len(by_group[g]) for g in missing)
