"""What runs were on their way: the snapshots that training keeps, as records that are measured like those of minima."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from landscape_cli.config import Settings
from landscape_cli.experiment.session import Record, Session
from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints
from landscape_cli.store.checkpoints import snapshot_file
from landscape_cli.training import batch_of, scaling


def epochs(settings: Settings, record: Record | None = None) -> list[int]:
    """Epochs at which a run keeps a snapshot: those that it is told to, up to where it ends.

    Args:
        settings: resolved, of the run.
        record: of the finished run; without it, the end is the limit.
    """
    end = settings.training.stop.max_epochs if record is None else record["epochs"]
    return [epoch for epoch in settings.training.snapshots if end is not None and epoch <= end]


def at_epoch(session: Session, record: Record, epoch: int) -> Record | None:
    """The record of a run with a snapshot in the place of its minimum, its `epoch` beside it.

    Args:
        session: its folder, and where a warning goes if the file is missing.
        record: of the finished run.
        epoch: one of `epochs`.
    Returns: None if the file is missing.
    Raises: Fault if it is damaged.
    """
    run_id, file = record["run_id"], snapshot_file(record["run_id"], epoch)
    path = session.folder / file
    if not path.is_file():
        session.warnings.append(f"{path}: missing, what it was is left out: {_remedy(session, run_id)}")
        return None
    sha = session.seen.hash(path)
    if record.get("snapshots", {}).get(str(epoch), sha) != sha:
        raise Fault(f"{path}: damaged, its hash is not the one that was recorded: {_remedy(session, run_id)}")
    return record | {"epoch": epoch, "epochs": epoch, "minimum": {"file": file, "sha256": sha}}


def _remedy(session: Session, run_id: str) -> str:
    return f"delete {session.folder / 'runs' / run_id}.json and train again"


def by_epoch(
    session: Session, records: Mapping[str, Record], settings_of: Mapping[str, Settings]
) -> list[dict[str, Record]]:
    """What there is on the way, epoch by epoch: run id -> the record of the run at that snapshot."""
    found: dict[int, dict[str, Record]] = {}
    for run_id, record in records.items():
        if record["status"] == "diverged":
            continue
        for epoch in epochs(settings_of[run_id], record):
            snapshot = at_epoch(session, record, epoch)
            if snapshot:
                found.setdefault(epoch, {})[run_id] = snapshot
    return [found[epoch] for epoch in sorted(found)]


def read(session: Session, record: Record, module: nn.Module) -> checkpoints.Minimum:
    """The network of a record that `at_epoch` gave.

    Raises: Fault if the file is not readable, or is one of another run or epoch.
    """
    path, remedy = session.folder / record["minimum"]["file"], _remedy(session, record["run_id"])
    try:
        found = checkpoints.read(path, module)
    except Fault as fault:
        raise Fault(f"{fault}: {remedy}", fault.code) from None
    said = (found.metadata.get("run_id"), found.metadata.get("epoch"))
    if said != (record["run_id"], record["epoch"]):
        raise Fault(f"{path}: holds {said[0]} at epoch {said[1]}: {remedy}")
    return found


def training_facts(session: Session, record: Record, settings: Settings) -> dict[str, Any] | None:
    """How a network came about, as `Point.training` has it.

    Args:
        session: its data say how many samples `full` is.
        record: of the run, or of one of its snapshots.
        settings: of the run itself; those of its stack may differ.
    Returns: steps and epochs up to there; lr as the optimizer takes it, scaled by the batch size but without warm-up
        and schedule; batch_size in samples; history up to there, name -> list. None for a checkpoint of the user's.
    """
    if record["steps"] is None:
        return None
    own, n = settings.training, len(session.data(settings).y_train)
    batch, history = batch_of(own, n), record["history"]
    steps = record["epoch"] * -(-n // batch) if "epoch" in record else record["steps"]
    lr = own.lr * scaling(own, batch)
    passed = [i for i, epoch in enumerate(history["epoch"]) if epoch <= record["epochs"]]
    known = {name: [values[i] for i in passed] for name, values in history.items()}
    return {"steps": steps, "epochs": record["epochs"], "lr": lr, "batch_size": batch, "history": known}


def before_the_end(session: Session, record: Record, settings: Settings) -> list[Record]:
    """Records of a run's snapshots, but for one that is the minimum itself."""
    early = [e for e in epochs(settings, record) if e < record["epochs"]]
    return [one for e in early if (one := at_epoch(session, record, e))]
