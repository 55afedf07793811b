"""Training: which runs are missing, their stacks, and a record of each on disk as soon as it is finished."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from landscape_cli import config, engine, network, store, training
from landscape_cli.config import Run
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.experiment import stacks
from landscape_cli.experiment.result_tables import runs_table
from landscape_cli.experiment.session import Record, Session, writing
from landscape_cli.network import Network, Params
from landscape_cli.store import checkpoints
from landscape_cli.store.checkpoints import snapshot_file

if TYPE_CHECKING:
    from pandas import DataFrame

SAVE_EVERY = 10.0  # seconds between two saved states of a stack in training


def train_missing(session: Session, only: set[str] | None = None) -> dict[str, Record]:
    """Train every run that has no record, or what `only` names; returns all records of the experiment, in order.

    Each finished run is written at once: its minimum, then its record. Interrupted stacks go on from their last state.
    """
    records = session.finished()
    todo = [s for s in pending(session, records) if only is None or only & {run.run_id for run in s} - records.keys()]
    session.watch("train", {"runs": len(session.runs), "done": len(records), "stacks": len(todo)})
    for stack in todo:
        settings = stack[0].settings
        work = stacks.work(stack[0], session.module(settings), tuple(session.data(settings).x_train.shape))
        with engine.on_threads(training.threads(work, len(stack))):
            _train_stack(session, stack)
    records = session.finished()
    for ids in list(stacks.begun(session.folder)):
        if set(ids) <= records.keys():  # stopped after its last run was written and before it was cleaned up
            stacks.forget(session.folder, stacks.name_of(ids))
    return {run.run_id: records[run.run_id] for run in session.runs if run.run_id in records}


def pending(session: Session, records: dict[str, Record]) -> list[list[Run]]:
    """The stacks that are to be trained."""
    return stacks.plan(
        session.folder,
        session.runs,
        {run_id: record["stack"] for run_id, record in records.items()},
        lambda run: session.module(run.settings),
        lambda run: tuple(session.data(run.settings).x_train.shape),
    )


def _train_stack(session: Session, stack: list[Run]) -> None:
    settings, seeds = stack[0].settings, [run.seed for run in stack]
    data, net = session.data(settings), session.network(settings)
    params, buffers = network.stack([session.module(settings, seed) for seed in seeds])
    stacks.start(session.folder, stack)
    session.watch("stack", {"stack": stack})
    own = [run.settings.training for run in stack]
    state = stacks.load(session.folder, stack, list(params), session.device, session.warnings)
    state = state or training.begin(params, own[0])
    last = time.monotonic()

    def tick(state: training.State) -> None:
        nonlocal last
        session.watch("step", {"stack": stack, "state": state})
        if engine.interrupted() or time.monotonic() - last > SAVE_EVERY:
            stacks.save(session.folder, stack, state)
            last = time.monotonic()
        engine.check()

    for outcome in training.train(net, data, own, seeds, state, buffers, tick):
        run, first = stack[outcome.row], {n: p[outcome.row : outcome.row + 1] for n, p in params.items()}
        if outcome.epoch is not None:
            file = session.folder / snapshot_file(run.run_id, outcome.epoch)
            store.write(file, _minimum_bytes(session, run, outcome, first))
            continue
        record = _record(session, run, outcome, state, net, len(stack))
        data_bytes = _minimum_bytes(session, run, outcome, first)
        store.write(session.folder / record["minimum"]["file"], data_bytes)
        record["minimum"]["sha256"] = store.file_hash(session.folder / record["minimum"]["file"])
        record["stack"] = [member.run_id for member in stack]
        wanted = [e for e in run.settings.training.snapshots if e <= outcome.epochs]
        kept = {e: session.folder / snapshot_file(run.run_id, e) for e in wanted}
        record["snapshots"] = {str(e): store.file_hash(file) for e, file in kept.items() if file.is_file()}
        store.write_runs(session.folder, [record])
        session.watch("run", {"record": record})
    stacks.finish(session.folder, stack)


def _minimum_bytes(session: Session, run: Run, outcome: training.Outcome, first: Params) -> bytes:
    about = {"run_id": run.run_id, "seed": run.seed, "epoch": outcome.epochs, "settings": run.settings.hashed}
    about |= {"config_hash": config.digest(run.settings.hashed, 64), "data": session.data_hash(run.settings)}
    params, buffers, initial = (network.unstack(side, 0) for side in (outcome.params, outcome.buffers, first))
    return checkpoints.to_bytes(checkpoints.Minimum(params, buffers, initial, about))


def _record(
    session: Session, run: Run, outcome: training.Outcome, state: training.State, net: Network, size: int
) -> Record:
    """One row of runs.csv, with the training curve."""
    data = session.data(run.settings)
    scores: dict[str, float] = {}
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        at, theta = Objective(net, outcome.params, outcome.buffers, x, y), flatten(outcome.params)
        scores |= {f"{split}_loss": at.loss(theta).item(), f"{split}_accuracy": at.hits(theta).mean().item()}
    scores["loss_gap"] = scores["test_loss"] - scores["train_loss"]
    scores["accuracy_gap"] = scores["train_accuracy"] - scores["test_accuracy"]
    columns = {
        "run_id": run.run_id,
        "group": run.group,
        "seed": run.seed,
        "status": outcome.status,
        "epochs": outcome.epochs,
        "steps": outcome.steps,
        **scores,
        "seconds": state.seconds[outcome.row],
        "stack_size": size,
        "message": outcome.message,
    }
    beside = {
        "format": store.FORMAT,
        "swept": run.swept,
        "minimum": {"file": f"minima/{run.run_id}.safetensors"},
        "data": session.data_hash(run.settings),
        "history": state.history[outcome.row],
    }
    return store.run_record(columns, beside)


def forget(session: Session) -> None:
    """`--fresh`: remove records, cells, minima and saved states of the experiment's runs."""
    ids = {run.run_id for run in session.runs}
    for stack in list(stacks.begun(session.folder)):
        if ids & set(stack):
            stacks.forget(session.folder, stacks.name_of(stack))
    for run_id in ids:
        store.remove(
            session.folder,
            [
                session.folder / "runs" / f"{run_id}.json",
                *(session.folder / "minima").glob(f"{run_id}*.safetensors"),
                store.cells_path(session.folder, run_id),
                *(session.folder / "cells" / run_id).glob("*.json"),  # of the layout before
                *(session.folder / "cells" / run_id).glob("*.safetensors"),
            ],
        )


def train(session: Session, *, fresh: bool = False, wait: bool = False) -> DataFrame:
    """`landscape train`: every missing run, then runs.csv, which is returned."""
    with writing(session, wait):
        if fresh:
            forget(session)
        try:
            train_missing(session)
        finally:
            table = runs_table(session)
    return table
