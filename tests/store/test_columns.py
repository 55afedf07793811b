"""Columns of a run: one list; what it does not know is an error, and no column is left without a value."""

from __future__ import annotations

import pytest
from rich.text import Text

from landscape_cli import store
from landscape_cli.cli import print_tables, terminal
from landscape_cli.registry.errors import Fault
from landscape_cli.report import page
from landscape_cli.store import columns

WHOLE = {c.name: None for c in columns.RUN_COLUMNS} | {"run_id": "r", "group": "g", "status": "ok"}


def test_a_record_has_every_column_and_no_other() -> None:
    assert columns.run_record(WHOLE, {"swept": {}}) == WHOLE | {"swept": {}}
    for name in columns.TYPES:
        with pytest.raises(Fault, match=f"{name}: no value"):
            columns.run_record({k: v for k, v in WHOLE.items() if k != name}, {})
    for about, beside in ((WHOLE | {"parameters": 3}, {}), (WHOLE, {"parameters": 3})):
        with pytest.raises(Fault, match=r"^run r: parameters: no such column: see RUN_COLUMNS in store/columns\.py$"):
            columns.run_record(about, beside)


def test_no_key_of_a_record_is_dropped_in_silence() -> None:
    with pytest.raises(Fault, match="run r: parameters: no column of this version"):
        store.runs_table([WHOLE | {"swept": {}, "parameters": 3}])
    older = {k: v for k, v in WHOLE.items() if k != "seconds"} | {"swept": {"training.lr": 0.1}}
    table = store.runs_table([older])
    assert list(table) == [*columns.IDENTITY, "training.lr", *list(columns.TYPES)[3:]]
    assert table["seconds"].isna().all()


def test_csv_terminal_and_report_read_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column more, by its row alone."""
    more = columns.Column("parameters", "Int64", "numbers", "size of the network", "size")
    monkeypatch.setattr(print_tables, "RUN_COLUMNS", (*columns.RUN_COLUMNS, more))
    monkeypatch.setitem(columns.TYPES, "parameters", "Int64")
    table = store.runs_table([WHOLE | {"swept": {}, "parameters": 1234567}])
    assert list(table)[-1] == "parameters" and str(table["parameters"].dtype) == "Int64"
    shown: list[list[str]] = []
    monkeypatch.setattr(terminal, "add_row", lambda view, cells, style: shown.append(cells))
    print_tables.runs(table)
    assert shown[0][0] == "r" and shown[0][-1] == "1234567" and Text(more.heading)
    assert more.meaning == "size of the network (numbers)"
    assert set(page.RUN_MEANINGS) == {c.name for c in columns.RUN_COLUMNS if c.in_report}


def test_every_column_is_described() -> None:
    for column in columns.RUN_COLUMNS:
        assert column.description and not column.description.endswith("."), column
    assert list(columns.IDENTITY) == ["run_id", "group", "seed"]
