"""CSV tables that read back exactly and compute nothing in a spreadsheet."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli.registry.errors import Fault
from landscape_cli.store.columns import IDENTITY, TYPES, row_of
from landscape_cli.store.files import no_link, remove, sync_folder, write_fault, write_many

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Columns of the contract with their types, in its order; a column not named here is what its cells are.
METRICS = IDENTITY | {
    "epoch": "Int64",
    "metric": "str",
    "setting": "str",
    "value": "float64",
    "standard_error": "float64",
}
METRICS |= {"samples": "Int64", "iterations": "Int64", "residual": "float64", "seconds": "float64"}
METRICS |= {"status": "str", "message": "str"}
INVARIANCE = {"run_id": "str", "metric": "str", "setting": "str", "transform": "str"}
INVARIANCE |= dict.fromkeys(("strength", "before", "after", "ratio", "standard_error", "tolerance"), "float64")
INVARIANCE |= {"claim": "str", "verdict": "str"}
CURVES = IDENTITY | {"epoch": "Int64", "setting": "str"}  # then the columns of the curve itself
KINDS = TYPES | METRICS | INVARIANCE | dict.fromkeys(("target", "split"), "str")

INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
FLOAT = re.compile(r"-?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(?:e[+-]?[0-9]+)?|-?inf", re.IGNORECASE)
FORMULA = re.compile(
    r"'*[=+\-@\t\r\n＝＋－＠]"
)  # what a spreadsheet computes; apostrophes, so that one can be taken off
ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def runs_table(records: Sequence[dict[str, Any]]) -> "DataFrame":
    """The table of runs.csv.

    Args:
        records: run records, in the order of the rows.
    Returns: a row a run; swept settings stand between seed and status, by their dotted keys.
    Raises: Fault if a record holds what is no column.
    """
    swept = dict.fromkeys(key for record in records for key in record["swept"])
    return _frame([row_of(record) for record in records], list(IDENTITY | swept | TYPES))


def metrics_table(
    cells: Iterable[dict[str, Any]], runs: Sequence[dict[str, Any]], metrics: Sequence[str] = ()
) -> "DataFrame":
    """The table of metrics.csv.

    Args:
        cells: finished cells; those of other runs are left out.
        runs: run records, in the order of the rows.
        metrics: names in the order of the rows within a run; others follow by name, shared intermediates last.
    Returns: a row a (run, metric, epoch, setting). A cell's seconds are split evenly over its rows: sums are right.
    """
    place = {run["run_id"]: i for i, run in enumerate(runs)}
    order = {name: i for i, name in enumerate(metrics)}
    rows = []
    for cell in cells:
        if (i := place.get(cell["run_id"])) is None:
            continue
        common = {
            "group": runs[i]["group"],
            "seed": runs[i]["seed"],
            "run_id": cell["run_id"],
            "metric": cell["metric"],
        }
        name, seconds = cell["metric"], cell["seconds"]
        first = (i, order.get(name, len(order)), name.startswith("_shared:"), name)
        for row in cell["rows"]:
            epoch = -1 if row["epoch"] is None else row["epoch"]  # the minimum first
            sort_by = (*first, _natural(row["setting"]), epoch, cell["key"])
            rows.append((sort_by, {**row, **common, "seconds": seconds and seconds / len(cell["rows"])}))
    rows.sort(key=lambda pair: pair[0])
    return _frame([row for _, row in rows], list(METRICS))


def invariance_table(rows: Sequence[dict[str, Any]]) -> "DataFrame":
    """The table of invariance.csv; a number that is not one is missing."""
    return _frame([{k: None if v != v else v for k, v in row.items()} for row in rows], list(INVARIANCE))


def lines_table(columns: dict[str, list[Any]]) -> "DataFrame":
    """A table of curves by their columns."""
    from pandas import DataFrame

    return DataFrame({name: _series(name, values) for name, values in columns.items()})


def curve_tables(cells: Iterable[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> "dict[str, DataFrame]":
    """The tables of tables/<metric>.csv: curves that a metric returns beside its values.

    Args:
        cells: finished cells; those of other runs are left out.
        runs: run records, in the order of the rows.
    Returns: by metric, sorted; a row a point of a curve, by run, setting and epoch, the minimum first.
    """
    place = {run["run_id"]: i for i, run in enumerate(runs)}
    found: dict[str, list[tuple[Any, dict[str, list[Any]]]]] = {}
    for cell in cells:
        if (i := place.get(cell["run_id"])) is None:
            continue
        for curve in cell.get("curves", []):
            own: dict[str, list[Any]] = dict(zip(curve["columns"], curve["values"], strict=True))
            points, epoch = max(map(len, own.values()), default=0), cell.get("epoch")
            known = (runs[i]["run_id"], runs[i]["group"], runs[i]["seed"], epoch, curve["setting"])
            sort_by = (i, _natural(curve["setting"]), -1 if epoch is None else epoch, cell["key"])
            columns = {name: [value] * points for name, value in zip(CURVES, known, strict=True)} | own
            found.setdefault(cell["metric"], []).append((sort_by, columns))
    return {
        metric: _joined([c for _, c in sorted(found[metric], key=lambda pair: pair[0])]) for metric in sorted(found)
    }


def _joined(curves: Sequence[dict[str, list[Any]]]) -> "DataFrame":
    """Curves below each other; a column that one of them lacks is empty there."""
    from pandas import DataFrame

    sizes = [len(curve["run_id"]) for curve in curves]
    joined = {
        name: [v for curve, n in zip(curves, sizes, strict=True) for v in curve.get(name, [None] * n)]
        for name in dict.fromkeys(name for curve in curves for name in curve)
    }
    return DataFrame({name: _series(name, values) for name, values in joined.items()})


@lru_cache(2**16)
def _natural(setting: str) -> list[str | float]:
    """Sort key in which rank=2 comes before rank=10, and eps=1e-4 before eps=0.001: text and numbers take turns."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", setting)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def table_bytes(frame: "DataFrame") -> bytes:
    """A table as CSV: UTF-8, a line a row; floats read back exactly, what is missing is empty.

    Text that a spreadsheet would compute gets a leading apostrophe; control characters are escaped as in Python.

    Args:
        frame: its index is not written.
    Returns: content of the file.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_shield(str(name)) for name in frame.columns])
    writer.writerows(zip(*(_cells(frame.iloc[:, j].tolist()) for j in range(frame.shape[1])), strict=True))
    return out.getvalue().encode()


def read_table(path: Path) -> "DataFrame":
    """A table as `table_bytes` wrote it: equal to the frame, types included; missing text is the empty text.

    Args:
        path: of the CSV file.
    Returns: columns of the types of the contract; others are integers, floats or text as their cells are.
    Raises: Fault if there is no such table, or it is garbled.
    """
    from pandas import DataFrame, Index

    csv.field_size_limit(2**31 - 1)  # the default would refuse long messages
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
        if len(columns) != len(header):
            raise ValueError("rows of different lengths")
    except (OSError, ValueError, csv.Error) as error:
        raise Fault(
            f"{path}: cannot be read as a table ({error}): make it again with the command that wrote it"
        ) from error
    names = [_unshield(name) for name in header]
    series = [_read_series(name, column) for name, column in zip(names, columns, strict=True)]
    frame = DataFrame(dict(enumerate(series)))
    frame.columns = Index(names, dtype="str")
    return frame


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> "DataFrame":
    from pandas import DataFrame

    return DataFrame({name: _series(name, [row.get(name) for row in rows]) for name in columns})


def _series(name: str, values: list[Any]) -> "Series[Any]":
    """A column of its contract's type if its values allow that, else of theirs."""
    from pandas import Series

    kind, types = KINDS.get(name), set(map(type, values))
    if types == {str} and kind == "str":
        return Series(values, dtype="str")
    if types <= {float, type(None)} and kind == "float64":
        return Series([float("nan") if value is None else value for value in values], dtype="float64")
    present = [value for value in values if value is not None]
    if kind == "str" or not all(_is_number(value) for value in present):
        return Series(["" if value is None else _text(value) for value in values], dtype="str")
    whole = all(isinstance(value, Integral) for value in present)
    if whole and (kind == "Int64" or (present and kind is None)):
        return Series(values, dtype="Int64")
    return Series([float("nan") if value is None else float(value) for value in values], dtype="float64")


def _is_number(value: Any) -> bool:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return -(2**63) <= int(value) < 2**63  # a larger one stays exact as text
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cells(values: list[Any]) -> list[str]:
    """A column as CSV; what is all text or all floats, as most columns are, goes without a look at each type."""
    kinds = set(map(type, values))
    if kinds == {str}:
        shielded = {text: _shield(text) for text in dict.fromkeys(values)}
        return [shielded[text] for text in values]
    if kinds == {float}:
        return ["" if value != value else repr(value) for value in values]
    return [_cell(value) for value in values]


def _cell(value: Any) -> str:
    from pandas import NA

    if isinstance(value, str):
        return _shield(value)
    if value is None or value is NA or value != value:
        return ""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    return repr(float(value)) if isinstance(value, Real) and not isinstance(value, bool) else _shield(_text(value))


def _read_series(name: str, cells: Sequence[str]) -> "Series[Any]":
    values = [None if KINDS.get(name) == "str" else _number(cell) for cell in cells]
    if all(value is not None or not cell for value, cell in zip(values, cells, strict=True)):
        return _series(name, values)
    return _series(name, [_unshield(cell) for cell in cells])  # one text makes the column text


def _number(cell: str) -> int | float | None:
    """Inverse of `_cell`; what is empty, or a number behind an apostrophe, is none."""
    if INTEGER.fullmatch(cell):
        return int(cell)
    return float(cell) if FLOAT.fullmatch(cell) else None


def _shield(text: str) -> str:
    text = "'" + text if FORMULA.match(text) else text
    if text.isprintable() and "\\" not in text:
        return text
    escaped = (c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def _unshield(cell: str) -> str:
    def character(match: re.Match[str]) -> str:
        short, *codes = match.groups()
        return (
            {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}[short]
            if short
            else chr(int("".join(filter(None, codes)), 16))
        )

    text = ESCAPE.sub(character, cell)
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write_curves(folder: Path, curves: dict[str, bytes], stale: Iterable[str]) -> None:
    """Write tables/<metric>.csv; the folder `tables` is made when there is one to write.

    Args:
        folder: of the experiment.
        curves: content by metric.
        stale: metrics that have none any more; their files are removed.
    Raises: Fault, as `write_many`.
    """
    place = folder / "tables"
    try:
        if curves and not place.is_dir():
            no_link(place).mkdir()
            sync_folder(folder)
    except OSError as error:
        raise write_fault(error, place) from error
    remove(folder, [place / f"{metric}.csv" for metric in stale])
    write_many([(place / f"{metric}.csv", data) for metric, data in curves.items()])
