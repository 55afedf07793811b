"""The same steps for networks trained elsewhere: checkpoints of the user's own."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli import config, store
from landscape_cli.config import Experiment
from landscape_cli.experiment.measure import measure_missing
from landscape_cli.experiment.result_tables import metrics_table
from landscape_cli.experiment.session import Record, Session, open_session, writing
from landscape_cli.store import checkpoints
from landscape_cli.store.columns import OUTCOMES

if TYPE_CHECKING:
    from pandas import DataFrame


def measure_checkpoints(
    experiment: Experiment,
    paths: list[Path],
    results: Path,
    wanted: list[config.Measurement],
    device: str,
    watch: Any,
) -> tuple[Session, DataFrame]:
    """`landscape measure CHECKPOINT... --config CONFIG`: the same metrics on networks trained elsewhere.

    They are kept in a folder of their own, `results/<name>-checkpoints`: the experiment's tables stay as they are.
    """
    session, loaded = adopting(experiment, paths, results, device, watch)
    with writing(session):
        records = adopt(session, loaded)
        settings_of = dict.fromkeys(records, session.runs[0].settings)
        try:
            measure_missing(session, records, wanted, settings_of)
        finally:
            table = metrics_table(session, records, settings_of)
        for record in records.values():
            own = table[(table["run_id"] == record["run_id"]) & (table["setting"] == "")]
            scores = dict(zip(own["metric"], own["value"], strict=True))
            record |= {k: scores.get(k) for k in OUTCOMES}
        write_adopted(session, records)
    return session, table


def adopting(
    experiment: Experiment, paths: list[Path], results: Path, device: str, watch: Any
) -> tuple[Session, dict[Path, checkpoints.Minimum]]:
    """A session in a folder of its own, and the checkpoints, read; nothing is written."""
    base = experiment.model_copy(update={"grid": {}, "compare": None, "seeds": 1, "along": False})
    session = open_session(base, results, device, watch)
    module = session.module(session.runs[0].settings)
    loaded = {path: checkpoints.read(path, module) for path in paths}
    session.folder = session.folder.with_name(f"{experiment.name}-checkpoints")
    return session, loaded


def adopt(session: Session, loaded: dict[Path, checkpoints.Minimum]) -> dict[str, Record]:
    """Copies of checkpoints among the minima, and their records."""
    records = {}
    for path, minimum in loaded.items():
        own_data = {"data": session.data_hash(session.runs[0].settings)}  # other data: its cells are no longer true
        data = checkpoints.to_bytes(replace(minimum, metadata=minimum.metadata | own_data))
        sha = hashlib.sha256(data).hexdigest()
        run_id = f"{safe_stem(path)}-{sha[:8]}"
        file = f"minima/{run_id}.safetensors"
        store.write(session.folder / file, data)
        about = {"run_id": run_id, "group": "checkpoint", "seed": minimum.metadata.get("seed")}
        beside = {"minimum": {"file": file, "sha256": sha}, "stack": [run_id]}
        records[run_id] = store.run_record(CHECKPOINT | about, BESIDE | beside)
    return records


def safe_stem(path: Path) -> str:
    """What of a file's name a folder or file may be called: ASCII, letters without their accents."""
    letters = unicodedata.normalize("NFKD", path.stem)
    plain = (c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in letters if not unicodedata.combining(c))
    return "".join(plain).strip("-._")[:50] or "checkpoint"


def write_adopted(session: Session, records: dict[str, Record]) -> None:
    """Their records and runs.csv."""
    store.write_runs(session.folder, records.values())
    store.write(session.folder / "runs.csv", store.table_bytes(store.runs_table(list(records.values()))))


# What is known of a network that was trained elsewhere.
CHECKPOINT = {column.name: None for column in store.RUN_COLUMNS} | {"status": "ok", "stack_size": 1, "message": ""}
BESIDE = {"format": store.FORMAT, "swept": {}, "history": {"epoch": [], "step": [], "train_loss": []}}
