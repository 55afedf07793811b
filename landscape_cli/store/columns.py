"""The columns of a run, the one list that runs.csv, the terminal, the report and the docs read.

A column is a row here, and its value where `run_record` is called (experiment/train_runs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from landscape_cli.registry.errors import Fault


@dataclass(frozen=True)
class Column:
    """One column of runs.csv."""

    name: str
    type: Literal["str", "Int64", "float64"]  # of pandas
    unit: str
    description: str
    heading: str = ""  # in the terminal's table, which is narrow; empty: not there
    in_report: bool = True
    outcome: bool = False  # what a run came to, which is compared beside the metrics

    @property
    def meaning(self) -> str:
        """The description with its unit."""
        return f"{self.description} ({self.unit})" if self.unit else self.description


RUN_COLUMNS = (
    Column("run_id", "str", "", "name of the run: its settings, seed and a hash of both", "run"),
    Column("group", "str", "", "what the comparison is by"),
    Column("seed", "Int64", "", "of initialization and shuffling"),
    # here the settings that the experiment sweeps, by their dotted keys
    Column("status", "str", "", "ok, or why the run is left out of the comparison", "status"),
    Column("epochs", "Int64", "", "passes over the training set", "epochs"),
    Column("steps", "Int64", "", "minibatch updates", "steps"),
    Column("train_loss", "float64", "nats", "mean loss on the training set", "train loss", outcome=True),
    Column("train_accuracy", "float64", "", "share of the training set that is right", outcome=True),
    Column("test_loss", "float64", "nats", "mean loss on the test set", "test loss", outcome=True),
    Column("test_accuracy", "float64", "", "share of the test set that is right", "test acc.", outcome=True),
    Column("loss_gap", "float64", "nats", "test loss minus train loss", outcome=True),
    Column("accuracy_gap", "float64", "", "train accuracy minus test accuracy", outcome=True),
    Column("seconds", "float64", "s", "training time of the run's stack, shared among its runs", "s"),
    Column("stack_size", "Int64", "", "runs that were trained together", in_report=False),
    Column("message", "str", "", "what stands behind a status that is not ok", in_report=False),
)
IDENTITY = {c.name: c.type for c in RUN_COLUMNS[:3]}  # what the other tables of runs begin with
TYPES = {c.name: c.type for c in RUN_COLUMNS}
OUTCOMES = tuple(c.name for c in RUN_COLUMNS if c.outcome)
BESIDE = {"format", "swept", "minimum", "stack", "snapshots", "data", "history"}  # in a record, but no column
SWEPT = "setting that the experiment sweeps"


def run_record(columns: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """A run record of a value for each column, and of what goes beside them.

    Raises: Fault if a column has no value, or a value no column.
    """
    wrong = [f"{name}: no value" for name in TYPES if name not in columns]
    wrong += [f"{name}: no such column" for name in [*columns.keys() - TYPES.keys(), *beside.keys() - BESIDE]]
    if wrong:
        raise Fault(f"run {columns.get('run_id')}: {', '.join(wrong)}: see RUN_COLUMNS in store/columns.py", code=1)
    return {**columns, **beside}


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's row of runs.csv; columns that are younger than it are empty.

    Raises: Fault if it holds what is no column.
    """
    if unknown := record.keys() - TYPES.keys() - BESIDE:
        names = ", ".join(sorted(unknown))
        wrong = f"{names}: no column of this version, so its record was written by another one: upgrade landscape-cli"
        raise Fault(f"run {record['run_id']}: {wrong}")
    return {**dict.fromkeys(TYPES), **record["swept"], **record}
